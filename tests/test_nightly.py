"""Nights: what is done, in which order, what a failure stops and what not, and what is said of it."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import alpinelab
from tests.checkout import PROJECT, Checkout
from tests.test_alpine import RECIPE, mirror_of
from tests.test_archlinux import Mirror


@pytest.fixture(scope="module")
def mirror(small: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    folder = tmp_path_factory.mktemp("alpine")
    made = mirror_of(folder / "mirror", alpinelab.bundle(folder / "files", small))
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout.make(tmp_path / "checkout")
    shutil.rmtree(made.folder / "recipes/_parts")
    target = f"{{address: 192.0.2.1, network: 192.0.2.0/24, http: {tmp_path}/www, keep: 1}}"
    (made.folder / "site.yaml").write_text(f"targets:\n  lab: {target}\n")
    return made


def recipe(
    checkout: Checkout, mirror: Mirror, name: str, expect: str = "has its modules", branch: str = "3.22"
) -> None:
    text = f"boot: {{firmware: [bios-pxelinux], timeout: 60, expect: [{{console: '{expect}'}}]}}\n{RECIPE}"
    checkout.recipe(name, text.replace("3.22", branch) + f"  mirrors: ['{mirror.url('')[:-1]}']\n")


def night(checkout: Checkout, *words: str, status: int = 0) -> tuple[str, dict[str, Any]]:
    said = checkout.doit("nightly", *words, status=status)
    return said, json.loads((checkout.folder / "out/report/nightly.json").read_bytes())


def states(report: dict[str, Any]) -> dict[str, str]:
    return {f"{step['verb']}:{step['name']}": step["state"] for step in report["steps"]}


def test_one_that_fails_stops_no_other(checkout: Checkout, mirror: Mirror, tmp_path: Path) -> None:
    recipe(checkout, mirror, "good")
    recipe(checkout, mirror, "gone", branch="3.1")
    said, report = night(checkout, "--no-boot", status=11)
    assert states(report) == {
        "lock:gone": "failed",
        "build:gone": "failed",
        "lock:good": "ok",
        "build:good": "ok",
        "push:lab/gone": "skipped",
        "push:lab/good": "ok",
        "prune:lab": "ok",
    }
    assert report["code"] == 11
    assert (tmp_path / "www/entries/good").exists()
    assert not (tmp_path / "www/entries/gone").exists()
    assert "FAILED build:gone  out/log/nightly/build-gone.log" in said
    assert "latest-releases.yaml: is not there (404)" in said
    assert (checkout.folder / "out/report/nightly.txt").read_text().splitlines()[0] in said
    suites = ET.parse(checkout.folder / "out/report/nightly.xml").getroot()
    assert {suite.get("name"): (suite.get("tests"), suite.get("failures")) for suite in suites} == {
        "lock": ("2", "1"),
        "build": ("2", "1"),
        "push": ("2", "0"),
        "prune": ("1", "0"),
    }
    assert "404" in (suites.findtext(".//failure") or "")


def test_what_is_new_is_booted_and_what_passed_is_published(checkout: Checkout, mirror: Mirror, tmp_path: Path) -> None:
    recipe(checkout, mirror, "good")
    recipe(checkout, mirror, "hangs", expect="what nobody says")
    _, report = night(checkout, status=12)
    assert states(report)["boot:good"] == "ok"
    assert states(report)["boot:hangs"] == "failed"
    assert states(report)["push:lab/good"] == "ok"
    assert states(report)["push:lab/hangs"] == "skipped"
    assert report["releases"]["good"]["proven"]
    assert not (tmp_path / "www/entries/hangs").exists()
    first = report["releases"]["good"]["after"]

    shutil.rmtree(checkout.folder / "recipes/hangs")
    said, report = night(checkout)
    assert "as before, booted" in said
    assert "boot:good" not in states(report)
    assert report["releases"]["good"]["before"] == report["releases"]["good"]["after"] == first

    path = checkout.folder / "recipes/good/recipe.yaml"
    path.write_text(path.read_text().replace("console=ttyS0", "console=ttyS0 quiet"))
    said, report = night(checkout)
    assert report["releases"]["good"]["before"] == first
    assert "    + quiet" in said
    assert states(report)["boot:good"] == "ok"
    # `keep: 1`: one to go back to.
    assert len(list((tmp_path / "www/images/good").iterdir())) == 2
    assert len(list((checkout.folder / "out/report/nights").iterdir())) == 3


def test_what_cannot_be_published(checkout: Checkout, mirror: Mirror, tmp_path: Path) -> None:
    recipe(checkout, mirror, "good")
    (tmp_path / "www").write_text("a file\n")
    _, report = night(checkout, "--no-boot", status=13)
    assert states(report)["push:lab/good"] == "failed"
    assert "prune:lab" not in states(report)
    _, report = night(checkout, "--no-boot", "--no-publish", "--no-lock")
    assert states(report) == {"build:good": "ok"}


def test_two_nights_do_not_meet(checkout: Checkout, mirror: Mirror) -> None:
    recipe(checkout, mirror, "good")
    locks = checkout.folder / "out/tmp/locks"
    locks.mkdir(parents=True)
    with (locks / "nightly").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another nightly is at it" in checkout.doit("nightly", status=1)
        waiting = subprocess.Popen(
            checkout.command("nightly", "--wait", "--no-boot", "--no-publish"),
            cwd=checkout.folder,
            env=checkout.environment,
            stdout=subprocess.PIPE,
        )
        threading.Event().wait(2)
        assert waiting.poll() is None
        assert not (checkout.folder / "out/report").exists()
    begun = time.monotonic()
    assert waiting.wait(60) == 0, begun
    assert (checkout.folder / "out/report/nightly.json").exists()


def test_just_some_recipes(checkout: Checkout, mirror: Mirror) -> None:
    for name in ("one", "two"):
        recipe(checkout, mirror, name)
    _, report = night(checkout, "--no-boot", "--no-publish", "--recipes=two")
    assert [*report["releases"]] == ["two"]
    assert "there is no recipe three" in checkout.doit("nightly", "--recipes=three", status=1)


def test_the_shipped_units_are_right(tmp_path: Path) -> None:
    for path in (PROJECT / "contrib").glob("netboot-nightly.*"):
        (tmp_path / path.name).write_text(path.read_text().replace("/srv/netboot", str(PROJECT)))
    line = ["systemd-analyze", "verify", "--man=no", *sorted(str(path) for path in tmp_path.iterdir())]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


SCHEMAS = {
    "github-nightly.yml": ["vendor.github-workflows"],
    "gitlab-ci.yml": ["vendor.gitlab-ci", "--data-transform=gitlab-ci"],
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shipped_ci_files_are_what_these_systems_read(name: str, tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("check-jsonschema"))
    line = [program, "--builtin-schema", *SCHEMAS[name]]
    done = subprocess.run([*line, str(PROJECT / "contrib" / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / name
    wrong.write_text((PROJECT / "contrib" / name).read_text().replace("nightly:\n", "nightly:\n    artefacts: 1\n"))
    assert subprocess.run([*line, str(wrong)], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("name", ["github-nightly.yml", "gitlab-ci.yml"])
def test_the_shipped_ci_files_run_what_there_is(name: str, checkout: Checkout) -> None:
    text = (PROJECT / "contrib" / name).read_text()
    yaml.safe_load(text)
    (words,) = re.findall(r"\./doit (nightly.*)$", text, re.M)
    checkout.doit(*words.split())
    for path in re.findall(r"out/\S+", text):
        assert path in ("out/cache", "out/store", "out/log") or (checkout.folder / path).exists()
