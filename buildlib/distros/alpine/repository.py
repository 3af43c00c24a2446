"""The stage `repository`: the packages of a machine's world, as a repository of the release's own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from buildlib import fetch
from buildlib.distros.alpine import packages, resolving
from buildlib.work import Work

FOLDER = "apks"
"""Where it is in a release."""

SERVICES = "services.txt"
"""Output: the services that its packages bring, a line each."""


def run(work: Work) -> None:
    """Outputs `apks/ARCH/*.apk`, their signed index, and `services.txt`."""
    facts = work.stage.facts or {}
    where = where_of(work)
    found = resolving.fetched(where, facts["packages"], teller(work))
    home = work.out / FOLDER / where.arch
    home.mkdir(parents=True)
    filled(home, found.values(), facts["packages"], work.stage.secrets["signing key"])
    names = sorted({name for path in found.values() for name in packages.services(path)})
    (work.out / SERVICES).write_text("".join(f"{name}\n" for name in names))


def where_of(work: Work) -> resolving.Where:
    """Where a stage's packages come from, by its options and its lock."""
    facts = work.stage.facts or {}
    mirrors = tuple(work.options["mirrors"])
    return resolving.Where(mirrors, facts["branch"], (), work.options["arch"], {}, work.cache)


def teller(work: Work) -> fetch.Tells:
    """Tells how far the download is."""

    def tell(done: int, total: int) -> None:
        work.progress(done / total if total else None, f"{done >> 20} of {total >> 20} MB")

    return tell


def filled(home: Path, files: Iterable[Path], known: resolving.Packages, key: str) -> None:
    """Packages under their own names, not copied, and an index that the key has signed."""
    names = {said["checksum"]: resolving.package(name, said).file for name, said in known.items()}
    for path in files:
        os.link(path, home / names[path.name])
    data = packages.index(sorted(home.iterdir()))
    (home / packages.INDEX).write_bytes(packages.signed(data, key))
