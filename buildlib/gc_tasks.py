"""The doit shell over cleaning up: `gc`, `clean:NAME`."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from buildlib import report
from buildlib.errors import BuildError
from buildlib.tasks import Task, house, load_errors, user_errors, waits

if TYPE_CHECKING:
    from buildlib import gc
    from buildlib.house import House

KEEP = {"name": "keep", "long": "keep", "type": int, "default": 3, "help": "so many newest releases of a recipe stay"}
DOWNLOADS = "downloads"
"""Folder of the cache: what was fetched of official images, by digest."""

DEBS = "debs"
"""Folder of the cache: Debian's packages, by the names that apt gives them."""

LISTS = "lists"
"""What a stage `index` of Debian makes: the package lists that a lock stands for. And the folder of the cache that has
them, by the digests that locks name."""

SBOMS = "sbom"
"""Folder of the cache: bills of materials, which releases share."""

LISTINGS = "listings"
"""Folder of the cache: what lower layers are together, by their digests."""

ROOTS = "nix-roots"
"""Folder of the cache: what nix is to keep, by the key of the stage that has built it."""

LIMIT = {
    "name": "limit",
    "long": "max-size",
    "default": "",
    "help": "such as 20G: what isn't needed goes only as long as stages take more",
}
DRY = {"name": "dry", "long": "dry-run", "type": bool, "default": False, "help": "say what would go; touch nothing"}

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def task_gc() -> Task:
    """remove what no recipe's build and no newer release needs any more"""
    return {"actions": [collect], "params": [KEEP, LIMIT, DRY], "io": {"capture": False}}


@load_errors
def task__clean() -> Iterator[Task]:
    """`clean:NAME`; `clean NAME`, as doit has a command of that name, is `commands.Clean`"""
    for name in house().recipes:
        yield {
            "basename": f"clean:{name}",
            "doc": "remove all that was built of a recipe; its lock, and what is published, stay",
            "actions": [(clean, [name])],
            "params": [DRY],
            "io": {"capture": False},
        }


def _alone(what: str) -> contextlib.AbstractContextManager[None]:
    """The store for oneself; says so when a build has to end first."""
    return house().store.alone(what, lambda _whom: waits(what, "store", "builds that run to end"))


@user_errors
def clean(name: str, dry: bool) -> None:
    """A recipe's releases, proofs, logs and stages: but for stages that others need. Once nobody builds."""
    from buildlib import gc

    place = house()
    folders = [place.out / kind / name for kind in ("images", "boot", "log", "verify")]
    files = [place.out / "state" / f"{name}.json", *(place.out / "tar").glob(f"{name}-[0-9]*.tar")]
    with _alone(f"clean:{name}"):
        own = gc.keys_of(place.images / name) | {*_needed([name])}
        others = [other for other in place.recipes if other != name]
        kept = {*_needed(others)}.union(*(gc.keys_of(place.images / other) for other in others))
        state = "would go" if dry else "removed"
        stages = gc.of(place.store, own - kept)
        for item in stages:
            print(report.line(item.name, item.id[:12], state, f"{report.size(item.size):>8}"))
            if not dry:
                place.store.remove(item.id)
        there = [path for path in (*folders, *files) if path.exists()]
        for path in there:
            print(report.line(name, "files", state, report.shown(path)))
            if not dry:
                _remove(path)
    if not stages and not there:
        print(f"{name}: nothing of it was built")
    if dry:
        print("nothing was removed (--dry-run)")


def _remove(path: Path) -> None:
    """Remove a file or a folder, also what only a sandbox' root may."""
    from buildlib import sandbox

    if path.is_dir():
        sandbox.remove(path)
    else:
        path.unlink()


@user_errors
def collect(keep: int, limit: str, dry: bool) -> None:
    """Say what goes and how much, and remove it: once nobody builds."""
    from buildlib import gc

    size = _bytes(limit) if limit else None
    if keep < 1:
        raise BuildError("--keep: at least the newest release of a recipe stays", hint="--keep=1")
    place = house()
    with _alone("gc"):
        decided = gc.plan(place.store, place.images, _needed(place.recipes), keep=keep, limit=size)
        gone = [*decided.releases, *decided.stages] if dry else gc.carry_out(place.store, place.images, decided)
        state = "would go" if dry else "removed"
        for item in gone:
            when = time.strftime("%Y-%m-%d", time.gmtime(item.made))
            of = item.id if item in decided.releases else item.id[:12]
            print(report.line(item.name, of, state, f"{report.size(item.size):>8}", f"made {when}: {item.why}"))
        cached = _cached(place, decided)
        for path, item in cached.items():
            name = item.id[:12] if path.parent.name != DEBS else item.id
            print(report.line(item.name, name, state, f"{report.size(item.size):>8}", item.why))
            if not dry:
                _remove(path)
        for folder in [] if dry else gc.unrooted(place.cache / ROOTS, place.store, place.images):
            shutil.rmtree(folder)
    if cached:
        print(f"{len(cached)} files of the cache {state}, {report.size(_sum(cached.values()))}")
    stages = [item for item in gone if item in decided.stages]
    kept = sum(item.size for item in decided.kept if len(item.id) == len("0" * 64))
    print(
        f"{len(gone) - len(stages)} releases and {len(stages)} stages {state}, {report.size(_sum(stages))}; "
        f"{report.size(kept)} of stages stay"
    )
    if dry:
        print("nothing was removed (--dry-run)")


def _cached(place: House, decided: gc.Plan) -> dict[Path, gc.Item]:
    """Files of the cache that nobody needs, when the rest is gone."""
    from buildlib import gc, sbom

    going = {item.id for item in decided.stages}
    lists = [place.store.path(key, LISTS) for key in place.store.entries() if key not in going]
    old = gc.unlocked(place.cache / LISTS, _locks())
    lists += {*(place.cache / LISTS).glob("*")} - {place.cache / LISTS / item.id for item in old}
    found = {
        LISTS: old,
        DOWNLOADS: gc.unlocked(place.cache / DOWNLOADS, _locks()),
        DEBS: gc.unlisted(place.cache / DEBS, lists, _locks()),
        SBOMS: gc.unshared(place.cache / SBOMS, sbom.FILE, place.images, decided.releases),
        LISTINGS: gc.unlaid(place.cache / LISTINGS, place.images, decided.releases),
    }
    return {place.cache / folder / item.id: item for folder, items in found.items() for item in items}


def _locks() -> Iterator[str]:
    """The texts of all recipes' locks, and of the boot loaders'."""
    for path in (*(recipe.lock for recipe in house().recipes.values()), house().loaders_lock):
        if path.exists():
            yield path.read_text()


def _sum(items: Iterable[gc.Item]) -> int:
    return sum(item.size for item in items)


def _needed(recipes: Iterable[str]) -> dict[str, str]:
    """Keys of what recipes would build now, and of what they have built last."""
    found: dict[str, str] = {}
    for name in recipes:
        for stage, key in house().remembered(name).get("stages", {}).items():
            found[key] = f"{name} has built it last, as {stage}"
        for stage, keyed in house().keys(name).items():
            found[keyed.key] = f"{name} builds it, as {stage}"
    loaders = house().loaders_key()
    if loaders is not None:
        found[loaders.key] = "the boot loaders"
    return found


def _bytes(text: str) -> int:
    said = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", text)
    if said is None:
        raise BuildError(f"--max-size: {text!r} is no size", hint="such as 500M or 20G")
    return int(float(said[1]) * _UNITS[said[2]])
