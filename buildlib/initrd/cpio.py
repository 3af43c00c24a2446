"""The archives that a kernel unpacks: newc and its form with checksums, read and written entry by entry.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Numbers are hex; name and data are
padded to four bytes from the archive's beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

TRAILER = "TRAILER!!!"
"""The name of what ends an archive."""

HEADER = 110
"""Bytes of an entry before its name."""

LIMIT = 2**32 - 1
"""Most bytes of a file: its size has 8 hex digits."""

NEWC, CRC = b"070701", b"070702"

UNENDED = "an archive without its trailer"
"""What is wrong with a stream that ends between two entries."""

_NAME = 4096
"""Most bytes of a name with its end, as the kernel has it."""

_LETTERS = "?pc?d?b?f?l?s???"
"""By the upper bits of a mode."""


class Stream(Protocol):
    """Bytes that are read once, from the beginning."""

    @property
    def at(self) -> int:
        """How many came already."""
        ...

    def read(self, size: int) -> bytes:
        """So many of them, or fewer at the end."""
        ...

    def skip(self, size: int) -> int:
        """Leave so many out, or fewer at the end; how many."""
        ...


CRASH = "unpack_to_rootfs+"
"""What the console shows of a kernel that dies of an initrd: a line of its call trace."""


class DamageError(Exception):
    """What follows can't be read. `kernel`: how the kernel says it, after `Initramfs unpacking failed: `; or CRASH."""

    def __init__(self, problem: str, kernel: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.kernel = kernel


class Member(NamedTuple):
    """An entry.

    mode   -- type and permission bits
    device -- of the file, for hard links: equal with `inode` within an archive, and `nlink` of 2 or more
    rdev   -- major and minor of a device node
    size   -- bytes of data: a file's content, or where a link points
    check  -- sum of the data's bytes, modulo 2**32; None where the format has none
    begin  -- offset of its header in the stream
    """

    path: str
    inode: int
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int
    size: int
    device: tuple[int, int]
    rdev: tuple[int, int]
    check: int | None
    begin: int

    @property
    def kind(self) -> str:
        """f, d, l, c, b, p, s; ? for none of these."""
        return _LETTERS[self.mode >> 12 & 15]


def members(stream: Stream) -> Iterator[Member]:
    """The entries of one archive, to its trailer or the stream's end. Data that isn't read until the next is skipped.

    Raises DamageError where the kernel would give up.
    """
    base = stream.at
    while True:
        begin = stream.at
        head = stream.read(HEADER)
        if not head.strip(b"\0") and len(head) < HEADER:
            raise DamageError(UNENDED, "")
        member = _parsed(stream, head, begin, base)
        if member.path == TRAILER and member.size == 0:
            return
        data = stream.at
        yield member
        end = data + member.size
        end += -(end - base) % 4
        lacking = end - stream.at
        if stream.skip(lacking) < lacking - 3:
            raise DamageError(f"{member.path}: ends early", "")


def _parsed(stream: Stream, head: bytes, begin: int, base: int) -> Member:
    magic = head[:6]
    if magic not in (NEWC, CRC):
        if magic == b"070707":
            raise DamageError("an archive of the old portable format", "incorrect cpio method used: use -H newc option")
        raise DamageError("no entry where one must be", "no cpio magic")
    if len(head) < HEADER:
        raise DamageError("ends within an entry's header", "")
    try:
        numbers = [int(head[at : at + 8], 16) for at in range(6, HEADER, 8)]
    except ValueError:
        raise DamageError("an entry's header has something else than hex digits", "") from None
    inode, mode, uid, gid, nlink, mtime, size, major, minor, rmajor, rminor, length, check = numbers
    if not 0 < length <= _NAME:
        raise DamageError(f"an entry's name has {length} bytes", "")
    name = stream.read(length)
    stream.skip(-(stream.at - base) % 4)
    if len(name) < length:
        raise DamageError("ends within an entry's name", "")
    path = name.partition(b"\0")[0].decode(errors="surrogateescape")
    return Member(
        path,
        inode,
        mode,
        uid,
        gid,
        nlink,
        mtime,
        size,
        (major, minor),
        (rmajor, rminor),
        check if magic == CRC else None,
        begin,
    )


def header(member: Member) -> bytes:
    """Header and name of an entry, padded; its data, padded to four bytes, is to follow. It has no checksum."""
    name = member.path.encode(errors="surrogateescape") + b"\0"
    numbers = (
        member.inode,
        member.mode,
        member.uid,
        member.gid,
        member.nlink,
        member.mtime,
        member.size,
        *member.device,
        *member.rdev,
        len(name),
        0,
    )
    made = NEWC + b"".join(b"%08X" % number for number in numbers) + name
    return made + b"\0" * (-len(made) % 4)


def trailer() -> bytes:
    """What ends an archive."""
    return header(Member(TRAILER, 0, 0, 0, 0, 1, 0, 0, (0, 0), (0, 0), None, 0))
