"""How files and programs are told apart, and what is remembered of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from buildlib import identity
from buildlib.identity import HostIdentity

HELLO = "f " + hashlib.sha256(b"hello").hexdigest()


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "cache/digests.json"


@pytest.fixture
def host(memory: Path) -> HostIdentity:
    return HostIdentity(memory, {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("hello")
    (tmp_path / "file").chmod(0o644)
    return tmp_path / "file"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all files were written long ago."""
    monkeypatch.setattr(identity, "_SETTLED", -1.0)


# Files and trees


def test_a_file_is_its_content(host: HostIdentity, file: Path) -> None:
    assert host.path(file) == {".": HELLO}


def test_an_executable_file_is_another(host: HostIdentity, file: Path) -> None:
    file.chmod(0o755)
    assert host.path(file) == {".": HELLO.replace("f ", "x ")}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_of_modes_the_x_bit_counts(mode: int, host: HostIdentity, file: Path) -> None:
    file.chmod(mode)
    assert host.path(file) == {".": HELLO}


def test_a_link_to_a_file_is_what_it_points_to(host: HostIdentity, file: Path, tmp_path: Path) -> None:
    """The stage that names it reads the file, not the link."""
    (tmp_path / "link").symlink_to("file")
    assert host.path(tmp_path / "link") == {".": HELLO}


def _folder(tree: Path) -> None:
    (tree / "entry").mkdir()


def _link(tree: Path) -> None:
    (tree / "entry").symlink_to("/nowhere")


def _link_to_a_folder(tree: Path) -> None:
    (tree / "entry").symlink_to(tree)


def _file(tree: Path) -> None:
    (tree / "entry").write_text("hello")


def _pipe(tree: Path) -> None:
    os.mkfifo(tree / "entry", 0o644)


