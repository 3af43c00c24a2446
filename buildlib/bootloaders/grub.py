"""GRUB 2.12 and newer, on UEFI: `grub/grub.cfg`, and a way to it for machines that boot from their disk."""

from __future__ import annotations

import re
from collections.abc import Mapping

from buildlib.bootloaders import arguments, entry_path, is_url, suffix, wants_bootif
from buildlib.bootmenu import BootEntry, BootHost, BootMenu, UnquotableError, plain

FRAGMENT = "grub.cfg"

_CPUS = {"amd64": "x86_64", "arm64": "arm64"}
"""$grub_cpu by Debian architecture."""

_BARE = re.compile(r"[A-Za-z0-9_./:,=@%+-]+")


def quote(text: str) -> str:
    """A word of a script that GRUB takes as it is. A word with a line's end has none."""
    if "\n" in text or "\r" in text:
        raise UnquotableError(f"grub: a word of a script has no line's end: {text!r}")
    return text if _BARE.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"


def fragment(entry: BootEntry, http: str | None) -> str | None:
    """A menu entry. GRUB knows no HTTPS, and chains to EFI programs alone."""
    body = _body(entry, http)
    if body is None:
        return None
    # A title is no option.
    title = re.sub(r"^-", " -", plain(entry.title))
    lines = [f"menuentry {quote(title)} --id {_id(entry.id)} {{", *(f"\t{text}" for text in body), "}"]
    return "\n".join(lines) + "\n"


def menu(menu: BootMenu) -> dict[str, str]:
    """The menu, and for each host the default and the variants that it has."""
    return {"grub/grub.cfg": _main(menu)} | {f"grub/hosts/{host.folder}.cfg": _host(host, menu) for host in menu.hosts}


def disk_snippet(entry_id: str = "netboot", *, server: str, hidden: bool) -> str:
    """A script for /etc/grub.d of a machine that boots from its disk: an entry that goes on with this menu.

    server -- `ADDRESS` of the TFTP server, or `http://ADDRESS[:PORT]`
    hidden -- the entry is there only for the one boot that somebody asked it for
    """
    device = _device(server) if is_url(server) else f"tftp,{server}"
    if device is None or not re.fullmatch(r"(tftp|http),[A-Za-z0-9.:-]+", device):
        raise UnquotableError(f"grub: expects an address or http://ADDRESS, found {server!r}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", entry_id):
        raise UnquotableError(f"grub: expects an id like 'netboot', found {entry_id!r}")
    text = (_HIDDEN if hidden else _SHOWN).replace("@ENTRY@", "".join(f"\t{line}\n" for line in _ENTRY.splitlines()))
    for name, value in {"@ID@": entry_id, "@DEVICE@": device, "@NAME@": device.partition(",")[0]}.items():
        text = text.replace(name, value)
    return '#!/bin/sh\nexec tail -n +3 "$0"\n' + text


def _body(entry: BootEntry, http: str | None) -> list[str] | None:
    if _left_out(entry, http):
        return None
    if entry.local:
        return ["exit"]
    if entry.chain is not None:
        return [f"chainloader {quote(_file(entry.chain))}"]
    args = arguments("grub", entry.cmdline)
    for word in args:
        # GRUB puts a backslash before each when it builds the kernel's command line, and the kernel takes none off.
        found = next((sign for sign in "\\'\"" if sign in word), None)
        if found:
            raise UnquotableError(f"grub: hands no {found} to a kernel: {word}")
    kernel, *initrds = (quote(_file(place)) for place in _places(entry, http))
    bootif = ["$netboot_bootif"] if wants_bootif(entry, args) else []
    return [
        f"echo {quote(f'Loading {plain(entry.title)} ...')}",
        " ".join(["linux", kernel, *map(quote, args), *bootif]),
        *([" ".join(["initrd", *initrds])] if initrds else []),
    ]


def _left_out(entry: BootEntry, http: str | None) -> str | None:
    """Why GRUB can't boot an entry."""
    if entry.chain is not None and suffix(entry.chain) != "efi":
        return "GRUB chains to EFI programs (.efi) alone"
    if any(is_url(place) and _device(place) is None for place in _places(entry, http)):
        return "of URLs, GRUB knows http://HOST/ alone"
    return None if entry.kernel or entry.chain or entry.local else "there is nothing to boot"


def _places(entry: BootEntry, http: str | None) -> list[str]:
    """Kernel and initrds, or what is chained to, as paths below the boot root or as URLs."""
    places = [place for place in (entry.chain, entry.kernel, *entry.initrds) if place is not None]
    return [place if is_url(place) or http is None else f"{http}/{place}" for place in places]


def _file(place: str) -> str:
    """`/PATH` of the boot root, which is $root, or `(http,HOST)/PATH`."""
    if not is_url(place):
        return f"/{place}"
    return f"({_device(place)})/{place.partition('://')[2].partition('/')[2]}"


def _device(url: str) -> str | None:
    """`http,HOST[:PORT]`; None where GRUB has no such protocol."""
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    return f"http,{host}" if scheme.lower() == "http" and re.fullmatch(r"[A-Za-z0-9.:-]+", host) else None


