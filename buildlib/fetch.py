"""Downloads: verified while they come, resumed where they ended, and from the next mirror when one fails."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from buildlib.errors import BuildError

PARALLEL = 8
"""Downloads at the same time."""

_TRIES = 3
"""How often one mirror is tried after a cut, each time from where it ended."""

_CHUNK = 1 << 20
_PIECE = 1 << 16
"""Bytes that are lost at most when a connection is cut."""

_TIMEOUT = (15, 60)
"""Seconds for a connection, and for the next bytes."""

_SMALL = 64 << 20
"""Bytes that an index may have."""


class Digest(NamedTuple):
    """What a file must have: an algorithm of hashlib, and the digest in hex."""

    algorithm: str
    value: str


Check = Callable[[Path], str | None]
"""Says what is wrong with a file, if anything."""

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


class _WrongError(Exception):
    """A mirror that can't be used, and why."""


class _CutError(Exception):
    """A download that ended early."""


Tell = Callable[[int], None]
"""Called with a number of bytes that have come; a negative one when some must come again."""


def get(job: Job, tell: Tell = lambda _count: None) -> Path:
    """Have the file at `job.to`, verified. Nothing is fetched when it is there. Raises BuildError.

    Two processes may want the same: one waits for the other.
    """
    if job.to.exists():
        return job.to
    job.to.parent.mkdir(parents=True, exist_ok=True)
    part = job.to.with_name(f".{job.to.name}.{job.digest.value[:16] if job.digest else ''}.part")
    with _alone(part) as file:
        if job.to.exists():
            part.unlink(missing_ok=True)
            return job.to
        why = []
        told = 0

        def at(position: int) -> None:
            nonlocal told
            tell(position - told)
            told = position

        for url in job.urls:
            try:
                _from(url, job, file, at)
                file.flush()
                if job.check and (wrong := job.check(part)):
                    _empty(file)
                    raise _WrongError(wrong)
            except _WrongError as error:
                why.append(f"{url}: {error}")
                continue
            os.fsync(file.fileno())
            part.chmod(0o644)
            part.rename(job.to)
            return job.to
        if not file.tell():
            part.unlink()
    raise BuildError("\n".join(why), hint="is it there, and does this machine reach it? Name another mirror")


def get_all(jobs: Sequence[Job], tell: Tells = lambda _done, _total: None) -> None:
    """Have all files, several at a time; `tell` is called with bytes of how many. Raises the first BuildError."""
    todo = [job for job in jobs if not job.to.exists()]
    total = sum(job.size or 0 for job in todo)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        tell(min(done, total), total)

    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(get, job, count) for job in todo]
        wait(futures, return_when=FIRST_EXCEPTION)
        pool.shutdown(cancel_futures=True)
        for future in futures:
            if not future.cancelled():
                future.result()


def read(urls: Iterable[str], *, limit: int = _SMALL) -> tuple[str, bytes]:
    """The URL that answered, and what it has: an index, which nothing says the digest of. Raises BuildError."""
    why = []
    for url in urls:
        try:
            data = b""
            with _answer(url, 0) as answer:
                for piece in answer.iter_content(_PIECE):
                    data += piece
                    if len(data) > limit:
                        raise _WrongError(f"has more than {limit} bytes")
        except (_WrongError, OSError) as error:
            why.append(f"{url}: {_words(error)}")
        else:
            return url, data
    raise BuildError("\n".join(why), hint="is it there, and does this machine reach it? Name another mirror")


def ranges(url: str) -> bool:
    """Whether a server sends parts of a file, which those need that read it piece by piece."""
    try:
        with _answer(url, 1) as answer:
            return bool(answer.status_code == 206)
    except (_WrongError, OSError):
        return False


