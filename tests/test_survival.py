"""The store after what machines and people do to it: killed processes, full disks, damaged and foreign files.

`SEEDS=300 pytest tests/test_survival.py` kills at so many more moments.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from buildlib import store as stores
from buildlib.errors import BuildError
from buildlib.store import RECEIPT, Store
from tests import chain

CHECKOUT = Path(__file__).parents[1]
SEEDS = int(os.environ.get("SEEDS", "2"))
SPACE = ("No space left on device", "no space left in", "no room for more files in")


@dataclass(frozen=True)
class Reference:
    """What a build makes that nothing happens to, where it is, and seconds that it takes here."""

    seen: dict[str, Any]
    out: Path
    seconds: float


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    out = tmp_path_factory.mktemp("reference") / "out"
    started = time.monotonic()
    chain.make(out, "top")
    took = time.monotonic() - started
    found = chain.look(out)
    assert found["wrong"] == []
    return Reference(found, out, took)


@pytest.fixture
def built(reference: Reference, tmp_path: Path) -> Path:
    """A copy of it: release and store share files there too."""
    subprocess.run(["cp", "--archive", str(reference.out), str(tmp_path / "out")], check=True)
    return tmp_path / "out"


def start(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """In a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


# Processes that are killed


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_build_that_is_killed_again_and_again(seed: int, tmp_path: Path, reference: Reference) -> None:
    """At moments nobody chose: what is there is whole, and in the end it is what it would have been."""
    moments = random.Random(seed)
    out = tmp_path / "out"
    for _ in range(3):
        process = start(chain.make, out, "top")
        process.join(moments.uniform(0, reference.seconds))
        process.kill()
        process.join()
        assert chain.look(out)["wrong"] == []
    chain.make(out, "top")
    assert chain.look(out) == reference.seen
    assert set(os.listdir(out / "tmp")) == {"locks"}


# Full disks


def test_a_disk_that_is_full_at_any_moment(tmp_path: Path, reference: Reference) -> None:
    """A little more room each time: each failure says what it is of, nothing is broken, and the last one is whole."""
    command = ["unshare", "--mount", sys.executable, "-m", "tests.chain", str(tmp_path)]
    *failures, last, emptied = map(json.loads, subprocess.check_output(command, cwd=CHECKOUT, text=True).splitlines())
    for failure in failures:
        assert any(text in failure["said"] for text in SPACE), failure
        assert "./doit gc" in failure["said"]
        assert failure["seen"]["wrong"] == []
    stopped = {stage for stage in ("base", "top", "squashfs") for each in failures if f"{stage}.log" in each["said"]}
    assert stopped == {"base", "top", "squashfs"}
    assert last == {"said": None, "seen": reference.seen}
    # What makes room needs none.
    assert emptied == last


# Files that somebody has changed


def entry(out: Path, stage: str) -> tuple[Store, str]:
    store = Store(out)
    return store, next(key for key in store.entries() if store.get(key).document["stage"] == stage)


def _other_format(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "format": 99}))


def _other_fields(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "colour": "red"}))


