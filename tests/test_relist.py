"""A listing of which a layer changes lines: the same as that of all layers merged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildlib import listing, relist, tree
from tests.test_listing import EPOCH, LAYER, _make
from tests.test_merge import STACKS, Stack


def lists(folder: Path, layers: list[Path]) -> list[tuple[str, Path]]:
    found = []
    for number, layer in enumerate(layers):
        path = folder / f"{number}.list"
        told = tree.write_listing({"tree": str(layer), "epoch": EPOCH, "listing": str(path)})
        found.append((told["digest"], path))
    return found


@pytest.mark.parametrize("case", STACKS)
def test_it_is_what_merging_gives(case: str, tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    STACKS[case](stack)
    layers = lists(tmp_path, stack.layers)
    for base in range(1, len(layers) + 1):
        assert b"".join(relist.laid(layers, base, tmp_path / "kept")) == relist.merged(layers)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(LAYER, min_size=2, max_size=4), chance=st.randoms())
def test_any_layers_are_what_merging_gives(wanted: list[dict[str, str]], chance: Random, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    (tmp_path / "any").mkdir()
    paths = [tmp_path / "any" / str(number) for number in range(len(wanted))]
    for path, layer in zip(paths, wanted, strict=True):
        _make(path, layer)
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink()]
        if files and chance.random() < 0.3:
            os.link(chance.choice(files), path / "again")
    layers = lists(tmp_path / "any", paths)
    for base in range(1, len(layers)):
        assert b"".join(relist.laid(layers, base, tmp_path / "any/kept")) == relist.merged(layers)


def test_most_changes_need_no_merging(tmp_path: Path) -> None:
    """Else all of the above could be true of merging alone."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    _make(lower, {"a/b": "file", "a/c": "file", "b/a": "folder", "b/b": "link"})
    _make(upper, {"a/b": "whiteout", "a/a": "file", "b": "opaque", "b/b": "file"})
    (_, whole), (_, path) = lists(tmp_path, [lower, upper])
    changed = relist.over(relist.Part(whole.read_bytes()), frozenset(), listing.load(path))
    assert changed is not None
    assert [line.split(b" ")[0] for line in b"".join(changed).splitlines()] == [
        b".",
        b"a",
        b"a/a",
        b"a/c",
        b"b",
        b"b/b",
    ]


def test_what_was_kept_is_used_as_long_as_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    _make(lower, {"a": "file", "c": "file"})
    _make(upper, {"b": "file"})
    layers = lists(tmp_path, [lower, upper])
    monkeypatch.setattr(relist, "SMALL", layers[0][1].stat().st_size)
    first = b"".join(relist.text(layers, tmp_path / "kept"))
    assert first == relist.merged(layers)
    (path,) = (tmp_path / "kept").iterdir()
    assert path.name in relist.needed([digest for digest, _ in layers])
    good = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(relist, "merged", lambda _layers: pytest.fail("merged again"))
        assert b"".join(relist.text(layers, tmp_path / "kept")) == first
    path.write_bytes(good[:-3])
    assert b"".join(relist.text(layers, tmp_path / "kept")) == first
    assert path.read_bytes() == good
