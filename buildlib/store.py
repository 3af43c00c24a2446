"""Key -> outcome. The truth about what is built; entries appear whole, by rename, or not at all.

An entry is a folder `KEY/` with what the stage made and `receipt.json`, written last. One whose receipt can't be read,
or that lacks a file, does not count. A running stage works in `tmp/KEY.*`, held by a lock; a second process that wants
the same key waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from buildlib import atomic
from buildlib.errors import BuildError
from buildlib.plan import Json

RECEIPT = "receipt.json"
TREE = "tree"
LISTING = "tree.list"

FORMAT = 1
"""Of receipts. One of another format is not read: its stage runs again."""

ALL = "all"
"""The lock that builds share, and that `gc` wants for itself."""

REMOTE = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "lustre", "fuse.sshfs", "fuse.glusterfs", "gpfs", "virtiofs")
"""How the types of file systems begin that other machines may write to at the same time."""

_TRIES = 20
"""To read who holds a lock; those who share one don't say."""

Waiting = Callable[[str], None]
"""Told for whom one has to wait, in words, if one has to."""


@dataclass(frozen=True)
class Output:
    """A file, or a tree by its listing: SHA-256 in hex, and size in bytes."""

    digest: str
    size: int


@dataclass(frozen=True)
class Receipt:
    """What a stage made. `layer` is the digest and size of the tree that it changed, if it has one.

    seconds -- how long it took
    facts   -- what the stage has to say to a manifest
    """

    key: str
    document: Mapping[str, Json]
    outputs: Mapping[str, Output]
    layer: Output | None
    seconds: float
    facts: Mapping[str, Json] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of everything that the stage made."""
        return sum(output.size for output in self.outputs.values()) + (self.layer.size if self.layer else 0)


class Store:
    """A folder of entries. Knows where they lie; nobody else does.

    kept -- folder for what stages keep for other ones, by their keys
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries = folder / "store"
        self._tmp = folder / "tmp"
        self.kept = folder / "kept"

    def has(self, key: str) -> bool:
        """Whether there is a whole entry of `key`, as far as stat(2) tells."""
        return (self._entries / key / RECEIPT).exists() and self.damage(key) is None

    def get(self, key: str) -> Receipt:
        """The receipt of `key`; KeyError without one that can be read."""
        try:
            data = json.loads((self._entries / key / RECEIPT).read_bytes())
            if data.pop("format", FORMAT) != FORMAT:
                raise KeyError(key)
            data["outputs"] = {name: Output(**output) for name, output in data["outputs"].items()}
            data["layer"] = Output(**data["layer"]) if data["layer"] else None
            receipt = Receipt(**data)
        except (OSError, AttributeError, KeyError, TypeError, ValueError):
            raise KeyError(key) from None
        if receipt.key != key:
            raise KeyError(key)
        return receipt

    def damage(self, key: str) -> str | None:
        """What is wrong with an entry, in words; None if its receipt can be read and its files have their sizes.

        The content of files is `verify`'s: to read a root at each build would take longer than the build.
        """
        try:
            receipt = self.get(key)
        except KeyError:
            there = (self._entries / key / RECEIPT).exists()
            return "its receipt can't be read, or is of another version" if there else "it has no receipt"
        for name, output in receipt.outputs.items():
            try:
                size = os.stat(self._entries / key / name).st_size
            except OSError:
                return f"{name} is gone"
            if size != output.size:
                return f"{name} has {size:,} bytes, and had {output.size:,}"
        if LISTING in receipt.outputs and not (self._entries / key / TREE).is_dir():
            return f"{TREE} is gone"
        return None

    def path(self, key: str, name: str = "") -> Path:
        """Where a file of `key`'s entry lies."""
        return self._entries / key / name

    def entries(self) -> list[str]:
        """The keys of all entries, also of damaged ones."""
        return sorted(os.listdir(self._entries)) if self._entries.exists() else []

    def keys(self) -> Iterator[str]:
        """The keys of whole entries."""
        yield from (key for key in self.entries() if self.has(key))

    def remove(self, key: str) -> None:
        """Forget `key`, and what was kept of it for others."""
        self._drop(key)
        _remove(self.kept / key)

    def _drop(self, key: str) -> None:
        """The receipt first, so that half an entry never counts."""
        with contextlib.suppress(FileNotFoundError):
            (self._entries / key / RECEIPT).unlink()
        _remove(self._entries / key)

    @contextlib.contextmanager
    def lock(self, key: str, *, wait: bool = True, what: str = "", waiting: Waiting | None = None) -> Iterator[bool]:
        """Be the only one who works on `key`; gives False when another does and `wait` is off.

        what -- what is done meanwhile, for those who wait
        """
        with self._locked(key, fcntl.LOCK_EX, wait=wait, what=what, waiting=waiting) as file:
            yield file is not None

    @contextlib.contextmanager
    def used(self, waiting: Waiting | None = None) -> Iterator[None]:
        """Nothing is removed by `alone` meanwhile. Several may hold it."""
        with self._locked(ALL, fcntl.LOCK_SH, waiting=waiting):
            yield

    @contextlib.contextmanager
    def alone(self, what: str = "", waiting: Waiting | None = None) -> Iterator[None]:
        """Wait until nobody holds `used`, and keep others from it."""
        with self._locked(ALL, fcntl.LOCK_EX, what=what, waiting=waiting):
            yield

    @contextlib.contextmanager
    def _locked(
        self, name: str, kind: int, *, wait: bool = True, what: str = "", waiting: Waiting | None = None
    ) -> Iterator[BinaryIO | None]:
        """Hold a lock file, which says who has it alone; None when another does and `wait` is off."""
        path = self._tmp / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_remote()
        while True:
            with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0) as file:
                try:
                    fcntl.flock(file, kind | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not wait:
                        yield None
                        return
                    if waiting is not None:
                        waiting(_holder(file))
                    fcntl.flock(file, kind)
                if not _is_at(file, path):
                    # `tidy` has removed it meanwhile: somebody else may hold one of the same name.
                    continue
                if kind == fcntl.LOCK_EX:
                    _note(file, f"process {os.getpid()}{f', {what}' if what else ''}\n")
                try:
                    yield file
                finally:
                    if kind == fcntl.LOCK_EX:
                        _note(file, "")
                return

    def _refuse_remote(self) -> None:
        """Raise BuildError where other machines may be at work whose locks nobody here sees."""
        kind = file_system(self._tmp)
        if kind is not None and kind.startswith(REMOTE):
            raise BuildError(
                f"{self.folder} is on {kind}, and two machines must not build into one store; nor can overlayfs "
                "write its layers there",
                hint=f"keep it on a disk of this machine: ln -s /var/tmp/netboot-out {self.folder.name}",
            )

    def tidy(self) -> None:
        """Remove lock files that nobody holds: there is one for each key that was ever built."""
        for path in sorted((self._tmp / "locks").glob("*")):
            with self._locked(path.name, fcntl.LOCK_EX, wait=False) as file:
                if file is not None and path.name != ALL:
                    path.unlink()

    def begin(self, key: str) -> Path:
        """An empty folder for the work on `key`, on the store's file system. Hold the lock.

        No other process ever has the same: what is still being removed of a killed one must not take this along.
        """
        self._tmp.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._tmp, prefix=f"{key}."))

    def put(self, receipt: Receipt, made: Path) -> None:
        """Take the folder `made` as the entry of `receipt`. Hold the lock."""
        (made / RECEIPT).write_text(json.dumps({"format": FORMAT, **asdict(receipt)}, indent=1))
        atomic.sync(made)
        self._drop(receipt.key)
        self._entries.mkdir(exist_ok=True)
        made.rename(self._entries / receipt.key)
        _sync_folder(self._entries)

    def abandon(self, work: Path) -> None:
        """Remove a folder that `begin` gave."""
        _remove(work)

    def sweep(self) -> None:
        """Remove what killed processes left of their work."""
        if not self._tmp.exists():
            return
        for entry in list(os.scandir(self._tmp)):
            if entry.name != "locks":
                with self.lock(entry.name.rpartition(".")[0], wait=False) as free:
                    if free:
                        self.abandon(Path(entry.path))

    def verify(self, key: str) -> list[str]:
        """Names of the files of `key`'s entry that are not what its receipt says; its tree is `rebuild`'s to read."""
        receipt = self.get(key)
        paths = {name: self.path(key, name) for name in receipt.outputs}
        return [
            name
            for name, output in receipt.outputs.items()
            if not paths[name].is_file() or describe(paths[name]).digest != output.digest
        ]


def describe(path: Path) -> Output:
    """Digest and size of a file."""
    if not path.is_file():
        raise BuildError(f"{path}: no such file")
    with path.open("rb") as file:
        return Output(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def file_system(path: Path) -> str | None:
    """The type of the file system that a path is on, such as `ext4` or `nfs4`; None where nobody knows."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    # proc(5): id, parent, major:minor, root, mount point, options, optional fields, `-`, type, ...
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0]
    return None


def _holder(file: BinaryIO) -> str:
    """What a lock file says of who holds it: who has just taken it may not have written that yet."""
    for _ in range(_TRIES):
        file.seek(0)
        if said := file.read().decode(errors="replace").strip():
            return said
        time.sleep(0.02)
    return "another process"


def _note(file: BinaryIO, text: str) -> None:
    """Let a lock file say so; on a full disk, where `gc` must still get its lock, it says nothing."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        os.pwrite(file.fileno(), text.encode(), 0)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    # Imported here: asking what the store has needs no sandbox, and that is all that most runs do.
    from buildlib import sandbox

    sandbox.remove(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
