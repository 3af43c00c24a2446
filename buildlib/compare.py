"""What becomes another when one release takes another's place, in lines for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from buildlib import listing
from buildlib.errors import BuildError
from buildlib.listing import KINDS, Entry
from buildlib.plan import Json
from buildlib.report import size

SHOWN = 20
"""Most lines of files that were added, removed or changed: of each."""

_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')


@dataclass(frozen=True)
class Side:
    """A release: its manifest, and the texts of its package list and its tree's listing, which an older one lacks."""

    manifest: Mapping[str, Json]
    packages: str | None = None
    tree: str | None = None


def lines(live: Side, built: Side) -> Iterator[str]:
    """What differs between a release that is live and one that may follow it."""
    old, new = live.manifest, built.manifest
    if old["id"] == new["id"]:
        yield f"{new['id']} is live: no difference"
        return
    yield f"{old['id']} -> {new['id']}"
    told = [
        *_about(old["content"], new["content"]),
        *_command_line(old["content"]["cmdline"], new["content"]["cmdline"]),
        *_packages(live, built),
        *_artifacts(old["content"]["artifacts"], new["content"]["artifacts"]),
        *_files(live.tree, built.tree),
    ]
    yield from told or ["no difference"]


def _about(old: Mapping[str, Json], new: Mapping[str, Json]) -> Iterator[str]:
    """The recipe's own words."""
    for name in ("description", "distro", "arch", "clients", "persist"):
        before, after = (_said(content.get(name)) for content in (old, new))
        if before != after:
            yield f"{name}: {before} -> {after}"
    before, after = (" over ".join(filter(None, map(content["root"].get, ("kind", "over")))) for content in (old, new))
    if before != after:
        yield f"root: {before} -> {after}"


def _said(value: Json) -> str:
    return (" ".join(value) if isinstance(value, list) else str(value or "")) or "none"


def _command_line(old: str, new: str) -> Iterator[str]:
    """Words that went and came, where they did."""
    before: list[str] = _WORD.findall(old)
    after: list[str] = _WORD.findall(new)
    if before == after:
        return
    yield "command line:"
    for verb, first, last, start, end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if verb != "equal":
            yield from (f"- {word}" for word in before[first:last])
            yield from (f"+ {word}" for word in after[start:end])


def _packages(live: Side, built: Side) -> Iterator[str]:
    if live.packages is None or built.packages is None:
        yield f"packages: {_unknown(live.packages)} has no list of them"
        return
    old, new = (_versions(side.packages or "", side.manifest["content"]["arch"]) for side in (live, built))
    told = []
    counts = {"added": 0, "removed": 0, "changed": 0}
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            counts["added"] += 1
            told.append(f"+ {name} {new[name]}")
        elif name not in new:
            counts["removed"] += 1
            told.append(f"- {name} {old[name]}")
        elif old[name] != new[name]:
            counts["changed"] += 1
            told.append(f"  {name} {old[name]} -> {new[name]}")
    if told:
        yield _counted("packages", counts)
        yield from told


def _versions(text: str, arch: str) -> dict[str, str]:
    """Versions by package; one of a foreign architecture says so in its name."""
    found = {}
    for line in text.splitlines():
        try:
            name, version, of, *_source_and_license = line.split("\t")
        except ValueError:
            raise BuildError(f"a line of a package list can't be read: {listing.shown(line)}") from None
        found[name if of in (arch, "all") else f"{name}:{of}"] = version
    return found


def _artifacts(old: Mapping[str, Json], new: Mapping[str, Json]) -> Iterator[str]:
    told = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            told.append(f"+ {name} {size(new[name]['size'])}")
        elif name not in new:
            told.append(f"- {name} {size(old[name]['size'])}")
        elif old[name] != new[name]:
            told.append(f"  {name} {_sizes(old[name]['size'], new[name]['size'])}")
    if told:
        yield "artifacts:"
        yield from told


def _sizes(old: int, new: int) -> str:
    if old == new:
        return f"{size(new)}, the same size"
    if size(old) == size(new):
        return f"{size(new)}, {new - old:+} B"
    return f"{size(old)} -> {size(new)}"


def _files(old: str | None, new: str | None) -> Iterator[str]:
    if old is None or new is None:
        yield f"files: {_unknown(old)} has no list of them"
        return
    before, after = listing.read(old), listing.read(new)
    changes = listing.changes(before, after)
    counts = {name: len(getattr(changes, name)) for name in ("added", "removed", "changed")}
    if not any(counts.values()):
        if changes.touched:
            yield f"files: the times of {len(changes.touched)} and nothing else"
        return
    yield _counted("files", counts)
    yield from _some([f"+ {text}" for text in _topmost(changes.added, after)])
    yield from _some([f"- {text}" for text in _topmost(changes.removed, before)])
    told = [(_changed(before[path], after[path]), path) for path in changes.changed]
    # What seldom changes comes first: another owner must not be lost among new contents.
    told.sort(key=lambda change: change[0] == "content")
    yield from _some([f"  {listing.shown(path)}: {text}" for text, path in told])


def _topmost(paths: Sequence[str], entries: Mapping[str, Entry]) -> list[str]:
    """Of a folder that came or went as a whole, itself and how much is in it."""
    counts: dict[str, int] = {}
    top: dict[str, str] = {}
    for path in paths:
        above = top.get(path.rpartition("/")[0])
        top[path] = above or path
        counts[top[path]] = counts.get(top[path], -1) + 1
    return [
        f"{listing.shown(path)}{'/' if entries[path].kind == 'd' else ''}{f' and {count} in it' if count else ''}"
        for path, count in counts.items()
    ]


def _changed(old: Entry, new: Entry) -> str:
    if old.kind != new.kind:
        return f"{KINDS[old.kind]} -> {KINDS[new.kind]}"
    found = []
    if old.mode != new.mode:
        found.append(f"mode {old.mode:04o} -> {new.mode:04o}")
    if old.owner != new.owner:
        found.append(f"owner {old.owner} -> {new.owner}")
    if old.attributes != new.attributes:
        names = sorted({text.partition("=")[0] for text in set(old.attributes) ^ set(new.attributes)})
        found.append(f"attribute {', '.join(names)}")
    if old.content != new.content:
        link = f"link {listing.shown(old.content)} -> {listing.shown(new.content)}"
        found.append("content" if new.kind == "f" else link if new.kind == "l" else "device")
    return ", ".join(found)


def _counted(what: str, counts: Mapping[str, int]) -> str:
    return f"{what}: {', '.join(f'{count} {name}' for name, count in counts.items() if count)}"


def _some(told: Sequence[str]) -> Iterator[str]:
    yield from told[:SHOWN]
    if len(told) > SHOWN:
        yield f"  and {len(told) - SHOWN} more"


def _unknown(old: str | None) -> str:
    return "what is live" if old is None else "the new release"
