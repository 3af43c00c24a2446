"""What people read of two releases: each difference once, nothing where there is none."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from buildlib import compare
from buildlib.compare import Side
from buildlib.errors import BuildError

MANIFEST: dict[str, Any] = {
    "id": "20260101T000000Z-aaaaaaaaaaaa",
    "content": {
        "arch": "amd64",
        "artifacts": {"vmlinuz": {"sha256": "1", "size": 8_000_000}, "initrd": {"sha256": "2", "size": 31_240_000}},
        "clients": "ro",
        "cmdline": "boot=nfs quiet console=tty0",
        "description": "One",
        "distro": "debian",
        "name": "one",
        "persist": [],
        "root": {"kind": "squashfs", "over": "http", "tree": "3", "layers": []},
    },
}
PACKAGES = "bash\t5.2\tamd64\nless\t590\tamd64\nlibc6\t2.36\tamd64\nlibc6\t2.36\ti386\ntzdata\t2026a\tall\n"
SUM, OTHER = "c" * 64, "d" * 64
TREE = f"""\
. d 0755 0:0 7 0 -
etc d 0755 0:0 7 0 -
etc/hosts f 0644 0:0 7 3 {SUM}
etc/shadow f 0640 0:42 7 3 {SUM}
lib l 0777 0:0 7 0 usr/lib
ping f 0755 0:0 7 3 {SUM} security.capability=01
"""
HEAD = "20260101T000000Z-aaaaaaaaaaaa -> 20260102T000000Z-bbbbbbbbbbbb"


def told(
    packages: str | None = PACKAGES, tree: str | None = TREE, live: Side | None = None, **content: Any
) -> list[str]:
    """Lines on a release with these changes, but for the first one."""
    manifest = deepcopy(MANIFEST)
    manifest["id"] = "20260102T000000Z-bbbbbbbbbbbb"
    manifest["content"] |= content
    head, *rest = compare.lines(live or Side(MANIFEST, PACKAGES, TREE), Side(manifest, packages, tree))
    assert head == HEAD
    return rest


def test_what_is_live_is_no_difference() -> None:
    side = Side(MANIFEST, PACKAGES, TREE)
    assert list(compare.lines(side, side)) == ["20260101T000000Z-aaaaaaaaaaaa is live: no difference"]


def test_two_releases_may_say_the_same() -> None:
    assert told() == ["no difference"]


def test_everything_in_its_order() -> None:
    assert told(
        "bash\t5.2\tamd64\nlibc6\t2.37\tamd64\n",
        TREE.replace("0640", "0644"),
        cmdline="boot=nfs console=ttyS0",
        artifacts={"vmlinuz": MANIFEST["content"]["artifacts"]["vmlinuz"]},
        description="Two",
    ) == [
        "description: One -> Two",
        "command line:",
        "- quiet",
        "- console=tty0",
        "+ console=ttyS0",
        "packages: 3 removed, 1 changed",
        "- less 590",
        "  libc6 2.36 -> 2.37",
        "- libc6:i386 2.36",
        "- tzdata 2026a",
        "artifacts:",
        "- initrd 31 MB",
        "files: 1 changed",
        "  etc/shadow: mode 0640 -> 0644",
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"arch": "arm64"}, "arch: amd64 -> arm64"),
        ({"distro": "ubuntu"}, "distro: debian -> ubuntu"),
        ({"clients": "rw"}, "clients: ro -> rw"),
        ({"persist": ["/var/a", "/b"]}, "persist: none -> /var/a /b"),
        ({"root": {"kind": "squashfs", "over": "nfs"}}, "root: squashfs over http -> squashfs over nfs"),
        ({"root": {"kind": "ram", "over": None}}, "root: squashfs over http -> ram"),
    ],
)
def test_the_recipes_own_words(change: dict[str, Any], line: str) -> None:
    assert line in told(**change)


@pytest.mark.parametrize(
    ("cmdline", "lines"),
    [
        ("boot=nfs quiet console=tty0 debug", ["+ debug"]),
        ("quiet console=tty0", ["- boot=nfs"]),
        ("quiet boot=nfs console=tty0", ["+ quiet", "- quiet"]),
        ('boot=nfs quiet console=tty0 a="b c"', ['+ a="b c"']),
        ("boot=nfs  quiet  console=tty0", []),
    ],
)
def test_words_of_the_command_line(cmdline: str, lines: list[str]) -> None:
    found = told(cmdline=cmdline)
    assert sorted(found) == sorted(["command line:", *lines] if lines else ["no difference"])


def test_packages_that_came_are_sorted() -> None:
    assert told(PACKAGES + "zsh\t1\tamd64\nacl\t2:3\tamd64\n") == [
        "packages: 2 added",
        "+ acl 2:3",
        "+ zsh 1",
    ]


def test_a_package_of_another_architecture_is_another() -> None:
    assert told(PACKAGES.replace("2.36\ti386", "2.35\ti386")) == ["packages: 1 changed", "  libc6:i386 2.36 -> 2.35"]


def test_a_package_list_that_is_none_is_an_error() -> None:
    with pytest.raises(BuildError, match="a line of a package list can't be read: <html>"):
        told("<html>\n")


@pytest.mark.parametrize(
    ("artifacts", "line"),
    [
        ({"initrd": {"sha256": "x", "size": 40_000_000}}, "  initrd 31 MB -> 40 MB"),
        ({"initrd": {"sha256": "x", "size": 31_240_001}}, "  initrd 31 MB, +1 B"),
        ({"initrd": {"sha256": "x", "size": 31_240_000}}, "  initrd 31 MB, the same size"),
        ({"live/root.squashfs": {"sha256": "x", "size": 2_000}}, "+ live/root.squashfs 2 kB"),
    ],
)
def test_artifacts(artifacts: dict[str, Any], line: str) -> None:
    assert told(artifacts=MANIFEST["content"]["artifacts"] | artifacts) == ["artifacts:", line]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (f"3 {SUM}\netc/sh", f"4 {OTHER}\netc/sh", "etc/hosts: content"),
        ("0640", "0644", "etc/shadow: mode 0640 -> 0644"),
        ("0:42", "0:0", "etc/shadow: owner 0:42 -> 0:0"),
        ("0640 0:42", "4755 1:1", "etc/shadow: mode 0640 -> 4755, owner 0:42 -> 1:1"),
        ("0 usr/lib", "0 usr\\040x", "lib: link usr/lib -> usr x"),
        ("lib l 0777 0:0 7 0 usr/lib", "lib d 0755 0:0 7 0 -", "lib: symbolic link -> folder"),
        (" security.capability=01", "", "ping: attribute security.capability"),
        ("=01", "=02", "ping: attribute security.capability"),
    ],
)
def test_a_changed_file_says_in_what(old: str, new: str, line: str) -> None:
    assert old in TREE
    assert told(tree=TREE.replace(old, new)) == ["files: 1 changed", f"  {line}"]


def test_a_device_that_became_another() -> None:
    live = Side(MANIFEST, PACKAGES, TREE + "null c 0666 0:0 7 0 1,3\n")
    assert told(tree=TREE + "null c 0666 0:0 7 0 1,5\n", live=live) == ["files: 1 changed", "  null: device"]


def test_a_folder_that_came_is_one_line() -> None:
    more = TREE + f"new d 0755 0:0 7 0 -\nnew/a d 0755 0:0 7 0 -\nnew/a/b f 0644 0:0 7 3 {SUM}\nz d 0755 0:0 7 0 -\n"
    assert told(tree=more) == ["files: 4 added", "+ new/ and 2 in it", "+ z/"]


def test_a_folder_that_went_is_one_line() -> None:
    less = "".join(line for line in TREE.splitlines(keepends=True) if not line.startswith("etc"))
    assert told(tree=less) == ["files: 3 removed", "- etc/ and 2 in it"]


def test_odd_names_are_shown_on_one_line() -> None:
    assert told(tree=TREE + f"new\\012line\x1b\udcff f 0644 0:0 7 3 {SUM}\n")[1] == "+ new\\012line\\033\\377"


def test_only_so_many_files_are_shown_and_the_rest_counted() -> None:
    many = "".join(f"n{number:02} f 0644 0:0 7 3 {SUM}\n" for number in range(30))
    found = told(tree=TREE + many)
    assert found[0] == "files: 30 added"
    assert found[1:3] == ["+ n00", "+ n01"]
    assert found[-2:] == ["+ n19", "  and 10 more"]


def test_an_owner_is_not_lost_among_contents() -> None:
    many = "".join(f"a{number:02} f 0644 0:0 7 3 {SUM}\n" for number in range(30))
    found = told(
        tree=(TREE + many.replace(SUM, OTHER)).replace("0:42", "0:0"), live=Side(MANIFEST, PACKAGES, TREE + many)
    )
    assert found[:3] == ["files: 31 changed", "  etc/shadow: owner 0:42 -> 0:0", "  a00: content"]


def test_times_alone_are_hardly_worth_a_line() -> None:
    assert told(tree=TREE.replace(" 7 ", " 8 ")) == ["files: the times of 6 and nothing else"]
    assert told(tree=TREE.replace(" 7 ", " 8 ").replace("0640", "0644"))[0] == "files: 1 changed"


@pytest.mark.parametrize(("side", "who"), [("live", "what is live"), ("new", "the new release")])
def test_a_release_without_lists_says_so(side: str, who: str) -> None:
    found = told(live=Side(MANIFEST)) if side == "live" else told(packages=None, tree=None)
    assert found == [f"packages: {who} has no list of them", f"files: {who} has no list of them"]
