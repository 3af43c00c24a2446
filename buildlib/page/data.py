"""What the page shows, gathered from releases, the store, proofs and nights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from buildlib import listing
from buildlib.plan import Json
from buildlib.release import LISTING, MANIFEST, Release
from buildlib.store import Store

_LINES = 40
"""Of a console's log."""

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[^\n\t\x20-\x7e\x80-\U0010ffff]")


@dataclass(frozen=True)
class Stage:
    """A stage's time in seconds and bytes of its outcome."""

    name: str
    seconds: float
    size: int


@dataclass(frozen=True)
class Boot:
    """A boot that proved a release; `console` is the end of its log, where it is still there."""

    firmware: str
    seconds: float
    accel: str
    at: str
    console: str


@dataclass(frozen=True)
class Recipe:
    """A recipe with its newest release.

    releases -- ID and bytes, oldest first
    blocks   -- what takes how many bytes of the newest, biggest first
    live     -- release by target, as the last nights published it
    times    -- seconds that a build took, by day, oldest first
    """

    name: str
    description: str
    kind: str
    newest: str | None
    releases: list[tuple[str, int]] = field(default_factory=list)
    boots: list[Boot] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    blocks: list[tuple[str, int]] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    live: Mapping[str, str] = field(default_factory=dict)
    times: list[tuple[str, float]] = field(default_factory=list)


def releases(home: Path) -> Iterator[Release]:
    """All releases of a recipe, oldest first."""
    for folder in sorted(home.glob("[0-9]*")):
        if (folder / MANIFEST).exists():
            yield Release(home.name, folder.name, folder)


def recipe(
    name: str,
    description: str,
    kind: str,
    out: Path,
    store: Store,
    nights: Sequence[Mapping[str, Json]],
    live: Mapping[str, str],
) -> Recipe:
    """What the page says of a recipe. nights -- reports of `nightly`, oldest first"""
    all_ = list(releases(out / "images" / name))
    if not all_:
        return Recipe(name, description, kind, None)
    newest = all_[-1]
    manifest = newest.manifest
    said = (nights[-1] if nights else {}).get("releases", {}).get(name, {})
    return Recipe(
        name,
        description,
        kind,
        newest.id,
        [(release.id, release.size) for release in all_],
        list(_boots(newest, out / "boot" / name)),
        list(_stages(manifest["build"]["keys"], store)),
        blocks(newest, store),
        said.get("changes", []) if said.get("after") == newest.id else [],
        live,
        list(_times(nights, name)),
    )


def _times(nights: Sequence[Mapping[str, Json]], name: str) -> Iterator[tuple[str, float]]:
    """Day, and seconds of the build, of the nights that made a release."""
    for night in nights:
        said = night["releases"].get(name, {})
        if said.get("after") and said["after"] != said.get("before"):
            for step in night["steps"]:
                if (step["verb"], step["name"], step["state"]) == ("build", name, "ok"):
                    yield night["started"][:10], step["seconds"]


def _boots(release: Release, logs: Path) -> Iterator[Boot]:
    for boot in (release.proven() or {"boots": []})["boots"]:
        found = sorted((logs / boot["firmware"]).glob("console*"))
        text = found[0].read_text(errors="replace") if found else ""
        end = "\n".join(_CONTROL.sub("", text).splitlines()[-_LINES:])
        yield Boot(boot["firmware"], boot["seconds"], boot["accel"], boot["at"], end)


def _stages(keys: Mapping[str, str], store: Store) -> Iterator[Stage]:
    for name, key in keys.items():
        try:
            receipt = store.get(key)
        except (KeyError, TypeError, ValueError):
            continue
        yield Stage(name, receipt.seconds, receipt.size)


def blocks(release: Release, store: Store) -> list[tuple[str, int]]:
    """What takes how many bytes: packages of a root with dpkg's lists, its folders else, or the release's files."""
    tree = release.folder / LISTING
    content = release.manifest["content"]
    if not tree.exists():
        found = {name: said["size"] for name, said in content["artifacts"].items()}
        return sorted(found.items(), key=lambda item: -item[1])
    owner = _owners(release, store)
    sizes: dict[str, int] = {}
    for entry in listing.read(tree.read_text(errors="surrogateescape")).values():
        if entry.kind == "f" and entry.size:
            what = owner.get(entry.path) or "/".join(entry.path.split("/")[:2])
            sizes[what] = sizes.get(what, 0) + entry.size
    return sorted(sizes.items(), key=lambda item: -item[1])


def _owners(release: Release, store: Store) -> dict[str, str]:
    """Package by path, of the layers that the store still has."""
    found: dict[str, str] = {}
    keys = release.manifest["build"]["keys"]
    for layer in release.manifest["content"]["root"]["layers"]:
        for path in sorted(store.path(keys[layer["stage"]], "tree/var/lib/dpkg/info").glob("*.list")):
            package = path.name.removesuffix(".list").partition(":")[0]
            for line in path.read_text(errors="surrogateescape").splitlines():
                name = line.lstrip("/")
                found[name] = package
                if name.startswith(("bin/", "lib/", "sbin/", "lib64/")):
                    # Where it lies since these folders are links.
                    found[f"usr/{name}"] = package
    return found


def nights(report: Path) -> list[dict[str, Json]]:
    """All nights that were reported, oldest first."""
    found = []
    for path in sorted((report / "nights").glob("*.json")):
        try:
            found.append(json.loads(path.read_bytes()))
        except ValueError:
            continue
    return found


def published(nights: list[dict[str, Json]]) -> dict[str, dict[str, str]]:
    """Release by recipe and target, as nights have published them last."""
    found: dict[str, dict[str, str]] = {}
    for night in nights:
        for step in night["steps"]:
            if step["verb"] == "push" and step["state"] == "ok":
                target, _, name = step["name"].partition("/")
                after = night["releases"].get(name, {}).get("after")
                if after:
                    found.setdefault(name, {})[target] = after
    return found
