"""The doit shell over cleaning up: `gc`, `clean:NAME`."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from buildlib import report
from buildlib.errors import BuildError
from buildlib.tasks import Task, house, load_errors, user_errors

if TYPE_CHECKING:
    from buildlib import gc

KEEP = {"name": "keep", "long": "keep", "type": int, "default": 3, "help": "so many newest releases of a recipe stay"}
DOWNLOADS = "downloads"
"""Folder of the cache: what was fetched of official images, by digest."""

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
    """`clean:NAME`; `clean` alone is a command of doit's own"""
    for name in house().recipes:
        yield {
            "basename": f"clean:{name}",
            "doc": "remove all that was built of a recipe; its lock, and what is published, stay",
            "actions": [(clean, [name])],
            "params": [DRY],
            "io": {"capture": False},
        }


@user_errors
def clean(name: str, dry: bool) -> None:
    """A recipe's releases, proofs, logs and stages: but for stages that others need. Once nobody builds."""
    from buildlib import gc

    place = house()
    folders = [place.images / name, place.out / "boot" / name, place.out / "log" / name]
    files = [place.out / "state" / f"{name}.json", *(place.out / "tar").glob(f"{name}-[0-9]*.tar")]
    with place.store.alone():
        own = gc.keys_of(place.images / name) | {*_needed([name])}
        others = [other for other in place.recipes if other != name]
        kept = {*_needed(others)}.union(*(gc.keys_of(place.images / other) for other in others))
        keys = sorted(key for key in own - kept if place.store.has(key))
        for key in keys:
            receipt = place.store.get(key)
            state = "would go" if dry else "removed"
            print(report.line(str(receipt.document["stage"]), key[:12], state, f"{report.size(receipt.size):>8}"))
            if not dry:
                place.store.remove(key)
        there = [path for path in (*folders, *files) if path.exists()]
        for path in there:
            print(report.line(name, "files", "would go" if dry else "removed", report.shown(path)))
            if not dry and path.is_dir():
                _remove(path)
            elif not dry:
                path.unlink()
    if not keys and not there:
        print(f"{name}: nothing of it was built")
    if dry:
        print("nothing was removed (--dry-run)")


def _remove(path: Path) -> None:
    """Remove a folder, also what only a sandbox' root may."""
    from buildlib import sandbox

    sandbox.remove(path)


@user_errors
def collect(keep: int, limit: str, dry: bool) -> None:
    """Say what goes and how much, and remove it: once nobody builds."""
    from buildlib import gc

    size = _bytes(limit) if limit else None
    if keep < 1:
        raise BuildError("--keep: at least the newest release of a recipe stays", hint="--keep=1")
    place = house()
    with place.store.alone():
        decided = gc.plan(place.store, place.images, _needed(place.recipes), keep=keep, limit=size)
        gone = [*decided.releases, *decided.stages] if dry else gc.carry_out(place.store, place.images, decided)
        state = "would go" if dry else "removed"
        for item in gone:
            when = time.strftime("%Y-%m-%d", time.gmtime(item.made))
            of = item.id if item in decided.releases else item.id[:12]
            print(report.line(item.name, of, state, f"{report.size(item.size):>8}", f"made {when}: {item.why}"))
        for item in gc.unlocked(place.cache / DOWNLOADS, _locks()):
            print(report.line(item.name, item.id[:12], state, f"{report.size(item.size):>8}", item.why))
            if not dry:
                (place.cache / DOWNLOADS / item.id).unlink()
        for folder in [] if dry else gc.unrooted(place.cache / ROOTS, place.store, place.images):
            shutil.rmtree(folder)
    stages = [item for item in gone if item in decided.stages]
    kept = sum(item.size for item in decided.kept if len(item.id) == len("0" * 64))
    print(
        f"{len(gone) - len(stages)} releases and {len(stages)} stages {state}, {report.size(_sum(stages))}; "
        f"{report.size(kept)} of stages stay"
    )
    if dry:
        print("nothing was removed (--dry-run)")


def _locks() -> Iterator[str]:
    """The texts of all recipes' locks."""
    for recipe in house().recipes.values():
        if recipe.lock.exists():
            yield recipe.lock.read_text()


def _sum(items: list[gc.Item]) -> int:
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
