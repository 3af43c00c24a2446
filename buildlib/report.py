"""What a person sees: a line a stage, bars on a terminal, and a failure that explains itself."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from buildlib.errors import BuildError

_TAIL = 12
"""Lines of a log that a failure shows."""


def size(count: int) -> str:
    """Bytes in a unit that reads well: `182 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def line(recipe: str, stage: str, state: str, *details: str) -> str:
    """A stage's line: recipe, stage, state, then what there is to say."""
    return f"{recipe:<20} {stage:<11} {state:<8}  {'  '.join(details)}".rstrip()


def failure(error: BuildError) -> str:
    """What is wrong, what to do, the last lines of the log, and its path."""
    parts = [error.message]
    if error.hint:
        parts.append(f"hint: {error.hint}")
    if error.log is not None and error.log.exists():
        tail = error.log.read_text(errors="replace").splitlines()[-_TAIL:]
        parts += [*(f"  | {text}" for text in tail), f"log: {shown(error.log)}"]
    return "\n".join(parts)


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


class Bar:
    """A stage's progress: a bar on a terminal when nothing else writes to it, and nothing in a CI's log."""

    def __init__(self, recipe: str, stage: str) -> None:
        self._label = line(recipe, stage, "running")
        self._bar: Any = None
        self._last = 0.0
        self._live = sys.stderr.isatty() and multiprocessing.parent_process() is None

    def __call__(self, fraction: float | None, text: str) -> None:
        if not self._live or (time.monotonic() - self._last < 0.05 and fraction != 1.0):
            return
        self._last = time.monotonic()
        if self._bar is None:
            from tqdm import tqdm

            form = self._label + " {bar:20} {percentage:3.0f}% {elapsed}  {desc}"
            self._bar = tqdm(total=100, leave=False, bar_format=form, dynamic_ncols=True)
        if fraction is not None:
            self._bar.n = max(self._bar.n, round(100 * fraction))
        self._bar.set_description_str(text[:50], refresh=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Sending:
    """The progress of what goes to a target: a bar with rate and time left; several stand below each other."""

    def __init__(self, recipe: str, target: str) -> None:
        self._label = line(recipe, target, "sending")
        self._parts: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._bar: Any = None
        self._live = sys.stderr.isatty() and multiprocessing.parent_process() is None

    def __call__(self, what: str, sent: int, total: int) -> None:
        """So many bytes of so many of `what`, a path. May be called by several threads."""
        if not self._live:
            return
        with self._lock:
            self._parts[what] = sent, total
            self._show()

    def _show(self) -> None:
        from tqdm import tqdm

        sent, total = (sum(numbers) for numbers in zip(*self._parts.values(), strict=True))
        if self._bar is None:
            form = self._label + " {bar:20} {percentage:3.0f}% {n_fmt} {rate_fmt} {remaining} left"
            self._bar = tqdm(total=total, leave=False, bar_format=form, dynamic_ncols=True, unit="B", unit_scale=True)
        self._bar.total = total
        self._bar.update(sent - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Reporter:
    """doit's reporter. A task that makes a stage names recipe and stage in its `meta`."""

    desc = "a line a stage"

    def __init__(self, outstream: TextIO, options: dict[str, Any]) -> None:
        self._out = outstream
        self._started: dict[str, float] = {}
        self._errors: list[str] = []
        self._failed: list[str] = []

    def initialize(self, tasks: Any, selected_tasks: Sequence[str]) -> None:
        """Nothing to prepare."""

    def get_status(self, task: Any) -> None:
        """Asked whether a task is current: not worth a line."""

    def execute_task(self, task: Any) -> None:
        self._started[task.name] = time.monotonic()
        if not sys.stderr.isatty() and (stage := _told(task)):
            self._write(line(*stage, "running"))

    def add_success(self, task: Any) -> None:
        if stage := _told(task):
            seconds = time.monotonic() - self._started[task.name]
            self._write(line(*stage, "built", f"{seconds:6.1f} s", *self.details(*stage)))

    def skip_uptodate(self, task: Any) -> None:
        if stage := _told(task):
            self._write(line(*stage, "cached", f"{'':8}", *self.details(*stage)))

    def skip_ignore(self, task: Any) -> None:
        self._write(f"{task.name}: ignored")

    def add_failure(self, task: Any, fail: Any) -> None:
        if type(fail).__name__ == "UnmetDependency":
            return
        stage = _stage(task)
        self._failed.append(task.name)
        self._write(line(*stage, "FAILED") if stage else f"{task.name}: FAILED")
        text = str(fail.message) if type(fail).__name__ == "TaskFailed" else fail.get_msg()
        self._write("\n".join(f"  {part}" for part in text.splitlines()))

    def cleanup_error(self, exception: Any) -> None:
        sys.stderr.write(exception.get_msg())

    def runtime_error(self, msg: str) -> None:
        self._errors.append(msg)

    def teardown_task(self, task: Any) -> None:
        """No task has one."""

    def complete_run(self) -> None:
        for text in self._errors:
            self._write(text)

    def details(self, recipe: str, stage: str) -> list[str]:
        """What to say of a stage's outcome, such as its size."""
        return []

    def _write(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def _told(task: Any) -> tuple[str, str] | None:
    """Recipe and stage of a task that is worth a line each time, and not just when it fails."""
    return _stage(task) if task.actions and not (task.meta or {}).get("quiet") else None


def _stage(task: Any) -> tuple[str, str] | None:
    """Recipe and stage of a task that makes one."""
    meta = task.meta or {}
    return (meta["recipe"], meta["stage"]) if "stage" in meta else None
