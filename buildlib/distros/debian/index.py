"""The stage `index`: the package lists that the lock names, one folder a suite, whatever mirror they came from.

Lists that were fetched once stay in the cache by the digest of their InRelease, in the form of a mirror that apt reads
and verifies as any other: so what a lock names can be built when the mirrors have moved on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from buildlib.distros.debian import archive
from buildlib.distros.debian.archive import Source
from buildlib.errors import BuildError
from buildlib.store import describe
from buildlib.work import Work

FOLDER = "lists"
"""Of the cache."""


@dataclass(frozen=True)
class Lists:
    """Package lists that were fetched once, in a folder of a checkout's cache."""

    folder: Path

    def find(self, wanted: Source, arch: str, digest: str | None) -> Source | None:
        """A suite as it was when its InRelease had that digest, if it is here."""
        home = self.folder / (digest or "none")
        names = ["InRelease", *(f"{component}/binary-{arch}/Packages" for component in wanted.components)]
        if not all((home / "dists" / wanted.suite / name).exists() for name in names):
            return None
        return replace(wanted, uri=f"copy://{quote(str(home.absolute()))}")

    def keep(self, lists: Path) -> None:
        """Take over what `archive.keep` has sorted."""
        for suite in lists.iterdir():
            home = self.folder / describe(suite / "InRelease").digest / "dists" / suite.name
            for path in suite.iterdir():
                # Of apt's names: components and architectures have no underscore.
                _share(path, home / path.name.replace("_", "/"))


def _share(source: Path, target: Path) -> None:
    """Make `target` the same file, or a copy where it can't be."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    try:
        os.link(source, new)
    except OSError:
        shutil.copyfile(source, new)
    new.replace(target)


def run(work: Work) -> None:
    """From the cache what it has, and the rest from the mirrors, if they still have it."""
    facts: Mapping[str, str] = work.stage.facts or {}
    mirrors = archive.of_today(work)
    cached = Lists(work.cache / FOLDER)
    arch = work.options["arch"]
    mixed = [cached.find(source, arch, facts.get(source.suite)) or source for source in mirrors]
    work.progress(None, "package lists")
    try:
        lists = _update(work, mixed, "first")
    except BuildError:
        if mixed == mirrors:
            raise
        # A cache may be damaged.
        mixed = mirrors
        lists = _update(work, mixed, "second")
    found = archive.releases(lists, mixed)
    moved = [suite for suite, digest in facts.items() if found[suite]["inrelease"] != digest]
    if moved:
        raise BuildError(
            f"{', '.join(moved)} moved on since the lock was written, and neither the store nor the cache has what is "
            "locked",
            hint="take what upstream offers now with `./doit lock:NAME`, or name a `snapshot:` in the recipe",
        )
    archive.keep(lists, mixed, work.out / "lists")
    cached.keep(work.out / "lists")


def _update(work: Work, wanted: Sequence[Source], name: str) -> Path:
    lists = work.scratch / name / "lists"
    keyring = Path(work.options["keyring"])
    archive.update(lists, wanted, work.options["arch"], keyring, work.scratch / name / "apt", work.log)
    return lists
