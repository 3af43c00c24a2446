"""Squashfs 4.0 as it lies on a disk, all little-endian: superblock, data, fragments, inodes, folders, tables."""

from __future__ import annotations

import struct
from typing import NamedTuple

MAGIC = 0x73717368
HEAD = struct.Struct("<5I6H8Q")
NONE = 2**64 - 1
"""Where a table that there is none of begins."""
NO_FRAGMENT = NO_ATTRIBUTES = 2**32 - 1

METADATA = 8192
"""Bytes that a metadata block holds; a header of two bytes is before each."""
STORED = 0x8000
"""In that header: the block is not compressed."""
STEP = METADATA + 2

DATA_SIZE = 0xFFFFFF
"""In a data block's size: how many bytes of the file it takes; the bit above says that it is not compressed."""

INODES_STORED, NO_FRAGMENTS, EXPORTABLE, ATTRIBUTES_STORED = 0x001, 0x010, 0x080, 0x100
NO_XATTRS, OPTIONS, IDS_STORED = 0x200, 0x400, 0x800
"""Flags of the superblock."""

ATTRIBUTES = {"user.": 0, "trusted.": 1, "security.": 2}
"""How names of extended attributes may begin, and how the format says so; access control lists have no number."""

DIR, FILE, SYMLINK, BLOCK, CHAR, FIFO, SOCKET = range(1, 8)
"""Kinds of inodes; seven more is the form with extended attributes and the like."""
LONG = 7
EMPTY = 3
"""What a folder's size says beyond its entries, for `.` and `..`."""

INODE = struct.Struct("<4H2I")
SHORT_FILE = struct.Struct("<4I")
LONG_FILE = struct.Struct("<3Q4I")
SHORT_DIR = struct.Struct("<2I2HI")
LONG_DIR = struct.Struct("<4I2HI")
DIR_INDEX = struct.Struct("<3I")
LINK = struct.Struct("<2I")
DIR_HEADER = struct.Struct("<3I")
DIR_ENTRY = struct.Struct("<HhHH")
FRAGMENT = struct.Struct("<QII")


class Head(NamedTuple):
    """The superblock. Sizes in bytes; a table's place is where its index begins, or without one the table itself."""

    magic: int
    inodes: int
    time: int
    block_size: int
    fragments: int
    compression: int
    block_log: int
    flags: int
    ids: int
    major: int
    minor: int
    root: int
    size: int
    id_table: int
    xattr_table: int
    inode_table: int
    folder_table: int
    fragment_table: int
    export_table: int


class Data(NamedTuple):
    """A file's content within a squashfs.

    start    -- where its first block is
    blocks   -- sizes of its blocks as the squashfs has them, four bytes each
    fragment -- number of the fragment block that has its end, or NO_FRAGMENT
    offset   -- where in that
    size     -- bytes of the file
    sparse   -- bytes of it that take no room
    """

    start: int
    blocks: bytes
    fragment: int
    offset: int
    size: int
    sparse: int

    @property
    def length(self) -> int:
        """Bytes that its blocks take."""
        return sum(size & DATA_SIZE for (size,) in struct.iter_unpack("<I", self.blocks))


class Fragment(NamedTuple):
    """A block that holds ends of files; `size` as of a data block."""

    start: int
    size: int

    @property
    def length(self) -> int:
        return self.size & DATA_SIZE


NOTHING = Data(0, b"", NO_FRAGMENT, 0, 0, 0)
"""The content of an empty file."""
