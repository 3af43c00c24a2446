"""The door to subprocesses: what is logged, what is said of a failure, and that nothing outlives its caller."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from buildlib import command
from buildlib.command import CommandError
from buildlib.errors import BuildError
from tests import stage_helper as helper

CHECKOUT = Path(__file__).parents[1]

_numbers = itertools.count()


@pytest.fixture
def seconds() -> Iterator[str]:
    """A number of seconds that no other process sleeps, by which to find it."""
    yield f"{1200 + next(_numbers)}.{os.getpid()}"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "deep/folder/log"


# Output and input


def test_the_log_has_the_command_and_all_its_output(log: Path) -> None:
    command.run(["sh", "-c", "echo out; echo err >&2"], log=log)
    assert log.read_text() == "$ sh -c 'echo out; echo err >&2'\nout\nerr\n"


def test_a_log_is_appended_to(log: Path) -> None:
    for word in ("one", "two"):
        command.run(["echo", word], log=log)
    assert log.read_text() == "$ echo one\none\n$ echo two\ntwo\n"


ODD = [["printf", "%s", "it's; $HOME *"], ["printf", "%s-", "", "a b", "\\"], ["printf", "%s", "ünï\ncode"]]


@pytest.mark.parametrize("argv", ODD)
def test_the_logged_command_can_be_pasted(argv: Sequence[str], log: Path) -> None:
    command.run(argv, log=log)
    shown, _, said = log.read_text().removeprefix("$ ").partition(shlex.join(argv))
    assert shown == ""
    pasted = subprocess.run(["sh", "-c", shlex.join(argv)], stdout=subprocess.PIPE, text=True, check=True)
    assert said == f"\n{pasted.stdout}"


def test_a_command_that_is_not_utf8_is_logged_as_it_is(log: Path) -> None:
    command.run(["echo", "\udcff"], log=log)
    assert log.read_bytes() == b"$ echo '\xff'\n\xff\n"


def test_output_is_dropped_without_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    command.run(["sh", "-c", "echo out; echo err >&2"])
    assert capfd.readouterr() == ("", "")


def test_each_line_is_told_of(log: Path) -> None:
    lines: list[str] = []
    command.run(["printf", "one\\ntwo\\n\\nhalf"], log=log, on_line=lines.append)
    assert lines == ["one", "two", "", "half"]


def test_a_line_is_told_of_while_the_command_runs(tmp_path: Path) -> None:
    """It ends only when the line was seen."""
    script = f"echo go; while [ ! -e {tmp_path}/seen ]; do sleep 0.01; done"
    assert command.run(["sh", "-c", script], on_line=lambda _line: (tmp_path / "seen").touch()) == 0


def test_lines_that_are_told_of_are_logged_too(log: Path) -> None:
    command.run(["echo", "one"], log=log, on_line=lambda line: None)
    assert log.read_text() == "$ echo one\none\n"


def test_a_line_that_is_not_utf8_is_told_of() -> None:
    lines: list[str] = []
    command.run(["printf", "a\\377b\\n"], on_line=lines.append)
    assert lines == ["a\N{REPLACEMENT CHARACTER}b"]


def test_a_process_that_stays_behind_does_not_keep_the_caller(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that keeps the pipe open."""
    monkeypatch.setattr(command, "GRACE", 0.2)
    lines: list[str] = []
    command.run(["sh", "-c", f"setsid sleep {seconds} & echo $!"], on_line=lines.append)
    assert Path(f"/proc/{lines[0]}").exists()
    os.kill(int(lines[0]), signal.SIGKILL)


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 1 << 22])
def test_text_is_standard_input(size: int) -> None:
    lines: list[str] = []
    command.run(["wc", "-c"], text="x" * size, on_line=lines.append)
    assert lines == [str(size)]


def test_text_that_nobody_reads() -> None:
    assert command.run(["true"], text="x" * (1 << 22)) == 0


def test_standard_input_is_empty_otherwise() -> None:
    lines: list[str] = []
    command.run(["wc", "-c"], on_line=lines.append)
    assert lines == ["0"]


def test_the_environment_is_the_one_that_is_given() -> None:
    lines: list[str] = []
    command.run(["/usr/bin/env"], env={"ONLY": "this"}, on_line=lines.append)
    assert lines == ["ONLY=this"]


def test_the_folder_is_the_one_that_is_given(tmp_path: Path) -> None:
    lines: list[str] = []
    command.run(["pwd", "-P"], cwd=tmp_path, on_line=lines.append)
    assert lines == [str(tmp_path.resolve())]


