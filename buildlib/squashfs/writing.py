"""What comes after the data in a squashfs, and the superblock before it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from buildlib.squashfs import form
from buildlib.squashfs.form import Fragment, Head
from buildlib.squashfs.tables import Tables

_PAGE = 4096
"""A squashfs is filled up to a multiple of it, as a loop device wants."""


def finish(file: BinaryIO, like: Head, tables: Tables, fragments: Sequence[Fragment], epoch: int) -> None:
    """Write the tables and the superblock of a squashfs.

    file  -- at the end of the data
    like  -- superblock of one with the same size of blocks and the same compression
    epoch -- when the file system was made, seconds since 1970
    """
    flags = like.flags | form.INODES_STORED | form.IDS_STORED | form.ATTRIBUTES_STORED | form.EXPORTABLE
    flags &= ~(form.NO_XATTRS | form.NO_FRAGMENTS)
    inode_table = file.tell()
    _metadata(file, tables.inodes)
    folder_table = file.tell()
    _metadata(file, tables.folders)
    fragment_table = _table(file, b"".join(form.FRAGMENT.pack(start, size, 0) for start, size in fragments))
    export_table = _table(file, _numbers(map(_reference, tables.places)))
    id_table = _table(file, struct.pack(f"<{len(tables.owners)}I", *tables.owners))
    xattr_table = form.NONE
    if tables.attributes:
        xattr_table = _attributes(file, tables.attributes)
    else:
        flags |= form.NO_XATTRS
    size = file.tell()
    file.write(b"\0" * (-size % _PAGE))
    head = like._replace(
        inodes=len(tables.places),
        time=epoch,
        fragments=len(fragments),
        flags=flags,
        ids=len(tables.owners),
        root=_reference(tables.places[0]),
        size=size,
        id_table=id_table,
        xattr_table=xattr_table,
        inode_table=inode_table,
        folder_table=folder_table,
        fragment_table=fragment_table,
        export_table=export_table,
    )
    file.seek(0)
    file.write(form.HEAD.pack(*head))


def _attributes(file: BinaryIO, sets: Iterable[tuple[str, ...]]) -> int:
    """The sets of extended attributes, each `name=hex` words; where the table begins."""
    pairs = bytearray()
    index = bytearray()
    count = 0
    for attributes in sets:
        start = len(pairs)
        for attribute in attributes:
            name, _, value = attribute.partition("=")
            prefix, dot, rest = name.partition(".")
            word = rest.encode(errors="surrogateescape")
            pairs += struct.pack("<HH", form.ATTRIBUTES[prefix + dot], len(word)) + word
            data = bytes.fromhex(value)
            pairs += len(data).to_bytes(4, "little") + data
        index += struct.pack("<QII", _reference(start), len(attributes), len(pairs) - start)
        count += 1
    first = file.tell()
    _metadata(file, pairs)
    blocks = _metadata(file, index)
    table = file.tell()
    file.write(struct.pack("<QII", first, count, 0) + _numbers(blocks))
    return table


def _table(file: BinaryIO, data: bytes) -> int:
    """Blocks, and after them where each is; where that begins."""
    blocks = _metadata(file, data)
    place = file.tell()
    file.write(_numbers(blocks))
    return place


def _metadata(file: BinaryIO, data: bytes | bytearray) -> list[int]:
    """Blocks that are not compressed; where each is."""
    begin = file.tell()
    pieces = [data[place : place + form.METADATA] for place in range(0, len(data), form.METADATA)]
    for piece in pieces:
        file.write((form.STORED | len(piece)).to_bytes(2, "little") + piece)
    return [begin + number * form.STEP for number in range(len(pieces))]


def _reference(place: int) -> int:
    """How a place in a table is named: its block's place on the disk, and the offset within that."""
    return (place // form.METADATA * form.STEP) << 16 | place % form.METADATA


def _numbers(values: Iterable[int]) -> bytes:
    found = list(values)
    return struct.pack(f"<{len(found)}Q", *found)
