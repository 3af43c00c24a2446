"""A stack of layers as one plain tree, as an NFS server wants it.

Standard library only: it runs inside the sandbox's user namespace, where a build's files can all be read.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

_OVERLAY = ("user.overlay.", "trusted.overlay.")
_OPAQUE = "user.overlay.opaque"


def write(arguments: dict[str, Any]) -> None:
    """Merge `layers` into the new folder `target`.

    layers -- paths of the layers' trees, lowest first
    target -- path of the tree that is made; its parent exists
    link   -- share files with the layers by hard links where the file system lets it: for trees that nobody writes to
    """
    target = os.path.realpath(arguments["target"])
    os.mkdir(target)
    linker = _Copier(arguments["link"])
    for layer in arguments["layers"]:
        linker.begin()
        linker.add(layer, target)
    linker.finish()


def some(layers: Sequence[str | Path], paths: Collection[str], target: str | Path) -> None:
    """Make the new folder `target` of some entries of the tree that `layers`, lowest first, are together.

    paths -- what the merged tree holds, relative to it; files are shared with the layers where that can be
    """
    os.mkdir(target)
    linker = _Copier(link=True)
    for path in sorted({above for wanted in paths for above in _above(wanted)}):
        source = next(found for layer in reversed(layers) if os.path.lexists(found := os.path.join(layer, path)))
        linker.one(source, os.path.normpath(os.path.join(target, path)))
    linker.finish()


def _above(path: str) -> Iterator[str]:
    """A path and the folders that hold it, but for the top, which is there."""
    while path not in ("", "."):
        yield path
        path = os.path.dirname(path)
    yield "."


class _Copier:
    def __init__(self, link: bool) -> None:
        self._link = link
        self._copied: dict[tuple[int, int], str] = {}
        self._times: dict[str, tuple[int, int]] = {}

    def begin(self) -> None:
        """Begin with a layer: it may have replaced what another one's files were copied to."""
        self._copied.clear()

    def add(self, folder: str, target: str) -> None:
        """Lay the content of a layer's folder over an existing one."""
        facts = os.stat(folder)
        attributes = os.listxattr(folder)
        if _OPAQUE in attributes and os.getxattr(folder, _OPAQUE) == b"y":
            for entry in os.scandir(target):
                _remove(entry.path)
        for entry in os.scandir(folder):
            self._entry(entry.path, os.path.join(target, entry.name), entry.stat(follow_symlinks=False))
        _describe(folder, target, facts)
        self._times[target] = (facts.st_atime_ns, facts.st_mtime_ns)

    def one(self, source: str, target: str) -> None:
        """Make an entry, of a folder itself alone; its parent is there."""
        facts = os.lstat(source)
        if not stat.S_ISDIR(facts.st_mode):
            self._file(source, target, facts)
            return
        if not os.path.isdir(target):
            os.mkdir(target)
        _describe(source, target, facts)
        self._times[target] = (facts.st_atime_ns, facts.st_mtime_ns)

    def finish(self) -> None:
        """Folders get their times last: each entry that was made in them changed these."""
        for path, times in reversed(self._times.items()):
            # Not where a link leads that took a folder's place: that is another folder, perhaps this machine's.
            if os.path.isdir(path) and os.path.realpath(path) == path:
                os.utime(path, ns=times)

    def _entry(self, source: str, target: str, facts: os.stat_result) -> None:
        there = _mode(target)
        if stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0:
            _remove(target)
            return
        if stat.S_ISDIR(facts.st_mode):
            if there is None or not stat.S_ISDIR(there):
                _remove(target)
                os.mkdir(target)
            self.add(source, target)
            return
        if there is not None:
            _remove(target)
        self._file(source, target, facts)

    def _file(self, source: str, target: str, facts: os.stat_result) -> None:
        if self._link:
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:  # another file system, or too many links
                self._link = False
            else:
                return
        inode = (facts.st_dev, facts.st_ino)
        if inode in self._copied:
            os.link(self._copied[inode], target, follow_symlinks=False)
            return
        if stat.S_ISLNK(facts.st_mode):
            os.symlink(os.readlink(source), target)
            os.chown(target, facts.st_uid, facts.st_gid, follow_symlinks=False)
        elif stat.S_ISREG(facts.st_mode):
            shutil.copyfile(source, target)
            _describe(source, target, facts)
        else:
            os.mknod(target, facts.st_mode, facts.st_rdev)
            _describe(source, target, facts)
        os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns), follow_symlinks=False)
        if facts.st_nlink > 1:
            self._copied[inode] = target


def _describe(source: str, target: str, facts: os.stat_result) -> None:
    """Owner before mode: a change of owner takes setuid away."""
    os.chown(target, facts.st_uid, facts.st_gid)
    os.chmod(target, stat.S_IMODE(facts.st_mode))
    wanted = [name for name in os.listxattr(source) if not name.startswith(_OVERLAY)]
    for name in os.listxattr(target):
        # A lower layer's folder had it, or the default ACL of the folder that this was made in.
        if name not in wanted:
            os.removexattr(target, name)
    for name in wanted:
        os.setxattr(target, name, os.getxattr(source, name))


def _mode(path: str) -> int | None:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return None


def _remove(path: str) -> None:
    mode = _mode(path)
    if mode is None:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        Path(path).unlink()
