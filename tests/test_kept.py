"""Initrds that are taken again: of which root, and what of it is another one now."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from buildlib.distros.debian import kept
from buildlib.distros.debian.kept import Initrds
from buildlib.plan import Stage
from buildlib.store import LISTING, Store
from buildlib.work import Work

Layer = Mapping[str, str]
"""Content of files by their paths."""

BASE: Layer = {"usr/bin/sh": "1", "etc/passwd": "1"}
MORE: Layer = {"usr/bin/less": "1"}


class Lab:
    """A store, and stages over two layers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "out")
        (folder / "out").mkdir()
        self.count = 0

    def initrds(self, base: Layer = BASE, more: Layer = MORE, alike: str = "a") -> Initrds:
        self.count += 1
        here = self.folder / str(self.count)
        inputs = {"bootstrap": here / "bootstrap", "packages": here / "packages"}
        for path, layer in zip(inputs.values(), (base, more), strict=True):
            path.mkdir(parents=True)
            lines = [f"{name} f 0644 0:0 1 1 {text * 64}\n" for name, text in sorted(layer.items())]
            (path / LISTING).write_text("".join([". d 0755 0:0 1 0 -\n", *lines]))
        (here / "scratch").mkdir()
        work = Work(
            stage=Stage("initramfs", "x:y"),
            key=str(self.count),
            out=here,
            inputs=inputs,
            layers=(),
            scratch=here / "scratch",
            cache=here,
            kept=self.store.kept,
            alike=alike,
            log=here / "log",
            progress=lambda _fraction, _text: None,
            epoch=0,
        )
        return Initrds.of(work)

    def make(self, base: Layer = BASE, more: Layer = MORE, alike: str = "a") -> None:
        made = self.initrds(base, more, alike)
        path = made.work.out / "initrd"
        path.write_text(f"{made.work.key}\n")
        made.keep(path)
        os.utime(self.store.kept / made.work.key, ns=(self.count, self.count))

    def found(
        self, base: Layer = BASE, more: Layer = MORE, alike: str = "a"
    ) -> tuple[str, list[str], list[str]] | None:
        before = self.initrds(base, more, alike).nearest()
        return (before.initrd.read_text().strip(), before.paths, before.changed) if before else None


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_nothing_is_there_at_first(lab: Lab) -> None:
    assert lab.found() is None


def test_what_differs(lab: Lab) -> None:
    lab.make()
    assert lab.found() == ("1", [], [])
    assert lab.found(more={**MORE, "usr/bin/ed": "1"}) == ("1", ["usr/bin/ed"], [])
    assert lab.found(more={}) == ("1", ["usr/bin/less"], ["usr/bin/less"])
    assert lab.found(more={"usr/bin/less": "2"}) == ("1", ["usr/bin/less"], ["usr/bin/less"])
    assert lab.found(base={**BASE, "usr/bin/sh": "2"}) == ("1", ["usr/bin/sh"], ["usr/bin/sh"])
    # What a higher layer lays over a lower one's file was there as well.
    assert lab.found(more={**MORE, "etc/passwd": "2"}) == ("1", ["etc/passwd"], ["etc/passwd"])


def test_the_nearest_is_taken(lab: Lab) -> None:
    lab.make()
    lab.make(more={**MORE, "usr/bin/vi": "1", "usr/bin/nano": "1"})
    lab.make(more={})
    assert lab.found(more={**MORE, "usr/bin/ed": "1"}) == ("1", ["usr/bin/ed"], [])
    assert lab.found(more={**MORE, "usr/bin/vi": "1", "usr/bin/nano": "2"}) == ("2", ["usr/bin/nano"], ["usr/bin/nano"])


def test_of_other_stages_none_is(lab: Lab) -> None:
    lab.make()
    assert lab.found(alike="b") is None


@pytest.mark.parametrize("name", ["initrd", "0", "1", "said.json"])
@pytest.mark.parametrize("how", ["other", "gone"])
def test_what_was_damaged_counts_for_nothing(name: str, how: str, lab: Lab) -> None:
    lab.make()
    path = lab.store.kept / "1" / name
    path.unlink()
    if how == "other":
        path.write_text("[]")
    assert lab.found() is None


def test_only_the_newest_stay(lab: Lab) -> None:
    for number in range(kept.KEPT + 2):
        lab.make(more={"a": str(number)})
    assert sorted(map(int, os.listdir(lab.store.kept))) == list(range(3, kept.KEPT + 3))


def test_it_goes_with_its_stage(lab: Lab) -> None:
    lab.make()
    lab.store.remove("1")
    assert not os.listdir(lab.store.kept)


def test_the_same_stage_again(lab: Lab) -> None:
    lab.make()
    lab.count = 0
    os.rename(lab.folder / "1", lab.folder / "old")
    lab.make(more={})
    assert json.loads((lab.store.kept / "1/said.json").read_text())["alike"] == "a"
    assert lab.found(more={}) == ("1", [], [])


def test_a_folder_that_cannot_be_written_is_no_failure(lab: Lab) -> None:
    lab.store.kept.write_text("")
    made = lab.initrds()
    (made.work.out / "initrd").touch()
    made.keep(made.work.out / "initrd")
    assert lab.found() is None
