"""By the command line, on builds that take a second: what `why` says is what happens, and what is damaged is found."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import alpinelab
from tests.checkout import Checkout
from tests.test_alpine import RECIPE, mirror_of
from tests.test_archlinux import Mirror


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    folder = tmp_path_factory.mktemp("mirror")
    made = mirror_of(folder / "mirror", alpinelab.bundle(folder / "files"))
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def checkout(tmp_path: Path, mirror: Mirror) -> Checkout:
    """With one recipe, not built yet."""
    made = Checkout.make(tmp_path / "checkout")
    shutil.rmtree(made.folder / "recipes/_parts")
    add(made, mirror, "one")
    return made


def add(checkout: Checkout, mirror: Mirror, name: str, more: str = "") -> Path:
    text = f"{RECIPE}  mirrors: ['{mirror.url('')[:-1]}']\noverlay: [files]\n{more}"
    return checkout.recipe(name, text, {"files/etc/motd": f"{name}\n"})


def told(printed: str) -> dict[str, list[str]]:
    """By stage that would run, why: of what `why --json` has printed."""
    said = next(json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    return {each["stage"]: each["reasons"] for each in said["stages"] if each["state"] == "will run"}


def ran(printed: str) -> set[str]:
    return set(re.findall(r"^\S+ +(\S+) +built\b", printed, re.MULTILINE))


WHY_AND_BUILD = ("why:one", "--json", "build:one")


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(home: Path) -> None:
        text = (home / name).read_text()
        assert old in text
        (home / name).write_text(text.replace(old, new))

    return change


def _words_alone(home: Path) -> None:
    """Of nothing that a stage reads; and nobody remembers what was built last."""
    replaced("recipe.yaml", "ttyS0", "ttyS1")(home)
    os.utime(home / "files/etc/motd", (1, 1))
    (home / "../../out/state/one.json").write_text("{")


EDITS: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda home: home, "netboot apkovl", "it never ran"),
    (replaced("files/etc/motd", "one", "two"), "apkovl", "files/etc/motd changed"),
    (replaced("recipe.yaml", "arch:", "hostname: box\narch:"), "apkovl", ": alpine -> box"),
    (_words_alone, "", ""),
]
"""Edits one after the other, the stages that run again, and the reason that is told."""


def test_what_is_said_is_what_happens(checkout: Checkout) -> None:
    checkout.doit("_lock:one")
    for edit, stages, reason in EDITS:
        edit(checkout.folder / "recipes/one")
        printed = checkout.doit(*WHY_AND_BUILD)
        said = told(printed)
        assert ran(printed) == {*said}
        assert {*said} - {"release"} == {*stages.split()}
        assert all(reason in " ".join(said[stage]) for stage in stages.split())


def test_several_at_once_build_each_stage_once(checkout: Checkout, mirror: Mirror) -> None:
    """Of four recipes, which all have the bundle in common."""
    names = ["one", "two", "three", "four"]
    for name in names[1:]:
        add(checkout, mirror, name)
    checkout.doit(*(f"_lock:{name}" for name in names))
    mirror.delay, before = 0.5, len(mirror.asked)
    try:
        said = checkout.doit("-n", "4", "build")
    finally:
        mirror.delay = 0.0
    assert len(mirror.asked) == before + 1
    store = [json.loads(path.read_bytes()) for path in (checkout.folder / "out/store").glob("*/receipt.json")]
    assert sorted(each["document"]["stage"] for each in store) == ["apkovl"] * 4 + ["netboot"]
    assert re.search(r"netboot +waiting +for process \d+, (one|two|three|four)/netboot$", said, re.MULTILINE), said


def test_clean_removes_what_nobody_else_needs(checkout: Checkout, mirror: Mirror) -> None:
    add(checkout, mirror, "two")
    checkout.doit("build")
    before = {path.name for path in (checkout.folder / "out/store").iterdir()}
    assert "nothing was removed" in checkout.doit("clean", "two", "--dry-run")
    assert "apkovl" in checkout.doit("clean", "two")
    (gone,) = before - {path.name for path in (checkout.folder / "out/store").iterdir()}
    left = [path for path in (checkout.folder / "out").rglob("*") if "two" in path.name]
    assert {path.parent.name for path in left} <= {"locks"}
    said = checkout.doit("clean:two", "why:one")
    assert "nothing of it was built" in said
    assert "nothing would run" in said
    assert (checkout.folder / "recipes/two/recipe.lock").exists()
    said = checkout.doit("clean", "three", status=3)
    assert "there is no recipe three" in said
    assert ran(checkout.doit("build:two")) == {"apkovl", "release"}
    assert gone in {path.name for path in (checkout.folder / "out/store").iterdir()}


def test_gc_knows_all_of_the_cache(checkout: Checkout) -> None:
    checkout.doit("build:one")
    cache = checkout.folder / "out/cache"
    (cache / "debs").mkdir()
    (cache / "debs/less_590-1_amd64.deb").write_text("of no package list")
    (cache / "downloads" / ("0" * 64)).write_text("of no lock")
    (cache / "sbom/old.json").write_text("of no release")
    store = checkout.folder / "out/store"
    (store / ("0" * 64)).mkdir()
    before = {path for path in checkout.folder.rglob("*") if "locks" not in str(path)}
    said = checkout.doit("gc", "--dry-run")
    assert {path for path in checkout.folder.rglob("*") if "locks" not in str(path)} == before
    for words in ("damaged: it has no receipt", "no kept list of packages", "no recipe's lock", "of no release that"):
        assert words in said
    assert "3 files of the cache would go" in said
    assert "3 files of the cache removed" in checkout.doit("gc")
    assert len(list((cache / "sbom").iterdir())) == 1
    said = checkout.doit("gc", "why:one")
    assert "0 releases and 0 stages removed" in said
    assert "nothing would run" in said


def test_what_a_hand_has_changed_is_found_and_made_anew(checkout: Checkout) -> None:
    checkout.doit("build:one")
    release = checkout.release("one")
    content = {path.name: path.read_bytes() for path in release.iterdir()}
    # Found by every run: a file that is gone, and one of another size.
    (release / "initrd").unlink()
    os.truncate(release / "manifest.json", 9)
    printed = checkout.doit(*WHY_AND_BUILD)
    assert {*told(printed)} == ran(printed) == {"release"}
    assert {path.name: path.read_bytes() for path in release.iterdir()} == content
    (kept,) = (checkout.folder / "out/store").glob("*/vmlinuz")
    os.truncate(kept, 3)
    printed = checkout.doit(*WHY_AND_BUILD)
    had = f"vmlinuz has 3 bytes, and had {len(content['vmlinuz']):,}"
    assert told(printed)["netboot"] == [f"the store's outcome is damaged: {had}"]
    assert ran(printed) == {"netboot", "release"}
    assert {path.name: path.read_bytes() for path in release.iterdir()} == content
    # Found by who reads it.
    (release / "vmlinuz").write_bytes(bytes(len(content["vmlinuz"])))
    said = checkout.doit("why:one", "verify:one", status=1)
    assert "nothing would run" in said
    assert "netboot: vmlinuz: is not what its receipt says" in said
    assert "./doit build:one makes it anew" in said
    assert ran(checkout.doit("build:one")) == {"netboot", "release"}
    assert {path.name: path.read_bytes() for path in release.iterdir()} == content


def test_a_lock_that_cannot_be_read_is_never_guessed(checkout: Checkout) -> None:
    checkout.doit("_lock:one")
    lock = checkout.folder / "recipes/one/recipe.lock"
    text = lock.read_text()
    lock.write_text(text[: len(text) // 2])
    said = checkout.doit("list", status=3)
    assert re.search(r"recipe\.lock:\d+:\d+: can't be read", said)
    assert "Traceback" not in said
    lock.write_text("[]")
    assert "recipe.lock:1:1: expects a map" in checkout.doit("list", status=3)
    lock.write_text(json.dumps({**json.loads(text), "bundle": {}}))
    assert "is not what this version writes" in checkout.doit("list", status=3)
