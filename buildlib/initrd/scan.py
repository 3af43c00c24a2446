"""An initrd read as the kernel reads it: segment by segment, to what it would no longer take."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from buildlib.initrd import segments
from buildlib.initrd.cpio import HEADER, UNENDED, DamageError, Member, Stream, members

HEAD = 4096
"""Bytes of each program that are kept, to see what it is."""

_HEADS = 64 << 20
"""Bytes of them that are kept at most."""

_XZ_CHECKS = {0: "none", 1: "crc32", 4: "crc64", 10: "sha256"}

_WINDOW = 128 << 20
"""Bytes of memory that the kernel lets a zstd frame need."""


class Entry(NamedTuple):
    """An entry with where it is.

    number  -- from 0, of all of the initrd
    segment -- number of its segment, from 0
    archive -- number of its archive: hard links don't lead out of it
    head    -- how a program's or a link's data begins
    """

    member: Member
    number: int
    segment: int
    archive: int
    head: bytes


class Damage(NamedTuple):
    """Where the kernel gives up, or goes on without something.

    kernel -- what it says, without what it begins with; "" for nothing
    before -- nothing of the segment gets in
    """

    segment: int
    problem: str
    kernel: str
    before: bool


@dataclass
class Segment:
    """A part of the file that is compressed as one, or an archive that isn't.

    offset, size -- in the file, bytes, without padding
    kind         -- gzip, bzip2, lzma, xz, lzo, lz4, zstd, cpio
    unpacked     -- bytes
    """

    offset: int
    size: int
    kind: str
    unpacked: int = 0
    archives: int = 0
    entries: list[Entry] = field(default_factory=list)


@dataclass
class Initrd:
    """What is in an initrd.

    tail    -- offset of what can't be read; the file's size if all can
    """

    path: Path
    size: int
    tail: int
    segments: list[Segment] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)

    @property
    def entries(self) -> Iterator[Entry]:
        """All that can be read."""
        for segment in self.segments:
            yield from segment.entries

    @property
    def reached(self) -> Iterator[Entry]:
        """What the kernel reads before it gives up."""
        last = self.damages[0].segment if self.damages else len(self.segments)
        for number, segment in enumerate(self.segments):
            if number < last or (number == last and not self.damages[0].before):
                yield from segment.entries

    def damage(self, problem: str, kernel: str, *, before: bool = True) -> None:
        """Note one of the segment that comes next, or of what it holds."""
        self.damages.append(Damage(len(self.segments) - (not before), problem, kernel, before))


Sink = Callable[[int, Member, Stream], None]
"""Called for each entry with its number; may read its data, of the stream that it comes of."""


def scan(path: Path, sink: Sink | None = None) -> Initrd:
    """Read all of it. Memory grows with the number of entries, not with bytes. OSError if it can't be read."""
    found = Initrd(path, path.stat().st_size, 0)
    kept = 0

    def keep(number: int, member: Member, stream: Stream) -> bytes:
        nonlocal kept
        if sink is not None:
            sink(number, member, stream)
            return b""
        wanted = member.kind == "l" or (member.kind == "f" and (member.mode & 0o111 or member.path.endswith("init")))
        if not wanted or kept > _HEADS:
            return b""
        head = stream.read(min(member.size, HEAD))
        kept += len(head)
        return head

    with path.open("rb") as file:
        at = 0
        while (begin := _padding(file, at)) < found.size:
            file.seek(begin)
            magic = file.read(HEADER)
            kind = segments.kind_of(magic)
            _misplaced(found, begin, at, kind)
            if kind is None:
                found.damage(f"{_like(magic)}, at {begin}", "invalid magic at start of compressed archive")
                break
            segment = Segment(begin, 0, kind)
            found.segments.append(segment)
            goes_on = _read(found, segment, keep)
            at = begin + segment.size
            if not goes_on:
                break
        found.tail = begin if begin == found.size else at
    return found


def _misplaced(found: Initrd, begin: int, end: int, kind: str | None) -> None:
    """Note what is wrong with where a segment begins, though it can be read."""
    if begin % 4 and begin > end and found.segments and found.segments[-1].kind == "cpio":
        found.damage(f"padding that ends at {begin}, no multiple of 4", "broken padding")
    elif begin % 4 and kind == "cpio":
        found.damage(
            f"an archive that isn't compressed at {begin}, no multiple of 4",
            "invalid magic at start of compressed archive",
        )


def _like(magic: bytes) -> str:
    if magic.startswith(b"\x04\x22\x4d\x18"):
        return "lz4 in frames, where the kernel reads its legacy form alone (lz4 -l)"
    if magic.startswith(b"hsqs"):
        return "a squashfs as it is, not in an archive"
    return "something that is neither an archive nor compressed"


