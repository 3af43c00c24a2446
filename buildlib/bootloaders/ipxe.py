"""iPXE, of any firmware and architecture: `boot.ipxe`, and `autoexec.ipxe`, which an iPXE without a script wants."""

from __future__ import annotations

from buildlib.bootloaders import arguments, entry_path, is_url, line, suffix, wants_bootif
from buildlib.bootmenu import HOSTS, IPXE_SCRIPT, BootEntry, BootHost, BootMenu, UnquotableError, plain

FRAGMENT = "boot.ipxe"

_ARCHES = {"x86_64": "amd64", "i386": "amd64", "arm64": "arm64"}
"""Debian architecture by ${buildarch}; a BIOS build says i386 on 64-bit machines too."""

_PLATFORMS = {"efi": "efi", "0": "pcbios", "kpxe": "pcbios", "kkpxe": "pcbios", "pxe": "pcbios", "lkrn": "pcbios"}
"""${platform} that a boot loader is for, by its file's suffix; others are scripts."""

_MAC = "01-${netX/mac:hexhyp}"


def fragment(entry: BootEntry, http: str | None) -> str | None:
    """A script that boots an entry, and returns when it can't; after `local` it returns without an error."""
    if entry.local:
        # A BIOS may not go on with its disk by itself.
        body = ["iseq ${platform} pcbios && sanboot --no-describe --drive 0x80 ||", "exit 0"]
    elif entry.chain is not None:
        body = ["imgfree", f"chain --autofree {_place(entry.chain, http)}"]
    elif entry.kernel is not None:
        args = arguments("ipxe", entry.cmdline)
        text = _verbatim(line(args))
        bootif = f"BOOTIF={_MAC}" if wants_bootif(entry, args) else ""
        # What an earlier try left, and iPXE's own scripts, would be unpacked as initrds.
        body = [
            "imgfree",
            " ".join(filter(None, ["kernel", _place(entry.kernel, http), text, bootif])),
            *(f"initrd {_place(initrd, http)}" for initrd in entry.initrds),
            "boot",
        ]
    else:
        return None
    return "\n".join(["#!ipxe", f"echo Loading {_title(entry.title)} ...", *body]) + "\n"


def menu(menu: BootMenu) -> dict[str, str]:
    """The menu, the way to it, and for each host the default and the variants that it has."""
    return {IPXE_SCRIPT: _main(menu), "autoexec.ipxe": _AUTOEXEC} | {
        f"ipxe/hosts/{host.folder}.ipxe": _host(host, menu) for host in menu.hosts
    }


def _place(place: str, http: str | None) -> str:
    """A path is relative to the server that the running script came from."""
    if "${" in place:
        raise UnquotableError(f"ipxe: would put a setting in the place of ${{: {place}")
    if is_url(place):
        return place
    return f"/{place}" if http is None else f"{http}/{place}"


def _verbatim(text: str) -> str:
    """A command line that iPXE hands on as it is; it has no quotes of its own."""
    if "${" in text:
        raise UnquotableError(f"ipxe: would put a setting in the place of ${{: {text}")
    if "  " in text:
        raise UnquotableError(f"ipxe: makes one blank of several: {text}")
    for word in text.split(" "):
        if word in ("&&", "||", ";") or word.startswith("#"):
            raise UnquotableError(f"ipxe: ends a command at {word}: {text}")
    if text.endswith("\\"):
        raise UnquotableError(f"ipxe: goes on with the next line after a backslash: {text}")
    return text


def _title(title: str) -> str:
    """Words that iPXE doesn't take for its own."""
    text = " ".join(plain(title).replace("${", "$ {").split())
    return " ".join("?" if word in ("&&", "||", ";") or word[0] == "#" else word for word in text.split()).rstrip("\\")


def _when(entry: BootEntry) -> str:
    """What must hold before a command on machines that can boot an entry."""
    platform = _PLATFORMS.get(suffix(entry.chain)) if entry.chain is not None else None
    arch = f"iseq ${{boot-arch}} {entry.arch} && " if entry.arch else ""
    return arch + (f"iseq ${{platform}} {platform} && " if platform else "")


def _default(menu: BootMenu, default: str, arch: str | None = None) -> list[str]:
    """Sets it on machines that can boot it; of a default that isn't there, iPXE would make the first entry."""
    only = f"iseq ${{boot-arch}} {arch} && " if arch else ""
    return [
        f"{only}{_when(entry).removeprefix(only)}set boot-default {default} ||"
        for entry in menu.entries
        if entry.id == default and (arch is None or entry.arch in (None, arch))
    ]


def _main(menu: BootMenu) -> str:
    # Without a default nothing boots by itself.
    timed = f"--timeout {menu.timeout * 1000} " if menu.timeout else ""
    lines = [
        "#!ipxe",
        f"# {_title(menu.title)}",
        "isset ${netX/ip} || dhcp ||",
        *(f"iseq ${{buildarch}} {build} && set boot-arch {arch} ||" for build, arch in _ARCHES.items()),
        "clear boot-default ||",
        *(text for arch, default in menu.default.items() for text in _default(menu, default, arch)),
        *([f"chain --autofree ipxe/hosts/{_MAC}.ipxe ||"] if menu.hosts else []),
        "",
        ":start",
        *([] if menu.timeout else ["isset ${boot-default} && set boot-entry ${boot-default} && goto chosen ||"]),
        "",
        ":ask",
        f"menu {_title(menu.title)}",
        *(f"{_when(entry)}item {entry.id} {_title(entry.title)} ||" for entry in menu.entries),
        "isset ${boot-default} || goto wait",
        f"choose {timed}--default ${{boot-default}} boot-entry && goto chosen || exit",
        ":wait",
        "choose boot-entry && goto chosen || exit",
        "",
        ":chosen",
        f"chain --autofree {entry_path('${boot-entry}', '${boot-own-${boot-entry}}' + FRAGMENT)} && exit ||",
        "echo ${boot-entry} does not boot",
        "prompt --key m --timeout 10000 Trying again in 10 s, m for the menu && goto ask || goto start",
    ]
    return "\n".join(lines) + "\n"


_AUTOEXEC = f"""\
#!ipxe
# On UEFI, iPXE runs this from the folder that it was loaded from, before it asks DHCP for a file: that would be
# itself again. undionly.kpxe of a BIOS has no such step: there DHCP must tell iPXE by its user class.
imgfree autoexec.ipxe ||
:start
isset ${{netX/ip}} || dhcp ||
chain --autofree {IPXE_SCRIPT} && exit ||
chain --autofree tftp://${{next-server}}/{IPXE_SCRIPT} && exit ||
echo No {IPXE_SCRIPT}: trying again in 10 s
sleep 10
goto start
"""


def _host(host: BootHost, menu: BootMenu) -> str:
    lines = [
        "#!ipxe",
        f"# {_title(host.name)}",
        *(["clear boot-default ||", *_default(menu, host.entry)] if host.entry is not None else []),
        *(f"set boot-own-{entry} {HOSTS}/{host.folder}/" for entry in host.own),
    ]
    return "\n".join(lines) + "\n"
