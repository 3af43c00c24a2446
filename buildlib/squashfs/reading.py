"""Where a squashfs has the content of its files; of one whose inodes are not compressed (`mksquashfs -noI`)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from buildlib.errors import BuildError
from buildlib.squashfs import form
from buildlib.squashfs.form import Data, Fragment, Head

Unpack = Callable[[bytes], bytes]
"""Gives what compressed blocks, one after another, hold."""


class Image(NamedTuple):
    """begin -- where data begins: before it are the superblock and the compressor's options"""

    path: Path
    head: Head
    begin: int
    fragments: list[Fragment]
    files: dict[str, Data]


def read(path: Path, unpack: Unpack) -> Image:
    """Raises BuildError for a file that is no such squashfs."""
    try:
        return _read(path, unpack)
    except (struct.error, IndexError, KeyError, RecursionError) as error:
        raise BuildError(f"{path}: no squashfs that can be read: {error!r}") from None


def _read(path: Path, unpack: Unpack) -> Image:
    with path.open("rb") as file:
        said = file.read(form.HEAD.size + 2)
        head = Head(*form.HEAD.unpack_from(said))
        if head.magic != form.MAGIC or (head.major, head.minor) != (4, 0):
            raise BuildError(f"{path}: not a squashfs of version 4.0")
        begin = form.HEAD.size
        if head.flags & form.OPTIONS:
            (size,) = struct.unpack_from("<H", said, begin)
            begin += 2 + size % form.STORED
        file.seek(head.inode_table)
        tables = file.read(head.fragment_table - head.inode_table + 8 * _blocks(head.fragments * form.FRAGMENT.size))
    middle = head.folder_table - head.inode_table
    inodes = _plain(path, memoryview(tables)[:middle])
    end = head.fragment_table - head.inode_table
    fragments: list[Fragment] = []
    if head.fragments:
        first = struct.unpack_from("<Q", tables, end)[0] - head.inode_table
        found = b"".join(_unpacked(tables[first:end], unpack))
        fragments = [Fragment(start, size) for start, size, _ in form.FRAGMENT.iter_unpack(found)]
        end = first
    folders = _plain(path, memoryview(tables)[middle:end])
    files, places, root = _inodes(inodes, head)
    return Image(path, head, begin, fragments, dict(_files(folders, places, files, places[root], "")))


def _plain(path: Path, table: memoryview) -> bytes:
    """What a table that is not compressed holds."""
    found = []
    place = 0
    while place < len(table):
        (size,) = struct.unpack_from("<H", table, place)
        if not size & form.STORED:
            raise BuildError(f"{path}: its inodes are compressed")
        found.append(table[place + 2 : place + 2 + size % form.STORED])
        place += form.STEP
    return b"".join(found)


def _unpacked(table: bytes, unpack: Unpack) -> Iterator[bytes]:
    place = 0
    while place < len(table):
        (size,) = struct.unpack_from("<H", table, place)
        place += 2
        data = table[place : place + size % form.STORED]
        yield data if size & form.STORED else unpack(data)
        place += size % form.STORED


def _blocks(size: int) -> int:
    """Metadata blocks for so many bytes."""
    return -(-size // form.METADATA)


def place(reference: int, offset: int) -> int:
    """Where in a table something is, by its block's place on the disk and the offset within that."""
    return reference // form.STEP * form.METADATA + offset


def _inodes(table: bytes, head: Head) -> tuple[dict[int, Data], dict[int, tuple[int, int]], int]:
    """Files, and where folders have their entries and how many bytes of it, by inode number; the root's number."""
    files: dict[int, Data] = {}
    folders: dict[int, tuple[int, int]] = {}
    top = place(head.root >> 16, head.root & 0xFFFF)
    root = 0
    at = 0
    while at < len(table):
        kind, _, _, _, _, number = form.INODE.unpack_from(table, at)
        if at == top:
            root = number
        at += form.INODE.size
        basic = kind - form.LONG if kind > form.LONG else kind
        more = 4 if kind > form.LONG else 0
        if basic == form.FILE:
            if more:
                start, size, sparse, _, fragment, offset, _ = form.LONG_FILE.unpack_from(table, at)
                at += form.LONG_FILE.size
            else:
                start, fragment, offset, size = form.SHORT_FILE.unpack_from(table, at)
                at, sparse = at + form.SHORT_FILE.size, 0
            count = size // head.block_size if fragment != form.NO_FRAGMENT else -(-size // head.block_size)
            files[number] = Data(start, table[at : at + 4 * count], fragment, offset, size, sparse)
            at += 4 * count
        elif basic == form.DIR and more:
            _, size, start, _, count, offset, _ = form.LONG_DIR.unpack_from(table, at)
            at += form.LONG_DIR.size
            for _ in range(count):
                at += form.DIR_INDEX.size + form.DIR_INDEX.unpack_from(table, at)[2] + 1
            folders[number] = place(start, offset), size - form.EMPTY
        elif basic == form.DIR:
            start, _, size, offset, _ = form.SHORT_DIR.unpack_from(table, at)
            at += form.SHORT_DIR.size
            folders[number] = place(start, offset), size - form.EMPTY
        elif basic == form.SYMLINK:
            at += form.LINK.size + form.LINK.unpack_from(table, at)[1] + more
        elif basic in (form.BLOCK, form.CHAR):
            at += 8 + more
        elif basic in (form.FIFO, form.SOCKET):
            at += 4 + more
        else:
            raise KeyError(kind)
    return files, folders, root


def _files(
    table: bytes, folders: dict[int, tuple[int, int]], files: dict[int, Data], here: tuple[int, int], prefix: str
) -> Iterator[tuple[str, Data]]:
    """Files of a folder by path."""
    at, size = here
    end = at + size
    while at < end:
        count, _, base = form.DIR_HEADER.unpack_from(table, at)
        at += form.DIR_HEADER.size
        for _ in range(count + 1):
            _, delta, kind, length = form.DIR_ENTRY.unpack_from(table, at)
            at += form.DIR_ENTRY.size
            path = prefix + os.fsdecode(table[at : at + length + 1])
            at += length + 1
            if kind == form.FILE:
                yield path, files[base + delta]
            elif kind == form.DIR:
                yield from _files(table, folders, files, folders[base + delta], path + "/")