def _padding(file: IO[bytes], at: int) -> int:
    """The offset of the first byte that isn't zero, from `at` on."""
    file.seek(at)
    while data := file.read(1 << 16):
        left = data.lstrip(b"\0")
        at += len(data) - len(left)
        if left:
            break
    return at


def _read(found: Initrd, segment: Segment, keep: Callable[[int, Member, Stream], bytes]) -> bool:
    """Read one segment; False where the kernel reads no further."""
    number = len(found.segments) - 1
    first = sum(len(each.entries) for each in found.segments)
    archives = sum(each.archives for each in found.segments)

    def call(member: Member, stream: Stream, archive: int) -> None:
        at = first + len(segment.entries)
        segment.entries.append(Entry(member, at, number, archives + archive, keep(at, member, stream)))

    try:
        _suspect(found, segment)
        visit(found.path, segment, call)
    except DamageError as error:
        kernel = error.kernel or ("junk at the end of compressed archive" if segment.kind != "cpio" else "")
        # Where it can't be unpacked at all, the kernel has put nothing in; else what came until then.
        found.damage(error.problem, kernel, before=False)
        return False
    return True


def visit(path: Path, segment: Segment, call: Callable[[Member, Stream, int], None]) -> None:
    """Call for each entry of a segment, with where its data can be read, and the number of its archive in it.

    Sets the segment's sizes and its number of archives. Raises DamageError where the kernel would give up.
    """
    segment.archives = 0

    def archive(stream: Stream) -> None:
        segment.archives += 1
        try:
            for member in members(stream):
                call(member, stream, segment.archives)
        except DamageError as error:
            # The kernel does not miss it.
            if error.problem != UNENDED:
                raise

    if segment.kind == "cpio":
        plain = segments.Plain(path, segment.offset)
        try:
            archive(plain)
        finally:
            segment.size = segment.unpacked = plain.at
            plain.close()
        return
    if segment.kind == "lzo":
        segment.size = path.stat().st_size - segment.offset
        raise DamageError("lzo, which can't be looked into here", "")
    stream = segments.Unpacked(path, segment.offset, segment.kind)
    try:
        _archives(stream, archive)
    finally:
        segment.unpacked = stream.at
        segment.size = max(stream.end - segment.offset, 0)
        stream.close()


def _archives(stream: Stream, archive: Callable[[Stream], None]) -> None:
    """All archives of an unpacked segment, with zeros between them."""
    peeked = _Peeked(stream)
    while True:
        peeked.zeros()
        begin = peeked.peek(1)
        if not begin:
            return
        if begin != b"0":
            raise DamageError("something else than an archive within it", "junk within compressed archive")
        if peeked.at % 4:
            raise DamageError("padding within it that ends at no multiple of 4", "broken padding")
        archive(peeked)


class _Peeked:
    """A stream of which the next bytes may be looked at before they are read."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._held = b""

    @property
    def at(self) -> int:
        return self._stream.at - len(self._held)

    def peek(self, size: int) -> bytes:
        """So many bytes, or fewer at the end, that stay to be read."""
        if len(self._held) < size:
            self._held += self._stream.read(size - len(self._held))
        return self._held[:size]

    def zeros(self) -> None:
        """Leave out zeros."""
        while self.peek(512):
            self._held = self._held.lstrip(b"\0")
            if self._held:
                return

    def read(self, size: int) -> bytes:
        if not self._held:
            return self._stream.read(size)
        data, self._held = self._held[:size], self._held[size:]
        return data + self._stream.read(size - len(data)) if len(data) < size else data

    def skip(self, size: int) -> int:
        held = min(size, len(self._held))
        self._held = self._held[held:]
        return held + self._stream.skip(size - held)


def _suspect(found: Initrd, segment: Segment) -> None:
    """Note what the kernel's decoder can't do, though others can."""
    number = len(found.segments) - 1
    if segment.kind == "xz":
        with found.path.open("rb") as file:
            file.seek(segment.offset)
            flags = file.read(8)
        check = flags[7] if len(flags) == 8 else 0
        if check not in (lzma.CHECK_NONE, lzma.CHECK_CRC32):
            problem = f"xz with a check of {_XZ_CHECKS.get(check, check)}; the kernel reads crc32 and none"
            kernel = "Input was encoded with settings that are not supported by this XZ decoder"
            found.damages.append(Damage(number, problem, kernel, True))
    if segment.kind == "zstd" and (needed := segments.window(found.path, segment.offset)) > _WINDOW:
        problem = f"zstd that needs a window of {needed >> 20} MiB; the kernel has 128 MiB"
        found.damages.append(Damage(number, problem, "ZSTD-compressed data is corrupt", True))
