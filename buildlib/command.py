"""The only door to subprocesses.

Each command is a list, runs in a session of its own, writes to a log, and dies with its whole process group: on an
interrupt by `killpg`, and by the kernel's parent-death signal when this process is killed outright.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from buildlib.errors import BuildError, masked

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL when a command is ended."""

Process = subprocess.Popen[bytes]
"""A command that runs."""

_PR_SET_PDEATHSIG = 1


class CommandError(BuildError):
    """A command ended with an error; `status` is its exit status, negative for a signal."""

    def __init__(self, argv: Sequence[str], status: int, *, log: Path | None, hint: str | None = None) -> None:
        super().__init__(f"{describe(status)}: {shlex.join(argv)}", hint=hint, log=log)
        self.argv = tuple(argv)
        self.status = status


def describe(status: int) -> str:
    """An exit status in words: `exit status 2`, `killed by SIGKILL`."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def run(
    argv: Sequence[str],
    *,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    hint: str | None = None,
    accept: Sequence[int] = (0,),
    terminal: bool = False,
    text: str | None = None,
) -> int:
    """Run `argv` to its end; return its exit status, one of `accept`.

    log      -- file to which the command line and all output are appended; output is dropped without one
    env      -- the whole environment; this process' own without one
    on_line  -- called for each line of output while it comes
    text     -- the command's standard input, a short one
    terminal -- leave stdin, stdout and stderr and the session alone: an interactive command
    Raises CommandError for any other exit status, BuildError when the program is missing.
    """
    with contextlib.ExitStack() as stack:
        sink: int | IO[bytes] = subprocess.DEVNULL
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            sink = stack.enter_context(log.open("ab", buffering=0))
            sink.write(masked(f"$ {shlex.join(argv)}\n").encode(errors="surrogateescape"))
        reader: threading.Thread | None = None
        output: int | IO[bytes] = sink
        if on_line is not None and not terminal:
            receive, send = os.pipe()
            reader = threading.Thread(target=_copy_lines, args=(receive, sink, on_line), daemon=True)
            output = stack.enter_context(os.fdopen(send, "wb", buffering=0))
        given = None if text is None else stack.enter_context(_stdin(text))
        process = _start(argv, env=env, cwd=cwd, given=given, output=None if terminal else output)
        try:
            if reader is not None:
                reader.start()
                assert not isinstance(output, int)
                output.close()
            status = _wait(process)
        except BaseException:
            if terminal:
                process.kill()
                process.wait()
            else:
                end(process)
            raise
        finally:
            # Before the log is closed.
            if reader is not None and reader.ident is not None:
                reader.join(GRACE)
    if status not in accept:
        raise CommandError(argv, status, log=log, hint=hint)
    return status


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    on_line: Callable[[str], None] | None = None,
    drop: bytes | None = None,
) -> subprocess.Popen[bytes]:
    """Start `argv` and let it run, its output appended to `log` and told line by line; to be ended by `end`.

    drop -- lines that hold this are neither kept nor told
    It dies with this process. Raises BuildError when the program is missing.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sink = log.open("ab", buffering=0)
    sink.write(masked(f"$ {shlex.join(argv)}\n").encode(errors="surrogateescape"))
    receive, send = os.pipe()
    try:
        with os.fdopen(send, "wb", buffering=0) as output:
            process = _start(argv, env=None, cwd=None, output=output)
    except BuildError:
        os.close(receive)
        sink.close()
        raise

    def follow() -> None:
        with sink:
            _copy_lines(receive, sink, on_line or (lambda _line: None), drop)

    threading.Thread(target=follow, daemon=True).start()
    return process


def converse(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start `argv` with pipes as its standard input and output, to be ended by `end`; it dies with this process."""
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509
        )
    except OSError as error:
        raise _unusable(argv, error) from None


def within(argv: Sequence[str], seconds: float) -> str | None:
    """What `argv` writes until it ends; None when it has not after `seconds`, and is ended then."""
    process = converse(argv)
    try:
        return process.communicate(timeout=seconds)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(process)


def output(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    hint: str | None = None,
) -> str:
    """The standard output of a short command. Raises CommandError, its hint being what the command said."""
    try:
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, env=env, cwd=cwd, check=False)
    except OSError as error:
        raise _unusable(argv, error) from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise CommandError(argv, done.returncode, log=None, hint=said or hint)
    return done.stdout.decode(errors="surrogateescape")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process started in a session of its own, and all of its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    given: int | None = None,
    output: int | IO[bytes] | None,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=given if given is not None else None if output is None else subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=output is not None,
            # Safe beside threads: between fork and exec it makes two system calls, and imports nothing.
            preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509
        )
    except OSError as error:
        raise _unusable(argv, error) from None


@contextlib.contextmanager
def _stdin(text: str) -> Iterator[int]:
    """A file descriptor that reads as `text`; a pipe of 64 KiB would fill up before the command reads it."""
    handle = os.memfd_create("stdin")
    try:
        os.write(handle, text.encode())
        os.lseek(handle, 0, os.SEEK_SET)
        yield handle
    finally:
        os.close(handle)


def _unusable(argv: Sequence[str], error: OSError) -> BuildError:
    if not isinstance(error, FileNotFoundError):
        return BuildError(f"{argv[0]}: cannot be run: {error.strerror}")
    if error.filename not in (None, argv[0]):
        return BuildError(f"{error.filename}: no such folder")
    return BuildError(f"{argv[0]}: program not found", hint=f"install it, or add it to PATH: {shlex.join(argv)}")


def _die_with(parent: int) -> Callable[[], None]:
    """Make the child die when `parent` does, for whatever reason: SIGKILL leaves it no chance to end its children."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return in_child


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait in short steps, so that a signal's handler gets its turn between them."""
    with os.fdopen(os.pidfd_open(process.pid), "rb", buffering=0) as handle:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while not poll.poll(500):
            pass
    return process.wait()


def _copy_lines(receive: int, sink: int | IO[bytes], on_line: Callable[[str], None], drop: bytes | None = None) -> None:
    """Copy a command's output to its log, line by line as it comes."""
    with os.fdopen(receive, "rb") as stream:
        for said in stream:
            if drop is not None and drop in said:
                continue
            line = masked(said.decode(errors="surrogateescape")).encode(errors="surrogateescape")
            if not isinstance(sink, int):
                # A log that has no room must not end the command that writes it: it fails by itself, and says so.
                with contextlib.suppress(OSError):
                    sink.write(line)
            on_line(line.decode(errors="replace").rstrip("\n"))
