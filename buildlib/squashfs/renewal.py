"""A squashfs of a tree of which an earlier one has the most: its blocks are copied as they are.

Nothing that the tree doesn't hold comes along: of the earlier one only blocks are taken that files of the tree use. A
block that holds ends of many files is taken if all of them are still there; else those that are come from the new one.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from buildlib.errors import BuildError
from buildlib.listing import Entry, Groups
from buildlib.squashfs import form, writing
from buildlib.squashfs.form import Data, Fragment
from buildlib.squashfs.reading import Image
from buildlib.squashfs.tables import Tables

Extent = tuple[int, int]
"""Where bytes of a file begin and end."""


class Parts(NamedTuple):
    """Files of a tree, by the path that their content is known by; all others are empty, or no files.

    taken -- those whose content the earlier squashfs has, and is to be taken of
    fresh -- those that have to be compressed
    """

    taken: list[str]
    fresh: list[str]


def parts(entries: Mapping[str, Entry], groups: Groups, over: set[str], base: Mapping[str, Data]) -> Parts:
    """entries -- the tree; groups -- paths of it that are names of the same file
    over    -- paths whose content is not that of the earlier squashfs
    base    -- what that has
    """
    further = _further(entries, groups)
    files = [path for path, entry in entries.items() if entry.kind == "f" and entry.size and path not in further]
    old = {path for path in files if path in base and path not in over}
    lost = [path for path in files if path not in over and path not in base]
    if lost:
        raise BuildError(f"the squashfs of the lower layers lacks {lost[0]}")
    left = {(data.fragment, data.offset) for data in map(base.__getitem__, old)}
    broken = {data.fragment for data in base.values() if (data.fragment, data.offset) not in left}
    broken.discard(form.NO_FRAGMENT)
    taken = [path for path in files if path in old and base[path].fragment not in broken]
    known = set(taken)
    return Parts(taken, [path for path in files if path not in known])


def _further(entries: Mapping[str, Entry], groups: Groups) -> set[str]:
    """Names of files that have one already."""
    names = {path: group for group in groups for path in group}
    seen: set[frozenset[str]] = set()
    found = set()
    for path in entries:
        group = names.get(path)
        if group is not None:
            if group in seen:
                found.add(path)
            seen.add(group)
    return found


def write(
    out: Path, base: Image, fresh: Image | None, said: Parts, entries: Mapping[str, Entry], groups: Groups, epoch: int
) -> None:
    """Write the squashfs of a tree.

    base  -- the earlier one; fresh -- one of the files that have to be compressed, by the same paths
    said  -- as `parts` has given
    epoch -- when the file system was made, seconds since 1970
    """
    contents: dict[str, Data] = {}
    fragments: list[Fragment] = []
    with out.open("wb") as file:
        # With what lies before the data: a file system that can share blocks can do so where nothing is moved.
        _take(base, said.taken, file.fileno(), contents, fragments, [(0, base.begin)])
        if fresh is not None:
            _take(fresh, said.fresh, file.fileno(), contents, fragments)
        file.seek(0, os.SEEK_END)
        writing.finish(file, base.head, Tables(entries, groups, contents), fragments, epoch)


def _take(
    image: Image,
    paths: Iterable[str],
    out: int,
    contents: dict[str, Data],
    fragments: list[Fragment],
    more: Iterable[Extent] = (),
) -> None:
    """Copy the content of files, and `more`; say where it is now."""
    files = {path: image.files[path] for path in paths}
    used = sorted({data.fragment for data in files.values()} - {form.NO_FRAGMENT})
    numbers = {number: len(fragments) + place for place, number in enumerate(used)}
    numbers[form.NO_FRAGMENT] = form.NO_FRAGMENT
    ends = [image.fragments[number] for number in used]
    blocks = [(data.start, data.start + data.length) for data in files.values()]
    extents = _joined([*more, *blocks, *((end.start, end.start + end.length) for end in ends)])
    begins = [begin for begin, _ in extents]
    moved = []
    place = os.lseek(out, 0, os.SEEK_CUR)
    for begin, end in extents:
        moved.append(place - begin)
        place += end - begin
    _copy(image.path, out, extents)

    def new(start: int) -> int:
        return start + moved[bisect_right(begins, start) - 1]

    fragments += [end._replace(start=new(end.start)) for end in ends]
    for path, data in files.items():
        # Blocks of zeros lie nowhere.
        start = new(data.start) if data.length else 0
        contents[path] = data._replace(start=start, fragment=numbers[data.fragment])


def _joined(extents: Iterable[Extent]) -> list[Extent]:
    """Extents in order, those that touch or overlap as one."""
    found: list[Extent] = []
    for begin, end in sorted(extents):
        if begin == end:
            continue
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _copy(source: Path, out: int, extents: Iterable[Extent]) -> None:
    """Append what a file has there."""
    with source.open("rb") as file:
        for begin, end in extents:
            left = end - begin
            while left:
                done = _piece(file.fileno(), out, end - left, left)
                if not done:
                    raise BuildError(f"{source}: ends {left:,} bytes before what is needed of it")
                left -= done


def _piece(source: int, out: int, begin: int, size: int) -> int:
    """Copy so many bytes or fewer, or let both files share them; how many it were."""
    try:
        return os.copy_file_range(source, out, size, begin)
    except OSError:
        # Not on this file system, or not of this kernel.
        return os.sendfile(out, source, begin, size)
