"""Files that are there whole: old or new, nothing between, and told whether they changed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from buildlib import atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    assert atomic.write(tmp_path / "a/b/file", "new")
    assert (tmp_path / "a/b/file").read_text() == "new"


def test_the_same_text_is_no_change(tmp_path: Path) -> None:
    atomic.write(tmp_path / "file", "same")
    before = (tmp_path / "file").stat()
    assert not atomic.write(tmp_path / "file", "same")
    assert (tmp_path / "file").stat().st_ino == before.st_ino


def test_another_text_is_a_change(tmp_path: Path) -> None:
    atomic.write(tmp_path / "file", "old")
    assert atomic.write(tmp_path / "file", "new")


@pytest.mark.parametrize("mode", [0o644, 0o755, 0o600])
def test_the_mode_is_what_is_asked_whatever_the_umask(mode: int, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        atomic.write(tmp_path / "file", "", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == mode


def test_who_reads_keeps_the_old_file(tmp_path: Path) -> None:
    """A server that sends a file goes on sending that one."""
    atomic.write(tmp_path / "file", "old")
    with (tmp_path / "file").open() as reader:
        atomic.write(tmp_path / "file", "new")
        assert reader.read() == "old"


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    texts = ["a" * 100_000, "b" * 200_000]
    atomic.write(tmp_path / "file", texts[0])
    seen: set[int] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(len((tmp_path / "file").read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        atomic.write(tmp_path / "file", texts[number % 2])
    done.set()
    reader.join()
    assert seen <= {100_000, 200_000}


def test_nothing_else_stays(tmp_path: Path) -> None:
    atomic.write(tmp_path / "file", "one")
    atomic.write(tmp_path / "file", "two")
    atomic.point(tmp_path / "link", "file")
    atomic.point(tmp_path / "link", "elsewhere")
    assert names(tmp_path) == ["file", "link"]


def test_a_link_is_made_with_its_folder(tmp_path: Path) -> None:
    assert atomic.point(tmp_path / "a/link", "../menus/one")
    assert os.readlink(tmp_path / "a/link") == "../menus/one"


def test_the_same_target_is_no_change(tmp_path: Path) -> None:
    atomic.point(tmp_path / "link", "one")
    assert not atomic.point(tmp_path / "link", "one")


def test_a_link_moves_on(tmp_path: Path) -> None:
    atomic.point(tmp_path / "link", "one")
    assert atomic.point(tmp_path / "link", "two")
    assert os.readlink(tmp_path / "link") == "two"


def test_a_link_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "link").write_text("file")
    assert atomic.point(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path) -> None:
    """Process numbers come again."""
    (tmp_path / f".link.{os.getpid()}").symlink_to("old")
    (tmp_path / f".file.{os.getpid()}").write_text("old")
    assert atomic.point(tmp_path / "link", "new")
    assert atomic.write(tmp_path / "file", "new")
    assert names(tmp_path) == ["file", "link"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    atomic.write(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        atomic.write(tmp_path / "file", "\ud800")
    assert ((tmp_path / "file").read_text(), names(tmp_path)) == ("old", ["file"])


def test_a_file_goes_to_the_disk_while_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    seen = []
    real = os.fdatasync

    def fdatasync(handle: int) -> None:
        real(handle)
        seen.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(atomic, "_FLUSH", 0.01)
    with atomic.flushed(path):
        time.sleep(0.1)
        assert not seen
        for size in (1, 2):
            with path.open("a") as file:
                file.write("x")
            while size not in seen:
                time.sleep(0.01)
    count = len(seen)
    time.sleep(0.1)
    assert len(seen) == count
    with pytest.raises(ZeroDivisionError), atomic.flushed(path):
        raise ZeroDivisionError
