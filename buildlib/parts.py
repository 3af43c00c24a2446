"""Files on their way: each has one writer, and gets its name when it is whole and on the disk."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from buildlib import atomic

_TOGETHER = 64
"""Files that go on to the disk together."""

Waiting = Callable[[], AbstractContextManager[None]]
"""What surrounds waiting for another writer."""


@dataclass(frozen=True)
class Whole:
    """A file that came whole, under a name that nobody takes for it, and that nobody else writes to."""

    to: Path
    part: Path
    file: IO[bytes]

    def done(self) -> None:
        """Give it its name; its content must be on the disk by now."""
        os.rename(self.part, self.to)
        self.file.close()


class Together:
    """Files that came whole go on to the disk together, which is faster than one by one, while others come.

    None is kept back while somebody waits for a file of another process, which may be waiting for one of these.
    """

    def __init__(self) -> None:
        self._came: list[Whole] = []
        self._waiting = 0
        self._lock = threading.Lock()
        self._behind: threading.Thread | None = None
        self._failed: list[BaseException] = []

    def add(self, whole: Whole) -> None:
        """Raises what came of those that are on their way behind: there is no use in fetching more."""
        with self._lock:
            self._came.append(whole)
            if self._failed:
                raise self._failed[0]
            at_once = self._waiting > 0
            if not at_once and len(self._came) >= _TOGETHER and not (self._behind and self._behind.is_alive()):
                came, self._came = self._came, []
                self._behind = threading.Thread(target=self._later, args=(came,), daemon=True)
                self._behind.start()
        if at_once:
            self._named()

    def done(self) -> None:
        """All get their names. Raises what came of those before as well."""
        self._named()
        if self._behind:
            self._behind.join()
        if self._failed:
            raise self._failed[0]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        with self._lock:
            self._waiting += 1
        try:
            self._named()
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def _named(self) -> None:
        with self._lock:
            came, self._came = self._came, []
        _finish(came)

    def _later(self, came: list[Whole]) -> None:
        try:
            _finish(came)
        except BaseException as error:
            self._failed.append(error)


def _finish(came: list[Whole]) -> None:
    try:
        for folder in {whole.part.parent for whole in came}:
            atomic.sync(folder)
        for whole in came:
            whole.done()
    finally:
        # After a failure as well: others wait for files that are open.
        for whole in came:
            whole.file.close()


def alone(part: Path, waiting: Waiting) -> IO[bytes]:
    """The unfinished file, which nobody else writes to until it is closed."""
    while True:
        try:
            file = part.open("a+b")
        except FileNotFoundError:
            part.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with waiting():
                fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if os.fstat(file.fileno()).st_ino == part.stat().st_ino:
                os.fchmod(file.fileno(), 0o644)
                return file
        except FileNotFoundError:
            # Whoever had it before has finished it.
            pass
        file.close()
