"""Sandboxes as they are: real namespaces, real mounts, real kills. The roots are empty but for their folders."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buildlib import sandbox
from buildlib.command import CommandError
from buildlib.errors import BuildError
from buildlib.sandbox import ENVIRONMENT, Bind, Sandbox
from tests import stage_helper as helper

CHECKOUT = Path(__file__).parents[1]
USR = Bind(Path("/usr"), "/usr")
"""The host's programs, for a root that has none."""

_numbers = itertools.count()


def seldom() -> str:
    """A number of seconds that no other process sleeps, by which to find it."""
    return f"{600 + next(_numbers)}.{os.getpid()}"


def root(folder: Path) -> Path:
    """The least of a root: where the sandbox mounts, and links to the programs that are bound to /usr."""
    for name in ("dev", "etc", "proc", "run", "sys", "tmp", "usr", "var/tmp"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (folder / name).symlink_to(f"usr/{name}")
    (folder / "etc/lower").write_text("lower\n")
    return folder


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    return root(tmp_path / "lower")


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    (tmp_path / "upper").mkdir()
    return tmp_path / "upper"


@pytest.fixture
def box(tmp_path: Path, lower: Path, upper: Path) -> Sandbox:
    return Sandbox(work=tmp_path / "work", layers=(lower,), upper=upper)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Layers


def test_changes_go_to_the_upper_layer(box: Sandbox, upper: Path) -> None:
    box.call(helper.write, {"path": "/etc/new", "text": "new\n"})
    assert content(upper) == ["etc", "etc/new"]


def test_lower_layers_are_not_written_to(box: Sandbox, lower: Path) -> None:
    box.call(helper.write, {"path": "/etc/lower", "text": "changed\n"})
    assert (lower / "etc/lower").read_text() == "lower\n"


def test_a_changed_file_is_whole_in_the_upper_layer(box: Sandbox, upper: Path) -> None:
    box.call(helper.write, {"path": "/etc/lower", "text": "changed\n"})
    assert (upper / "etc/lower").read_text() == "changed\n"


def test_a_removed_file_is_a_whiteout(box: Sandbox, upper: Path) -> None:
    box.call(helper.remove, {"path": "/etc/lower"})
    facts = (upper / "etc/lower").lstat()
    assert (stat.S_ISCHR(facts.st_mode), facts.st_rdev) == (True, 0)


def test_a_folder_made_again_hides_what_is_below(box: Sandbox, upper: Path) -> None:
    box.call(helper.replace_folder, {"path": "/etc"})
    assert os.getxattr(upper / "etc", "user.overlay.opaque") == b"y"


def test_a_later_layer_lies_over_an_earlier_one(tmp_path: Path, lower: Path) -> None:
    (tmp_path / "middle/etc").mkdir(parents=True)
    (tmp_path / "middle/etc/lower").write_text("middle\n")
    box = Sandbox(work=tmp_path / "work", layers=(lower, tmp_path / "middle"))
    assert box.call(helper.read, {"path": "/etc/lower"}) == "middle\n"


def test_a_whiteout_counts_when_its_layer_is_below_another(box: Sandbox, upper: Path, tmp_path: Path) -> None:
    box.call(helper.remove, {"path": "/etc/lower"})
    above = Sandbox(work=tmp_path / "above", layers=(*box.layers, upper))
    assert above.call(helper.names, {"path": "/etc"}) == []


def test_without_an_upper_layer_changes_are_thrown_away(tmp_path: Path, lower: Path) -> None:
    before = content(lower)
    Sandbox(work=tmp_path / "work", layers=(lower,)).call(helper.write, {"path": "/etc/new", "text": ""})
    assert (content(lower), list(tmp_path.rglob("new"))) == (before, [])


def test_one_work_folder_serves_several_commands(box: Sandbox, upper: Path) -> None:
    for name in ("one", "two"):
        box.call(helper.write, {"path": f"/etc/{name}", "text": ""})
    assert content(upper) == ["etc", "etc/one", "etc/two"]


def test_what_the_sandbox_mounts_leaves_no_trace(box: Sandbox, upper: Path) -> None:
    box.call(helper.write, {"path": "/run/netboot/gone", "text": ""})
    assert content(upper) == []


@pytest.mark.parametrize("owner", [0, 1000, 65534, 4_000_000_000])
def test_owners_are_kept(box: Sandbox, upper: Path, owner: int) -> None:
    box.call(helper.write, {"path": "/etc/new", "text": "", "owner": owner})
    assert (upper / "etc/new").stat().st_uid == owner


def test_the_callers_umask_does_not_count(box: Sandbox, upper: Path) -> None:
    before = os.umask(0o077)
    try:
        box.call(helper.write, {"path": "/etc/new", "text": ""})
    finally:
        os.umask(before)
    assert stat.S_IMODE((upper / "etc/new").stat().st_mode) == 0o644


ODD = ["with space", "a:b", "a,b", "a\\b", "a:b,c\\,d\\:", "ünïcödé", "quo'te\"", "#!", "-v", "x=y,upperdir=z", "tab\t"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_of_layers(name: str, tmp_path: Path) -> None:
    (tmp_path / name / "upper").mkdir(parents=True)
    box = Sandbox(
        work=tmp_path / name / "work",
        layers=(root(tmp_path / name / "lower"), root(tmp_path / name / "middle")),
        upper=tmp_path / name / "upper",
    )
    box.call(helper.write, {"path": "/etc/new", "text": ""})
    assert content(tmp_path / name / "upper") == ["etc", "etc/new"]


def test_the_stack_of_a_command_on_the_hosts_root(tmp_path: Path, lower: Path) -> None:
    box = Sandbox(work=tmp_path / "work", layers=(lower,), chroot=False)
    assert box.call(helper.read, {"path": f"{box.mount}/etc/lower"}) == "lower\n"


# Binds


def test_a_bind_is_read_only(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "bound").mkdir()
    box = Sandbox(work=box.work, layers=box.layers, binds=(Bind(tmp_path / "bound", "/run/bound"),))
    with pytest.raises(CommandError):
        box.call(helper.write, {"path": "/run/bound/new", "text": ""})


def test_a_writable_bind_is_written_to(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "bound").mkdir()
    box = Sandbox(work=box.work, layers=box.layers, binds=(Bind(tmp_path / "bound", "/run/bound", writable=True),))
    box.call(helper.write, {"path": "/run/bound/new", "text": ""})
    assert content(tmp_path / "bound") == ["new"]


def test_a_single_file_is_bound(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("bound\n")
    box = Sandbox(work=box.work, layers=box.layers, binds=(Bind(tmp_path / "file", "/run/some/file"),))
    assert box.call(helper.read, {"path": "/run/some/file"}) == "bound\n"


@pytest.fixture
def scratched(box: Sandbox, tmp_path: Path) -> tuple[Sandbox, Path, Path]:
    """A sandbox with a bind whose writes go elsewhere; what is bound, and the scratch folder."""
    bound, scratch = tmp_path / "bo:und", tmp_path / "scr,atch"
    for folder in (bound, scratch / "upper", scratch / "work"):
        folder.mkdir(parents=True)
    binds = (Bind(bound, "/run/bound", scratch=scratch),)
    return Sandbox(work=box.work, layers=box.layers, binds=binds), bound, scratch


def test_a_bind_with_scratch_keeps_its_source(scratched: tuple[Sandbox, Path, Path]) -> None:
    box, bound, _ = scratched
    box.call(helper.write, {"path": "/run/bound/new", "text": ""})
    assert content(bound) == []


def test_a_bind_with_scratch_writes_there(scratched: tuple[Sandbox, Path, Path]) -> None:
    box, _, scratch = scratched
    box.call(helper.write, {"path": "/run/bound/new", "text": ""})
    assert content(scratch / "upper") == ["new"]


# What a command sees


@pytest.fixture
def seen(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in ("LANG", "LC_MESSAGES", "http_proxy", "SECRET_TOKEN", "PYTHONPATH", "TMPDIR"):
        monkeypatch.setenv(name, f"/the/callers/{name}")
    box = Sandbox(work=box.work, layers=box.layers, hostname="node", env={"SOURCE_DATE_EPOCH": "1"})
    found: dict[str, Any] = box.call(helper.facts, {})
    return found


def test_the_environment_is_the_sandboxs_own(seen: dict[str, Any]) -> None:
    assert seen["environment"] == {**ENVIRONMENT, "SOURCE_DATE_EPOCH": "1"}


def test_there_is_no_network(seen: dict[str, Any]) -> None:
    assert seen["interfaces"] == ["lo"]


def test_processes_are_its_own(seen: dict[str, Any]) -> None:
    assert seen["processes"] == [1, seen["pid"]]


def test_it_is_root_without_groups(seen: dict[str, Any]) -> None:
    assert seen["ids"] == [0, 0, []]


def test_it_has_its_own_hostname(seen: dict[str, Any]) -> None:
    assert seen["hostname"] == "node"


def test_a_commands_environment_is_the_sandboxs_own(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    lines: list[str] = []
    Sandbox(work=box.work, layers=box.layers, binds=(USR,)).run(["env"], on_line=lines.append)
    assert dict(line.split("=", 1) for line in lines) == ENVIRONMENT


def test_the_network_is_there_when_asked_for(box: Sandbox) -> None:
    asked = Sandbox(work=box.work, layers=box.layers, network=True)
    assert asked.call(helper.facts, {})["interfaces"] == helper.facts({})["interfaces"]


def test_the_loopback_works_without_a_network(box: Sandbox) -> None:
    assert box.call(helper.talk_to_itself, {}) == "hello"


def test_the_hosts_files_are_out_of_sight(box: Sandbox, lower: Path) -> None:
    assert box.call(helper.names, {"path": "/"}) == sorted(os.listdir(lower))


def test_root_cannot_break_out(box: Sandbox, lower: Path) -> None:
    assert box.call(helper.break_out, {}) == sorted(os.listdir(lower))


@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp"])
def test_the_hosts_scratch_folders_are_out_of_sight(box: Sandbox, folder: str) -> None:
    assert box.call(helper.names, {"path": folder}) == []


def test_the_host_resolves_names_for_a_network(box: Sandbox, lower: Path) -> None:
    (lower / "etc/resolv.conf").symlink_to("../run/netboot/resolv.conf")
    asked = Sandbox(work=box.work, layers=box.layers, network=True)
    assert asked.call(helper.read, {"path": "/etc/resolv.conf"}) == Path("/etc/resolv.conf").read_text()


def test_the_hosts_resolvers_leave_no_trace(box: Sandbox, lower: Path, upper: Path) -> None:
    (lower / "etc/resolv.conf").symlink_to("../run/netboot/resolv.conf")
    Sandbox(work=box.work, layers=box.layers, upper=upper, network=True).call(helper.echo, {})
    assert content(upper) == []


def test_devices_cannot_be_made(box: Sandbox) -> None:
    with pytest.raises(CommandError):
        box.call(helper.make_device, {"path": "/etc/loop"})


def test_devices_can_be_made_without_a_user_namespace(box: Sandbox, upper: Path) -> None:
    Sandbox(work=box.work, layers=box.layers, upper=upper, user=False).call(helper.make_device, {"path": "/etc/loop"})
    assert (upper / "etc/loop").is_block_device()


# Commands and calls


def test_a_command_runs_the_roots_own_program(box: Sandbox, log: Path) -> None:
    Sandbox(work=box.work, layers=box.layers, binds=(USR,)).run(["sh", "-c", "cat /etc/lower"], log=log)
    assert log.read_text().endswith("\nlower\n")


def test_a_failed_command_is_named_as_it_was_given(box: Sandbox) -> None:
    with pytest.raises(CommandError, match=r"^exit status 3: sh -c 'exit 3'$"):
        Sandbox(work=box.work, layers=box.layers, binds=(USR,)).run(["sh", "-c", "exit 3"])


def test_a_killed_command_has_a_shells_status(box: Sandbox) -> None:
    inner = Sandbox(work=box.work, layers=box.layers, binds=(USR,))
    assert inner.run(["sh", "-c", "kill -TERM $$"], accept=(143,)) == 143


def test_a_missing_program_is_in_the_log(box: Sandbox, log: Path) -> None:
    box.run(["no-such-program"], log=log, accept=(127,))
    assert log.read_text().endswith("no-such-program: No such file or directory\n")


@pytest.mark.parametrize("value", [{}, {"a": [1, None, True, "ü\n"], "b": {"c": 2.5}}])
def test_a_call_gives_what_the_function_gives(box: Sandbox, value: dict[str, Any]) -> None:
    assert box.call(helper.echo, value) == value


def test_a_call_without_a_result(box: Sandbox) -> None:
    assert box.call(helper.write, {"path": "/etc/new", "text": ""}) is None


def test_a_users_error_passes(box: Sandbox, log: Path) -> None:
    with pytest.raises(BuildError) as caught:
        box.call(helper.refuse, {}, log=log)
    assert (caught.value.message, caught.value.hint, caught.value.log) == ("it cannot be", "make it possible", log)


@pytest.mark.parametrize("function", [helper.break_down, helper.kill_itself])
def test_a_bug_is_a_failed_command(box: Sandbox, function: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(CommandError, match=function.__name__):
        box.call(function, {})


def test_a_bug_has_its_traceback_in_the_log(box: Sandbox, log: Path) -> None:
    with pytest.raises(CommandError):
        box.call(helper.break_down, {}, log=log)
    assert log.read_text().endswith("ZeroDivisionError: a bug\n")


def test_orphans_end_with_the_command(box: Sandbox) -> None:
    seconds = seldom()
    inner = Sandbox(work=box.work, layers=box.layers, binds=(USR,))
    inner.run(["sh", "-c", f"sleep {seconds} & exec true"])
    assert helper.wait_until(lambda: not helper.running(seconds))


# Afterwards


def test_nothing_stays_mounted(box: Sandbox, tmp_path: Path) -> None:
    box.call(helper.echo, {})
    assert not helper.mounted(str(tmp_path))


def test_nothing_stays_mounted_after_a_failure(box: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(CommandError):
        box.call(helper.break_down, {})
    assert not helper.mounted(str(tmp_path))


PARENT = """
import os, signal, sys
from pathlib import Path
from buildlib.sandbox import Bind, Sandbox
folder = Path(sys.argv[1])
box = Sandbox(work=folder / "work", layers=(folder / "lower",), binds=(Bind(Path("/usr"), "/usr"),))
seconds = sys.argv[2].removeprefix("seconds=")
box.run(["sh", "-c", f"setsid sleep {seconds} & sleep {seconds}"])
"""


@pytest.fixture
def killed(lower: Path, tmp_path: Path) -> str:
    """A process with a sandbox in which two sessions ran was killed outright; gives how long they sleep."""
    seconds = seldom()
    line = [sys.executable, "-c", PARENT, str(tmp_path), f"seconds={seconds}"]
    with subprocess.Popen(line, cwd=CHECKOUT) as parent:
        began = helper.wait_until(lambda: helper.running(seconds) and helper.mounted(str(lower)))
        parent.kill()
    assert began
    return seconds


def test_a_killed_caller_leaves_no_process(killed: str) -> None:
    assert helper.wait_until(lambda: not helper.running(killed))


def test_a_killed_caller_leaves_no_mount(killed: str, tmp_path: Path) -> None:
    assert helper.wait_until(lambda: not helper.mounted(str(tmp_path)))


def test_a_killed_sandbox_is_a_failed_command_without_processes(box: Sandbox) -> None:
    seconds = seldom()
    inner = Sandbox(work=box.work, layers=box.layers, binds=(USR,))

    def kill(_line: str) -> None:
        # This process' only child is the sandbox's outer one; the namespace's pid 1 is a child of that.
        started = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for pid in started:
            os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(CommandError, match=r"^killed by SIGKILL: sh "):
        inner.run(["sh", "-c", f"sleep {seconds} & echo started; wait"], on_line=kill)
    assert helper.wait_until(lambda: not helper.running(seconds))


# Guards

GUARDED = """
import os, signal, sys
from pathlib import Path
from buildlib import sandbox
with sandbox.guard(Path(sys.argv[1])):
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "raise":
        raise SystemExit(1)
"""


def guarded(folder: Path, end: str) -> Path:
    """Run a process that guards a folder and comes to an end; gives the folder of its temporary files."""
    (folder / "guarded/deeper").mkdir(parents=True)
    (folder / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(folder / "tmp")}
    subprocess.run([sys.executable, "-c", GUARDED, str(folder / "guarded"), end], cwd=CHECKOUT, env=env, check=False)
    return folder / "tmp"


def test_a_guarded_folder_goes_with_a_killed_process(tmp_path: Path) -> None:
    guarded(tmp_path, "kill")
    assert helper.wait_until(lambda: not (tmp_path / "guarded").exists())


def test_a_guarded_folder_goes_with_a_failure(tmp_path: Path) -> None:
    guarded(tmp_path, "raise")
    assert not (tmp_path / "guarded").exists()


def test_a_guarded_folder_stays_when_all_went_well(tmp_path: Path) -> None:
    guarded(tmp_path, "return")
    assert (tmp_path / "guarded/deeper").exists()


@pytest.mark.parametrize("end", ["kill", "return", "raise"])
def test_a_guard_leaves_nothing_of_its_own(tmp_path: Path, end: str) -> None:
    own = guarded(tmp_path, end)
    # Its top alone: walking deeper would meet folders that are being removed.
    assert helper.wait_until(lambda: not any(own.iterdir()))


def test_a_guard_is_no_longer_there_afterwards(tmp_path: Path) -> None:
    with sandbox.guard(tmp_path / "guarded"):
        assert helper.wait_until(lambda: helper.running(str(tmp_path / "guarded")))
    assert not helper.running(str(tmp_path / "guarded"))


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    sandbox.remove(tmp_path / "missing")


def test_an_architecture_without_emulator_is_a_problem() -> None:
    assert ("no emulator is known for sparc64", "build it on a machine of that architecture") in sandbox.problems(
        "sparc64"
    )
