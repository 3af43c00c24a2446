"""The linters, as tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import PROJECT

GUEST = PROJECT / "buildlib/distros/debian/guest"


@pytest.mark.parametrize(
    "line", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=["ruff", "format", "mypy"]
)
def test_python(line: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *line], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "script",
    [
        PROJECT / "doit",
        PROJECT / ".ci/run",
        *(path for path in (GUEST / "usr/share").rglob("*") if path.is_file()),
    ],
    ids=lambda path: str(path.relative_to(PROJECT)),
)
def test_shell(script: Path) -> None:
    assert shutil.which("shellcheck"), "apt-get install shellcheck"
    # An initrd's shell is dash or busybox; what its scripts source is there at boot only.
    options = ["--shell=dash", "--exclude=SC1091,SC2154"] if script.is_relative_to(GUEST) else []
    done = subprocess.run(
        ["shellcheck", *options, str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
