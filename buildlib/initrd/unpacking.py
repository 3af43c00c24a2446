"""Initrds taken apart and changed. What is made of the same things is the same; the original stays as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from buildlib.errors import BuildError
from buildlib.initrd.cpio import Member, Stream
from buildlib.initrd.scan import scan
from buildlib.initrd.tree import Node, build

_PIECE = 1 << 20


def extract(initrd: Path, path: str, to: IO[bytes]) -> None:
    """Write the content of one file, as a machine would see it. BuildError if there is none."""
    node = build(scan(initrd).entries).find(path)
    if node is None or node.kind != "f":
        what = "is not in it" if node is None else "is no file"
        raise BuildError(f"{initrd}: {path} {what}", hint=f"python -m buildlib.initrd {initrd} list")
    if node.content is None:
        return
    wanted = node.content.number

    def sink(number: int, member: Member, stream: Stream) -> None:
        if number == wanted:
            copy(stream, member.size, to)

    scan(initrd, sink)


def unpack(initrd: Path, folder: Path) -> list[str]:
    """Make the tree that a machine would see, in a new folder; paths of what could not be made: devices, by most users.

    Nothing is written outside of it, whatever links and names say. Owners and setuid are kept by root alone.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BuildError(f"{folder}: is not empty", hint="take a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    left: list[str] = []
    wanted: dict[int, Path] = {}
    made: dict[Node, Path] = {}
    nodes = list(build(scan(initrd).entries).walk())
    for path, node in nodes:
        # Paths of the tree have no links in them: each folder on the way was made here.
        to = folder / path
        if node in made:
            os.link(made[node], to, follow_symlinks=False)
            continue
        if not _made(node, to):
            left.append(path)
            continue
        made[node] = to
        if node.kind == "f" and node.content is not None:
            wanted[node.content.number] = to
    _fill(initrd, wanted)
    for node, to in reversed(made.items()):
        _finish(node, to)
    return left


def _made(node: Node, to: Path) -> bool:
    if node.kind == "d":
        to.mkdir(exist_ok=True)
    elif node.kind == "l":
        to.symlink_to(node.target)
    elif node.kind == "f":
        to.touch(exist_ok=False)
    elif node.kind == "p":
        os.mkfifo(to)
    elif node.kind in "cb" and node.entry is not None:
        try:
            os.mknod(to, node.entry.member.mode, os.makedev(*node.entry.member.rdev))
        except PermissionError:
            return False
    else:
        return False
    return True


def _fill(initrd: Path, wanted: Mapping[int, Path]) -> None:
    """Write contents of files, by the numbers of their entries."""

    def sink(number: int, member: Member, stream: Stream) -> None:
        if number in wanted:
            with wanted[number].open("wb") as file:
                copy(stream, member.size, file)

    scan(initrd, sink)


def _finish(node: Node, to: Path) -> None:
    if node.entry is None:
        return
    member = node.entry.member
    if os.geteuid() == 0:
        os.lchown(to, member.uid, member.gid)
    if node.kind != "l":
        # An ordinary user's setuid file would be that user's; and what is in a folder must be removable.
        to.chmod(node.mode if os.geteuid() == 0 else (node.mode & 0o777) | (0o700 if node.kind == "d" else 0))
    os.utime(to, (member.mtime, member.mtime), follow_symlinks=False)


def copy(stream: Stream, size: int, to: IO[bytes]) -> None:
    """So many bytes of a stream into a file."""
    while size and (data := stream.read(min(size, _PIECE))):
        to.write(data)
        size -= len(data)
