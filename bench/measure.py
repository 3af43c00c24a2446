"""What a command costs: wall time, processor time, bytes written, memory; of it and all that it starts."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
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


def run(line: Sequence[str], folder: Path, log: Path, *, env: Mapping[str, str] | None = None, text: str = "") -> Cost:
    """Run a command to its end. Raises FailedError."""
    os.sync()
    with log.open("wb") as sink:
        written, begun = _written(), time.monotonic()
        process = subprocess.Popen(
            list(line),
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE if text else subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
        if process.stdin:
            process.stdin.write(text.encode())
            process.stdin.close()
        old = signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
        signal.alarm(LIMIT)
        try:
            _pid, status, used = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, old)
    process.returncode = os.waitstatus_to_exitcode(status)
    cost = Cost(time.monotonic() - begun, _cpu(used), _written() - written, used.ru_maxrss * 1024)
    if process.returncode:
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise FailedError(f"{line[0]}: exit status {process.returncode}: {' / '.join(said[-2:])[:300]}")
    return cost


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