def _from(url: str, job: Job, file: IO[bytes], at: Tell) -> None:
    """Bring `file` to the whole of what `job` wants, from one mirror. Raises _WrongError."""
    for number in range(_TRIES):
        try:
            hasher = _more(url, job, file, at)
            break
        except (_CutError, OSError) as error:
            if number == _TRIES - 1:
                raise _WrongError(_words(error)) from None
            time.sleep(0.2 * number)
    size = file.tell()
    if job.digest and hasher.hexdigest() != job.digest.value:
        # Nothing of it may be gone on with.
        _empty(file)
        what = f"has {size:,} bytes, not {job.size:,}" if job.size not in (None, size) else "is not what it should be"
        raise _WrongError(f"{what}: {job.digest.algorithm} {hasher.hexdigest()}, not {job.digest.value}")


class _Hasher:
    """A digest on its way, where there is one to have."""

    def __init__(self, wanted: Digest | None) -> None:
        self._hash = hashlib.new(wanted.algorithm) if wanted else None

    def update(self, data: bytes) -> None:
        if self._hash is not None:
            self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest() if self._hash is not None else ""


def _more(url: str, job: Job, file: IO[bytes], at: Tell) -> _Hasher:
    """Fetch what is missing; the digest of all. Raises _WrongError, _CutError and what `requests` raises."""
    hasher = _Hasher(job.digest)
    file.seek(0)
    while data := file.read(_CHUNK):
        hasher.update(data)
    begun = file.tell()
    if begun and begun == job.size:
        return hasher
    with _answer(url, begun) as answer:
        if begun and answer.status_code != 206:
            # A server that knows no ranges, or has another file now.
            _empty(file)
            hasher = _Hasher(job.digest)
            begun = 0
            if answer.status_code == 416:
                raise _CutError("has less than what is here already")
        at(begun)
        length = answer.headers.get("Content-Length")
        whole = begun + int(length) if length else None
        if job.size is not None and whole is not None and whole != job.size:
            raise _WrongError(f"has {whole:,} bytes, not {job.size:,}")
        for data in answer.iter_content(_PIECE):
            file.write(data)
            hasher.update(data)
            at(file.tell())
    if whole is not None and file.tell() < whole:
        raise _CutError(f"ended after {file.tell():,} of {whole:,} bytes")
    return hasher


def _empty(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


@contextmanager
def _answer(url: str, begun: int) -> Iterator[Any]:
    headers = {"User-Agent": "netboot-pipeline", "Accept-Encoding": "identity"}
    if begun:
        headers["Range"] = f"bytes={begun}-"
    settings = _settings(*urlsplit(url)[:2])
    with _session().get(url, headers=headers, stream=True, timeout=_TIMEOUT, **settings) as answer:
        if answer.status_code == 404:
            raise _WrongError("is not there (404)")
        if answer.status_code >= 400 and answer.status_code != 416:
            raise _WrongError(f"the server refuses it ({answer.status_code} {answer.reason})")
        yield answer


@functools.cache
def _session() -> Any:
    """Connections are used again: a repository's files are many and small."""
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.trust_env = False
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=PARALLEL, pool_maxsize=PARALLEL))
    return session


@functools.cache
def _settings(scheme: str, host: str) -> dict[str, Any]:
    """What the environment says of a server: proxies, certificates, a name and a password of ~/.netrc.

    Asked once a server, which `requests` does for each file.
    """
    import requests

    url = f"{scheme}://{host}/"
    found = requests.Session().merge_environment_settings(url, {}, None, None, None)
    auth = requests.utils.get_netrc_auth(url)
    return {"proxies": found["proxies"], "verify": found["verify"], "cert": found["cert"], "auth": auth}


def _words(error: Exception) -> str:
    """Why, without Python's names of things."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate can't be trusted"
    if isinstance(error, requests.exceptions.ConnectTimeout | requests.exceptions.ReadTimeout):
        return "did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    text = str(error)
    for part in ("Name or service not known", "Temporary failure in name resolution", "Connection refused"):
        if part in text:
            return part
    return text.rpartition(": ")[2] or text


@contextmanager
def _alone(part: Path) -> Iterator[IO[bytes]]:
    """The unfinished file, which nobody else writes to."""
    while True:
        with part.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.fstat(file.fileno()).st_ino == part.stat().st_ino
            except FileNotFoundError:
                same = False
            if same:
                yield file
                return
            # Whoever had it before has finished it.
            if not part.exists():
                part.touch()
