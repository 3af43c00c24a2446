"""The listing of a tree: the same line for the same entry, another for any other."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from buildlib import tree
from buildlib.sandbox import Sandbox
from tests import stage_helper as helper

EPOCH = 1000
HELLO = hashlib.sha256(b"hello").hexdigest()


def listing(folder: Path, epoch: int = EPOCH) -> list[str]:
    """The lines of all but the tree's own folder."""
    found = [line for line, _ in tree.lines(folder, epoch)]
    assert found[0].startswith(". d ")
    return [line.removesuffix("\n") for line in found[1:]]


def summary(folder: Path, epoch: int = EPOCH) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as file:
        return tree.write_listing({"tree": str(folder), "listing": file.name, "epoch": epoch})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir(mode=0o755)
    return tmp_path / "root"


def _file(path: Path) -> None:
    path.write_text("hello")
    os.chown(path, 1, 2)
    path.chmod(0o4750)


def _folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o1777)


def _socket(path: Path) -> None:
    # Its address may have 108 bytes at most; pytest's folders are deep.
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{short}/s")
        os.rename(f"{short}/s", path)
    path.chmod(0o755)


ENTRIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "file": (_file, f"entry f 4750 1:2 7 5 {HELLO}"),
    "empty file": (lambda path: path.touch(0o644), f"entry f 0644 0:0 7 0 {hashlib.sha256().hexdigest()}"),
    "folder": (_folder, "entry d 1777 0:0 7 0 -"),
    "link": (lambda path: path.symlink_to("/a b"), "entry l 0777 0:0 7 0 /a\\040b"),
    "pipe": (lambda path: os.mkfifo(path, 0o600), "entry p 0600 0:0 7 0 -"),
    "socket": (_socket, "entry s 0755 0:0 7 0 -"),
    "block device": (lambda path: os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 3)), "entry b 0600 0:0 7 0 7,3"),
    "character device": (
        lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        "entry c 0600 0:0 7 0 1,3",
    ),
    "whiteout": (lambda path: os.mknod(path, stat.S_IFCHR, 0), "entry w 0000 0:0 7 0 0,0"),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_the_line_of_an_entry(kind: str, root: Path) -> None:
    make, line = ENTRIES[kind]
    make(root / "entry")
    os.utime(root / "entry", (7, 7), follow_symlinks=False)
    assert listing(root) == [line]


def test_every_kind_is_listed() -> None:
    assert {line.split()[1] for _, line in ENTRIES.values()} == set("fdlpsbcw")


def test_entries_come_in_order(root: Path) -> None:
    for name in ("b", "a/z", "a/b", "a.b"):
        (root / name).mkdir(parents=True)
    assert [line.split()[0] for line in listing(root)] == ["a", "a/b", "a/z", "a.b", "b"]


@pytest.mark.parametrize(("mtime", "told"), [(999, "999"), (1000, "1000"), (1001, "1000"), (0, "0"), (999.9, "999")])
def test_no_time_is_later_than_the_epoch(mtime: float, told: str, root: Path) -> None:
    (root / "entry").touch()
    os.utime(root / "entry", (mtime, mtime))
    assert listing(root)[0].split()[4] == told


def test_another_name_of_a_file_is_told_by_the_first(root: Path) -> None:
    (root / "a").write_text("hello")
    os.link(root / "a", root / "b")
    assert listing(root)[1].split()[5:] == ["0", "=", "a"]


def test_a_copy_is_no_other_name(root: Path) -> None:
    for name in ("a", "b"):
        (root / name).write_text("hello")
    assert listing(root)[1].split()[5:] == ["5", HELLO]


def test_a_name_outside_of_the_tree_does_not_count(root: Path, tmp_path: Path) -> None:
    (root / "a").write_text("hello")
    os.link(root / "a", tmp_path / "b")
    assert listing(root)[0].split()[5:] == ["5", HELLO]


def test_a_file_counts_once_whatever_names_it_has(root: Path) -> None:
    (root / "a").write_text("hello")
    os.link(root / "a", root / "b")
    assert summary(root)["size"] == 5


CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.mark.parametrize(
    ("name", "value"),
    [("user.note", b"one\n"), ("security.capability", CAPABILITY)],
)
def test_an_extended_attribute_is_listed(name: str, value: bytes, root: Path) -> None:
    (root / "entry").touch()
    os.setxattr(root / "entry", name, value)
    assert listing(root)[0].split()[7:] == [f"{name}={value.hex()}"]


