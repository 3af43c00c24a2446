"""The bytes of an initrd's segments: known by how they begin, unpacked while they are read.

The standard library unpacks gzip, bzip2, xz and lzma, and tells where they end. zstd and lz4 are unpacked by their own
programs; where they end their frames say.
"""

from __future__ import annotations

import bz2
import contextlib
import fcntl
import lzma
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from buildlib import command
from buildlib.initrd.cpio import CRASH, DamageError

MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x1f\x9e", "gzip"),
    (b"BZ", "bzip2"),
    (b"\x5d\0", "lzma"),
    (b"\xfd7", "xz"),
    (b"\x89\x4c", "lzo"),
    (b"\x02\x21", "lz4"),
    (b"\x28\xb5", "zstd"),
)
"""What the kernel looks at, lib/decompress.c, and what it then takes the rest for."""

ENCODE: dict[str, list[str]] = {
    "zstd": ["zstd", "-q", "-12", "-T1", "-c"],
    "lz4": ["lz4", "-q", "-l", "-9", "-c"],
}
"""Programs that compress standard input as the kernel reads it, and the same bytes for the same input."""

_DECODE = {"zstd": ["zstd", "-q", "-dc", "--long=31"], "lz4": ["lz4", "-q", "-dc"]}

_DECODERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE),
}

_BLOCK = 1 << 18
"""Bytes that are read of a file at once."""

_PIECE = 1 << 20
"""Bytes that are unpacked at once."""

_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
"""Numbers that zstd frames begin with which hold nothing."""


def kind_of(begin: bytes) -> str | None:
    """What these bytes begin: a compression, `cpio`, or nothing that a kernel knows."""
    if begin[:1] == b"0":
        return "cpio"
    return next((kind for magic, kind in MAGIC if begin.startswith(magic)), None)


class Plain:
    """A file from an offset on."""

    def __init__(self, path: Path, begin: int) -> None:
        self._file = path.open("rb", buffering=_BLOCK)
        self._file.seek(begin)
        self._size = path.stat().st_size
        self._begin = self._at = begin

    @property
    def at(self) -> int:
        return self._at - self._begin

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._at += len(data)
        return data

    def skip(self, size: int) -> int:
        size = min(size, self._size - self._at)
        self._at += size
        self._file.seek(self._at)
        return size

    def close(self) -> None:
        self._file.close()