def _id(entry: str) -> str:
    """GRUB reads a default that begins with a digit as a number."""
    return f"netboot-{entry}"


def _main(menu: BootMenu) -> str:
    lines = [
        f"# {plain(menu.title)}",
        "# A machine's MAC with dashes, as BOOTIF and files of hosts have it. The way from a disk sets netboot_mac.",
        'if [ -z "$netboot_mac" ]; then set netboot_mac="$net_default_mac"; fi',
        "if regexp "
        + " ".join(f"--set {number}:netboot_{number}" for number in range(1, 7))
        + " '^(..):(..):(..):(..):(..):(..)$' \"$netboot_mac\"; then",
        '\tset netboot_host="01-' + "-".join(f"${{netboot_{number}}}" for number in range(1, 7)) + '"',
        '\tset netboot_bootif="BOOTIF=$netboot_host"',
        "fi",
        "export netboot_bootif",
        "",
        *_defaults(menu, menu.default),
        'if [ -n "$netboot_host" -a -s "($root)/grub/hosts/$netboot_host.cfg" ]; then',
        '\tsource "($root)/grub/hosts/$netboot_host.cfg"',
        "fi",
        "",
    ]
    for entry in menu.entries:
        reason = _left_out(entry, menu.http)
        if reason:
            lines.append(f"# {entry.id} is left out: {reason}.")
        else:
            lines += _sourced(entry, menu)
    return "\n".join(lines) + "\n"


def _defaults(menu: BootMenu, default: Mapping[str, str]) -> list[str]:
    """The default of each architecture. Without one GRUB would boot the first entry: it waits for a person."""
    lines = ["set default=", "set timeout=-1"]
    for arch, cpu in _CPUS.items():
        if any(entry.id == default.get(arch) and not _left_out(entry, menu.http) for entry in menu.of(arch)):
            lines += [
                f'if [ "$grub_cpu" = {cpu} ]; then',
                f"\tset default={_id(default[arch])}",
                f"\tset timeout={menu.timeout}",
                "fi",
            ]
    return lines


def _sourced(entry: BootEntry, menu: BootMenu) -> list[str]:
    """An entry's fragment, a host's variant where there is one, on the machines that can boot it."""
    path = f'"($root)/{entry_path(entry.id, FRAGMENT)}"'
    lines = [f"source {path}"]
    if any(entry.id in host.own for host in menu.hosts):
        own = f'"($root)/{entry_path(entry.id, FRAGMENT, "$netboot_host")}"'
        pattern = quote(f" {entry.id} ".replace(".", "[.]"))
        lines = [f'if regexp {pattern} "$netboot_own"; then', f"\tsource {own}", "else", f"\tsource {path}", "fi"]
    if entry.arch in _CPUS:
        return [f'if [ "$grub_cpu" = {_CPUS[entry.arch]} ]; then', *(f"\t{text}" for text in lines), "fi"]
    return lines


def _host(host: BootHost, menu: BootMenu) -> str:
    lines = [f"# {plain(host.name)}", *_defaults(menu, menu.defaults(host))]
    if host.own:
        lines.append(f'set netboot_own=" {" ".join(host.own)} "')
    return "\n".join(lines) + "\n"


_USE = """\
# Copy this file to /etc/grub.d/42_@ID@, make it executable and run update-grub. UEFI only.
# Under Secure Boot the signed GRUB of a disk has no network, and some firmware hides the network from boot loaders:
# there `efibootmgr --bootnext NUMBER` with the firmware's own network entry does the same.
"""

_SHOWN = (
    _USE
    + """\
# The menu shows it always; `grub-reboot @ID@` boots it once.
if [ "$grub_platform" = efi ]; then
@ENTRY@fi
"""
)

_HIDDEN = (
    _USE
    + """\
# It is there for the one boot that somebody asked it for, by either of
#     grub-reboot @ID@
#     grub-editenv - set netboot_once=1
# and the boot after it is as ever. GRUB must be able to write /boot/grub/grubenv: not on Btrfs, LVM or RAID.
set netboot_asked=
if [ "$boot_once" = true -a "$default" = @ID@ ]; then set netboot_asked=1; fi
if [ -n "$netboot_once" ]; then
	set netboot_once=
	# What can't be taken back would be every boot from now on.
	if save_env netboot_once; then
		set netboot_asked=1
		set default=@ID@
	fi
fi
if [ "$grub_platform" = efi -a -n "$netboot_asked" ]; then
@ENTRY@fi
"""
)

_ENTRY = (
    """\
menuentry 'Network boot' --id @ID@ {
	insmod net
	insmod efinet
	insmod @NAME@
	insmod regexp
	echo 'Asking for an address ...'
	net_bootp
	set netboot_mac=
"""
    + "".join(
        f'\tif [ -z "$netboot_mac" ]; then set netboot_mac="$net_efinet{card}_dhcp_mac"; fi\n' for card in range(8)
    )
    + """\
	export netboot_mac
	set root=@DEVICE@
	configfile "($root)/grub/grub.cfg"
	# Nobody answered, or a person left the menu.
	configfile "$prefix/grub.cfg"
}
"""
)
