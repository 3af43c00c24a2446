"""PXELINUX and lpxelinux 6, on a PC's BIOS: `pxelinux.cfg/default`, and a file for each host.

The first fetches by TFTP alone and gets fragments without `http`; the second takes URLs.
"""

from __future__ import annotations

from buildlib.bootloaders import arguments, entry_path, is_url, line, suffix, wants_bootif
from buildlib.bootmenu import BootEntry, BootHost, BootMenu, UnquotableError, plain

FRAGMENT = "pxelinux.cfg"

_ARCH = "amd64"


def fragment(entry: BootEntry, http: str | None) -> str | None:
    """A label. PXELINUX knows no HTTPS and no other architecture, and chains to what starts as a kernel alone."""
    body = _body(entry, http)
    if body is None:
        return None
    return (
        "\n".join([f"LABEL {entry.id}", f"\tMENU LABEL {_title(entry.title)}", *(f"\t{text}" for text in body)]) + "\n"
    )


def menu(menu: BootMenu) -> dict[str, str]:
    """The menu, and each host's own."""
    return {"pxelinux.cfg/default": _config(menu, None)} | {
        f"pxelinux.cfg/{host.folder}": _config(menu, host) for host in menu.hosts
    }


def _body(entry: BootEntry, http: str | None) -> list[str] | None:
    if _left_out(entry, http):
        return None
    if entry.local:
        return ["LOCALBOOT 0"]
    if entry.chain is not None:
        return [f"LINUX {entry.chain}"]
    args = arguments("pxelinux", entry.cmdline)
    text = line(args)
    if "initrd=" in text:
        raise UnquotableError(f"pxelinux: loads what initrd= names; an entry has initrds of its own: {text}")
    if text == "-":
        raise UnquotableError("pxelinux: reads a command line of '-' as none")
    kernel, *initrds = _places(entry, http)
    # 2 adds BOOTIF alone. 3 adds ip= too, and a command line with ip=dhcp would have two of them.
    return [
        f"LINUX {kernel}",
        *([f"INITRD {','.join(initrds)}"] if initrds else []),
        *([f"APPEND {text}"] if text else []),
        *(["SYSAPPEND 2"] if wants_bootif(entry, args) else []),
    ]


def _left_out(entry: BootEntry, http: str | None) -> str | None:
    """Why PXELINUX can't boot an entry."""
    if entry.arch not in (None, _ARCH):
        return f"it is for {entry.arch}"
    places = _places(entry, http)
    if http is None and any(map(is_url, places)):
        return "PXELINUX knows TFTP alone"
    if any(is_url(place) and not place.lower().startswith("http://") for place in places):
        return "PXELINUX knows no HTTPS"
    if any("," in place for place in places[1:]):
        return "PXELINUX reads a comma as the end of an initrd's name"
    # lpxelinux 6.04 fetches a .kpxe by HTTP, and hangs when it starts it.
    if entry.chain is not None and suffix(entry.chain) != "lkrn":
        return "PXELINUX chains to what starts as a kernel (.lkrn) alone"
    return None if entry.kernel or entry.chain or entry.local else "there is nothing to boot"


def _places(entry: BootEntry, http: str | None) -> list[str]:
    """Kernel and initrds, or what is chained to. A path is relative to the folder of pxelinux.0, the boot root."""
    places = [place for place in (entry.chain, entry.kernel, *entry.initrds) if place is not None]
    return [place if is_url(place) or http is None else f"{http}/{place}" for place in places]


def _title(title: str) -> str:
    """A caret would mark a key."""
    return plain(title).replace("^", "?").strip() or "-"


def _config(menu: BootMenu, host: BootHost | None) -> str:
    reasons = {entry.id: _left_out(entry, menu.http) for entry in menu.entries}
    default = (menu.defaults(host) if host else menu.default).get(_ARCH)
    lines = [f"# {plain(host.name if host else menu.title)}"]
    if default is None or reasons.get(default, "it is not there"):
        # Without one the first label would boot: it waits for a person.
        lines += ["UI menu.c32", f"MENU TITLE {_title(menu.title)}", "TIMEOUT 0"]
    elif menu.timeout:
        lines += [
            "UI menu.c32",
            f"MENU TITLE {_title(menu.title)}",
            f"DEFAULT {default}",
            f"TIMEOUT {menu.timeout * 10}",
        ]
        lines += [f"ONTIMEOUT {default}"]
    else:
        lines += [f"DEFAULT {default}", "PROMPT 0"]
    lines.append("")
    for entry in menu.entries:
        if reasons[entry.id]:
            lines.append(f"# {entry.id} is left out: {reasons[entry.id]}.")
        else:
            own = host.folder if host and entry.id in host.own else None
            lines.append(f"INCLUDE {entry_path(entry.id, FRAGMENT, own)}")
    return "\n".join(lines) + "\n"
