"""In the root: files written so that what is just so already stays in the layer below.

Standard library only: it runs inside the sandbox. Paths are the image's own.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from buildlib.errors import BuildError


def write(path: str, text: str, *, mode: int = 0o644) -> None:
    """Write a file unless it is just so already: an unchanged file stays in the layer below."""
    data = text.encode()
    if os.path.lexists(path) and not os.path.islink(path):
        facts = os.stat(path)
        if facts.st_size == len(data) and stat.S_IMODE(facts.st_mode) == mode and Path(path).read_bytes() == data:
            return
    remove(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_bytes(data)
    os.chmod(path, mode)


def link(path: str, points_to: str) -> None:
    """Make a symbolic link unless it is there already."""
    if os.path.islink(path) and os.readlink(path) == points_to:
        return
    remove(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(points_to, path)


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def copy_tree(source: str, target: str = "/") -> None:
    """Copy a tree over the root. Root owns everything, 0755 what is executable and 0644 the rest: of a file's mode git
    keeps no more."""
    for folder, folders, names in os.walk(source):
        inside = os.path.join(target, os.path.relpath(folder, source))
        for name in sorted((*folders, *names)):
            _copy(os.path.join(folder, name), os.path.normpath(os.path.join(inside, name)))


def _copy(source: str, target: str) -> None:
    if os.path.islink(source):
        link(target, os.readlink(source))
    elif os.path.isdir(source):
        # /lib and others are links in the image: a folder of the overlay means what the link points to.
        if not os.path.isdir(target):
            os.mkdir(target, 0o755)
    else:
        if os.path.isdir(target) and not os.path.islink(target):
            raise BuildError(f"{target} is a folder in the root, and a file in what is copied over it")
        remove(target)
        shutil.copyfile(source, target)
        os.chmod(target, 0o755 if os.stat(source).st_mode & 0o100 else 0o644)
