"""Signatures by real keys: only whom a site allows, only of this very file, only for releases."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildlib import signature
from buildlib.errors import BuildError

PRINCIPAL = "builder@site"


def make_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", str(path)], check=True)
    return path


def public(key: Path) -> str:
    return key.with_name(f"{key.name}.pub").read_text()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "release/SHA256SUMS"
    path.parent.mkdir()
    path.write_text("0123  vmlinuz\n")
    path.chmod(0o444)
    return path


@pytest.fixture
def allowed(tmp_path: Path, key: Path) -> Path:
    path = tmp_path / "allowed"
    path.write_text(f"{PRINCIPAL} {public(key)}")
    return path


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], object]]:
    """Gives a key to an agent."""
    socket = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        yield lambda path: subprocess.run(["ssh-add", "-q", str(path)], check=True)
        process.terminate()


@pytest.fixture(autouse=True)
def nobodys_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def test_a_signature_is_found_beside_its_file_and_holds(file: Path, key: Path, allowed: Path) -> None:
    made = signature.sign(file, key)
    assert made == file.parent / "SHA256SUMS.sig"
    assert signature.check(file, made, allowed) == PRINCIPAL
    assert sorted(os.listdir(file.parent)) == ["SHA256SUMS", "SHA256SUMS.sig"]


def test_everybody_may_read_a_signature(file: Path, key: Path) -> None:
    assert signature.sign(file, key).stat().st_mode & 0o777 == 0o644


def test_a_signature_is_what_ssh_keygen_verifies(file: Path, key: Path, allowed: Path) -> None:
    line = ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", PRINCIPAL, "-n", "netboot-release", "-s"]
    subprocess.run([*line, str(signature.sign(file, key))], input=file.read_bytes(), check=True)


def test_a_new_signature_replaces_the_old_one(file: Path, key: Path, allowed: Path, tmp_path: Path) -> None:
    signature.sign(file, make_key(tmp_path / "old"))
    assert signature.check(file, signature.sign(file, key), allowed) == PRINCIPAL


def test_an_agents_key_signs_by_its_public_half(
    file: Path, key: Path, allowed: Path, agent: Callable[[Path], object]
) -> None:
    agent(key)
    key.unlink()
    assert signature.check(file, signature.sign(file, Path(f"{key}.pub")), allowed) == PRINCIPAL


@pytest.mark.parametrize("half", ["locked", "locked.pub"])
def test_nobody_is_asked_for_a_passphrase(half: str, file: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", "secret")
    with pytest.raises(BuildError, match=r"can't be signed with .*locked") as caught:
        signature.sign(file, tmp_path / half)
    assert "passphrase" in caught.value.message
    assert caught.value.hint == f"an agent must have it: ssh-add {key}"
    assert os.listdir(file.parent) == ["SHA256SUMS"]


def test_nobody_is_asked_in_a_window_either(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key(tmp_path / "locked", "secret")
    window = tmp_path / "window"
    window.write_text("#!/bin/sh\necho secret\n")
    window.chmod(0o755)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SSH_ASKPASS", str(window))
    with pytest.raises(BuildError, match="can't be signed"):
        signature.sign(file, key)


def test_what_is_no_key_does_not_sign(file: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("hello")
    with pytest.raises(BuildError, match=r"SHA256SUMS: can't be signed with .*note") as caught:
        signature.sign(file, tmp_path / "note")
    assert caught.value.hint is None


def test_a_key_that_is_missing_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="none: there is no such key"):
        signature.sign(file, tmp_path / "none")


@pytest.mark.parametrize("data", [b"0123  vmlinux\n", b"0123  vmlinuz", b"", b"\xff\0"])
def test_a_signature_is_of_one_content(data: bytes, file: Path, key: Path, allowed: Path) -> None:
    made = signature.sign(file, key)
    file.chmod(0o644)
    file.write_bytes(data)
    with pytest.raises(BuildError, match=r"SHA256SUMS: its signature by builder@site does not hold: .*incorrect"):
        signature.check(file, made, allowed)


def test_a_key_that_nobody_allowed_counts_for_nothing(file: Path, allowed: Path, tmp_path: Path) -> None:
    made = signature.sign(file, make_key(tmp_path / "other"))
    with pytest.raises(BuildError, match=r"is signed by nobody whom .*allowed names: No principal matched"):
        signature.check(file, made, allowed)


def test_a_signature_for_something_else_counts_for_nothing(file: Path, key: Path, allowed: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "git", str(file)], check=True)
    with pytest.raises(BuildError, match=r"does not hold: .*namespace"):
        signature.check(file, file.with_name("SHA256SUMS.sig"), allowed)


@pytest.mark.parametrize(
    ("form", "principal"),
    [
        ("# comment\n\none {}", "one"),
        ("one,two {}", "one"),
        ("*@site {}", "*@site"),
        ('one namespaces="git,netboot-*" {}', "one"),
        ('one valid-after="20200101" {}', "one"),
    ],
)
def test_lines_that_allow(form: str, principal: str, file: Path, key: Path, allowed: Path) -> None:
    allowed.write_text(form.format(public(key)))
    assert signature.check(file, signature.sign(file, key), allowed) == principal


@pytest.mark.parametrize(
    "form", ["", "garbage", 'one namespaces="git" {}', 'one valid-before="20200101" {}', "one cert-authority {}", "{}"]
)
def test_lines_that_do_not(form: str, file: Path, key: Path, allowed: Path) -> None:
    allowed.write_text(form.format(public(key)))
    with pytest.raises(BuildError, match=r"is signed by nobody|does not hold"):
        signature.check(file, signature.sign(file, key), allowed)


def test_what_is_no_signature_counts_for_nothing(file: Path, allowed: Path, tmp_path: Path) -> None:
    (tmp_path / "sig").write_text("hello")
    with pytest.raises(BuildError, match=r"is signed by nobody .*: Couldn't parse signature"):
        signature.check(file, tmp_path / "sig", allowed)


def test_without_a_signature_it_is_not_signed(file: Path, allowed: Path) -> None:
    with pytest.raises(BuildError, match="SHA256SUMS: is not signed"):
        signature.check(file, file.with_name("SHA256SUMS.sig"), allowed)


def test_without_the_allowed_ones_nobody_is(file: Path, key: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="none: there is no such file of allowed signers"):
        signature.check(file, signature.sign(file, key), tmp_path / "none")
