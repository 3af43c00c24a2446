"""The stage `initramfs-final`: the initrd of a root with groups of packages.

`initramfs` has made one of what is below the groups. It is taken as it is, unless a group may have a part in it: then
mkinitramfs runs again, over the whole root. The outcome depends on the layers alone, never on what was built before.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buildlib import listing
from buildlib.distros.debian import initramfs
from buildlib.distros.debian.packages import ASKED
from buildlib.sandbox import Bind
from buildlib.work import Work

BELOW = "/run/netboot/initrd"

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


def run(work: Work) -> None:
    groups = [path for name, path in work.inputs.items() if name.startswith("packages-")]
    below = [work.inputs[name] / "tree.list" for name in ("bootstrap", "packages", "initramfs")]
    paths, changed = _paths([group / "tree.list" for group in groups], below)
    made = work.inputs["initramfs"]
    arguments = {
        "asked": any((group / ASKED).exists() for group in groups),
        "paths": paths,
        "changed": changed,
    }
    binds = (Bind(made / "initrd", BELOW), Bind(work.out, initramfs.OUT, writable=True))
    work.progress(None, "initrd")
    work.facts.update(work.sandbox(change=False, binds=binds).call(make, arguments, log=work.log))
    if not (work.out / "initrd").exists():
        for name in ("initrd", "vmlinuz"):
            os.link(made / name, work.out / name)


def _paths(groups: Iterable[Path], below: Iterable[Path]) -> tuple[list[str], list[str]]:
    """What groups bring or remove, but for folders; and that part of it which was there before."""
    found = {path: None for group in groups for path, entry in listing.load(group).items() if entry.kind != "d"}
    known = {path for layer in below for path in listing.load(layer)}
    return list(found), [path for path in found if path in known]


def make(arguments: dict[str, Any]) -> dict[str, Any]:
    """In the root: make the initrd again if it could be another one now; give the kernel's version and the reasons."""
    reasons = ["a package has called update-initramfs"] if arguments["asked"] else []
    reasons += sorted(_reasons(arguments["paths"], arguments["changed"]))
    for reason in reasons:
        print(f"the initrd is made again: {reason}", flush=True)
    version = initramfs.write(initramfs.OUT) if reasons else initramfs.kernel_version()
    return {"kernel": version, "again": reasons[:3]}


def _reasons(paths: Iterable[str], changed: Iterable[str]) -> Iterator[str]:
    told = subprocess.run(["lsinitramfs", BELOW], check=True, stdout=subprocess.PIPE, text=True).stdout
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
