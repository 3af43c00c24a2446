"""Downloads: verified while they come, resumed where they ended, and from the next mirror when one fails."""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from buildlib import parts, web, workers
from buildlib.errors import BuildError

PARALLEL = web.CONNECTIONS
"""Downloads at the same time."""

_TRIES = 3
"""How often one mirror is tried after a cut, each time from where it ended."""

_CHUNK = 1 << 20
_PIECE = 1 << 18
"""Bytes that are lost at most when a connection is cut."""

_SMALL = 64 << 20
"""Bytes that an index may have."""


class Digest(NamedTuple):
    """What a file must have: an algorithm of hashlib, and the digest in hex."""

    algorithm: str
    value: str


Check = Callable[[memoryview], str | None]
"""Says what is wrong with a file's content, if anything."""

Tells = Callable[[int, int], None]
"""Called with bytes that have come, and bytes that will have."""


@dataclass(frozen=True)
class Job:
    """A file to be there.

    urls   -- where it may be fetched; the next one when one fails
    digest -- of the whole file, where somebody says it
    check  -- what else is wrong with the file, if anything; for formats that know digests of their parts
    """

    urls: tuple[str, ...]
    to: Path
    digest: Digest | None
    size: int | None = None
    check: Check | None = None


Tell = Callable[[int], None]
"""Called with a number of bytes that have come; a negative one when some must come again."""


def get(job: Job, tell: Tell = lambda _count: None) -> Path:
    """Have the file at `job.to`, verified. Nothing is fetched when it is there. Raises BuildError.

    Two processes may want the same: one waits for the other.
    """
    whole = _whole(job, tell, nullcontext)
    if whole is not None:
        os.fsync(whole.file.fileno())
        whole.done()
    return job.to


def get_all(jobs: Sequence[Job], tell: Tells = lambda _done, _total: None) -> None:
    """Have all files, several at a time; `tell` is called with bytes of how many. Raises the first BuildError."""
    todo = [job for job in jobs if not job.to.exists()]
    total = sum(job.size or 0 for job in todo)
    done = 0
    together = parts.Together()

    def count(size: int) -> None:
        nonlocal done
        done += size
        tell(min(done, total), total)

    def have(job: Job) -> None:
        whole = _whole(job, count, together.waiting)
        if whole is not None:
            together.add(whole)

    try:
        workers.each(have, todo, PARALLEL)
    finally:
        # What came stays, whatever else went wrong.
        together.done()


def _whole(job: Job, tell: Tell, waiting: parts.Waiting) -> parts.Whole | None:
    """Fetch what `job` wants, unless it is there. Raises BuildError."""
    if job.to.exists():
        return None
    part = job.to.with_name(f".{job.to.name}.{job.digest.value[:16] if job.digest else ''}.part")
    file = parts.alone(part, waiting)
    try:
        if job.to.exists():
            part.unlink(missing_ok=True)
            file.close()
            return None
        _fill(job, file, tell)
    except BaseException:
        if not os.fstat(file.fileno()).st_size:
            part.unlink()
        file.close()
        raise
    return parts.Whole(job.to, part, file)


def _fill(job: Job, file: IO[bytes], tell: Tell) -> None:
    """Make `file` the whole of what `job` wants, from the first mirror that has it. Raises BuildError."""
    why = []
    told = 0

    def at(position: int) -> None:
        nonlocal told
        tell(position - told)
        told = position

    for url in job.urls:
        try:
            came = _from(url, job, file, at)
            file.flush()
            if job.check and (wrong := job.check(_content(file, came))):
                _empty(file)
                raise web.WrongError(wrong)
        except web.WrongError as error:
            why.append(f"{url}: {error}")
        else:
            return
    raise BuildError("\n".join(why), hint="is it there, and does this machine reach it? Name another mirror")


def _content(file: IO[bytes], came: bytes | None) -> memoryview:
    """All of a file, which is not read before somebody looks; `came`: all of it, where it came in one piece."""
    if came is not None:
        return memoryview(came)
    if not os.fstat(file.fileno()).st_size:
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def read(urls: Iterable[str], *, limit: int = _SMALL) -> tuple[str, bytes]:
    """The URL that answered, and what it has: an index, which nothing says the digest of. Raises BuildError."""
    why = []
    for url in urls:
        try:
            data = b""
            with web.answer(url) as answer:
                for piece in answer.stream(_PIECE):
                    data += piece
                    if len(data) > limit:
                        raise web.WrongError(f"has more than {limit} bytes")
        except (web.WrongError, web.CutError) as error:
            why.append(f"{url}: {error}")
        else:
            return url, data
    raise BuildError("\n".join(why), hint="is it there, and does this machine reach it? Name another mirror")


def ranges(url: str) -> bool:
    """Whether a server sends parts of a file, without which no download goes on after a cut."""
    try:
        with web.answer(url, 1) as answer:
            return answer.status == 206
    except (web.WrongError, web.CutError):
        return False


def _from(url: str, job: Job, file: IO[bytes], at: Tell) -> bytes | None:
    """Bring `file` to the whole of what `job` wants, from one mirror; gives it, if it came in one piece.

    Raises web.WrongError.
    """
    for number in range(_TRIES):
        try:
            hasher, came = _more(url, job, file, at)
            break
        except web.CutError as error:
            if number == _TRIES - 1:
                anew = file.tell() and not ranges(url)
                more = ", and the server sends no parts of files: each try begins anew" if anew else ""
                raise web.WrongError(f"{error}{more}") from None
            time.sleep(0.2 * number)
    size = file.tell()
    if job.digest and hasher.hexdigest() != job.digest.value:
        # Nothing of it may be gone on with.
        _empty(file)
        what = f"has {size:,} bytes, not {job.size:,}" if job.size not in (None, size) else "is not what it should be"
        raise web.WrongError(f"{what}: {job.digest.algorithm} {hasher.hexdigest()}, not {job.digest.value}")
    return came


class _Hasher:
    """A digest on its way, where there is one to have."""

    def __init__(self, wanted: Digest | None) -> None:
        self._hash = hashlib.new(wanted.algorithm) if wanted else None

    def update(self, data: bytes) -> None:
        if self._hash is not None:
            self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest() if self._hash is not None else ""


def _more(url: str, job: Job, file: IO[bytes], at: Tell) -> tuple[_Hasher, bytes | None]:
    """Fetch what is missing; the digest of all, and all, if it came in one piece.

    Raises web.WrongError and web.CutError.
    """
    hasher = _Hasher(job.digest)
    begun = os.fstat(file.fileno()).st_size
    if begun:
        file.seek(0)
        while data := file.read(_CHUNK):
            hasher.update(data)
    if begun and begun == job.size:
        return hasher, None
    with web.answer(url, begun) as answer:
        if begun and answer.status != 206:
            # A server that knows no ranges, or has another file now.
            _empty(file)
            hasher = _Hasher(job.digest)
            begun = 0
            if answer.status == 416:
                raise web.CutError("has less than what is here already")
        at(begun)
        length = answer.headers.get("Content-Length")
        whole = begun + int(length) if length else None
        if job.size is not None and whole is not None and whole != job.size:
            raise web.WrongError(f"has {whole:,} bytes, not {job.size:,}")
        came = None
        for data in answer.stream(_PIECE):
            came = None if begun else data
            file.write(data)
            hasher.update(data)
            begun += len(data)
            at(begun)
    if whole is not None and begun < whole:
        raise web.CutError(f"ended after {begun:,} of {whole:,} bytes")
    return hasher, came


def _empty(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()
