"""Initrds that were made before, and listings of the roots that they were made in.

To make one takes longer than all else that one more package costs.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from buildlib import listing
from buildlib.errors import BuildError
from buildlib.listing import Entry
from buildlib.store import LISTING, describe
from buildlib.work import Work

KEPT = 8
"""The newest are kept."""

INITRD = "initrd"
SAID = "said.json"


class Before(NamedTuple):
    """An initrd in the scratch folder.

    paths   -- that differ between the roots, but for folders
    changed -- those of them which its root had
    """

    initrd: Path
    paths: list[str]
    changed: list[str]


@dataclass(frozen=True)
class Initrds:
    """Initrds that `work` could take one of.

    lists -- listings of the layers below, lowest first
    read  -- those of them that were read already, by their number
    """

    work: Work
    lists: tuple[Path, ...]
    read: dict[int, dict[str, Entry]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, work: Work) -> Initrds:
        return cls(work, tuple(folder / LISTING for folder in work.inputs.values()))

    def nearest(self) -> Before | None:
        """Of those that are there, the one of the root that differs in the fewest paths."""
        found: tuple[Path, list[str]] | None = None
        for number, folder in enumerate(self._folders()):
            own = self.work.scratch / f"kept-{number}"
            try:
                # Another build may remove it at any time.
                shutil.copytree(folder, own, copy_function=os.link)
                said = json.loads((own / SAID).read_bytes())
                if said != self._said(own, len(self.lists)):
                    continue
                paths = self._differing(own)
            except (BuildError, OSError, ValueError):
                continue
            if found is None or len(paths) < len(found[1]):
                found = own, paths
        if found is None:
            return None
        own, paths = found
        there = (
            {path for number in range(len(self.lists)) for path in listing.load(own / str(number))} if paths else set()
        )
        return Before(own / INITRD, paths, [path for path in paths if path in there])

    def keep(self, initrd: Path) -> None:
        """Let others find one that was made of these layers; if it can't be kept, they make their own."""
        new = self.work.scratch / "kept"
        with suppress(OSError):
            new.mkdir()
            os.link(initrd, new / INITRD)
            for number, path in enumerate(self.lists):
                os.link(path, new / str(number))
            (new / SAID).write_text(json.dumps(self._said(new, len(self.lists))))
            self.work.kept.mkdir(exist_ok=True)
            shutil.rmtree(self.work.kept / self.work.key, ignore_errors=True)
            new.rename(self.work.kept / self.work.key)
        for old in self._folders()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """The newest first."""
        try:
            return sorted(self.work.kept.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        except OSError:
            return []

    def _said(self, folder: Path, count: int) -> dict[str, object]:
        """For which stages it is, and what it must consist of: a power cut leaves less."""
        names = [INITRD, *map(str, range(count))]
        return {"alike": self.work.alike, "files": {name: describe(folder / name).digest for name in names}}

    def _differing(self, own: Path) -> list[str]:
        found: set[str] = set()
        for number, path in enumerate(self.lists):
            before = own / str(number)
            if before.read_bytes() == path.read_bytes():
                continue
            old, new = listing.load(before), self._loaded(number)
            for name in old.keys() | new.keys():
                entries = old.get(name), new.get(name)
                if entries[0] != entries[1] and any(entry is not None and entry.kind != "d" for entry in entries):
                    found.add(name)
        return sorted(found)

    def _loaded(self, number: int) -> dict[str, Entry]:
        """One of the lists, read once for all that it is compared with."""
        if number not in self.read:
            self.read[number] = listing.load(self.lists[number])
        return self.read[number]
