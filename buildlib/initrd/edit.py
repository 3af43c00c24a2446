"""Initrds changed: a segment appended, a file replaced, what is broken repaired. The original stays as it is.

What is made of the same things is the same, byte for byte. Segments that nothing is changed in are copied as they are.
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import re
import shutil
import stat
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from buildlib import command
from buildlib.errors import BuildError
from buildlib.initrd import segments
from buildlib.initrd.cpio import LIMIT, Member, Stream, header, trailer
from buildlib.initrd.scan import Entry, Initrd, Segment, scan, visit
from buildlib.initrd.tree import Node, build

_PIECE = 1 << 20

_MENDED = re.compile("no multiple of 4|^xz with a check")
"""Damages that are gone when a segment is written again."""

KINDS = ("cpio", "gzip", "zstd", "xz", "lz4", "lzma", "bzip2")
"""How a segment can be written."""

_PACKERS: dict[str, Callable[[], Any]] = {
    # A header without time and name.
    "gzip": lambda: zlib.compressobj(9, zlib.DEFLATED, 31),
    "bzip2": lambda: bz2.BZ2Compressor(9),
    "xz": lambda: lzma.LZMACompressor(lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, preset=6),
    "lzma": lambda: lzma.LZMACompressor(lzma.FORMAT_ALONE, preset=6),
}


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


def append(initrd: Path, folder: Path, out: Path, *, kind: str = "cpio", epoch: int = 0) -> int:
    """Write `out`: the initrd, and a segment of what is in `folder`, owned by root; bytes of that segment.

    epoch -- latest time of its entries, seconds since 1970
    Raises BuildError for files of 4 GiB and more, and for what is neither file, folder nor link.
    """
    entries = list(_listed(folder, epoch))
    with out.open("wb") as file:
        with initrd.open("rb") as source:
            shutil.copyfileobj(source, file, _PIECE)
        _pad(file)
        begin = file.tell()
        with _packed(file, kind) as sink:
            for member, path in entries:
                sink.write(header(member))
                if path is None:
                    sink.write(os.readlink(folder / member.path).encode(errors="surrogateescape"))
                elif member.size:
                    with path.open("rb") as source:
                        copy_into(source, member.size, sink)
                sink.write(b"\0" * (-member.size % 4))
            sink.write(trailer())
        _pad(file)
        return file.tell() - begin


def _listed(folder: Path, epoch: int) -> Iterator[tuple[Member, Path | None]]:
    """Entries of a folder, folders before what they hold, with the file that has their data; of links, none."""
    number = 0
    for above, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(above, name))]
        for name in sorted([*folders, *files]):
            path = Path(above, name)
            said = path.lstat()
            number += 1
            size = 0 if stat.S_ISDIR(said.st_mode) else said.st_size
            if not (stat.S_ISDIR(said.st_mode) or stat.S_ISREG(said.st_mode) or stat.S_ISLNK(said.st_mode)):
                raise BuildError(f"{path}: is neither a file nor a folder nor a link")
            if size > LIMIT:
                raise BuildError(f"{path}: has {size:,} bytes; an initrd holds files below 4 GiB")
            mode = 0o120777 if stat.S_ISLNK(said.st_mode) else said.st_mode
            time = max(0, min(int(said.st_mtime), epoch))
            member = Member(
                path.relative_to(folder).as_posix(), number, mode, 0, 0, 1, time, size, (0, 0), (0, 0), None, 0
            )
            yield member, None if stat.S_ISLNK(said.st_mode) else path
        folders[:] = [name for name in folders if name not in links]


def replace(initrd: Path, path: str, source: Path, out: Path) -> None:
    """Write `out`: the initrd with another content of one file; its mode, owner and place stay. Raises BuildError."""
    size = source.stat().st_size
    if size > LIMIT:
        raise BuildError(f"{source}: has {size:,} bytes; an initrd holds files below 4 GiB")
    found = scan(initrd)
    _whole(found)
    node = build(found.entries).find(path)
    if node is None or node.content is None:
        raise BuildError(f"{initrd}: {path} is not in it", hint="append puts files into it that are not there")
    number = node.content.number

    def change(entry: Entry, data: Stream, write: Write) -> None:
        if entry.number == number:
            with source.open("rb") as file:
                write(entry.member._replace(size=size, check=None), lambda sink: copy_into(file, size, sink))
        else:
            write(entry.member, lambda sink: copy_into(data, entry.member.size, sink))

    _rewritten(found, {node.content.segment}, change, out)


def repair(initrd: Path, out: Path, *, init: str = "init") -> list[str]:
    """Write `out`: the initrd without what can be repaired; what was done, a line each. Raises BuildError.

    Padding, folders that lack before what they hold, compression that the kernel doesn't read, programs on the way to
    init that may not be run, and Windows' line ends in scripts on it.
    """
    found = scan(initrd)
    _whole(found, but=_MENDED)
    tree = build(found.entries)
    done: list[str] = []
    runs = {content.number: content for content in _way(tree.find, init)}
    orphans = {entry.number for entry in tree.orphans}
    touched = {entry.segment for entry in tree.orphans}
    for content in runs.values():
        if not content.member.mode & 0o111 or _is_dos(content.head):
            touched.add(content.segment)
    touched |= {damage.segment for damage in found.damages if damage.problem.startswith("xz")}
    made: set[str] = set()

    def change(entry: Entry, data: Stream, write: Write) -> None:
        member = entry.member
        if entry.number in orphans:
            for folder in _above(member.path):
                if folder not in made:
                    made.add(folder)
                    done.append(f"{folder}: made, before {member.path}")
                    write(member._replace(path=folder, mode=0o040755, nlink=2, size=0, check=None), lambda _sink: None)
        if entry.number in runs and not member.mode & 0o111:
            done.append(f"{member.path}: may be run now")
            member = member._replace(mode=member.mode | 0o111)
        if entry.number in runs and _is_dos(entry.head):
            text = data.read(member.size).replace(b"\r\n", b"\n")
            done.append(f"{member.path}: line ends are Unix' now")
            write(member._replace(size=len(text), check=None), lambda sink: sink.write(text))
            return
        write(member, lambda sink: copy_into(data, entry.member.size, sink))

    done += [f"segment {damage.segment + 1}: {damage.problem}: mended" for damage in found.damages]
    _rewritten(found, touched, change, out)
    return done


def compress(initrd: Path, kind: str, out: Path) -> None:
    """Write `out`: the initrd with every segment compressed as `kind`, and without the numbers of the devices that its
    files once were on, which differ from machine to machine. Raises BuildError."""
    found = scan(initrd)
    _whole(found)

    def change(entry: Entry, data: Stream, write: Write) -> None:
        write(entry.member._replace(device=(0, 0)), lambda sink: copy_into(data, entry.member.size, sink))

    with out.open("wb") as file:
        for segment in found.segments:
            _pad(file)
            with _packed(file, kind) as sink:
                _transformed(found.path, segment, change, sink)


def _way(find: Callable[[str], Node | None], init: str) -> Iterator[Entry]:
    """The contents of init, of what runs it, and of what runs that."""
    names = [init]
    for name in names:
        node = find(name)
        if node is None or node.kind != "f" or node.content is None or len(names) > 5:
            continue
        yield node.content
        head = node.content.head
        if head.startswith(b"#!"):
            names += [word.decode(errors="surrogateescape") for word in head[2:].split(None, 1)[:1]]


def _is_dos(head: bytes) -> bool:
    return head.startswith(b"#!") and head.partition(b"\n")[0].endswith(b"\r")


def _above(path: str) -> list[str]:
    parts = path.strip("/").split("/")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def _whole(found: Initrd, but: re.Pattern[str] | None = None) -> None:
    """Refuse to change what can't be read to its end, `but` what is mended: the rest would be lost."""
    for damage in found.damages:
        if but is not None and but.search(damage.problem):
            continue
        raise BuildError(
            f"{found.path}: segment {damage.segment + 1}: {damage.problem}",
            hint="make that segment again; what is behind it can't be read",
        )


