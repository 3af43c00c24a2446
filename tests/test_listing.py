"""Listings of layers as one of their whole root: the same as a listing of the merged tree itself."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from buildlib import listing, merge, tree
from buildlib.errors import BuildError
from buildlib.listing import Changes, Entry
from buildlib.sandbox import Sandbox
from tests.test_merge import STACKS, Stack

EPOCH = 2**31
SUM = "c" * 64


def entry(path: str, kind: str = "f", **changes: object) -> Entry:
    given = {"mode": 0o644, "owner": "0:0", "mtime": 7, "size": 3, "content": SUM, "attributes": ()}
    if kind != "f":
        given |= {"mode": 0o755, "size": 0, "content": "-"}
    return Entry(path, kind, **{**given, **changes})  # type: ignore[arg-type]


def write(folder: Path, *layers: str) -> list[Path]:
    """Listings of layers, lowest first; each has its top folder."""
    paths = []
    for number, text in enumerate(layers):
        lines = [line.strip() for line in text.strip().splitlines()]
        path = folder / f"{number}.list"
        path.write_text("".join(f"{line}\n" for line in (f". d 0755 0:0 {number} 0 -", *lines)))
        paths.append(path)
    return paths


def folders(*paths: str, attributes: str = "") -> str:
    return "\n".join(f"{path} d 0755 0:0 7 0 - {attributes}".rstrip() for path in paths)


def files(*paths: str, content: str = SUM) -> str:
    return "\n".join(f"{path} f 0644 0:0 7 3 {content}" for path in paths)


def whiteouts(*paths: str) -> str:
    return "\n".join(f"{path} w 0000 0:0 7 0 0,0" for path in paths)


# Reading and writing


LINES = {
    f"file f 4750 1:2 7 5 {SUM}": entry("file", mode=0o4750, owner="1:2", size=5),
    "folder d 1777 0:0 7 0 -": entry("folder", "d", mode=0o1777),
    "link l 0777 0:0 7 0 /a\\040b": entry("link", "l", mode=0o777, content="/a b"),
    "dev b 0600 0:0 7 0 7,3": entry("dev", "b", mode=0o600, content="7,3"),
    f"a\\040b\\011\\012\\134 f 0644 0:0 7 3 {SUM}": entry("a b\t\n\\"),
    f"\\134040 f 0644 0:0 7 3 {SUM}": entry("\\040"),
    f"ünï f 0644 0:0 7 3 {SUM}": entry("ünï"),
    f"\udcff f 0644 0:0 7 3 {SUM}": entry("\udcff"),
    f"\r\x0b\x85\u2028\u00a0 f 0644 0:0 7 3 {SUM}": entry("\r\x0b\x85\u2028\u00a0"),
    "= l 0777 0:0 7 0 =": entry("=", "l", mode=0o777, content="="),
    f"ping f 0755 0:0 7 3 {SUM} security.capability=01 user.a=": entry(
        "ping", mode=0o755, attributes=("security.capability=01", "user.a=")
    ),
    "new d 0755 0:0 7 0 - opaque": entry("new", "d", attributes=("opaque",)),
    "gone w 0000 0:0 7 0 0,0": entry("gone", "w", mode=0, content="0,0"),
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_an_entry(line: str) -> None:
    assert listing.read(f"{line}\n") == {LINES[line].path: LINES[line]}


@pytest.mark.parametrize("line", LINES)
def test_an_entry_is_a_line(line: str) -> None:
    assert listing.text({LINES[line].path: LINES[line]}) == f"{line}\n"


@pytest.mark.parametrize("line", LINES)
def test_a_file_is_read_as_it_is(line: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(f"{line}\n".encode(errors="surrogateescape"))
    assert listing.load(tmp_path / "list") == {LINES[line].path: LINES[line]}


def test_every_kind_has_a_word() -> None:
    assert set(listing.KINDS) == set("fdlcbpsw")


def test_a_further_name_is_its_first() -> None:
    text = f"a\\040b f 4755 0:5 7 3 {SUM} user.a=01\nc f 4755 0:5 7 0 = a\\040b user.a=01\n"
    (first, second) = listing.read(text).values()
    assert second == first._replace(path="c")
    assert (second.size, second.content, second.attributes) == (3, SUM, ("user.a=01",))


@pytest.mark.parametrize(
    "line",
    [
        "a f 0644 0:0 7 3",
        "a x 0644 0:0 7 3 -",
        "a f 0948 0:0 7 3 -",
        "a f 0644 0:0 x 3 -",
        "a f 0644 0:0 7 3 =",
        "a f 0644 0:0 7 3 = b",
        "<html>",
    ],
)
def test_what_is_no_listing_is_refused(line: str) -> None:
    with pytest.raises(BuildError, match=re.escape(f"line 2 of a tree's listing can't be read: {line}")):
        listing.read(f". d 0755 0:0 7 0 -\n{line}\n")


def test_entries_come_in_a_trees_order() -> None:
    entries = {path: entry(path) for path in ("b", "a.b", "a/z", "a", "a/b", ".", ".z")}
    assert list(listing.read(listing.text(entries))) == [".", ".z", "a", "a/b", "a/z", "a.b", "b"]


def test_a_path_is_shown_on_one_line() -> None:
    assert listing.shown("a b/ünï\n\x1b[0m\\\udcff\u2028") == r"a b/ünï\012\033[0m\\\377\342\200\250"


# Merging


def merged(folder: Path, *layers: str) -> list[str]:
    return list(listing.merge(write(folder, *layers)))


def test_no_layers_are_nothing() -> None:
    assert listing.merge([]) == {}


def test_an_upper_layer_adds_and_replaces(tmp_path: Path) -> None:
    made = listing.merge(write(tmp_path, files("a", "b"), files("b", content="d" * 64) + "\n" + files("c")))
    assert {path: entry.content[0] for path, entry in made.items()} == {".": "-", "a": "c", "b": "d", "c": "c"}


def test_the_top_is_the_topmost_layers(tmp_path: Path) -> None:
    assert listing.merge(write(tmp_path, "", "", ""))["."].mtime == 2


def test_a_whiteout_takes_all_that_it_covers(tmp_path: Path) -> None:
    lower = folders("a") + "\n" + files("a/x") + "\n" + folders("a/y") + "\n" + files("a/y/z", "a.b", "ab")
    assert merged(tmp_path, lower, whiteouts("a")) == [".", "a.b", "ab"]


def test_a_whiteout_over_nothing_is_nothing(tmp_path: Path) -> None:
    assert merged(tmp_path, whiteouts("a"), whiteouts("b")) == ["."]


def test_what_was_removed_may_come_again(tmp_path: Path) -> None:
    lower = folders("a") + "\n" + files("a/old")
    assert merged(tmp_path, lower, whiteouts("a"), folders("a") + "\n" + files("a/new")) == [".", "a", "a/new"]


def test_an_opaque_folder_hides_what_is_below_it_at_any_depth(tmp_path: Path) -> None:
    lower = folders("a", "a/b", "a/b/c") + "\n" + files("a/b/c/old", "b")
    upper = folders("a", attributes="opaque") + "\n" + folders("a/b") + "\n" + files("a/b/new")
    made = listing.merge(write(tmp_path, lower, upper))
    assert list(made) == [".", "a", "a/b", "a/b/new", "b"]
    assert made["a"].attributes == ()


def test_a_lowest_opaque_folder_is_none_either(tmp_path: Path) -> None:
    assert listing.merge(write(tmp_path, folders("a", attributes="opaque user.x=01")))["a"].attributes == ("user.x=01",)


def test_a_file_in_a_folders_place_takes_what_was_in_it(tmp_path: Path) -> None:
    lower = folders("a", "a/b") + "\n" + files("a/b/c")
    assert merged(tmp_path, lower, files("a")) == [".", "a"]


def test_a_folder_in_a_files_place_holds_its_own(tmp_path: Path) -> None:
    assert merged(tmp_path, files("a"), folders("a") + "\n" + files("a/b")) == [".", "a", "a/b"]


def test_a_further_name_stays_what_it_was_when_the_first_one_goes(tmp_path: Path) -> None:
    lower = files("a") + "\nb f 0644 0:0 7 0 = a"
    made = listing.merge(write(tmp_path, lower, files("a", content="d" * 64)))
    assert made["b"] == entry("b")


def _own(folder: Path) -> str:
    return "".join(line for line, _ in tree.lines(folder, EPOCH))


def _told(folder: Path, layers: list[Path]) -> list[str]:
    """Lines of the merged listings of layers."""
    paths = []
    for number, layer in enumerate(layers):
        path = folder / f"told-{number}.list"
        tree.write_listing({"tree": str(layer), "epoch": EPOCH, "listing": str(path)})
        paths.append(path)
    whole = listing.merge(paths)
    return listing.text(whole, listing.links(paths, whole)).split("\n")


def _again(own: str) -> list[str]:
    """Lines of a listing that was read and is written again."""
    return listing.text(listing.read(own), listing.groups_of(own)).split("\n")


@pytest.mark.parametrize("case", STACKS)
def test_it_is_the_listing_of_the_merged_tree(case: str, tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    STACKS[case](stack)
    own = _own(stack.merged())
    assert _told(tmp_path, stack.layers) == _again(own)


@pytest.mark.integration
@pytest.mark.parametrize("case", STACKS)
def test_it_is_the_listing_of_what_the_kernel_shows(case: str, tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    STACKS[case](stack)
    box = Sandbox(work=tmp_path / "work", layers=tuple(stack.layers), chroot=False)
    box.call(tree.write_listing, {"tree": str(box.mount), "epoch": EPOCH, "listing": str(tmp_path / "kernel.list")})
    kernel = _again((tmp_path / "kernel.list").read_bytes().decode(errors="surrogateescape"))
    # The root's own line differs: the sandbox lays an empty layer over it.
    assert _told(tmp_path, stack.layers)[1:] == kernel[1:]


PATHS = st.lists(st.sampled_from(["a", "b", "a.b", "\udcff"]), min_size=1, max_size=3).map("/".join)
LAYER = st.dictionaries(PATHS, st.sampled_from(["file", "folder", "opaque", "whiteout", "link"]), max_size=8)


def _make(layer: Path, wanted: Mapping[str, str]) -> None:
    """A layer with entries; one that would be below what is no folder is left out."""
    layer.mkdir()
    for number, (path, kind) in enumerate(sorted(wanted.items())):
        place = layer / path
        if not all(parent.is_dir() and not parent.is_symlink() for parent in place.parents if os.path.lexists(parent)):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(place):
            continue
        if kind in ("folder", "opaque"):
            place.mkdir()
            if kind == "opaque":
                os.setxattr(place, "user.overlay.opaque", b"y")
        elif kind == "whiteout":
            os.mknod(place, stat.S_IFCHR, 0)
        elif kind == "link":
            place.symlink_to(f"to {number}")
        else:
            place.write_text(f"{layer.name} {number}")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.lists(LAYER, min_size=1, max_size=4), chance=st.randoms())
@example(layers=[{"a/b/a": "file"}, {"a": "opaque", "a/b": "folder"}, {"a/b": "whiteout"}], chance=Random(1))
def test_any_layers_are_what_the_merged_tree_is(layers: list[dict[str, str]], chance: Random, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    (tmp_path / "any").mkdir()
    paths = [tmp_path / "any" / str(number) for number in range(len(layers))]
    for path, wanted in zip(paths, layers, strict=True):
        _make(path, wanted)
    target = tmp_path / "any/target"
    merge.write({"layers": [str(path) for path in paths], "target": str(target), "link": False})
    assert _told(tmp_path / "any", paths) == _again(_own(target))
    holds = [path for path in listing.read(_own(target)) if chance.random() < 0.5]
    merge.some(paths, holds, tmp_path / "any/some")
    some, whole = listing.read(_own(tmp_path / "any/some")), listing.read(_own(target))
    assert {path: some[path] for path in holds} == {path: whole[path] for path in holds}
    assert not holds or all(whole[path] == entry for path, entry in some.items())


def test_names_of_the_same_file_are_told_apart_from_files_that_are_equal() -> None:
    text = f". d 0755 0:0 7 0 -\na f 0644 0:0 7 3 {SUM} user.x=00\na\\040b f 0644 0:0 7 0 = a user.x=00\n"
    text += f"c f 0644 0:0 7 3 {SUM}\n"
    assert listing.groups_of(text) == {frozenset({"a", "a b"})}
    assert listing.text(listing.read(text), listing.groups_of(text)).splitlines()[2] == "a\\040b f 0644 0:0 7 0 = a"


def test_a_name_that_a_later_layer_replaced_is_none_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "one" / name).hardlink_to(tmp_path / "one/a") if name != "a" else (tmp_path / "one/a").touch()
    (tmp_path / "two").mkdir()
    (tmp_path / "two/b").write_text("other")
    lists = []
    for layer in ("one", "two"):
        lists.append(tmp_path / f"{layer}.list")
        tree.write_listing({"tree": str(tmp_path / layer), "epoch": EPOCH, "listing": str(lists[-1])})
    assert listing.links(lists, listing.merge(lists)) == {frozenset({"a", "c"})}


# Changes


def test_nothing_changes_into_itself() -> None:
    entries = {"a": entry("a"), "b": entry("b", "d")}
    assert listing.changes(entries, dict(entries)) == Changes([], [], [], [])


def test_changes_are_told_apart() -> None:
    old = {path: entry(path) for path in ("kept", "touched", "gone", "gone/too", "mode")}
    new = {
        "kept": old["kept"],
        "touched": entry("touched", mtime=8),
        "mode": entry("mode", mode=0o600, mtime=8),
        "new/z": entry("new/z"),
        "new": entry("new", "d"),
        "new.a": entry("new.a"),
    }
    assert listing.changes(old, new) == Changes(["new", "new/z", "new.a"], ["gone", "gone/too"], ["mode"], ["touched"])


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "p"},
        {"mode": 0o600},
        {"owner": "0:1"},
        {"size": 4},
        {"content": "d" * 64},
        {"attributes": ("security.capability=01",)},
    ],
)
def test_any_other_field_is_a_change(change: dict[str, object]) -> None:
    old = entry("a")
    assert listing.changes({"a": old}, {"a": old._replace(**change)}).changed == ["a"]  # type: ignore[arg-type]
