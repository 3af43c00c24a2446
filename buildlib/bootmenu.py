"""What boot loaders offer: entries, their default and the hosts that differ. Each boot loader renders this one model.

All paths are below the boot root, which TFTP and HTTP both serve:

    images/NAME/ID/         a release's kernel, initrd and whatever else is loaded, which never changes
    entries/NAME            a link to the folder below; replacing it by one rename is the switch
    menus/NAME/DIGEST/      that recipe's entry for each boot loader; `hosts/01-MAC/` holds those of hosts that differ
    grub/, pxelinux.cfg/, boot.ipxe     the menus: which entries there are, the default, the hosts
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

ENTRIES = "entries"
HOSTS = "hosts"


@dataclass(frozen=True)
class BootEntry:
    """Something to boot: a kernel, a boot loader elsewhere (`chain`), or the machine's own disk (`local`).

    id      -- a word, unique in its menu
    title   -- what a menu shows
    arch    -- Debian architecture of the machines that can boot it; None: any
    kernel  -- path below the boot root, or a URL
    initrds -- likewise, unpacked one over the other
    cmdline -- kernel command line, quoted as the kernel reads it
    chain   -- URL of what a boot loader is to go on with
    """

    id: str
    title: str
    arch: str | None = None
    kernel: str | None = None
    initrds: tuple[str, ...] = ()
    cmdline: str = ""
    chain: str | None = None
    local: bool = False


@dataclass(frozen=True)
class BootHost:
    """A machine that boots an entry of its own by default.

    mac   -- lower case, with colons
    entry -- id of its default entry; None: the menu's default for its architecture
    own   -- ids of the entries of which it has a variant in `entries/ID/hosts/01-MAC/`
    """

    mac: str
    name: str
    entry: str | None
    own: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """`01-52-54-00-12-34-56`: hardware type and address, as PXELINUX looks for it and BOOTIF gives it."""
        return f"01-{self.mac.replace(':', '-')}"


@dataclass(frozen=True)
class BootMenu:
    """What one target offers.

    default -- id of the default entry by architecture; an architecture without entries is missing
    timeout -- seconds until the default boots; 0: at once
    http    -- URL of the boot root without a slash at the end, where big files are fetched; None: by TFTP
    """

    title: str
    entries: tuple[BootEntry, ...]
    default: Mapping[str, str]
    timeout: int
    hosts: tuple[BootHost, ...] = ()
    http: str | None = None

    def of(self, arch: str) -> tuple[BootEntry, ...]:
        """The entries that machines of `arch` can boot."""
        return tuple(entry for entry in self.entries if entry.arch in (None, arch))

    def defaults(self, host: BootHost) -> Mapping[str, str]:
        """A host's default entry by architecture, which its MAC does not tell."""
        return self.default if host.entry is None else dict.fromkeys(self.default, host.entry)


class UnquotableError(ValueError):
    """A boot loader has no way to pass this text on; says which boot loader, and what of the text."""


def argument_line(text: str) -> str:
    """A kernel command line, or a part of one: printable ASCII, double quotes in pairs."""
    if any(not " " <= sign <= "~" for sign in text):
        raise ValueError("expects a single line of ASCII")
    if text.count('"') % 2:
        raise ValueError("a double quote is not closed")
    return text


def words(cmdline: str) -> list[str]:
    """A kernel command line's arguments as the kernel tells them apart, double quotes removed (its `next_arg`)."""
    found: list[str] = []
    word, quoted, begun = "", False, False
    for sign in cmdline:
        if sign == '"':
            quoted, begun = not quoted, True
        elif sign.isspace() and not quoted:
            if begun:
                found.append(word)
            word, begun = "", False
        else:
            word, begun = word + sign, True
    return [*found, word] if begun else found


def plain(title: str) -> str:
    """A title in the characters that every firmware's font has: printable ASCII."""
    text = unicodedata.normalize("NFKD", title)
    return "".join(sign if " " <= sign <= "~" else "" if unicodedata.combining(sign) else "?" for sign in text)


FIRST_STAGE: Mapping[tuple[str, str, str], str] = {
    ("amd64", "bios", "pxelinux"): "pxelinux.0",
    ("amd64", "bios", "lpxelinux"): "lpxelinux.0",
    ("amd64", "bios", "ipxe"): "undionly.kpxe",
    ("amd64", "uefi", "grub"): "grubx64.efi",
    ("amd64", "uefi", "shim"): "shimx64.efi",
    ("amd64", "uefi", "ipxe"): "ipxe-amd64.efi",
    ("arm64", "uefi", "grub"): "grubaa64.efi",
    ("arm64", "uefi", "shim"): "shimaa64.efi",
    ("arm64", "uefi", "ipxe"): "ipxe-arm64.efi",
}
"""What a firmware loads, below the boot root: by architecture, firmware and loader. shim wants GRUB by its name."""

IPXE_SCRIPT = "boot.ipxe"
"""What iPXE goes on with, below the boot root."""
