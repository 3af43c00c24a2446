"""A squashfs of a tree of which earlier ones have the most: their blocks are copied as they are.

Nothing that the tree doesn't hold comes along: of the earlier ones only blocks are taken that files of the tree use. A
block that holds ends of many files is taken if all of them are still there; else those that are come from a new one.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from buildlib.errors import BuildError
from buildlib.listing import Entry, Groups
from buildlib.squashfs import form, writing
from buildlib.squashfs.form import Data, Fragment
from buildlib.squashfs.reading import Image
from buildlib.squashfs.tables import Tables

Extent = tuple[int, int]
"""Where bytes of a file begin and end."""


def shares(
    entries: Mapping[str, Entry], groups: Groups, images: Sequence[Mapping[str, Data]], places: Mapping[str, int]
) -> list[list[str]]:
    """Files that are to be taken from each of `images`, by the path that their content is known by; and at last those
    that have to be compressed.

    entries -- the tree; groups -- paths of it that are names of the same file
    images  -- what earlier squashfs files have
    places  -- numbers of those that have a file; len(images) where none has, 0 where nothing is said
    """
    further = _further(entries, groups)
    files = [path for path, entry in entries.items() if entry.kind == "f" and entry.size and path not in further]
    wanted: list[list[str]] = [[] for _ in range(len(images) + 1)]
    for path in files:
        wanted[places.get(path, 0)].append(path)
    made = []
    taken: set[str] = set()
    for image, paths in zip(images, wanted, strict=False):
        lost = [path for path in paths if path not in image]
        if lost:
            raise BuildError(f"the squashfs of lower layers lacks {lost[0]}")
        left = {(data.fragment, data.offset) for data in map(image.__getitem__, paths)}
        broken = {data.fragment for data in image.values() if (data.fragment, data.offset) not in left}
        broken.discard(form.NO_FRAGMENT)
        made.append([path for path in paths if image[path].fragment not in broken])
        taken.update(made[-1])
    return [*made, [path for path in files if path not in taken]]


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
    out: Path, given: Sequence[tuple[Image, Sequence[str]]], entries: Mapping[str, Entry], groups: Groups, epoch: int
) -> None:
    """Write the squashfs of a tree.

    given -- squashfs files, and what of their files is to be taken; together all that are not empty, each once
    epoch -- when the file system was made, seconds since 1970
    """
    contents: dict[str, Data] = {}
    fragments: list[Fragment] = []
    first = given[0][0]
    with out.open("wb") as file:
        for image, paths in given:
            # With what lies before the data: a file system that can share blocks can do so where nothing is moved.
            more = [(0, first.begin)] if image is first else []
            _take(image, paths, file.fileno(), contents, fragments, more)
        file.seek(0, os.SEEK_END)
        writing.finish(file, first.head, Tables(entries, groups, contents), fragments, epoch)


def _take(
    image: Image,
    paths: Iterable[str],
    out: int,
    contents: dict[str, Data],
    fragments: list[Fragment],
    more: Iterable[Extent],
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