@pytest.mark.parametrize(
    ("make", "found"),
    [(_folder, "folder"), (_link, "-> /nowhere"), (_file, HELLO), (_pipe, "special 10644")],
)
def test_an_entry_of_a_tree(make: Callable[[Path], None], found: str, host: HostIdentity, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    make(tmp_path / "tree")
    assert host.path(tmp_path / "tree") == {"entry": found}


def test_a_link_in_a_tree_is_not_followed(host: HostIdentity, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    _link_to_a_folder(tmp_path / "tree")
    assert host.path(tmp_path / "tree") == {"entry": f"-> {tmp_path}/tree"}


def test_a_trees_entries_are_named_from_it(host: HostIdentity, tmp_path: Path) -> None:
    (tmp_path / "tree/a/b").mkdir(parents=True)
    _file(tmp_path / "tree/a/b")
    assert host.path(tmp_path / "tree") == {"a": "folder", "a/b": "folder", "a/b/entry": HELLO}


def test_an_empty_tree(host: HostIdentity, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    assert host.path(tmp_path / "tree") == {}


def test_a_changed_file_is_seen_by_the_same_identity(host: HostIdentity, file: Path) -> None:
    host.path(file)
    file.write_text("hullo")
    assert host.path(file) != {".": HELLO}


# Memory


def remembered(memory: Path) -> dict[str, list[object]]:
    found: dict[str, list[object]] = json.loads(memory.read_text())
    return found


@pytest.mark.usefixtures("settled")
def test_what_was_learned_is_written(host: HostIdentity, file: Path, memory: Path) -> None:
    host.path(file)
    host.save()
    assert remembered(memory)[str(file)][1] == HELLO.removeprefix("f ")


@pytest.mark.usefixtures("settled")
def test_what_was_learned_is_used(host: HostIdentity, file: Path, memory: Path) -> None:
    host.path(file)
    host.save()
    known = remembered(memory)
    known[str(file)][1] = "as remembered"
    memory.write_text(json.dumps(known))
    assert HostIdentity(memory, {}).path(file) == {".": "f as remembered"}


@pytest.mark.usefixtures("settled")
def test_a_file_that_was_written_since_is_read_again(host: HostIdentity, file: Path, memory: Path) -> None:
    host.path(file)
    host.save()
    file.write_text("hullo")
    assert HostIdentity(memory, {}).path(file) == {".": "f " + hashlib.sha256(b"hullo").hexdigest()}


@pytest.mark.usefixtures("settled")
def test_a_file_whose_times_were_set_back_is_read_again(host: HostIdentity, file: Path, memory: Path) -> None:
    facts = file.stat()
    host.path(file)
    host.save()
    file.write_text("hullo")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert HostIdentity(memory, {}).path(file) != {".": HELLO}


def test_a_file_that_was_just_written_is_not_remembered(host: HostIdentity, file: Path, memory: Path) -> None:
    """Written again within one tick of the clock, it would look the same."""
    host.path(file)
    host.save()
    assert not memory.exists()


def test_nothing_learned_is_not_written(host: HostIdentity, memory: Path) -> None:
    host.save()
    assert not memory.exists()


@pytest.mark.usefixtures("settled")
def test_nothing_else_is_left_beside_the_memory(host: HostIdentity, file: Path, memory: Path) -> None:
    host.path(file)
    host.save()
    assert os.listdir(memory.parent) == [memory.name]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"text"', b"{}"])
def test_a_corrupted_memory_is_ignored(content: bytes, file: Path, memory: Path) -> None:
    memory.parent.mkdir()
    memory.write_bytes(content)
    assert HostIdentity(memory, {}).path(file) == {".": HELLO}


# Programs

STATUS = """\
Package: apt
Status: install ok installed
Version: 2.6.1
Description: package manager
 Package: cpio
 Version: 0

Package: apt-utils
Status: install ok installed
Version: 9.9

Package: cpio
Status: deinstall ok config-files
Version: 2.13

Package: gpgv
Status: install ok installed
Version: 2.2.40-1.1
"""

PACKAGES = {"apt-get": "apt", "cpio": "cpio", "gpgv": "gpgv", "made-up": "utils"}


@pytest.fixture
def tools(tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> HostIdentity:
    """A machine with these packages, and with two programs."""
    (tmp_path / "status").write_text(STATUS)
    monkeypatch.setattr(identity, "DPKG_STATUS", tmp_path / "status")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    for name in ("apt-get", "other"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return HostIdentity(memory, PACKAGES)


SCRIPT = hashlib.sha256(b"#!/bin/sh\n").hexdigest()


@pytest.mark.parametrize(
    ("tool", "found"),
    [
        ("apt-get", "2.6.1"),
        ("gpgv", "2.2.40-1.1"),
        ("cpio", "missing"),
        ("made-up", "missing"),
        ("other", SCRIPT),
        ("no-such", "missing"),
    ],
)
def test_a_program_by_its_package_or_else_its_content(tool: str, found: str, tools: HostIdentity) -> None:
    assert tools.tool(tool) == found


def test_a_program_by_its_content_where_there_is_no_dpkg(tools: HostIdentity, tmp_path: Path) -> None:
    (tmp_path / "status").unlink()
    assert tools.tool("apt-get") == SCRIPT


@pytest.mark.usefixtures("settled")
def test_versions_are_read_again_when_packages_changed(tools: HostIdentity, tmp_path: Path, memory: Path) -> None:
    tools.tool("apt-get")
    tools.save()
    (tmp_path / "status").write_text(STATUS.replace("2.6.1", "2.6.2"))
    assert HostIdentity(memory, PACKAGES).tool("apt-get") == "2.6.2"


@pytest.mark.usefixtures("settled")
def test_other_packages_are_looked_up_anew(tools: HostIdentity, memory: Path) -> None:
    """The memory knows only those that were asked for."""
    tools.tool("apt-get")
    tools.save()
    assert HostIdentity(memory, {**PACKAGES, "more": "apt-utils"}).tool("more") == "9.9"
