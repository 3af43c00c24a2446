"""What of the store and of the releases nobody needs any more, and its removal."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from buildlib import relist
from buildlib.errors import BuildError
from buildlib.release import LATEST, MANIFEST
from buildlib.store import RECEIPT, Store


@dataclass(frozen=True)
class Item:
    """A stage's outcome, or a release.

    name -- of the stage or the recipe
    id   -- its key, or the release's ID
    size -- bytes; a release's files are mostly its stages' own
    made -- seconds since 1970
    """

    name: str
    id: str
    size: int
    made: float
    why: str


@dataclass
class Plan:
    """What stays and what goes, oldest first."""

    kept: list[Item] = field(default_factory=list)
    stages: list[Item] = field(default_factory=list)
    releases: list[Item] = field(default_factory=list)


def plan(store: Store, images: Path, needed: Mapping[str, str], *, keep: int, limit: int | None = None) -> Plan:
    """Decide; nothing is touched.

    needed -- keys that must stay, with the reason in words
    keep   -- so many newest releases of each recipe stay, and `latest`, with the layers that they are made of
    limit  -- bytes that stages may take: what isn't needed goes only as long as they take more, oldest first
    """
    found = Plan()
    wanted = dict(needed)
    for home in sorted(images.iterdir()) if images.exists() else ():
        _releases(home, keep, found, wanted)
    spare = []
    total = 0
    for key in store.entries():
        damage = store.damage(key)
        if damage is not None:
            # It counts for nothing, not even if it is wanted: it will be made anew.
            found.stages.append(_damaged(store, key, damage))
            continue
        item = stage(store, key)
        total += item.size
        if item.id in wanted:
            found.kept.append(Item(item.name, item.id, item.size, item.made, wanted[item.id]))
        else:
            spare.append(item)
    for item in sorted(spare, key=lambda item: (item.made, item.id)):
        if limit is None or total > limit:
            found.stages.append(item)
            total -= item.size
        else:
            found.kept.append(Item(item.name, item.id, item.size, item.made, "there is room for it"))
    return found


def _releases(home: Path, keep: int, found: Plan, wanted: dict[str, str]) -> None:
    """Sort a recipe's releases into those that stay, whose layers are `wanted` then, and others."""
    folders = [path for path in home.glob("[0-9]*") if path.is_dir()]
    whole = [path.name for path in folders if (path / MANIFEST).exists()]
    for left in sorted({path.name for path in folders} - {*whole}):
        when = (home / left).stat().st_mtime
        found.releases.append(Item(home.name, left, 0, when, "half of a release, whose removal was ended"))
    names = sorted(whole, reverse=True)
    latest = (home / LATEST).resolve().name
    for number, name in enumerate(names):
        manifest = home / name / MANIFEST
        size = sum(path.stat().st_size for path in (home / name).rglob("*") if path.is_file())
        item = Item(home.name, name, size, manifest.stat().st_mtime, "older than those that are kept")
        if number >= keep and name != latest:
            found.releases.insert(0, item)
            continue
        found.kept.append(Item(*_but_why(item), "latest" if name == latest else f"of the newest {keep}"))
        try:
            said = json.loads(manifest.read_bytes())
            layers = [layer["stage"] for layer in said["content"]["root"]["layers"]]
            keys = [said["build"]["keys"][stage] for stage in layers]
        except (KeyError, TypeError, ValueError):
            raise BuildError(
                f"{manifest}: can't be read, so nobody knows what it needs; nothing was removed",
                hint="remove that release, or bring its manifest back",
            ) from None
        for key in keys:
            wanted.setdefault(key, f"{home.name} {name} is made of it")


def unlocked(downloads: Path, locks: Iterable[str]) -> list[Item]:
    """Downloads, files or folders, that no lock names any more, by their digests. locks: texts."""
    if not downloads.exists():
        return []
    wanted = {digest for text in locks for digest in re.findall(r"\b[0-9a-f]{40,128}\b", text)}
    found = []
    for path in sorted(downloads.iterdir()):
        said = path.stat()
        digest = path.name.split(".")[1] if path.name.startswith(".") else path.name
        if digest not in wanted and not any(one.startswith(digest) for one in wanted):
            size = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else said.st_size
            found.append(Item("download", path.name, size, said.st_mtime, "no recipe's lock names it"))
    return found


def unshared(folder: Path, name: str, images: Path, going: Iterable[Item]) -> list[Item]:
    """Files of the cache that releases have as `name`, and of those that stay none has."""
    gone = {images / item.name / item.id for item in going}
    kept = {path.stat().st_ino for path in images.glob(f"*/[0-9]*/{name}") if path.parent not in gone}
    found = []
    for path in sorted(folder.glob("*")):
        said = path.stat()
        if said.st_ino not in kept:
            found.append(Item(folder.name, path.name, said.st_size, said.st_mtime, "of no release that is kept"))
    return found


