"""Inodes and folders of a squashfs, of a tree's listing.

Nothing of this is compressed: it is less than a hundredth of an image, and found faster by those who boot it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from buildlib.listing import Entry, Groups
from buildlib.squashfs import form
from buildlib.squashfs.form import NOTHING, Data

_KINDS = {
    "f": form.FILE,
    "d": form.DIR,
    "l": form.SYMLINK,
    "b": form.BLOCK,
    "c": form.CHAR,
    "p": form.FIFO,
    "s": form.SOCKET,
}
_KNOWN = tuple(form.ATTRIBUTES)
_RUN = 256
"""Most entries of a folder below one header."""
_NEAR = range(-(2**15), 2**15)
"""How far inode numbers below one header may be from its own."""
_SHORT = 2**16 - 1
_NARROW = 2**32

Children = list[tuple[bytes, str]]
"""Names and paths of what a folder holds."""


class Tables:
    """The tables of a tree.

    entries  -- the tree, its root `.` first, a folder before what it holds
    groups   -- paths that are names of the same file
    contents -- of each file that is not empty, by path; of those of a group by the first in `entries`

    inodes, folders -- the tables, without headers of blocks
    places          -- where in the table each inode is, by its number less one
    owners, attributes -- ids and sets of extended attributes, with the numbers by which inodes name them
    """

    def __init__(self, entries: Mapping[str, Entry], groups: Groups, contents: Mapping[str, Data]) -> None:
        self.entries = entries
        self.contents = contents
        self.inodes = bytearray()
        self.folders = bytearray()
        self.owners: dict[int, int] = {}
        self.attributes: dict[tuple[str, ...], int] = {}
        within = [frozenset(group & entries.keys()) for group in groups]
        self._names = {path: group for group in within for path in group}
        self._firsts: dict[frozenset[str], str] = {}
        self._numbers: dict[str, int] = {}
        self._children: dict[str, Children] = {}
        count = self._number()
        self.places = [-1] * count
        self._folder(".")

    def _number(self) -> int:
        """Number inodes, a folder before what it holds: each of those knows the number of its folder. How many."""
        count = 0
        for path, entry in self.entries.items():
            group = self._names.get(path)
            first = path if group is None else self._firsts.setdefault(group, path)
            if first == path:
                self._numbers[path] = count
                count += 1
            else:
                self._numbers[path] = self._numbers[first]
            if entry.kind == "d":
                self._children[path] = []
            if path != ".":
                self._children[_above(path)].append((os.fsencode(path.rpartition("/")[2]), path))
        return count

    def _folder(self, path: str) -> None:
        children = sorted(self._children[path])
        for _, child in children:
            if self.entries[child].kind == "d":
                self._folder(child)
            elif self.places[self._numbers[child]] < 0:
                self._leaf(self.entries[child])
        start = len(self.folders)
        index = bytearray()
        count = 0
        page = start // form.METADATA
        for run in self._runs(children):
            at = len(self.folders)
            if at // form.METADATA != page:
                # By which a name in a large folder is found without reading all before it.
                page, name = at // form.METADATA, run[0][0]
                index += form.DIR_INDEX.pack(at - start, page * form.STEP, len(name) - 1) + name
                count += 1
            self._run(run)
        self._folder_inode(path, children, start, bytes(index), count)

    def _runs(self, children: Children) -> Iterator[Children]:
        """Entries that one header is enough for: in one block, with numbers that are near each other."""
        run: Children = []
        for child in children:
            number = self._numbers[child[1]]
            if run:
                first = self._numbers[run[0][1]]
                same = self.places[number] // form.METADATA == self.places[first] // form.METADATA
                if len(run) == _RUN or not same or number - first not in _NEAR:
                    yield run
                    run = []
            run.append(child)
        if run:
            yield run

    def _run(self, run: Children) -> None:
        base = self._numbers[run[0][1]]
        block = self.places[base] // form.METADATA * form.STEP
        self.folders += form.DIR_HEADER.pack(len(run) - 1, block, base + 1)
        for name, path in run:
            number = self._numbers[path]
            kind = _KINDS[self.entries[path].kind]
            offset = self.places[number] % form.METADATA
            self.folders += form.DIR_ENTRY.pack(offset, number - base, kind, len(name) - 1) + name

    def _folder_inode(self, path: str, children: Children, start: int, index: bytes, count: int) -> None:
        entry = self.entries[path]
        # The root's folder has no number: it is one more than there are inodes.
        parent = len(self.places) if path == "." else self._numbers[_above(path)]
        links = 2 + sum(self.entries[child].kind == "d" for _, child in children)
        size = len(self.folders) - start + form.EMPTY
        block, offset = start // form.METADATA * form.STEP, start % form.METADATA
        attributes = self._attributes(entry)
        if size <= _SHORT and not count and attributes == form.NO_ATTRIBUTES:
            self._begin(entry, form.DIR)
            self.inodes += form.SHORT_DIR.pack(block, links, size, offset, parent + 1)
        else:
            self._begin(entry, form.DIR + form.LONG)
            self.inodes += form.LONG_DIR.pack(links, size, block, parent + 1, count, offset, attributes) + index

    def _leaf(self, entry: Entry) -> None:
        attributes = self._attributes(entry)
        plain = attributes == form.NO_ATTRIBUTES
        group = self._names.get(entry.path)
        links = len(group) if group else 1
        kind = _KINDS[entry.kind]
        if kind == form.FILE:
            data = self.contents[self._firsts[group] if group else entry.path] if entry.size else NOTHING
            if plain and links == 1 and not data.sparse and max(data.start, data.size) < _NARROW:
                self._begin(entry, kind)
                self.inodes += form.SHORT_FILE.pack(data.start, data.fragment, data.offset, data.size)
            else:
                self._begin(entry, kind + form.LONG)
                self.inodes += form.LONG_FILE.pack(
                    data.start, data.size, data.sparse, links, data.fragment, data.offset, attributes
                )
            self.inodes += data.blocks
            return
        self._begin(entry, kind if plain else kind + form.LONG)
        if kind == form.SYMLINK:
            target = os.fsencode(entry.content)
            self.inodes += form.LINK.pack(links, len(target)) + target
        else:
            self.inodes += links.to_bytes(4, "little")
            if kind in (form.BLOCK, form.CHAR):
                self.inodes += _device(entry.content).to_bytes(4, "little")
        if not plain:
            self.inodes += attributes.to_bytes(4, "little")

    def _begin(self, entry: Entry, kind: int) -> None:
        number = self._numbers[entry.path]
        self.places[number] = len(self.inodes)
        user, group = (self.owners.setdefault(int(one), len(self.owners)) for one in entry.owner.split(":"))
        time = min(max(entry.mtime, 0), _NARROW - 1)
        self.inodes += form.INODE.pack(kind, entry.mode, user, group, time, number + 1)

    def _attributes(self, entry: Entry) -> int:
        """The number of an entry's extended attributes."""
        known = tuple(one for one in entry.attributes if one.startswith(_KNOWN)) if entry.attributes else ()
        return self.attributes.setdefault(known, len(self.attributes)) if known else form.NO_ATTRIBUTES


def _above(path: str) -> str:
    return path.rpartition("/")[0] or "."


def _device(content: str) -> int:
    """A device's number as the format has it, of `major,minor`."""
    major, minor = map(int, content.split(","))
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
