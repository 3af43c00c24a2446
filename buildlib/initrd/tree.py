"""The tree that an initrd becomes, by the kernel's rules (init/initramfs.c): later entries over earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from buildlib.initrd.scan import Entry

_LINKS = 40
"""So many symbolic links on one way, and it is a circle."""


@dataclass(eq=False)
class Node:
    """What is at a place of the tree.

    kind    -- as `Member.kind`
    entry   -- that made it last; None for the top
    content -- the entry whose data is its content; None where nothing was ever written to it
    below   -- what a folder holds, by name
    """

    kind: str
    entry: Entry | None
    mode: int = 0o755
    content: Entry | None = None
    target: str = ""
    below: dict[str, Node] = field(default_factory=dict)


@dataclass
class Tree:
    """All of it, and what did not get in.

    orphans -- entries whose folder was not there when they came: silently left out
    blocked -- entries in whose place is a folder that isn't empty, which stays
    lost    -- further names of a file that is in another archive, or that has none: they are empty
    """

    top: Node = field(default_factory=lambda: Node("d", None))
    orphans: list[Entry] = field(default_factory=list)
    blocked: list[Entry] = field(default_factory=list)
    lost: list[Entry] = field(default_factory=list)

    def walk(self) -> Iterator[tuple[str, Node]]:
        """All places by path, folders before what they hold."""
        stack = [("", self.top)]
        while stack:
            path, node = stack.pop()
            yield path or ".", node
            stack += [(f"{path}/{name}" if path else name, each) for name, each in sorted(node.below.items())][::-1]

    def find(self, path: str) -> Node | None:
        """What a path leads to, symbolic links followed; None for nothing."""
        return self._walk(path.split("/"), [self.top], _Budget())

    def _walk(self, parts: list[str], way: list[Node], budget: _Budget) -> Node | None:
        """From the last folder of `way` on; `way` becomes the folders that lead to what is found."""
        node: Node | None = way[-1]
        for part in parts:
            if part in ("", "."):
                continue
            if node is None or node.kind != "d":
                return None
            if part == "..":
                del way[max(1, len(way) - 1) :]
                node = way[-1]
                continue
            node = node.below.get(part)
            if node is not None and node.kind == "l":
                budget.left -= 1
                if budget.left < 0:
                    return None
                if node.target.startswith("/"):
                    del way[1:]
                node = self._walk(node.target.split("/"), way, budget)
            elif node is not None and node.kind == "d":
                way.append(node)
        return node


class _Budget:
    left = _LINKS


def build(entries: Iterable[Entry]) -> Tree:
    """The tree that these entries become, in their order."""
    tree = Tree()
    archive = -1
    links: dict[tuple[int, int, int], Node] = {}
    for entry in entries:
        if entry.archive != archive:
            archive, links = entry.archive, {}
        _add(tree, entry, links)
    return tree


def _add(tree: Tree, entry: Entry, links: dict[tuple[int, int, int], Node]) -> None:
    member = entry.member
    *above, name = [part for part in member.path.split("/") if part not in ("", ".")] or [""]
    if not name:
        tree.top.entry, tree.top.mode = entry, member.mode & 0o7777
        return
    folder = tree._walk(above, [tree.top], _Budget())
    if folder is None or folder.kind != "d" or name == "..":
        tree.orphans.append(entry)
        return
    there = folder.below.get(name)
    if member.kind == "d":
        if there is not None and there.kind == "d":
            there.entry, there.mode = entry, member.mode & 0o7777
        else:
            folder.below[name] = Node("d", entry, member.mode & 0o7777)
        return
    if there is not None and there.kind == "d" and there.below:
        tree.blocked.append(entry)
        return
    if member.kind == "l":
        folder.below[name] = Node("l", entry, 0o777, entry, entry.head.decode(errors="surrogateescape"))
        return
    key = (*member.device, member.inode)
    first = links.get(key) if member.nlink > 1 else None
    if first is not None and first.kind == member.kind:
        folder.below[name] = first
        node = first
    elif there is not None and there.kind == member.kind == "f":
        # Written to where it is: its other names see that.
        node = there
        node.content = None
    else:
        node = folder.below[name] = Node(member.kind, entry)
    if member.nlink > 1:
        links[key] = node
    node.entry, node.mode = entry, member.mode & 0o7777
    if member.kind == "f" and (member.size or node.content is None):
        node.content = entry


def lost_links(entries: Iterable[Entry]) -> list[Entry]:
    """Names of files with several ones, none of which has data in its archive, though one of another has."""
    groups: dict[tuple[int, int, int, int], list[Entry]] = {}
    rich: dict[tuple[int, int, int], set[int]] = {}
    for entry in entries:
        member = entry.member
        if member.kind != "f" or member.nlink < 2:
            continue
        file = (*member.device, member.inode)
        groups.setdefault((entry.archive, *file), []).append(entry)
        if member.size:
            rich.setdefault(file, set()).add(entry.archive)
    found = []
    for (archive, major, minor, inode), group in groups.items():
        others = rich.get((major, minor, inode), set())
        short = len(group) < group[0].member.nlink
        if short and archive not in others and others:
            found += group
    return found
