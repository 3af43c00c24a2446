"""No package makes host keys while an image is built, and nothing is left of what stands for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildlib.distros.debian import packages


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packages, "HOST_KEYS", tmp_path / "ssh")
    return tmp_path / "ssh"


def test_openssh_finds_its_keys(folder: Path) -> None:
    with packages.host_keys():
        found = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert found == {f"ssh_host_{kind}_key": 0o600 for kind in ("rsa", "ecdsa", "ed25519")}
        (folder / "sshd_config").touch()
        (folder / "ssh_host_dsa_key").touch()
    assert [path.name for path in folder.iterdir()] == ["sshd_config"]


def test_nothing_is_left_without_openssh(folder: Path) -> None:
    with packages.host_keys():
        pass
    assert not folder.exists()


def test_a_folder_that_is_there_stays_as_it_is(folder: Path) -> None:
    folder.mkdir()
    with packages.host_keys():
        assert not list(folder.iterdir())
    assert folder.is_dir()
