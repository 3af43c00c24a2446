"""What a person sees: lines and failures; and the reporter under doit itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from buildlib import report
from buildlib.errors import BuildError

CHECKOUT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1499, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (182_345_678, "182 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1.00 GB"),
        (4_210_000_000, "4.21 GB"),
        (1_234_560_000_000, "1234.56 GB"),
    ],
)
def test_a_size_reads_well(count: int, text: str) -> None:
    assert report.size(count) == text


def test_lines_stand_in_columns() -> None:
    starts = [report.line("debian-nfs", stage, "built", "x").index("built") for stage in ("index", "customise")]
    assert starts[0] == starts[1]


def test_a_line_ends_with_its_last_word() -> None:
    assert report.line("one", "index", "running") == f"{'one':<20} {'index':<11} running"


def test_details_end_a_line() -> None:
    assert report.line("one", "index", "built", "1.0 s", "2 MB").endswith(" built     1.0 s  2 MB")


# Failures


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out/log"


def test_a_failure_is_its_message() -> None:
    assert report.failure(BuildError("it cannot be")) == "it cannot be"


def test_a_failure_says_what_to_do() -> None:
    assert report.failure(BuildError("it cannot be", hint="make it so")) == "it cannot be\nhint: make it so"


def test_a_failure_shows_its_log(log: Path) -> None:
    log.parent.mkdir()
    log.write_text("one\ntwo\n")
    assert report.failure(BuildError("no", log=log)) == "no\n  | one\n  | two\nlog: out/log"


def test_a_failure_shows_the_end_of_a_long_log(log: Path) -> None:
    log.parent.mkdir()
    log.write_text("".join(f"{number}\n" for number in range(100)))
    assert report.failure(BuildError("no", log=log)).splitlines()[1:-1] == [
        f"  | {number}" for number in range(88, 100)
    ]


def test_a_log_need_not_be_text(log: Path) -> None:
    log.parent.mkdir()
    log.write_bytes(b"\xff\n")
    assert "  | \N{REPLACEMENT CHARACTER}\n" in report.failure(BuildError("no", log=log))


def test_a_failure_without_its_log(log: Path) -> None:
    assert report.failure(BuildError("no", log=log)) == "no"


def test_an_error_prints_with_its_hint() -> None:
    assert str(BuildError("no", hint="try")) == "no\n  try"


def test_a_path_below_is_shown_from_here(log: Path) -> None:
    assert report.shown(log) == "out/log"


def test_a_path_elsewhere_is_shown_whole(log: Path) -> None:
    assert report.shown(Path("/elsewhere")) == "/elsewhere"


# The reporter

DODO = """
from doit.exceptions import TaskFailed
from buildlib.report import Reporter

DOIT_CONFIG = {"reporter": Reporter, "dep_file": ":memory:", "backend": "sqlite3", "verbosity": 2}

def fine(): print("a word of its own")
def user(): return TaskFailed("it cannot be\\nhint: make it so")
def bug(): return 1 // 0

def stage(name, action, *needs, **more):
    return {"name": name, "actions": [action], "task_dep": [f"s:{need}" for need in needs],
            "meta": {"recipe": "one", "stage": name}, "io": {"capture": False}, **more}

def task_s():
    yield stage("fine", fine)
    yield stage("current", fine, uptodate=[True])
    yield stage("user", user)
    yield stage("bug", bug)
    yield stage("after", fine, "user")
    yield stage("last", fine, "after")

def task_plain():
    return {"actions": [fine], "io": {"capture": False}}

def task_broken():
    return {"actions": [user], "io": {"capture": False}}

def task_group():
    return {"actions": None, "task_dep": ["s:fine"], "meta": {"recipe": "one", "stage": "group"}}
"""


def doit(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Status and lines of a real run."""
    (folder / "dodo.py").write_text(DODO)
    line = [sys.executable, "-m", "doit", "run", *arguments]
    env = {"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        line, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout.splitlines()


def states(lines: list[str]) -> list[list[str]]:
    """Stage and state of each line about one."""
    return [line.split()[1:3] for line in lines if line.startswith("one  ")]


RUNS = {
    "fine": (0, [["fine", "running"], ["fine", "built"]]),
    "current": (0, [["current", "cached"]]),
    "user": (1, [["user", "running"], ["user", "FAILED"]]),
    "bug": (2, [["bug", "running"], ["bug", "FAILED"]]),
    "last": (1, [["user", "running"], ["user", "FAILED"]]),
}


@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.parametrize("stage", RUNS)
def test_a_line_a_stage(stage: str, processes: str, tmp_path: Path) -> None:
    status, lines = doit(tmp_path, "-n", processes, "-P", "process", f"s:{stage}")
    assert (status, states(lines)) == RUNS[stage]


def test_what_could_not_run_is_no_failure_of_its_own(tmp_path: Path) -> None:
    _, lines = doit(tmp_path, "--continue", "s:last", "s:fine")
    assert states(lines) == [*RUNS["user"][1], *RUNS["fine"][1]]


def test_a_users_failure_is_explained_without_a_traceback(tmp_path: Path) -> None:
    _, lines = doit(tmp_path, "s:user")
    assert lines[-2:] == ["  it cannot be", "  hint: make it so"]


def test_a_bug_shows_its_traceback(tmp_path: Path) -> None:
    _, lines = doit(tmp_path, "s:bug")
    assert [line.strip() for line in lines if "ZeroDivisionError" in line or "1 // 0" in line] == [
        "def bug(): return 1 // 0",
        "ZeroDivisionError: integer division or modulo by zero",
    ]


def test_a_task_that_is_no_stage_has_no_line(tmp_path: Path) -> None:
    assert doit(tmp_path, "plain") == (0, ["a word of its own"])


def test_a_failed_task_that_is_no_stage_is_named(tmp_path: Path) -> None:
    assert doit(tmp_path, "broken")[1] == ["broken: FAILED", "  it cannot be", "  hint: make it so"]


def test_a_group_has_no_line(tmp_path: Path) -> None:
    assert states(doit(tmp_path, "group")[1]) == RUNS["fine"][1]
