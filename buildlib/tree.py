"""A root tree, or one layer of it, as a listing: the exact form by which two of them are the same.

Standard library only: it runs inside the sandbox's user namespace, where a build's files can all be read.

One line an entry, sorted by path: type, mode, owner, group, mtime (no later than the build's epoch), size, content (the
SHA-256, where a link points, a device's number) and extended attributes. Overlayfs' marks appear as what they mean:
`w` for a whiteout, `opaque` for a folder that hides what is below.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_OPAQUE = "user.overlay.opaque"
_OVERLAY = ("user.overlay.", "trusted.overlay.")
_KEPT = ("security.capability", "user.", "system.posix_acl")


def write_listing(arguments: dict[str, Any]) -> dict[str, Any]:
    """List `tree` into the file `listing`; give its digest (hex), size of all files in bytes, number of entries.

    tree    -- path of the tree
    epoch   -- seconds since 1970; a later mtime counts as this
    listing -- path of the file that is written
    """
    digest = hashlib.sha256()
    size = entries = 0
    with open(arguments["listing"], "wb") as file:
        for line, bytes_ in lines(Path(arguments["tree"]), arguments["epoch"]):
            data = line.encode(errors="surrogateescape")
            digest.update(data)
            file.write(data)
            size += bytes_
            entries += 1
    return {"digest": digest.hexdigest(), "size": size, "entries": entries}


def lines(tree: Path, epoch: int) -> Iterator[tuple[str, int]]:
    """The listing's lines, each with the bytes of content that it adds."""
    first: dict[tuple[int, int], str] = {}
    entries = list(_walk(str(tree), ""))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Hashing lets go of the interpreter's lock, so that threads use all cores.
        contents = pool.map(lambda entry: _content(entry[0], entry[2]), entries)
        for (path, name, facts), own in zip(entries, contents, strict=True):
            content = own
            inode = (facts.st_dev, facts.st_ino)
            size = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
            if facts.st_nlink > 1 and stat.S_ISREG(facts.st_mode):
                if inode in first:
                    content, size = f"= {first[inode]}", 0
                else:
                    first[inode] = _quote(name)
            fields = (
                _quote(name),
                _kind(facts),
                f"{stat.S_IMODE(facts.st_mode):04o}",
                f"{facts.st_uid}:{facts.st_gid}",
                str(min(int(facts.st_mtime), epoch)),
                str(size),
                content,
                *_attributes(path, facts),
            )
            yield " ".join(fields) + "\n", size


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, str, os.stat_result]]:
    if not prefix:
        yield folder, ".", os.lstat(folder)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = prefix + entry.name
        facts = entry.stat(follow_symlinks=False)
        yield entry.path, name, facts
        if stat.S_ISDIR(facts.st_mode):
            yield from _walk(entry.path, name + "/")


def _kind(facts: os.stat_result) -> str:
    if stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0:
        return "w"
    return {
        stat.S_IFREG: "f",
        stat.S_IFDIR: "d",
        stat.S_IFLNK: "l",
        stat.S_IFCHR: "c",
        stat.S_IFBLK: "b",
        stat.S_IFIFO: "p",
        stat.S_IFSOCK: "s",
    }[stat.S_IFMT(facts.st_mode)]


def _content(path: str, facts: os.stat_result) -> str:
    if stat.S_ISREG(facts.st_mode):
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if stat.S_ISLNK(facts.st_mode):
        return _quote(os.readlink(path))
    if stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode):
        return f"{os.major(facts.st_rdev)},{os.minor(facts.st_rdev)}"
    return "-"


def _attributes(path: str, facts: os.stat_result) -> Iterator[str]:
    if stat.S_ISLNK(facts.st_mode):
        return
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        if name == _OPAQUE:
            yield "opaque"
        elif name.startswith(_KEPT) and not name.startswith(_OVERLAY):
            yield f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}"


def _quote(text: str) -> str:
    """A name as one word: octal escapes, as in fstab(5)."""
    return "".join(f"\\{ord(sign):03o}" if sign in " \t\n\\" else sign for sign in text)
