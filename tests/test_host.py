"""What this machine lacks, and when nothing is installed. Nothing here installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from buildlib import host
from buildlib.errors import BuildError

CHECKOUT = Path(__file__).parents[1]
NOBODY = 65534

ASK = """
# Now: later on, this Python may lie where only root may look.
import ctypes, json, os, shlex, signal, sys, threading
sys.path.insert(0, sys.argv[1])
from buildlib import host
from buildlib.errors import BuildError
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
said = []
try:
    host.install(["one", "two"])
except BuildError as error:
    said = [error.message, error.hint]
print(json.dumps(said))
"""


def program(folder: Path, name: str, text: str = "#!/bin/sh\n") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is all of PATH; other users can look into it, as they can't into pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("PATH", folder)
        monkeypatch.setattr(host, "_PATH", folder)
        monkeypatch.delenv("DOIT_INSTALL", raising=False)
        yield Path(folder)


def test_a_program_that_is_there_is_not_missing(path: Path) -> None:
    program(path, "mksquashfs")
    assert host.missing(["mksquashfs"]) == []


def test_a_missing_program_is_named_by_its_package(path: Path) -> None:
    assert host.missing(["mksquashfs"]) == ["squashfs-tools"]


def test_a_program_without_a_package_of_its_own_name(path: Path) -> None:
    assert host.missing(["shellcheck"]) == ["shellcheck"]


def test_packages_are_named_once(path: Path) -> None:
    assert host.missing(["qemu-x86_64-static", "qemu-aarch64-static"]) == ["qemu-user-static"]


def test_a_file_that_is_not_executable_is_no_program(path: Path) -> None:
    (path / "cpio").touch()
    assert host.missing(["cpio"]) == ["cpio"]


@pytest.mark.parametrize("pattern", ["{}/lib/there", "{}/*/there", "/elsewhere/there|{}/lib/there"])
def test_a_file_that_is_there_is_not_missing(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/there").touch()
    assert host.missing([], [(pattern.replace("{}", str(tmp_path)), "some-package")]) == []


def test_a_missing_file_is_named_by_its_package(tmp_path: Path) -> None:
    assert host.missing([], [(f"{tmp_path}/missing", "some-package")]) == ["some-package"]


def test_programs_of_sbin_are_found_whatever_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert host.find("ldconfig") is not None


def test_nothing_missing_needs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOIT_INSTALL", "no")
    host.install([])


def refusal() -> tuple[str, str | None]:
    with pytest.raises(BuildError) as caught:
        host.install(["one", "two"])
    return caught.value.message, caught.value.hint


def test_a_system_without_apt(path: Path) -> None:
    assert refusal() == ("missing programs of one, two", "install them; this system has no apt")


def test_a_user_who_wants_nothing_installed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(path, "apt-get")
    monkeypatch.setenv("DOIT_INSTALL", "no")
    assert refusal() == (
        "missing system packages: one two (DOIT_INSTALL=no)",
        "sudo apt-get install --yes --no-install-recommends one two",
    )


def ask(path: Path) -> list[str | None]:
    """What `install` says to an ordinary user: message and hint, or nothing."""
    line = [sys.executable, "-I", "-S", "-c", ASK, str(CHECKOUT), str(NOBODY)]
    env = {"PATH": str(path)}
    done = subprocess.run(line, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    said: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_an_ordinary_user_without_sudo(path: Path) -> None:
    program(path, "apt-get")
    assert ask(path) == [
        "missing system packages: one two",
        "as root: apt-get install --yes --no-install-recommends one two",
    ]


def test_an_ordinary_user_whose_sudo_refuses(path: Path) -> None:
    program(path, "apt-get")
    program(path, "sudo", "#!/bin/sh\nexit 1\n")
    assert ask(path) == [
        "missing system packages: one two; exit status 1: sudo --non-interactive apt-get update",
        "sudo apt-get install --yes --no-install-recommends one two",
    ]


def test_sudo_is_not_asked_for_a_password_without_a_terminal(path: Path) -> None:
    program(path, "apt-get")
    program(path, "sudo", f'#!/bin/sh\necho "$@" >> {path}/asked\n')
    (path / "asked").touch()
    (path / "asked").chmod(0o666)
    ask(path)
    assert (path / "asked").read_text().startswith("--non-interactive apt-get install ")


def test_root_runs_apt_after_saying_so(path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program(path, "apt-get", f'#!/bin/sh\necho "$@" $DEBIAN_FRONTEND > {tmp_path}/asked\n')
    host.install(["one"])
    line = "install -o DPkg::Lock::Timeout=600 --yes --no-install-recommends one"
    assert (capfd.readouterr().out, (tmp_path / "asked").read_text()) == (
        f"+ apt-get {line}\n",
        f"{line} noninteractive\n",
    )


def test_stale_package_lists_are_renewed_once(path: Path, tmp_path: Path) -> None:
    """The package is found after `update` alone."""
    script = f'echo "$1" >> {tmp_path}/asked; [ "$1" = update ] || [ "$(grep -c . {tmp_path}/asked)" -gt 1 ]'
    program(path, "apt-get", f"#!/bin/sh\nPATH={os.defpath}\n{script}\n")
    host.install(["one"])
    assert (tmp_path / "asked").read_text() == "install\nupdate\ninstall\n"


def test_two_that_install_take_turns(path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program(
        path,
        "apt-get",
        f"#!/bin/sh\nPATH={os.defpath}\necho + >> {tmp_path}/asked\nsleep 0.5\necho - >> {tmp_path}/asked\n",
    )
    others = [Thread(target=host.install, args=(["one"],)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert (tmp_path / "asked").read_text() == "+\n-\n" * 3
    assert "+ waiting for another process to install its packages\n" in capfd.readouterr().out


def test_a_package_that_cannot_be_had(path: Path) -> None:
    program(path, "apt-get", "#!/bin/sh\nexit 100\n")
    message, hint = refusal()
    assert message == "missing system packages: one two; exit status 100: apt-get update"
    assert hint == "sudo apt-get install --yes --no-install-recommends one two"


@pytest.mark.parametrize("tool", host.TEST_TOOLS)
def test_a_tool_of_the_tests_is_a_word(tool: str) -> None:
    assert host.PACKAGES.get(tool, tool).replace("-", "").replace("_", "").isalnum()
