"""What stops something is found, and said with what mends it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from buildlib import doctor
from buildlib.finding import Finding, lines
from tests import sshlab
from tests.checkout import Checkout

pytestmark = sshlab.needed


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout.make(tmp_path / "checkout")
    shutil.rmtree(made.folder / "recipes/_parts")
    made.recipe("one", "arch: amd64\ndebian: {suite: bookworm}\n")
    return made


def findings(checkout: Checkout, status: int = 0) -> list[Finding]:
    said = checkout.doit("doctor", "--json", status=status)
    return [Finding(**each) for each in json.loads(said[: said.rindex("]") + 1])]


def about(found: list[Finding], what: str) -> list[tuple[str, str]]:
    return [(finding.level, finding.said) for finding in found if finding.what == what]


def test_a_machine_that_is_well(checkout: Checkout) -> None:
    (checkout.folder / "recipes/one/recipe.lock").write_text("{}")
    found = findings(checkout)
    assert about(found, "one") == [("ok", "can be built here, and is locked")]
    assert {finding.what for finding in found} >= {"disk", "clock", "kvm", "serve"}
    assert "ok       one" in checkout.doit("doctor")


def test_locks(checkout: Checkout) -> None:
    assert about(findings(checkout), "one") == [("warning", "is not locked yet")]
    lock = checkout.folder / "recipes/one/recipe.lock"
    lock.write_text("{}")
    old = time.time() - 40 * 86400
    os.utime(lock, (old, old))
    assert about(findings(checkout), "one") == [("warning", "was locked 40 days ago")]


def test_targets_and_builders(checkout: Checkout, tmp_path: Path) -> None:
    with sshlab.box("openssh") as box:
        lab = f"{{ssh: {box.name}, address: {box.address}, network: 198.18.0.0/15, http: {box.folder}/www}}"
        gone = "{ssh: nowhere.invalid, address: 192.0.2.1, network: 192.0.2.0/24, http: /srv/www}"
        builder = f"{{ssh: root@{box.name}, systems: [aarch64-linux]}}"
        (checkout.folder / "site.yaml").write_text(
            f"ssh-config: {box.config}\ntargets:\n  lab: {lab}\n  gone: {gone}\nbuilders:\n  b0: {builder}\n"
        )
        said = checkout.doit("doctor", status=1)
    assert f"ok       lab                  root@{box.address} can be reached and written to" in said
    assert "ERROR    gone  " in said
    assert "nowhere.invalid" in said
    assert "ERROR    b0 " in said
    assert "2 things would fail" in said


def test_ports_that_are_taken() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 4011))
        (found,) = [finding for finding in doctor.ports() if "4011" in finding.said]
    assert found.level == "warning"
    assert "is taken" in found.said
    assert "ss --udp" in found.todo


def test_a_clock_that_is_wrong(tmp_path: Path) -> None:
    later = time.time() + 86400
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", (later, later))
    assert Finding("error", "clock", "is behind the newest file here", "timedatectl set-ntp true") in list(
        doctor.machine(tmp_path / "out")
    )


def test_lines_say_what_mends_it() -> None:
    assert list(lines([Finding("error", "lab", "one\ntwo", "do it"), Finding("ok", "x", "y")])) == [
        f"{'ERROR':8} {'lab':20} one",
        f"{'':29} two",
        f"{'':29} -> do it",
        f"{'ok':8} {'x':20} y",
    ]