@pytest.mark.parametrize("name", ["user.overlay.origin", "user.overlay.impure", "trusted.overlay.origin", "trusted.x"])
def test_a_mark_of_the_machine_is_not_listed(name: str, root: Path) -> None:
    (root / "entry").touch()
    os.setxattr(root / "entry", name, b"y")
    assert listing(root)[0].split()[7:] == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a b", "a\\040b"),
        ("a\tb", "a\\011b"),
        ("a\nb f", "a\\012b\\040f"),
        ("a\\040b", "a\\134040b"),
        ("ünï", "ünï"),
        ("\udcff", "\udcff"),
    ],
)
def test_a_name_is_one_word(name: str, told: str, root: Path) -> None:
    (root / name).touch()
    assert listing(root)[0].split(" ")[0] == told


def test_a_line_is_written_as_the_names_bytes_are(root: Path, tmp_path: Path) -> None:
    (root / "\udcff").touch()
    tree.write_listing({"tree": str(root), "listing": str(tmp_path / "listing"), "epoch": EPOCH})
    assert (tmp_path / "listing").read_bytes().splitlines()[1].startswith(b"\xff f ")


# Layers as the sandbox makes them


@pytest.fixture
def layer(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None], str], Path]:
    """Runs a function on a path over a small root; gives what changed."""

    def change(function: Callable[[dict[str, Any]], None], path: str) -> Path:
        for name in ("dev", "etc", "proc", "run", "tmp", "var/tmp"):
            (tmp_path / "lower" / name).mkdir(parents=True)
        (tmp_path / "lower/etc/file").write_text("hello")
        upper = tmp_path / "upper"
        upper.mkdir()
        Sandbox(work=tmp_path / "work", layers=(tmp_path / "lower",), upper=upper).call(function, {"path": path})
        return upper

    return change


Layer = Callable[[Callable[[dict[str, Any]], None], str], Path]


def test_a_removed_file_is_a_whiteout(layer: Layer) -> None:
    assert [line.split()[:2] for line in listing(layer(helper.remove, "/etc/file"))] == [
        ["etc", "d"],
        ["etc/file", "w"],
    ]


def test_a_folder_that_was_made_again_is_opaque(layer: Layer) -> None:
    (line,) = listing(layer(helper.replace_folder, "/etc"))
    assert line.split()[7:] == ["opaque"]


# Digests


def test_the_digest_is_that_of_the_listing(root: Path, tmp_path: Path) -> None:
    _file(root / "entry")
    path = tmp_path / "listing"
    made = tree.write_listing({"tree": str(root), "listing": str(path), "epoch": EPOCH})
    assert made == {"digest": hashlib.sha256(path.read_bytes()).hexdigest(), "size": 5, "entries": 2}


def test_the_same_tree_elsewhere_has_the_same_digest(root: Path, tmp_path: Path) -> None:
    for kind, (make, _) in ENTRIES.items():
        make(root / kind)
    os.link(root / "file", root / "link to file")
    subprocess.run(["cp", "--archive", str(root), str(tmp_path / "elsewhere")], check=True)
    assert summary(root) == summary(tmp_path / "elsewhere")


def test_a_later_build_of_the_same_has_the_same_digest(root: Path) -> None:
    _file(root / "entry")
    before = summary(root)
    for path in (root / "entry", root):
        os.utime(path, (2**31, 2**31))
    assert summary(root) == before


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
FILES = st.dictionaries(NAMES, st.tuples(st.binary(max_size=20), st.integers(0, 0o7777)), max_size=4)


def write(folder: Path, files: dict[str, tuple[bytes, int]]) -> str:
    """Makes the tree anew; gives its digest."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)
    for name, (content, mode) in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(mode)
    digest: str = summary(folder)["digest"]
    return digest


QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(files=FILES)
def test_what_is_the_same_has_the_same_digest(files: dict[str, tuple[bytes, int]], tmp_path: Path) -> None:
    assert write(tmp_path / "one", files) == write(tmp_path / "two", dict(reversed(files.items())))


@QUICK
@given(one=FILES, two=FILES)
def test_what_differs_has_another_digest(
    one: dict[str, tuple[bytes, int]], two: dict[str, tuple[bytes, int]], tmp_path: Path
) -> None:
    assume(one != two)
    assert write(tmp_path / "one", one) != write(tmp_path / "two", two)


@QUICK
@given(files=FILES, name=NAMES, data=st.data())
def test_any_change_gives_another_digest(
    files: dict[str, tuple[bytes, int]], name: str, data: st.DataObject, tmp_path: Path
) -> None:
    files = {**files, name: (b"hello", 0o644)}
    change = data.draw(st.sampled_from(["content", "mode", "name", "none"]))
    changed = dict(files)
    del changed[name]
    if change == "content":
        changed[name] = (b"hullo", 0o644)
    elif change == "mode":
        changed[name] = (b"hello", 0o645)
    elif change == "name":
        changed[f"{name}x"] = (b"hello", 0o644)
    assert write(tmp_path / "one", files) != write(tmp_path / "two", changed)
