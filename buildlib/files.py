"""The small files of a target that say what boots: read, and replaced whole, here or on another machine.

`Here` does at once what it is told. `Far` knows what a machine had when it was looked at, and collects what is to be
done into steps, which then run there as one script.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from buildlib import atomic


class Files(Protocol):
    """Absolute paths throughout. Everything appears whole, by a rename."""

    def read(self, path: str) -> bytes | None:
        """A file's content, through links; None without one."""
        ...

    def digest(self, path: str) -> str | None:
        """SHA-256 of a file that is no link, in hex; None without one."""
        ...

    def names(self, folder: str) -> list[str]:
        """What a folder holds, sorted, but for what is hidden."""
        ...

    def link(self, path: str) -> str | None:
        """Where a symbolic link points; None where there is none."""
        ...

    def write(self, path: str, data: bytes, mode: int = 0o644) -> bool:
        """Give a file this content; tell whether it had another."""
        ...

    def point(self, path: str, to: str) -> bool:
        """Make `path` a symbolic link; tell whether it pointed elsewhere."""
        ...

    def add(self, folder: str, files: Mapping[str, bytes]) -> None:
        """A new folder with these files, by name; nothing when it is there."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file or link."""
        ...


class Here:
    """This machine's own, changed at once."""

    def read(self, path: str) -> bytes | None:
        try:
            return Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest(self, path: str) -> str | None:
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                return None
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def link(self, path: str) -> str | None:
        return os.readlink(path) if os.path.islink(path) else None

    def write(self, path: str, data: bytes, mode: int = 0o644) -> bool:
        return atomic.write_bytes(Path(path), data, mode=mode)

    def point(self, path: str, to: str) -> bool:
        return atomic.point(Path(path), to)

    def add(self, folder: str, files: Mapping[str, bytes]) -> None:
        final = Path(folder)
        if final.exists():
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=final.parent, prefix="."))
        try:
            new.chmod(0o755)
            for name, data in files.items():
                atomic.write_bytes(new / name, data)
            new.rename(final)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def remove(self, path: str) -> None:
        Path(path).unlink()


@dataclass(frozen=True)
class Step:
    """Something to do: `write`, `point`, `add`, `remove`, or `discard` of a whole folder, with a reason."""

    verb: str
    path: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    to: str = ""
    mode: int = 0o644

    def __str__(self) -> str:
        if self.verb == "point":
            return f"point {self.path} -> {self.to}"
        return f"{self.verb} {self.path}{'/' if self.verb in ('add', 'discard') else ''}"


class Far:
    """A machine's files as they were when it was looked at, and what is to be done to them since.

    files   -- content by absolute path
    links   -- where symbolic links point, by absolute path
    digests -- SHA-256 of files whose content was not asked for
    """

    def __init__(self, files: Mapping[str, bytes], links: Mapping[str, str], digests: Mapping[str, str]) -> None:
        self._files = dict(files)
        self._links = dict(links)
        self._digests = dict(digests)
        self.steps: list[Step] = []

    def read(self, path: str) -> bytes | None:
        return self._files.get(self._real(path))

    def digest(self, path: str) -> str | None:
        if path in self._files:
            return hashlib.sha256(self._files[path]).hexdigest()
        return self._digests.get(path)

    def names(self, folder: str) -> list[str]:
        start = self._real(folder) + "/"
        known = (*self._files, *self._links, *self._digests)
        below = {path[len(start) :].partition("/")[0] for path in known if path.startswith(start)}
        return sorted(name for name in below if not name.startswith("."))

    def link(self, path: str) -> str | None:
        return self._links.get(path)

    def write(self, path: str, data: bytes, mode: int = 0o644) -> bool:
        if self.digest(path) == hashlib.sha256(data).hexdigest():
            return False
        self._files[path] = data
        self.steps.append(Step("write", path, {"": data}, mode=mode))
        return True

    def point(self, path: str, to: str) -> bool:
        if self._links.get(path) == to:
            return False
        self._links[path] = to
        self.steps.append(Step("point", path, to=to))
        return True

    def add(self, folder: str, files: Mapping[str, bytes]) -> None:
        if self.names(folder):
            return
        self._files |= {f"{folder}/{name}": data for name, data in files.items()}
        self.steps.append(Step("add", folder, files))

    def remove(self, path: str) -> None:
        self._files.pop(path, None)
        self._links.pop(path, None)
        self.steps.append(Step("remove", path))

    def discard(self, folder: str) -> None:
        """Remove a folder with all that it holds: renamed first, so that nobody finds half of it."""
        for known in (self._files, self._links):
            for path in [path for path in known if path.startswith(f"{folder}/")]:
                known.pop(path)
        self.steps.append(Step("discard", folder))

    def know(self, path: str, data: bytes) -> None:
        """This file is there now, by other ways."""
        self._files[path] = data

    def taken(self) -> list[Step]:
        """The steps so far, which are no longer to be done."""
        steps, self.steps = self.steps, []
        return steps

    def _real(self, path: str) -> str:
        """`path` with the links that are known resolved."""
        done = ""
        for part in path.strip("/").split("/"):
            done += f"/{part}"
            if (to := self._links.get(done)) is not None:
                done = posixpath.normpath(posixpath.join(posixpath.dirname(done), to))
        return done
