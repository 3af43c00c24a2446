"""What an entry boots, in lines of `key=value`: for pixiecore, matchbox, kexec, and whatever else starts a kernel."""

from __future__ import annotations

from buildlib.bootloaders import arguments, is_url, line
from buildlib.bootmenu import BootEntry, BootMenu, plain

FRAGMENT = "cmdline"


def fragment(entry: BootEntry, http: str | None) -> str | None:
    """Kernel and initrds as URLs, or as paths below the boot root; `initrd` as often as there are some."""
    if entry.kernel is None:
        return None
    pairs = [
        ("id", entry.id),
        ("title", plain(entry.title)),
        *([("arch", entry.arch)] if entry.arch else []),
        ("kernel", _place(entry.kernel, http)),
        *(("initrd", _place(initrd, http)) for initrd in entry.initrds),
        ("cmdline", line(arguments("cmdline", entry.cmdline))),
    ]
    return "".join(f"{key}={value}\n" for key, value in pairs)


def menu(menu: BootMenu) -> dict[str, str]:
    """None: who reads these files has a menu of its own."""
    return {}


def _place(place: str, http: str | None) -> str:
    return place if is_url(place) or http is None else f"{http}/{place}"
