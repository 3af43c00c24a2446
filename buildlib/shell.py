"""What runs scripts on a machine, this one or another: by a POSIX sh that gets them on its standard input.

BusyBox' sh will do. A script is one function that is called after its end, so that a truncated one does nothing.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shlex
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from buildlib.command import Process, converse, describe, end
from buildlib.errors import BuildError

PATHS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where servers' programs are; not all logins look there."""


@dataclass(frozen=True)
class Answer:
    """What came of a script.

    status -- its exit status; negative when it was killed
    out    -- its standard output
    err    -- its standard error
    """

    status: int
    out: bytes
    err: str


class Held(Protocol):
    """A script that runs while others do. Between `until` and `end` its standard input is the caller's to write."""

    def until(self, mark: bytes) -> bytes:
        """Its output up to, and without, the line `mark`. Raises BuildError when it ends before that."""

    def send(self, data: bytes) -> None:
        """Write to its standard input. Only after `until`: sh reads ahead. Raises BuildError when it has ended."""

    def beat(self) -> None:
        """Write an empty line to its standard input. Raises BuildError when it has ended."""

    def end(self) -> Answer:
        """Close its standard input and wait; `out` is what `until` has not returned. Never raises BuildError."""


class Shell(Protocol):
    """A machine that runs scripts, for messages called `where`: `this machine`, `root@boot.lab`."""

    @property
    def where(self) -> str: ...

    def run(self, script: str) -> Answer:
        """Run a script to its end, nothing on its standard input. Raises BuildError when the machine is gone."""

    def hold(self, script: str) -> Held:
        """Start a script that goes on until its standard input ends."""

    def close(self) -> None:
        """End it all."""


def quote(path: str) -> str:
    """One word of a script."""
    return shlex.quote(path)


def wrap(script: str, *, empty: bool) -> bytes:
    """What sh gets: messages in English, programs of servers found too; `empty` says what the script reads itself.

    The last line is read as a whole before it runs: nothing that follows is taken for a command.
    """
    given = " </dev/null" if empty else ""
    text = f'main() {{\nexport LC_ALL=C PATH="$PATH:{PATHS}"\n{script}\n}}\nmain{given}; exit\n'
    return text.encode(errors="surrogateescape")


_STARTER = ThreadPoolExecutor(1, "shell")
"""Starts all processes: one dies with the thread that started it, and callers' threads end before their scripts do."""


def start(line: Sequence[str]) -> tuple[Process, int]:
    """Start a program with pipes, as `converse` does, and its standard error apart: a descriptor for `said`."""
    err = os.memfd_create("stderr")
    # A path, since no descriptor but the pipes is inherited.
    aside = ["sh", "-c", 'err=$0; exec "$@" 2>>"$err"', f"/proc/{os.getpid()}/fd/{err}", *line]
    return _STARTER.submit(converse, aside).result(), err


def said(err: int) -> str:
    """What a program has written to its standard error."""
    return os.pread(err, os.fstat(err).st_size, 0).decode(errors="replace")


class Talk(abc.ABC):
    """A script's output, read to a mark."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._kept = b""

    def until(self, mark: bytes) -> bytes:
        line = b"\n" + mark + b"\n"
        # With a line end before the first line too, which is none of the output's.
        seen = bytearray(b"\n" + self._kept)
        at = -1
        start = 0
        while (at := seen.find(line, start)) < 0:
            start = max(0, len(seen) - len(line))
            data = self._more()
            if not data:
                self._kept = bytes(seen[1:])
                raise BuildError(self._over())
            seen += data
        self._kept = bytes(seen[at + len(line) :])
        return bytes(seen[1 : at + 1])

    def beat(self) -> None:
        self.send(b"\n")

    @abc.abstractmethod
    def send(self, data: bytes) -> None: ...

    @abc.abstractmethod
    def _more(self) -> bytes:
        """Some more output; empty at its end."""

    @abc.abstractmethod
    def _over(self) -> str:
        """Why there is no more, and where."""


class LocalShell:
    """Scripts on this machine, as this user."""

    where = "this machine"

    def __init__(self) -> None:
        self._held: list[_Local] = []

    def run(self, script: str) -> Answer:
        local = _Local()
        with _ended(local):
            local.send(wrap(script, empty=True))
            return local.end()

    def hold(self, script: str) -> Held:
        local = _Local()
        with _ended(local):
            local.send(wrap(script, empty=False))
        self._held.append(local)
        return local

    def close(self) -> None:
        for local in self._held:
            local.kill()


class _Local(Talk):
    def __init__(self) -> None:
        super().__init__(LocalShell.where)
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._process, self._err = start(["sh"])

    def send(self, data: bytes) -> None:
        assert self._process.stdin
        try:
            with self._lock:
                self._process.stdin.write(data)
                self._process.stdin.flush()
        except (OSError, ValueError):
            raise BuildError(self._over()) from None

    def end(self) -> Answer:
        if self._answer is None:
            assert self._process.stdin and self._process.stdout
            with self._lock, contextlib.suppress(OSError):
                self._process.stdin.close()
            with self._process.stdout as stream:
                out = self._kept + stream.read()
            status = self._process.wait()
            self._answer = Answer(status, out, said(self._err))
            os.close(self._err)
        return self._answer

    def kill(self) -> None:
        """End it at once, if it hasn't."""
        if self._answer is None:
            end(self._process)
            self.end()

    def _more(self) -> bytes:
        assert self._process.stdout
        return os.read(self._process.stdout.fileno(), 1 << 16)

    def _over(self) -> str:
        status = self._process.wait()
        lines = said(self._err).strip().splitlines() if self._answer is None else []
        return f"{self._where}: {lines[-1] if lines else f'the shell ended: {describe(status)}'}"


@contextlib.contextmanager
def _ended(local: _Local) -> Iterator[None]:
    """End a script when it is interrupted."""
    try:
        yield
    except BaseException:
        local.kill()
        raise
