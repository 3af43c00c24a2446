"""The listing of a tree whose upper layers are small: of the lower ones', which is kept, a few lines change.

To merge listings is to read every entry; here the lines that an upper layer has a part in are found by bisection, and
all between is copied. What this can't tell that way is merged after all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from buildlib import atomic, listing
from buildlib.listing import Entry

SMALL = 200_000
"""Bytes of the listing of a layer that is laid over those below it entry by entry."""

_DIGEST = hashlib.sha256().digest_size
_FORM = 1
"""Another number makes all that is kept anew."""

Layers = Sequence[tuple[str, Path]]
"""Digests and listings of layers, lowest first."""

Pieces = Sequence[bytes | memoryview]
"""A listing, which one after another they are: most of it is copied only when it is written."""


class Part(NamedTuple):
    """What of `data` comes from `begin` on: a listing."""

    data: bytes
    begin: int = 0


def text(layers: Layers, kept: Path) -> Pieces:
    """The listing of the tree that layers are together; kept: a folder for those of lower layers."""
    base = len(layers)
    while base and layers[base - 1][1].stat().st_size < SMALL:
        base -= 1
    return laid(layers, base, kept) if base else [merged(layers)]


def laid(layers: Layers, base: int, kept: Path) -> Pieces:
    """The same; base: how many lower ones are kept together."""
    linked, whole = _lower(layers[:base], kept)
    upper: dict[str, Entry] = {}
    for _, path in layers[base:]:
        said = _read(path)
        if listing.groups_of(said):
            return [merged(layers)]
        upper = listing.stacked(upper, listing.read(said))
    return over(whole, linked, upper) or [merged(layers)]


def merged(layers: Layers) -> bytes:
    """The same by reading all."""
    paths = [path for _, path in layers]
    found = listing.merge(paths)
    return listing.text(found, listing.links(paths, found)).encode(errors="surrogateescape")


def key(digests: Sequence[str]) -> str:
    """How the listing of lower layers is called, by their digests."""
    return hashlib.sha256("\n".join([str(_FORM), *digests]).encode()).hexdigest()


def _lower(layers: Layers, kept: Path) -> tuple[frozenset[bytes], Part]:
    """Words of the paths that have, or could have again, further names for the same file; and the listing."""
    path = kept / key([digest for digest, _ in layers])
    data = _whole(path)
    if data is None:
        names = {name for _, layer in layers for group in listing.groups_of(_read(layer)) for name in group}
        words = sorted(_word(name) for name in names)
        made = b"\n".join(words) + b"\n\n" + merged(layers)
        data = _digest(made) + made
        atomic.write_bytes(path, data)
    end = data.index(b"\n\n", _DIGEST)
    return frozenset(filter(None, data[_DIGEST:end].split(b"\n"))), Part(data, end + 2)


def _whole(path: Path) -> bytes | None:
    """What was kept, with its digest before it, if it is what was written: a power cut leaves less."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return data if data[:_DIGEST] == _digest(memoryview(data)[_DIGEST:]) else None


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _word(path: str) -> bytes:
    return listing.word(path).encode(errors="surrogateescape")


def _read(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape")


def over(whole: Part, linked: frozenset[bytes], upper: Mapping[str, Entry]) -> Pieces | None:
    """A tree's listing with a layer over it; None where a file is concerned that has several names."""
    view = memoryview(whole.data)
    pieces: list[bytes | memoryview] = []
    done = whole.begin
    for path, entry in sorted(upper.items(), key=lambda item: listing.order(item[0])):
        begin, end = _place(whole, listing.order(path), below=entry.kind != "d" or listing.OPAQUE in entry.attributes)
        # In a folder that was replaced above, all that was there is gone already.
        begin, end = max(begin, done), max(end, done)
        words = [line.split(b" ", 1)[0] for line in whole.data[begin:end].split(b"\n")]
        if not linked.isdisjoint([*words, _word(path)]):
            return None
        pieces.append(view[done:begin])
        if entry.kind != "w":
            kept = tuple(attribute for attribute in entry.attributes if attribute != listing.OPAQUE)
            pieces.append(listing.line(entry._replace(attributes=kept)).encode(errors="surrogateescape"))
        done = end
    return [*pieces, view[done:]]


def _place(whole: Part, place: list[str], *, below: bool) -> tuple[int, int]:
    """Where the line of a path begins and ends, or would; `below`: with those of all that it holds."""
    begin = _first(whole, lambda other: other >= place)
    if below:
        return begin, _first(whole, lambda other: other[: len(place)] > place)
    end = whole.data.find(b"\n", begin) + 1
    return begin, end if end and _order(whole.data[begin:end]) == place else begin


def _first(whole: Part, reached: Callable[[list[str]], bool]) -> int:
    """Where the first line begins whose path has what all after it have too."""
    low, high = whole.begin, len(whole.data)
    while low < high:
        middle = (low + high) // 2
        begin = max(whole.data.rfind(b"\n", low, middle) + 1, low)
        end = whole.data.find(b"\n", middle) + 1
        if reached(_order(whole.data[begin:end])):
            high = begin
        else:
            low = end
    return low


def _order(line: bytes) -> list[str]:
    return listing.order(listing.plain(line.split(b" ", 1)[0].decode(errors="surrogateescape")))


def needed(layers: Sequence[str]) -> Iterator[str]:
    """What may be kept for a tree of layers, by their digests."""
    yield from (key(layers[:count]) for count in range(1, len(layers) + 1))
