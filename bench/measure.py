"""What a command costs: wall time, processor time, bytes written, memory; of it and all that it starts."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LIMIT = 1800
"""Seconds after which a command hangs, and its benchmark goes on without it."""


class FailedError(Exception):
    """A command that did not do what it was to measure, with what it said last."""


@dataclass(frozen=True)
class Cost:
    """seconds -- by the clock
    cpu     -- of processors, user and system
    written -- bytes that went to files on disks
    memory  -- bytes of the largest process
    """

    seconds: float
    cpu: float
    written: int
    memory: int


_HELPER = """
import os, sys, time
told = int(sys.argv[1])
os.set_inheritable(told, False)
begun = time.monotonic()
started = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_pid, status, used = os.wait4(started, 0)
row = (time.monotonic() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss, os.waitstatus_to_exitcode(status))
os.write(told, " ".join(map(str, row)).encode())
"""
"""A small process between: the memory of a process that is forked counts as its child's, until that is another."""


def run(line: Sequence[str | Path], folder: Path, log: Path, *, env: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end. Raises FailedError."""
    os.sync()
    ours, told = os.pipe()
    with log.open("wb") as sink:
        written = _written()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _HELPER, str(told), *line],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            pass_fds=[told],
        )
        os.close(told)
        with open(ours, encoding="ascii") as pipe:
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise FailedError(f"{line[0]}: not done after {LIMIT} s") from None
            except BaseException:
                # Gently: what has mounted something can undo that.
                os.killpg(process.pid, signal.SIGTERM)
                raise
            row = pipe.read().split()
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if not row or row[3] != "0":
        raise FailedError(f"{line[0]}: exit status {row[3] if row else '?'}: {' / '.join(said[-2:])[:300]}")
    return Cost(float(row[0]), float(row[1]), _written() - written, int(row[2]) * 1024)


def called(function: Callable[[], object]) -> Cost:
    """The same of a function of this process and the commands that it runs."""
    os.sync()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    written, begun = _written(), time.monotonic()
    function()
    seconds = time.monotonic() - begun
    now = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(_cpu(after) - _cpu(before) for before, after in zip(used, now, strict=True))
    return Cost(seconds, cpu, _written() - written, 0)


def _cpu(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def _written() -> int:
    """Bytes that this process, and those that it has waited for, have written to files so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, count = line.partition(": ")
        if name == "write_bytes":
            return int(count)
    return 0