def test_signals_are_as_they_were() -> None:
    """Python ignores SIGPIPE; a command that inherits that reports errors where it should end."""
    lines: list[str] = []
    command.run(["sh", "-c", "grep SigIgn /proc/self/status"], on_line=lines.append)
    assert int(lines[0].split()[1], 16) & 1 << signal.SIGPIPE - 1 == 0


# How it ends


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("exit 2", 2, "exit status 2: sh -c 'exit 2'"),
        ("kill -9 $$", -9, "killed by SIGKILL: sh -c 'kill -9 $$'"),
        ("kill -TERM $$", -15, "killed by SIGTERM: sh -c 'kill -TERM $$'"),
    ],
)
def test_a_failure_in_words(script: str, status: int, said: str, log: Path) -> None:
    with pytest.raises(CommandError) as caught:
        command.run(["sh", "-c", script], log=log, hint="try again")
    error = caught.value
    assert (error.message, error.status, error.argv) == (said, status, ("sh", "-c", script))
    assert (error.hint, error.log) == ("try again", log)


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -15 $$", -15), ("true", 0)])
def test_a_status_that_is_accepted_is_given(script: str, status: int) -> None:
    assert command.run(["sh", "-c", script], accept=(0, 3, -15)) == status


def test_a_missing_program_says_what_to_do() -> None:
    with pytest.raises(BuildError) as caught:
        command.run(["no-such-program", "an argument"])
    assert caught.value.message == "no-such-program: program not found"
    assert caught.value.hint == "install it, or add it to PATH: no-such-program 'an argument'"


def test_a_missing_folder_is_not_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^/.*/missing: no such folder$"):
        command.run(["true"], cwd=tmp_path / "missing")


def test_a_file_that_is_no_program_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(BuildError, match="plain"):
        command.run([str(tmp_path / "plain")])


def test_output_gives_what_a_command_says() -> None:
    assert command.output(["printf", "a\\nb\\n"]) == "a\nb\n"


def test_output_is_without_errors() -> None:
    assert command.output(["sh", "-c", "echo out; echo err >&2"]) == "out\n"


def test_a_failed_output_says_what_the_command_said() -> None:
    with pytest.raises(CommandError) as caught:
        command.output(["sh", "-c", "echo because >&2; exit 1"], hint="not this")
    assert caught.value.hint == "because"


def test_a_failed_output_that_said_nothing_has_the_callers_hint() -> None:
    with pytest.raises(CommandError) as caught:
        command.output(["false"], hint="this")
    assert caught.value.hint == "this"


# Nothing outlives its caller


class StopError(Exception):
    """What a signal's handler raises."""


def waiting() -> bool:
    """Whether the main thread waits for a command's end."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    while frame.f_back is not None and frame.f_code.co_name != "_wait":
        frame = frame.f_back
    return frame.f_code.co_name == "_wait"


def _raise(_number: int, _frame: object) -> None:
    raise StopError


@pytest.mark.parametrize("ignoring", ["", "trap '' TERM; "])
def test_an_exception_ends_the_whole_group(ignoring: str, seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that raises while the command runs, as for Ctrl-C: children and grandchildren end, deaf ones too."""
    monkeypatch.setattr(command, "GRACE", 0.2)

    def interrupt(_line: str) -> None:
        assert helper.wait_until(waiting)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, _raise)
    script = f"{ignoring}sleep {seconds} & (sleep {seconds} & wait) & echo started; wait"
    try:
        with pytest.raises(StopError):
            command.run(["sh", "-c", script], on_line=interrupt)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert helper.wait_until(lambda: not helper.running(seconds))


def test_an_exception_before_the_wait_ends_the_group_too(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs already, and the caller is not yet where it waits: a signal's handler may raise there too."""

    def interrupted(*_arguments: object, **_settings: object) -> int:
        raise StopError

    monkeypatch.setattr(command, "_wait", interrupted)
    with pytest.raises(StopError):
        command.run(["sleep", seconds], on_line=lambda _line: None)
    left = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


PARENT = """
import sys
from buildlib import command
seconds = sys.argv[1].removeprefix("seconds=")
command.run(["sleep", seconds])
"""


def parent(seconds: str) -> subprocess.Popen[bytes]:
    """A process of its own that runs a command which does not end by itself."""
    started = subprocess.Popen([sys.executable, "-c", PARENT, f"seconds={seconds}"], cwd=CHECKOUT)
    assert helper.wait_until(lambda: helper.running(seconds))
    return started


def test_a_killed_caller_takes_its_command_along(seconds: str) -> None:
    with parent(seconds) as started:
        started.kill()
    assert helper.wait_until(lambda: not helper.running(seconds))


def test_an_interrupted_caller_takes_its_command_along(seconds: str) -> None:
    with parent(seconds) as started:
        started.send_signal(signal.SIGINT)
    assert not helper.running(seconds)
