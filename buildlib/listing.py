"""Listings of trees, in the form that `tree` gives them: read, merged layer over layer, compared, written.

A path is as the tree's files have it, relative to its top, which is `.`; bytes that are no UTF-8 are surrogates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from buildlib.errors import BuildError

KINDS = {
    "f": "file",
    "d": "folder",
    "l": "symbolic link",
    "c": "character device",
    "b": "block device",
    "p": "pipe",
    "s": "socket",
    "w": "whiteout",
}
"""An entry's kind, in words."""

OPAQUE = "opaque"
_ESCAPE = re.compile(r"\\([0-7]{3})")
_LINK = re.compile(r"^(\S+) f \S+ \S+ \S+ \S+ = (\S+)", re.M)
_BLANK = re.compile(r"[ \t\n\\]")


class Entry(NamedTuple):
    """One entry of a tree.

    kind       -- one letter of `KINDS`
    mode       -- permission bits, setuid and such included
    owner      -- `user:group`, by number
    mtime      -- seconds since 1970
    size       -- bytes of a file; 0 of all else
    content    -- a file's SHA-256 in hex, where a link points, a device's `major,minor`; "-" of all else
    attributes -- extended attributes as `name=hex`, sorted; of a layer's folder `opaque` too
    """

    path: str
    kind: str
    mode: int
    owner: str
    mtime: int
    size: int
    content: str
    attributes: tuple[str, ...] = ()


Groups = set[frozenset[str]]
"""Paths that are names of the same file, each group with all its names within a tree."""