def unlaid(folder: Path, images: Path, going: Iterable[Item]) -> list[Item]:
    """Listings of lower layers that no release which stays has; a build that wants one makes it anew."""
    gone = {images / item.name / item.id for item in going}
    wanted: set[str] = set()
    for manifest in images.glob(f"*/[0-9]*/{MANIFEST}"):
        if manifest.parent in gone:
            continue
        with contextlib.suppress(KeyError, TypeError, ValueError):
            layers = json.loads(manifest.read_bytes())["content"]["root"]["layers"]
            wanted |= {*relist.needed([layer["digest"] for layer in layers])}
    found = []
    for path in sorted(folder.glob("*")):
        if path.name not in wanted:
            said = path.stat()
            found.append(Item(folder.name, path.name, said.st_size, said.st_mtime, "of no release that is kept"))
    return found


def unlisted(debs: Path, indexes: Iterable[Path], locks: Iterable[str]) -> list[Item]:
    """Debian packages of the cache that no package list names which is kept, and no lock.

    indexes -- folders that have lists of packages somewhere
    locks   -- texts of locks that name packages themselves
    """
    if not debs.exists():
        return []
    named = "\n".join(locks)
    # Each once, whatever other names it has.
    lists = {path.stat().st_ino: path for folder in indexes for path in folder.rglob("*Packages")}
    wanted = {name for path in lists.values() for name in _listed(path)}
    found = []
    for path in sorted(debs.glob("*.deb")):
        package, version, _ = path.stem.split("_", 2)
        if path.name not in wanted and not (f'"{unquote(version)}"' in named and package in named):
            said = path.stat()
            found.append(Item("package", path.name, said.st_size, said.st_mtime, "no kept list of packages names it"))
    return found


def _listed(packages: Path) -> Iterator[str]:
    """How apt's cache calls the packages of a list."""
    fields: dict[str, str] = {}
    with packages.open(encoding="utf-8", errors="replace") as lines:
        for line in (*lines, "\n"):
            name, _, value = line.rstrip("\n").partition(": ")
            if name in ("Package", "Version", "Architecture"):
                fields[name] = value
            elif not line.strip() and fields:
                # As apt's QuoteString has it: the colon of an epoch, and the underscore.
                version = fields["Version"].replace(":", "%3a").replace("_", "%5f")
                yield f"{fields['Package']}_{version}_{fields['Architecture']}.deb"
                fields = {}


def keys_of(home: Path) -> set[str]:
    """Keys of all stages that a recipe's releases were made of."""
    found: set[str] = set()
    for manifest in home.glob(f"[0-9]*/{MANIFEST}"):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found |= {*json.loads(manifest.read_bytes())["build"]["keys"].values()}
    return found


def unrooted(roots: Path, store: Store, images: Path) -> list[Path]:
    """Folders of `roots`, by key, that hold on to what neither a stage's outcome nor a release is of any more."""
    if not roots.exists():
        return []
    alive = set(store.keys())
    for home in images.glob("*"):
        alive |= keys_of(home)
    return sorted(path for path in roots.iterdir() if path.name not in alive)


def _but_why(item: Item) -> tuple[str, str, int, float]:
    return item.name, item.id, item.size, item.made


def stage(store: Store, key: str) -> Item:
    """A whole entry of the store."""
    receipt = store.get(key)
    made = store.path(key, RECEIPT).stat().st_mtime
    name = str(receipt.document.get("stage", "?"))
    return Item(name, key, receipt.size, made, "of no recipe's build, and of no release that is kept")


def _damaged(store: Store, key: str, damage: str) -> Item:
    return Item("?", key, 0, store.path(key).stat().st_mtime, f"damaged: {damage}")


def of(store: Store, keys: Iterable[str]) -> list[Item]:
    """The entries of those keys that there are, damaged ones too."""
    there = sorted({*store.entries()}.intersection(keys))
    damages = {key: store.damage(key) for key in there}
    return [_damaged(store, key, damage) if damage else stage(store, key) for key, damage in damages.items()]


def carry_out(store: Store, images: Path, decided: Plan) -> list[Item]:
    """Remove what goes, but what somebody works on right now; what was removed. Hold `Store.alone`."""
    gone = []
    for item in decided.releases:
        folder = images / item.name / item.id
        # First, so that half a release never counts.
        with contextlib.suppress(FileNotFoundError):
            (folder / MANIFEST).unlink()
        shutil.rmtree(folder)
        gone.append(item)
    for item in decided.stages:
        with store.lock(item.id, wait=False) as free:
            if free:
                store.remove(item.id)
                gone.append(item)
    store.sweep()
    store.tidy()
    return gone