Write = Callable[[Member, Callable[[_Sink], object]], None]
"""Writes an entry: its header, and its data by a function that is given where to."""

Change = Callable[[Entry, Stream, Write], None]
"""Writes what becomes of an entry whose data can be read."""


def _rewritten(found: Initrd, touched: Iterable[int], change: Change, out: Path) -> None:
    """Write an initrd with some segments changed."""
    chosen = set(touched)
    with out.open("wb") as file, found.path.open("rb") as source:
        for number, segment in enumerate(found.segments):
            _pad(file)
            if number not in chosen:
                source.seek(segment.offset)
                copy_into(source, segment.size, file)
                continue
            with _packed(file, segment.kind) as sink:
                _transformed(found.path, segment, change, sink)
        _pad(file)


def _transformed(path: Path, segment: Segment, change: Change, sink: _Sink) -> None:
    """Write a segment's archives with their entries changed."""
    entries = iter(segment.entries)
    now = 1

    def write(member: Member, data: Callable[[_Sink], object]) -> None:
        sink.write(header(member))
        data(sink)
        sink.write(b"\0" * (-member.size % 4))

    def call(_member: Member, stream: Stream, archive: int) -> None:
        nonlocal now
        if archive != now:
            sink.write(trailer())
            now = archive
        change(next(entries), stream, write)

    visit(path, segment, call)
    sink.write(trailer())


def _pad(file: IO[bytes]) -> None:
    """To a multiple of four: the kernel takes an archive that isn't compressed only there."""
    file.write(b"\0" * (-file.tell() % 4))


def copy_into(source: Any, size: int, sink: _Sink) -> None:
    """So many bytes of a file or a stream."""
    while size and (data := source.read(min(size, _PIECE))):
        sink.write(data)
        size -= len(data)


@contextlib.contextmanager
def _packed(file: IO[bytes], kind: str) -> Iterator[_Sink]:
    """What compresses into a file as the kernel reads it."""
    if kind == "cpio":
        yield file
    elif kind in segments.ENCODE:
        with _piped(file, segments.ENCODE[kind]) as pipe:
            yield pipe
    else:
        packer = _PACKERS[kind]()
        yield _Packing(packer, file)
        file.write(packer.flush())


class _Packing:
    def __init__(self, packer: Any, file: IO[bytes]) -> None:
        self._packer, self._file = packer, file

    def write(self, data: bytes) -> None:
        self._file.write(self._packer.compress(data))


@contextlib.contextmanager
def _piped(file: IO[bytes], line: list[str]) -> Iterator[IO[bytes]]:
    """A program's standard input, whose output is appended to a file."""
    process = command.converse(line)
    assert process.stdin and process.stdout
    output = process.stdout
    reader = threading.Thread(target=lambda: shutil.copyfileobj(output, file, _PIECE), daemon=True)
    reader.start()
    try:
        yield process.stdin
        process.stdin.close()
        reader.join()
        if process.wait():
            raise BuildError(f"{line[0]} failed")
    finally:
        command.end(process)