class Unpacked:
    """What a compressed segment of a file holds.

    end -- offset in the file where the segment ends; known once all is read
    """

    def __init__(self, path: Path, begin: int, kind: str) -> None:
        self.end = begin
        self.at = 0
        self._piece = b""
        self._used = 0
        self._stack = contextlib.ExitStack()
        self._pipe: IO[bytes] | None = None
        self._problem: Path | None = None
        self._process: command.Process | None = None
        self._pieces: Iterator[bytes] = iter(())
        if kind in _DECODE:
            self.end = extent(path, begin, kind)
            self._start(path, begin, kind)
        else:
            self._pieces = self._decoded(path, begin, kind)

    def _start(self, path: Path, begin: int, kind: str) -> None:
        """Have it unpacked by a program, which a thread feeds."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._problem = folder / "errors"
        line = ["sh", "-c", 'exec "$@" 2>"$0"', str(self._problem), *_DECODE[kind]]
        process = command.converse(line)
        self._process = process
        self._stack.callback(command.end, process)
        assert process.stdin and process.stdout
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIECE)
        self._pipe = process.stdout
        threading.Thread(target=_feed, args=(path, begin, self.end, process.stdin), daemon=True).start()

    def _decoded(self, path: Path, begin: int, kind: str) -> Iterator[bytes]:
        decoder = _DECODERS[kind]()
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            data = b""
            while not decoder.eof:
                if not data and (kind == "gzip" or decoder.needs_input):
                    data = file.read(_BLOCK)
                    self.end += len(data)
                    if not data:
                        raise DamageError(f"its {kind} ends early", _EARLY[kind])
                try:
                    piece = decoder.decompress(data, _PIECE)
                except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                    raise DamageError(f"its {kind} can't be unpacked: {error}", _EARLY[kind]) from None
                data = decoder.unconsumed_tail if kind == "gzip" else b""
                if piece:
                    yield piece
            self.end -= len(decoder.unused_data)

    def _fill(self) -> bool:
        """Get a next piece when the last one is used up; False at the end."""
        if self._used < len(self._piece):
            return True
        self._used = 0
        self._piece = os.read(self._pipe.fileno(), _PIECE) if self._pipe else next(self._pieces, b"")
        if not self._piece and self._process is not None and self._problem is not None:
            status = self._process.wait()
            said = self._problem.read_text(errors="replace").strip()
            if status:
                kind = "zstd" if "zstd" in str(self._process.args) else "lz4"
                raise DamageError(
                    f"its {kind} can't be unpacked: {said.splitlines()[-1] if said else status}", _EARLY[kind]
                )
        return bool(self._piece)

    def read(self, size: int) -> bytes:
        end = self._used + size
        if end <= len(self._piece):
            found = self._piece[self._used : end]
            self._used = end
            self.at += size
            return found
        parts = []
        while size and self._fill():
            part = self._piece[self._used : self._used + size]
            self._used += len(part)
            size -= len(part)
            parts.append(part)
        found = b"".join(parts)
        self.at += len(found)
        return found

    def skip(self, size: int) -> int:
        left = size
        while left:
            here = min(left, len(self._piece) - self._used)
            self._used += here
            left -= here
            if left and self._pipe is not None:
                # Nobody looks at it: it needs not be copied.
                while left and (gone := os.splice(self._pipe.fileno(), _null(), left)):
                    left -= gone
            if left and not self._fill():
                break
        self.at += size - left
        return size - left

    def close(self) -> None:
        self._stack.close()


_EARLY = {
    "gzip": "read error",
    "bzip2": CRASH,
    "lzma": "unexpected EOF",
    "xz": "XZ-compressed data is corrupt",
    "lz4": CRASH,
    "zstd": "ZSTD-compressed data is truncated",
}
"""What the kernel (6.1) says of a stream that is cut off."""

_NULL: list[int] = []


def _null() -> int:
    if not _NULL:
        _NULL.append(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
    return _NULL[0]


def _feed(path: Path, begin: int, end: int, pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError), pipe, path.open("rb") as file:
        while begin < end and (size := os.sendfile(pipe.fileno(), file.fileno(), begin, min(_PIECE, end - begin))):
            begin += size


def extent(path: Path, begin: int, kind: str) -> int:
    """Where a zstd or lz4 segment ends, as its blocks' headers say; the file's end if it is cut off."""
    with path.open("rb", buffering=0) as file:
        size = path.stat().st_size
        return min(size, _zstd(file, begin) if kind == "zstd" else _lz4(file, begin, size))


def window(path: Path, begin: int) -> int:
    """Bytes of memory that a zstd frame needs to be unpacked (RFC 8878, 3.1.1.1)."""
    with path.open("rb") as file:
        file.seek(begin + 4)
        head = file.read(14)
    if len(head) < 14:
        return 0
    single, flag = head[0] >> 5 & 1, head[0] >> 6
    if not single:
        exponent, mantissa = head[1] >> 3, head[1] & 7
        base = 1 << (10 + exponent)
        return base + base // 8 * mantissa
    at = 1 + (0, 1, 2, 4)[head[0] & 3]
    length = (1, 2, 4, 8)[flag]
    return int.from_bytes(head[at : at + length], "little") + (256 if length == 2 else 0)


def _zstd(file: IO[bytes], begin: int) -> int:
    """The end of the frame at `begin` (RFC 8878, 3.1.1)."""
    file.seek(begin)
    head = file.read(18)
    if len(head) < 5:
        return begin + len(head)
    if int.from_bytes(head[:4], "little") in _SKIPPABLE:
        return begin + 8 + int.from_bytes(head[4:8], "little")
    described = head[4]
    single, flag = described >> 5 & 1, described >> 6
    at = begin + 5 + (not single) + (0, 1, 2, 4)[described & 3]
    at += (single, 2, 4, 8)[flag]
    while True:
        file.seek(at)
        block = file.read(3)
        if len(block) < 3:
            return at + len(block)
        said = int.from_bytes(block, "little")
        at += 3 + (1 if said >> 1 & 3 == 1 else said >> 3)
        if said & 1:
            return at + (4 if described & 4 else 0)


def _lz4(file: IO[bytes], begin: int, size: int) -> int:
    """The end of the legacy blocks at `begin`: where no length of a block can be, or the next frame begins."""
    at = begin + 4
    while at + 4 <= size:
        file.seek(at)
        length = int.from_bytes(file.read(4), "little")
        if length == 0x184C2102:
            return at
        # A block unpacks to at most 8 MiB, and grows by 1/255 and 16 at most.
        if not 0 < length <= (8 << 20) + (8 << 20) // 255 + 16:
            return at
        at += 4 + length
    return at
