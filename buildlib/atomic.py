"""Files that are there whole, in their old or new form, at every moment."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FLUSH = 0.2
"""Seconds from one look at a file that grows to the next."""


def write(path: Path, text: str, *, mode: int = 0o644) -> bool:
    """As `write_bytes`, of a text."""
    return write_bytes(path, text.encode(), mode=mode)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> bool:
    """Give `path` this content by a rename, and its folder if need be; tell whether it had another before."""
    try:
        if path.read_bytes() == data and not path.is_symlink():
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError:
        # A full disk: half a file takes room that somebody needs.
        temporary.unlink(missing_ok=True)
        raise
    return True


def point(link: Path, target: str) -> bool:
    """Make `link` a symbolic link to `target` by a rename; tell whether it pointed elsewhere before."""
    if link.is_symlink() and os.readlink(link) == target:
        return False
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    return True


@contextmanager
def flushed(path: Path) -> Iterator[None]:
    """A large file is on its way to the disk while a program writes it: the sync at the end has little left."""
    done = threading.Event()

    def follow() -> None:
        while not done.wait(_FLUSH):
            # What fails here fails at the end as well.
            with suppress(OSError), path.open("rb") as file:
                os.fdatasync(file.fileno())

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()


def sync(folder: Path) -> None:
    """Everything of the file system on to the disk: cheaper than a fsync for each of ten thousand files."""
    import ctypes

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle):
            raise OSError(ctypes.get_errno(), "syncfs", str(folder))
    finally:
        os.close(handle)
