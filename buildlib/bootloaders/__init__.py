"""One file a boot loader: `FRAGMENT`, `fragment`, `menu`. They are found by looking; no list names them.

An entry's fragments lie in its folder, those of a host's variant in `hosts/01-MAC/` of it; a menu only names the
folder. So a release is switched by switching a folder, and no menu changes.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Collection
from pathlib import Path
from typing import Protocol, cast

from buildlib.bootmenu import ENTRIES, HOSTS, BootEntry, BootMenu, UnquotableError, words


class Bootloader(Protocol):
    """What a boot loader's module offers."""

    FRAGMENT: str
    """The name of its file in an entry's folder."""

    def fragment(self, entry: BootEntry, http: str | None) -> str | None:
        """How it boots an entry, big files by HTTP where `http` is the boot root's URL; None: it can't boot it.

        Raises UnquotableError.
        """
        ...

    def menu(self, menu: BootMenu) -> dict[str, str]:
        """The text of its menus, by path below the boot root."""
        ...


def names() -> list[str]:
    """The boot loaders that there are."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))


def get(name: str) -> Bootloader:
    """The module of a boot loader, imported when first asked for."""
    return cast(Bootloader, importlib.import_module(f"{__name__}.{name}"))


def all() -> dict[str, Bootloader]:
    """Each boot loader's module by name."""
    return {name: get(name) for name in names()}


def entry_files(entry: BootEntry, http: str | None, by_tftp: Collection[str] = ()) -> dict[str, str]:
    """An entry's folder: each boot loader's fragment by file name. Those in `by_tftp` don't know HTTP."""
    found = {
        module.FRAGMENT: module.fragment(entry, None if name in by_tftp else http) for name, module in all().items()
    }
    return {name: text for name, text in found.items() if text is not None}


def menu_files(menu: BootMenu, by_tftp: Collection[str] = ()) -> dict[str, str]:
    """All menus, by path below the boot root; `by_tftp` as for their entries."""
    without = dataclasses.replace(menu, http=None)
    return {
        path: text
        for name, module in all().items()
        for path, text in module.menu(without if name in by_tftp else menu).items()
    }


def entry_path(entry: str, fragment: str, host: str | None = None) -> str:
    """Where a fragment of an entry, or of the variant of a host's folder, lies below the boot root."""
    return "/".join([ENTRIES, entry, *([HOSTS, host] if host else []), fragment])


def arguments(loader: str, cmdline: str) -> list[str]:
    """A kernel command line's arguments, in characters that the kernel and every firmware read alike."""
    strange = next((sign for sign in cmdline if not " " <= sign <= "~"), None)
    if strange is not None:
        raise UnquotableError(f"{loader}: a kernel command line is a single line of ASCII, found {strange!r}")
    if cmdline.count('"') % 2:
        raise UnquotableError(f"{loader}: a double quote is not closed: {cmdline}")
    return [word for word in words(cmdline) if word]


def line(args: list[str]) -> str:
    """Arguments as the kernel reads them: double quotes around what has blanks."""
    return " ".join(_quoted(word) for word in args)


def _quoted(word: str) -> str:
    if " " not in word:
        return word
    # The kernel takes both; programs that read /proc/cmdline look for the quote after the sign.
    name, sign, value = word.partition("=")
    return f'{name}{sign}"{value}"' if sign and " " not in name else f'"{word}"'


def is_url(place: str) -> bool:
    """Whether a kernel or initrd is fetched from elsewhere; else it is a path below the boot root."""
    return "://" in place


def is_release(entry: BootEntry) -> bool:
    """Whether it boots a kernel of ours, which wants to know the interface that it was loaded by."""
    return entry.kernel is not None and not is_url(entry.kernel)


def wants_bootif(entry: BootEntry, args: list[str]) -> bool:
    """Whether a boot loader has to add `BOOTIF=01-MAC`: unless somebody said it already."""
    return is_release(entry) and not any(word.startswith("BOOTIF=") for word in args)


def suffix(url: str) -> str:
    """The last suffix of the file that a URL names, lower case without the dot; empty without one."""
    name = url.split("?", 1)[0].split("#", 1)[0].partition("://")[2].partition("/")[2].rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name else ""
