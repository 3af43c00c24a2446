"""How bytes get to a target's machine: scripts by its shell, bulk data by a command beside it that is fed here."""

from __future__ import annotations

import contextlib
import fcntl
import posixpath
import re
import shlex
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from buildlib.command import GRACE, converse, describe, end
from buildlib.errors import BuildError
from buildlib.listing import Entry, Groups
from buildlib.shell import Shell, quote

Progress = Callable[[int, int], None]
"""Called with bytes that were sent, and how many there are to send; the latter is an estimate."""

CHUNK = 1 << 18
"""Bytes that are read and written at once."""

_LINES = 1000
"""Lines of a command's output that are kept."""

_CAUSES = (
    (
        r"[Nn]o space left|Wrote only \d+ of \d+ bytes",
        "no space is left there",
        "make room there, or ./doit prune:TARGET",
    ),
    (r"[Qq]uota exceeded", "the quota there is used up", "make room there, or ./doit prune:TARGET"),
    (r"Read-only file system", "its file system is mounted read-only", "mount it read-write there"),
    (r"[Tt]oo many links", "its file system takes no more links", "./doit prune:TARGET"),
    (
        r"Permission denied(?! \()|Operation not permitted",
        "who logs in there may not write it",
        "log in as somebody who may, or say `sudo: yes`",
    ),
    (
        r"[Cc]onnection.*(closed|reset|timed out|lost)|not responding|Broken pipe|unexpected(ly)? (EOF|end)",
        "the connection was lost",
        "run it again: it goes on from what is there",
    ),
)
"""What a message says, in words, and what to do. The first that fits counts: a full disk ends connections too."""

SETTLE = 'settle() { sync -f "$1" 2>/dev/null || sync; }'
"""Shell function: all of a folder's file system on to the disk."""


STEADY = f"""{SETTLE}
steady() {{
    while kill -0 $$ 2>/dev/null; do sleep 1; settle "$1"; done </dev/null >/dev/null 2>&1 &
    steadily=$!
}}
steadied() {{ kill $steadily; settle "$1" </dev/null >/dev/null 2>&1 & }}"""
"""Shell functions: begin to put what comes into a folder on to the disk while it comes; end that, waiting for nothing.

The last of it goes there while its digests are told.
"""


@dataclass(frozen=True)
class Way:
    """A machine that is sent to.

    shell -- what runs scripts there
    ssh   -- the command line of ssh that leads there, ending with the destination; () for this machine
    sudo  -- become root there
    tools -- what `transfer.tools_script` has found there
    """

    shell: Shell
    ssh: tuple[str, ...]
    sudo: bool
    tools: frozenset[str]

    def line(self, script: str) -> list[str]:
        """The command line here of a script that has this command's standard input as its own."""
        line = ["sh", "-c", f"LC_ALL=C; export LC_ALL; {script}"]
        return [*self.ssh, shlex.join([*(("sudo", "-n") if self.sudo else ()), *line])] if self.ssh else line


class Source(Protocol):
    """A root tree that is sent."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What it holds."""
        ...

    @property
    def groups(self) -> Groups:
        """Its files that have several names."""
        ...

    def whole(self) -> Path:
        """A folder with all of it."""
        ...

    def some(self, paths: Collection[str]) -> Path:
        """A folder with these of its entries, or more."""
        ...


class Previous(NamedTuple):
    """A tree that is there already. Files are shared with it, so nobody may write to either."""

    folder: str
    entries: Mapping[str, Entry]
    groups: Groups


def ask(way: Way, folder: str, script: str) -> bytes:
    """What a script writes there that works for `folder`. Raises BuildError unless it succeeds."""
    answer = way.shell.run(script)
    if answer.status:
        raise failure(way, folder, answer.err.splitlines(), answer.status)
    return answer.out


def failure(way: Way, folder: str, said: Iterable[str], status: int) -> BuildError:
    """The error of a command that could not fill `folder`.

    said   -- the lines that it wrote
    status -- its exit status
    """
    lines = [line.strip() for line in said if line.strip()]
    where = f"{way.shell.where}: {folder}"
    for pattern, problem, hint in _CAUSES:
        found = [line for line in lines if re.search(pattern, line)]
        if found:
            return BuildError(f"{where}: {problem}: {found[0]}", hint=hint)
    if not lines and (status < 0 or status > 128):
        return BuildError(f"{where}: {_CAUSES[-1][1]}", hint=_CAUSES[-1][2])
    return BuildError(f"{where}: {lines[-1] if lines else describe(status)}")


def pour(
    line: list[str],
    feed: Callable[[IO[bytes]], None] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> tuple[int, list[str]]:
    """Run a command; give its exit status and the last lines that it wrote.

    feed    -- writes its standard input, which is empty without; a command that reads no more ends that
    on_line -- called from another thread for each line, also for those that end with a carriage return
    """
    process = converse(line)
    assert process.stdin and process.stdout
    said: deque[str] = deque(maxlen=_LINES)
    reader = threading.Thread(target=_read, args=(process.stdout, said, on_line), daemon=True)
    try:
        reader.start()
        with contextlib.suppress(BrokenPipeError):
            if feed is not None:
                wide(process.stdin)
                feed(process.stdin)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        status = process.wait()
    except BaseException:
        end(process)
        raise
    finally:
        reader.join(GRACE)
    return status, list(said)


def wide(pipe: IO[bytes]) -> None:
    """Let a pipe hold a `CHUNK`, if it may: what goes through it then wakes both ends less often."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK)


def _read(stream: IO[bytes], said: deque[str], on_line: Callable[[str], None] | None) -> None:
    left = b""
    with stream:
        while data := stream.read1(CHUNK):  # type: ignore[attr-defined]
            *lines, left = re.split(rb"[\r\n]", left + data)
            _tell(lines, said, on_line)
        _tell([left], said, on_line)


def _tell(lines: Iterable[bytes], said: deque[str], on_line: Callable[[str], None] | None) -> None:
    for line in lines:
        text = line.decode(errors="replace")
        said.append(text)
        if on_line is not None:
            on_line(text)


def beside(folder: str, ending: str) -> str:
    """Where a folder lies until it is complete."""
    parent, name = posixpath.split(folder)
    return f"{parent}/.{name}{ending}"


def begin(way: Way, folder: str, part: str, *, keep: bool) -> str:
    """Make the folder `part`, which is to become `folder`: `new`, or `kept` from an earlier try, if that is wanted.

    Gives `there`, and makes nothing, when `folder` is there already.
    """
    script = f"""\
umask 022
part={quote(part)}
if [ -e {quote(folder)} ]; then echo there; exit; fi
[ ! -L "$part" ] || rm -f "$part"
{":" if keep else 'rm -rf "$part"'}
if [ -d "$part" ]; then echo kept; exit; fi
mkdir -p "$part" && echo new
"""
    return ask(way, folder, script).decode().strip()


def complete(way: Way, folder: str, part: str, before: str = ":") -> None:
    """What is in `part` on to the disk, and under its final name.

    before -- commands that are run in `part` first
    """
    script = f"""\
umask 022
{SETTLE}
cd {quote(part)} || exit 1
{before}
settle . || exit 1
cd / || exit 1
mv {quote(part)} {quote(folder)} || exit 1
settle {quote(posixpath.dirname(folder))}
"""
    ask(way, folder, script)
