"""Key -> outcome. The truth about what is built; entries appear whole, by rename, or not at all.

An entry is a folder `KEY/` with what the stage made and `receipt.json`, written last. A running stage works in
`tmp/KEY.*`, held by a lock; a second process that wants the same key waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from buildlib.errors import BuildError
from buildlib.plan import Json

RECEIPT = "receipt.json"
TREE = "tree"
LISTING = "tree.list"


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
    """A folder of entries. Knows where they lie; nobody else does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries = folder / "store"
        self._tmp = folder / "tmp"

    def has(self, key: str) -> bool:
        return (self._entries / key / RECEIPT).exists()

    def get(self, key: str) -> Receipt:
        """The receipt of `key`; KeyError without one."""
        try:
            data = json.loads((self._entries / key / RECEIPT).read_bytes())
        except FileNotFoundError:
            raise KeyError(key) from None
        data["outputs"] = {name: Output(**output) for name, output in data["outputs"].items()}
        data["layer"] = Output(**data["layer"]) if data["layer"] else None
        return Receipt(**data)

    def path(self, key: str, name: str = "") -> Path:
        """Where a file of `key`'s entry lies."""
        return self._entries / key / name

    def keys(self) -> Iterator[str]:
        """All keys."""
        if self._entries.exists():
            yield from (entry.name for entry in os.scandir(self._entries) if self.has(entry.name))

    def remove(self, key: str) -> None:
        """Forget `key`: the receipt first, so that half an entry never counts."""
        with contextlib.suppress(FileNotFoundError):
            (self._entries / key / RECEIPT).unlink()
        _remove(self._entries / key)

    @contextlib.contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Be the only one who works on `key`; gives False when another does and `wait` is off."""
        folder = self._tmp / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / key).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Nothing is removed by `alone` meanwhile. Several may hold it."""
        with self._all(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody holds `used`, and keep others from it."""
        with self._all(fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def _all(self, kind: int) -> Iterator[None]:
        folder = self._tmp / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "all").open("w") as file:
            fcntl.flock(file, kind)
            yield

    def begin(self, key: str) -> Path:
        """An empty folder for the work on `key`, on the store's file system. Hold the lock.

        No other process ever has the same: what is still being removed of a killed one must not take this along.
        """
        self._tmp.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._tmp, prefix=f"{key}."))

    def put(self, receipt: Receipt, made: Path) -> None:
        """Take the folder `made` as the entry of `receipt`. Hold the lock."""
        (made / RECEIPT).write_text(json.dumps(asdict(receipt), indent=1))
        sync(made)
        self.remove(receipt.key)
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
        """Names of the files of `key`'s entry that are not what its receipt says."""
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


def _remove(path: Path) -> None:
    # Imported here: asking what the store has needs no sandbox, and that is all that most runs do.
    from buildlib import sandbox

    sandbox.remove(path)


def sync(folder: Path) -> None:
    """Everything of the file system on to the disk: cheaper than a fsync for each of ten thousand files."""
    import ctypes

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle):
            raise OSError(ctypes.get_errno(), "syncfs", str(folder))
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
