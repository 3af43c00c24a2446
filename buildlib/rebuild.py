"""A release built a second time, in another place, and compared byte by byte: is it the same, and if not, why."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from buildlib import build, command, listing, release, sandbox, tree
from buildlib.build import Mirrors
from buildlib.plan import Json, Keyed, Plan
from buildlib.release import Release
from buildlib.report import size
from buildlib.store import LISTING, TREE, Store

SHOWN = 10
"""Most paths of a tree that are named."""

_CHUNK = 1 << 20
_DIFF_LINES = 40

CAUSES = (
    (r"\.py[co]$", "Python compiled it again: a time or a path of the build is in it"),
    (r"(^|/)ld\.so\.cache$|aux-cache$", "ldconfig writes what it found in the order of the disk"),
    (r"\.gz$", "gzip keeps the time when it packed: `gzip -n` doesn't"),
    (
        r"(^|/)(machine-id|random-seed|ssh_host_\w+)",
        "made at random, for one machine alone: it has no place in an image",
    ),
    (r"(^|/)(log|cache|tmp)/", "a log or a cache: what has run leaves it there"),
    (r"\.(a|o|so)(\.|$)", "a compiler or archiver that keeps times or paths"),
    (r"initrd|\.cpio|\.img$", "an archive: times, or the order of its files"),
)
"""What usually makes a file another one each time, by its path."""


@dataclass(frozen=True)
class Place:
    """Where a build's outcome lies."""

    store: Store
    release: Release


def damage(keyed: Keyed, store: Store, *, epoch: int, log: Path) -> list[str]:
    """What of a stage's outcome is no longer what was built, as paths in words; every byte is read."""
    receipt = store.get(keyed.key)
    found = [f"{keyed.stage.name}: {name}: is not what its receipt says" for name in store.verify(keyed.key)]
    if receipt.layer is None or LISTING in store.verify(keyed.key):
        return found
    with tempfile.TemporaryDirectory(prefix="netboot-") as scratch:
        now = Path(scratch) / "now"
        said = {"tree": str(store.path(keyed.key, TREE).absolute()), "listing": str(now), "epoch": epoch}
        made = sandbox.host(Path(scratch) / "sandbox").call(tree.write_listing, said, log=log)
        if made["digest"] != receipt.layer.digest:
            found += _tree(keyed.stage.name, store.path(keyed.key, LISTING), now)
    return found


def again(
    plan: Plan,
    keys: Mapping[str, Keyed],
    folder: Path,
    about: Mapping[str, Json],
    *,
    cache: Path,
    epoch: int,
    mirrors: Mirrors,
    tell: Callable[[str], None],
) -> Place:
    """Build all stages in `folder`, which is made anew; downloads are shared. Raises BuildError."""
    shutil.rmtree(folder, ignore_errors=True)
    store = Store(folder)
    names = {name: keyed.key for name, keyed in keys.items()}
    for stage in plan.stages:
        tell(stage.name)
        log = folder / "log" / f"{stage.name}.log"
        build.run(
            keys[stage.name],
            names,
            store,
            cache=cache,
            log=log,
            epoch=epoch,
            progress=lambda _fraction, _text: None,
            mirrors=mirrors,
        )
    return Place(store, release.assemble(plan, keys, store, folder / "images", about))


def differences(plan: Plan, keys: Mapping[str, Keyed], first: Place, second: Place) -> Iterator[str]:
    """What differs, and the likely cause; nothing if they are the same."""
    old, new = (place.release.manifest["content"] for place in (first, second))
    for name in old["artifacts"]:
        before, after = (content["artifacts"][name] for content in (old, new))
        if before != after:
            yield from _file(name, first.release.folder / name, second.release.folder / name)
    for stage in plan.root:
        key = keys[stage.name].key
        trees = [place.store.path(key, LISTING) for place in (first, second)]
        if all(path.exists() for path in trees) and trees[0].read_bytes() != trees[1].read_bytes():
            yield from _tree(stage.name, *trees)
    if old["cmdline"] != new["cmdline"]:
        yield f"command line: {old['cmdline']} -> {new['cmdline']}"
    if old["packages"] != new["packages"]:
        yield "the package lists differ"


def _file(name: str, first: Path, second: Path) -> Iterator[str]:
    sizes = [path.stat().st_size for path in (first, second)]
    at = differs_at(first, second)
    told = f"{size(sizes[0])} and {size(sizes[1])}, " if sizes[0] != sizes[1] else ""
    yield f"{name}: {told}the first byte that differs is number {at:,}{_because(name)}"
    if shutil.which("diffoscope") is None:
        yield "  diffoscope, where it is installed, would say more"
        return
    said: list[str] = []
    command.run(["diffoscope", "--text=-", str(first), str(second)], on_line=said.append, accept=(0, 1))
    yield from (f"  | {text}" for text in said[:_DIFF_LINES])


def _tree(stage: str, first: Path, second: Path) -> Iterator[str]:
    changes = listing.changes(listing.load(first), listing.load(second))
    for what, paths in changes._asdict().items():
        for path in paths[:SHOWN]:
            word = "its time alone" if what == "touched" else what
            yield f"{stage}: {path}: {word}{_because(path)}"
        if paths[SHOWN:]:
            yield f"{stage}: and {len(paths) - SHOWN} more {what}"


def differs_at(first: Path, second: Path) -> int:
    """The number of the first byte that differs, from 0; where the shorter one ends if that is all."""
    at = 0
    with first.open("rb") as one, second.open("rb") as other:
        while True:
            parts = one.read(_CHUNK), other.read(_CHUNK)
            if parts[0] != parts[1]:
                return at + next(
                    (n for n, (a, b) in enumerate(zip(*parts, strict=False)) if a != b), min(map(len, parts))
                )
            if not parts[0]:
                return at
            at += len(parts[0])


def _because(path: str) -> str:
    cause = next((text for pattern, text in CAUSES if re.search(pattern, path)), None)
    return f" ({cause})" if cause else ""