def _other_key(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "key": "0" * 64}))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a receipt that is cut": (RECEIPT, lambda path: os.truncate(path, 100), "its receipt can't be read"),
    "a receipt of zeros": (RECEIPT, lambda path: path.write_bytes(bytes(500)), "its receipt can't be read"),
    "an empty receipt": (RECEIPT, lambda path: os.truncate(path, 0), "its receipt can't be read"),
    "a receipt that is a list": (RECEIPT, lambda path: path.write_text("[]"), "its receipt can't be read"),
    "a receipt of another format": (RECEIPT, _other_format, "or is of another version"),
    "a receipt with other fields": (RECEIPT, _other_fields, "its receipt can't be read"),
    "a receipt of something else": (RECEIPT, _other_key, "its receipt can't be read"),
    "a receipt that is gone": (RECEIPT, Path.unlink, "it has no receipt"),
    "a file that is gone": ("vmlinuz", Path.unlink, "vmlinuz is gone"),
    "a file that is cut": ("vmlinuz", lambda path: os.truncate(path, 7), "vmlinuz has 7 bytes, and had 30,000"),
    "a listing that is gone": ("tree.list", Path.unlink, "tree.list is gone"),
    "a tree that is gone": ("tree", lambda path: path.rename(path.with_name("x")), "tree is gone"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_that_is_seen_at_once(case: str, built: Path) -> None:
    name, change, said = DAMAGE[case]
    store, key = entry(built, "base")
    change(store.path(key, name))
    assert said in str(store.damage(key))
    assert not store.has(key)


def test_what_is_damaged_is_made_anew(built: Path, reference: Reference) -> None:
    cases = {"base": "a file that is gone", "top": "a tree that is gone", "squashfs": "a receipt that is cut"}
    found = {stage: entry(built, stage) for stage in cases}
    for stage, (store, key) in found.items():
        name, change, _ = DAMAGE[cases[stage]]
        change(store.path(key, name))
    chain.make(built, "top")
    assert chain.look(built) == reference.seen


def _grown(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


HIDDEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a file of a tree that is gone": ("tree/base-3", Path.unlink, "base: base-3: removed"),
    "a file in a tree that is new": ("tree/new", Path.touch, "base: new: added"),
    "another content": ("tree/base-25", _grown, "base: base-25: changed"),
    "another mode": ("tree/base-7", lambda path: path.chmod(0o600), "base: base-7: changed"),
    "another content of an artifact": ("vmlinuz", _grown, "base: vmlinuz: is not what its receipt says"),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_damage_that_only_reading_shows_is_found(case: str, built: Path) -> None:
    """`verify:NAME` does, and forgets it."""
    name, change, said = HIDDEN[case]
    store, key = entry(built, "base")
    assert chain.look(built)["wrong"] == []
    change(store.path(key, name))
    assert store.has(key)
    assert said in chain.look(built)["wrong"]


def test_a_release_that_is_damaged_is_made_anew(built: Path, reference: Reference) -> None:
    """Under the same name, and with what was added to it."""
    (folder,) = (built / "images/chain").glob("2*")
    (folder / "proof.json").write_text("{}")
    for name in ("tree.list", "vmlinuz"):
        (folder / name).unlink()
        chain.make(built, "top")
        assert chain.look(built) == reference.seen
        assert (folder / "proof.json").exists()
    store, key = entry(built, "base")
    # The release's file is the store's: what changes one changes the other.
    (store.path(key, "vmlinuz")).write_bytes(bytes(30_000))
    store.remove(key)
    chain.make(built, "top")
    assert chain.look(built) == reference.seen
    assert [path.name for path in (built / "images/chain").iterdir() if path.name.startswith(".")] == []


# Several at a time


def _hold(store: Store, alone: bool, held: Event, told: Event) -> None:
    """Until somebody who waits has been told."""
    with store.alone("gc") if alone else store.lock("one", what="other/base"):
        held.set()
        told.wait()


@pytest.mark.parametrize(("alone", "what"), [(False, "other/base"), (True, "gc")])
def test_who_waits_is_told_for_whom(alone: bool, what: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    held, told = multiprocessing.Event(), multiprocessing.Event()
    process = start(_hold, store, alone, held, told)
    held.wait()
    said: list[str] = []

    def waiting(whom: str) -> None:
        said.append(whom)
        told.set()

    with store.used(waiting) if alone else store.lock("one", waiting=waiting):
        assert said == [f"process {process.pid}, {what}"]
    process.join()


def test_lock_files_are_removed_but_never_one_that_is_held(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    for name in ("one", "two"):
        with store.lock(name):
            pass
    with store.lock("held"):
        store.tidy()
        assert set(os.listdir(tmp_path / "out/tmp/locks")) == {"held"}
        # A lock file that went away while somebody waited for it is no lock.
        with store.lock("held", wait=False) as free:
            assert not free
    with store.used():
        store.tidy()
    assert set(os.listdir(tmp_path / "out/tmp/locks")) == {"all"}


def test_two_never_hold_a_lock_whose_file_goes_away(tmp_path: Path) -> None:
    """Three processes take and leave one lock while a fourth removes its file all the time."""
    script = """
import os, sys, time
from pathlib import Path
from buildlib.store import Store
store, mark = Store(Path(sys.argv[1])), Path(sys.argv[1]) / "mark"
for _ in range(150):
    if sys.argv[2] == "tidy":
        store.tidy()
        continue
    with store.lock("one"):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        os.sched_yield()
        mark.unlink()
"""
    words = ("take", "take", "take", "tidy")
    (tmp_path / "out").mkdir()
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out"), word], cwd=CHECKOUT) for word in words
    ]
    assert [process.wait() for process in running] == [0] * len(words)


def _make_all(out: Path, texts: Sequence[str]) -> None:
    for text in texts:
        while not _made(out, text):
            pass


def _made(out: Path, text: str) -> bool:
    try:
        chain.make(out, text)
    except BuildError as error:
        assert "it went while this build ran" in str(error), error
        return False
    return True


def test_gc_beside_builds(tmp_path: Path, reference: Reference) -> None:
    """It may take what a build has made a moment ago, of which the build then says so; it never takes half."""
    out = tmp_path / "out"
    builds = [start(_make_all, out, texts) for texts in (["a", "top"], ["top"])]
    while any(build.is_alive() for build in builds):
        chain.collect(out)
        time.sleep(reference.seconds / 3)
    assert [build.exitcode for build in builds] == [0, 0]
    chain.make(out, "top")
    chain.collect(out)
    assert chain.look(out) == reference.seen
    assert len(list((out / "images/chain").glob("2*"))) == 1


# File systems of several machines


def test_file_systems_are_told_apart(tmp_path: Path) -> None:
    assert stores.file_system(Path("/proc")) == "proc"
    script = "mount -t tmpfs none $1; exec $2 -c 'import sys; from pathlib import Path; from buildlib.store import *; "
    script += "print(file_system(Path(sys.argv[1])))' $1"
    line = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    assert subprocess.check_output(line, cwd=CHECKOUT, text=True) == "tmpfs\n"


def test_a_store_that_other_machines_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own word for where the store lies decides; here it is one that this kernel can mount."""
    store = Store(tmp_path / "out")
    here = stores.file_system(tmp_path)
    assert here is not None
    monkeypatch.setattr(stores, "REMOTE", (here,))
    with pytest.raises(BuildError, match=f"is on {here}, and two machines must not build into one store"), store.used():
        pass
    with pytest.raises(BuildError, match="ln -s"), store.lock("one"):
        pass