class Changes(NamedTuple):
    """Paths by what became of them, each in a tree's order. `touched`: only their times are others."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    touched: list[str]


def load(path: Path) -> dict[str, Entry]:
    """As `read`, of a file."""
    return read(path.read_bytes().decode(errors="surrogateescape"))


def read(text: str) -> dict[str, Entry]:
    """The entries of a listing by path, in its order; a further name of a file says what its first one says.

    Raises BuildError for what is no listing.
    """
    found: dict[str, Entry] = {}
    # Not splitlines: a name may hold any of the signs that it takes for an end of line.
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            entry = _entry(line, found)
        except (IndexError, KeyError, ValueError):
            raise BuildError(f"line {number} of a tree's listing can't be read: {shown(line[:60])}") from None
        found[entry.path] = entry
    return found


def _entry(line: str, found: Mapping[str, Entry]) -> Entry:
    path, kind, mode, owner, mtime, size, content, *attributes = line.split(" ")
    if kind not in KINDS:
        raise ValueError(kind)
    path = plain(path)
    if kind == "f" and content == "=":
        first = found[plain(attributes[0])]
        return Entry(path, *first[1:])
    if kind == "l":
        content = plain(content)
    return Entry(path, kind, int(mode, 8), owner, int(mtime), int(size), content, tuple(attributes))


def merge(layers: Iterable[Path]) -> dict[str, Entry]:
    """The entries of the tree that layers are together, by path and in a tree's order.

    layers -- paths of their listings, lowest first
    """
    merged: dict[str, Entry] = {}
    for layer in layers:
        merged = _over(merged, load(layer))
    return {path: merged[path] for path in sorted(merged, key=order)}


def links(layers: Iterable[Path], merged: Mapping[str, Entry]) -> Groups:
    """Names of the same file in a tree that layers are together.

    layers -- paths of their listings
    merged -- what the tree holds
    """
    found = set()
    for layer in layers:
        text = layer.read_bytes().decode(errors="surrogateescape")
        groups = groups_of(text)
        entries = read(text) if groups else {}
        for group in groups:
            left = frozenset(path for path in group if merged.get(path) == entries[path])
            if len(left) > 1:
                found.add(left)
    return found


def groups_of(text: str) -> Groups:
    """Names of the same file, as a listing says them."""
    found: dict[str, set[str]] = {}
    for line in _LINK.finditer(text):
        first = plain(line[2])
        found.setdefault(first, {first}).add(plain(line[1]))
    return {frozenset(group) for group in found.values()}


def _over(lower: Mapping[str, Entry], upper: Mapping[str, Entry]) -> dict[str, Entry]:
    """In both, and in what this gives, a folder comes before what it holds."""
    merged = {}
    hidden = set()
    for path, entry in lower.items():
        if _folder(path) in hidden:
            hidden.add(path)
            continue
        over = upper.get(path)
        if over is not None and _hides(over):
            hidden.add(path)
        merged[path] = entry
    for path, entry in upper.items():
        if entry.kind == "w":
            merged.pop(path, None)
        elif OPAQUE in entry.attributes:
            kept = tuple(attribute for attribute in entry.attributes if attribute != OPAQUE)
            merged[path] = entry._replace(attributes=kept)
        else:
            merged[path] = entry
    return merged


def stacked(lower: Mapping[str, Entry], upper: Mapping[str, Entry]) -> dict[str, Entry]:
    """Two layers as one, which does to those below what both did: unlike in a tree, whiteouts and the like stay."""
    marks = {}
    for path, entry in upper.items():
        below = lower.get(path)
        if entry.kind == "d" and OPAQUE not in entry.attributes and below is not None and _hides(below):
            marks[path] = entry._replace(attributes=(*entry.attributes, OPAQUE))
        elif entry.kind == "w" or OPAQUE in entry.attributes:
            marks[path] = entry
    return {**_over(lower, upper), **marks}


def _hides(entry: Entry) -> bool:
    """Whether of what lower layers have at its path nothing is left."""
    return entry.kind != "d" or OPAQUE in entry.attributes


def _folder(path: str) -> str:
    """The folder that holds an entry; of the top itself nothing that there is."""
    return path.rpartition("/")[0] or ("." if path != "." else "")


def text(entries: Mapping[str, Entry], groups: Groups | None = None) -> str:
    """A listing of these entries, sorted; of each of `groups` the first name says all of the file."""
    paths = sorted(entries, key=order)
    place = {path: number for number, path in enumerate(paths)} if groups else {}
    firsts = {path: min(group, key=place.__getitem__) for group in groups or () for path in group}
    return "".join(line(entries[path], firsts.get(path)) for path in paths)


def line(entry: Entry, first: str | None = None) -> str:
    """An entry's line; first: the name of its file that says all."""
    path, kind, mode, owner, mtime, size, content, attributes = entry
    fields = [word(path), kind, f"{mode:04o}", owner, str(mtime)]
    fields += [str(size), word(content), *attributes] if first in (None, path) else ["0", "=", word(first or path)]
    return " ".join(fields) + "\n"


def changes(old: Mapping[str, Entry], new: Mapping[str, Entry]) -> Changes:
    """What differs between two trees."""
    found = Changes([], [], [], [])
    for path in sorted(old.keys() | new.keys(), key=order):
        before, after = old.get(path), new.get(path)
        if before == after:
            continue
        if before is None:
            found.added.append(path)
        elif after is None:
            found.removed.append(path)
        elif before._replace(mtime=after.mtime) == after:
            found.touched.append(path)
        else:
            found.changed.append(path)
    return found


def shown(path: str) -> str:
    """A path for people, on one line: what can't be printed is octal."""
    return "".join(
        sign if sign.isprintable() else "".join(f"\\{byte:03o}" for byte in sign.encode(errors="surrogateescape"))
        for sign in path.replace("\\", "\\\\")
    )


def order(path: str) -> list[str]:
    """A folder, what it holds, and then what comes after it by name."""
    return [] if path == "." else path.split("/")


def plain(text: str) -> str:
    """A word of a listing as the path that it stands for."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text) if "\\" in text else text


def word(text: str) -> str:
    """The other way."""
    return _BLANK.sub(lambda found: f"\\{ord(found[0]):03o}", text)
