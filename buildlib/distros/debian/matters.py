"""In a root: which of its files may have a part in an initrd of initramfs-tools.

By the words of the scripts that make one. Rather too much matters than too little.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

APART = (
    "usr/lib/python3/",
    *(f"usr/share/{name}/" for name in ("applications", "bash-completion", "bug", "doc", "doc-base", "icons", "info")),
    *(f"usr/share/{name}/" for name in ("lintian", "locale", "man", "perl5", "pixmaps", "python3", "zsh")),
    *(f"var/{name}/" for name in ("cache", "lib/apt", "lib/dpkg", "log")),
)
"""Below these nothing is for an initrd, whatever it is called."""

OWN = (
    "etc/initramfs-tools",
    "etc/modprobe.d",
    "usr/lib/firmware",
    "usr/lib/modprobe.d",
    "usr/lib/modules",
    "usr/share/initramfs-tools",
)
"""What is below these goes into an initrd, or has a say in it."""

BROAD = frozenset(
    {"", "boot", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib", "usr/lib/systemd"}
    | {"usr/lib/udev", "usr/lib64", "usr/sbin", "usr/share", "var", "var/cache", "var/lib", "var/log", "var/tmp"}
)
"""Folders that hooks name because they copy a file from or to there, not all that is in them."""

GENERATED = frozenset({"etc/ld.so.cache"})
"""What mkinitramfs makes anew of the initrd's own content."""

_WORD = re.compile(r"([A-Za-z0-9_.+@:/-]+)([*?[]?)")
_LIBRARY = re.compile(r"\.so(\.[0-9.]+)?$")
_SILENT = re.compile(r"^\s*#.*|\$\{?\w+\??", re.MULTILINE)
"""Comments, and the names of shell variables."""


def reasons(initrd: str, paths: Iterable[str], changed: Iterable[str]) -> list[str]:
    """Why mkinitramfs could make another initrd now; nothing if it can't.

    initrd  -- one that it made in this root, but for some paths
    paths   -- these, as listings have them
    changed -- those of them which were there before
    """
    return sorted(_reasons(initrd, paths, changed))


def _reasons(initrd: str, paths: Iterable[str], changed: Iterable[str]) -> Iterator[str]:
    told = subprocess.run(["lsinitramfs", initrd], check=True, stdout=subprocess.PIPE, text=True).stdout
    members = {_merged(line) for line in told.splitlines()}
    libraries = {os.path.basename(path) for path in members if _LIBRARY.search(path)}
    changed = frozenset(changed)
    words = Words.of(_texts())
    for path in paths:
        name = os.path.basename(path)
        if path.startswith(APART) or path in GENERATED:
            continue
        if path in changed and path in members:
            yield f"{path} is in it, and has changed"
        elif name in libraries:
            yield f"{path} has the name of a library that is in it"
        elif reason := words.reason(path):
            yield f"{path}: {reason}"


@dataclass
class Words:
    """What the scripts that make an initrd speak of.

    names   -- last parts of what could be a path
    folders -- that are there
    starts  -- what stands before a `*` or the like: of paths, and of last parts
    """

    names: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=lambda: {*OWN})
    starts: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Words:
        found = cls()
        for text in texts:
            for word, glob in _WORD.findall(_SILENT.sub(" ", text)):
                found._add(word, glob)
        return found

    def _add(self, word: str, glob: str) -> None:
        path, name = _merged(word), os.path.basename(_merged(word))
        if word.startswith("/") and os.path.isdir(word):
            if path not in BROAD:
                self.folders.add(path)
        elif glob:
            # `/usr/*` and the like mean folders that are named elsewhere; of a single letter too much begins.
            self.starts.update(start for start in (path, name) if len(start) > 1 and start not in BROAD)
        else:
            self.names.add(name)

    def reason(self, path: str) -> str:
        """Why a path may matter to them; "" if it can't."""
        name = os.path.basename(path)
        if name in self.names:
            return "their scripts name it"
        for folder in sorted(self.folders):
            if path.startswith(f"{folder}/"):
                return f"their scripts read {folder}"
        starts = next((start for start in sorted(self.starts) if path.startswith(start) or name.startswith(start)), "")
        return f"their scripts look for {starts}*" if starts else ""


def _texts() -> Iterator[str]:
    """Scripts and configuration that mkinitramfs reads; not what runs in an initrd."""
    yield Path("/usr/sbin/mkinitramfs").read_text(errors="replace")
    for top in ("/usr/share/initramfs-tools", "/etc/initramfs-tools"):
        for folder, folders, names in os.walk(top):
            if folder == top and "scripts" in folders:
                folders.remove("scripts")
            yield from (Path(folder, name).read_text(errors="replace") for name in names if name != "init")


def _merged(path: str) -> str:
    """A path as listings have it: without a slash before and after it, and where the merged /usr has it."""
    path = path.strip("/")
    return f"usr/{path}" if path.partition("/")[0] in ("bin", "sbin", "lib", "lib64") else path
