"""`./doit`, as on a machine where nothing is set up."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.checkout import PROJECT


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """What a clone holds that the wrapper needs."""
    for name in ("doit", "dodo.py", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "buildlib").symlink_to(PROJECT / "buildlib")
    (tmp_path / "recipes").mkdir()
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(folder / "doit"), *arguments],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def python_without(folder: Path, module: str) -> str:
    """A Python as Debian installs it: whole, but for a module that is a package of its own."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\ncase "$*" in *"import {module}"*) exit 1;; esac\nexec python3 "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.integration
def test_first_run_makes_the_venv_and_the_second_finds_it(fresh: Path) -> None:
    first = run(fresh, "list")
    assert first.returncode == 0, first.stdout
    assert "+ python3 -m venv .venv && pip install --require-hashes -r requirements.txt" in first.stdout
    assert "build:NAME" in first.stdout
    second = run(fresh, "list")
    assert "venv" not in second.stdout
    assert second.stdout.startswith("recipes")


def test_missing_package_is_refused_when_nothing_may_be_installed(fresh: Path) -> None:
    done = run(fresh, "list", PYTHON=python_without(fresh, "ensurepip"), DOIT_INSTALL="no")
    assert done.returncode == 1
    assert "missing system packages: python3 python3-venv (DOIT_INSTALL=no)" in done.stdout
    assert "hint: sudo apt-get install --yes --no-install-recommends python3 python3-venv" in done.stdout
    assert not (fresh / ".venv").exists()


def test_missing_package_is_asked_of_root_when_there_is_no_sudo(fresh: Path) -> None:
    folder = fresh / "bin"
    folder.mkdir()
    for name in ("sh", "dirname", "cmp", "python3", "apt-get"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    (folder / "id").write_text("#!/bin/sh\necho 1000\n")
    (folder / "id").chmod(0o755)
    done = run(fresh, "list", PYTHON=python_without(fresh, "ensurepip"), PATH=str(folder))
    assert done.returncode == 1
    assert "hint: as root: apt-get install" in done.stdout


def test_old_python_is_named(fresh: Path) -> None:
    done = run(fresh, "list", PYTHON=python_without(fresh, "sys"))
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stdout


def test_no_installable_packages_leave_no_half_made_venv(fresh: Path) -> None:
    (fresh / "requirements.txt").write_text(f"doit==0.37.0 --hash=sha256:{'0' * 64}\n")
    done = run(fresh, "list", PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert "the locked Python packages cannot be installed" in done.stdout
    assert not (fresh / ".venv/lock").exists()
