"""What is wrong with an initrd, before a machine says so; with the words that its kernel would have for it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from buildlib.initrd.cpio import CRASH
from buildlib.initrd.scan import HEAD, Initrd
from buildlib.initrd.tree import Node, Tree, build, lost_links

MACHINES = {"amd64": 62, "arm64": 183, "i386": 3, "armhf": 40, "riscv64": 243}
"""An ELF file's machine by Debian's name of the architecture."""

_NAMES = {62: "x86-64", 183: "AArch64", 3: "x86", 40: "ARM", 243: "RISC-V"}

_DEVICES = {"dev/console": (5, 1), "dev/null": (1, 3)}
"""Device nodes that must be just that, if they are there."""

_DEPTH = 5
"""So many scripts may be each other's interpreters."""

UNPACKING = "Initramfs unpacking failed: "
NO_ROOT = "VFS: Unable to mount root fs on"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    what   -- a word for its kind
    where  -- a path, or a segment
    kernel -- what the console shows because of it; "" where nothing tells
    fatal  -- the machine doesn't come up, or not as it should; else it may be meant so
    """

    what: str
    where: str
    problem: str
    hint: str
    kernel: str = ""
    fatal: bool = True

    def __str__(self) -> str:
        says = f"; the kernel says: {self.kernel}" if self.kernel else ""
        return f"{self.where}: {self.problem}{says}"


def check(initrd: Initrd, *, arch: str | None = None, init: str = "init") -> list[Finding]:
    """All that is wrong.

    arch -- Debian's name of the kernel's architecture; that of init is taken for right without
    init -- path of what the kernel runs, `rdinit=` of its command line
    """
    if any(damage.kernel == CRASH for damage in initrd.damages):
        return list(_structure(initrd))
    tree = build(initrd.reached)
    found = list(_structure(initrd))
    found += _tree(initrd, tree)
    found += _init(tree, init.strip("/"), MACHINES.get(arch or ""))
    return found


def _structure(initrd: Initrd) -> Iterator[Finding]:
    for damage in initrd.damages:
        yield Finding(
            "damage",
            f"segment {damage.segment + 1}",
            damage.problem,
            "python -m buildlib.initrd FILE repair mends padding and xz; else make that segment again",
            damage.kernel if damage.kernel in ("", CRASH) else f"{UNPACKING}{damage.kernel}",
        )
    for entry in initrd.entries:
        if entry.member.kind == "?":
            yield Finding("type", entry.member.path, f"has no type (mode {entry.member.mode:o})", "pack it again")


_EARLY = "kernel/"
"""What the kernel looks up in the first archive by itself, long before there is a tree: microcode, ACPI tables. Arch's
microcode comes without its folders."""


def _tree(initrd: Initrd, tree: Tree) -> Iterator[Finding]:
    for entry in tree.orphans:
        if entry.member.path.startswith(_EARLY):
            continue
        folder = entry.member.path.rpartition("/")[0]
        yield Finding(
            "parent",
            entry.member.path,
            f"its folder {folder or '..'} is not there when it comes: it is left out",
            "put the folder before it",
        )
    for entry in tree.blocked:
        yield Finding(
            "blocked",
            entry.member.path,
            "is where a folder is that isn't empty: it is left out",
            "give it another place",
        )
    for entry in lost_links(initrd.reached):
        yield Finding(
            "link",
            entry.member.path,
            "is a hard link to a file of another archive: it is empty",
            "put all names of a file into one archive",
        )
    for path, (major, minor) in _DEVICES.items():
        node = tree.find(path)
        if node is None or (node.kind == "c" and node.entry is not None and node.entry.member.rdev == (major, minor)):
            continue
        yield Finding(
            "device",
            path,
            f"is no device {major}:{minor}: it was packed by somebody who may not make devices",
            "leave it out, the kernel makes what it needs; or pack it as root",
        )


def _init(tree: Tree, path: str, machine: int | None) -> Iterator[Finding]:
    node = tree.find(path)
    if node is None:
        there = _last(tree, path)
        problem = f"is a symbolic link to {there.target}, which is not there" if there else "is not there"
        yield Finding("init", path, problem, "an initrd runs /init; or say rdinit=", NO_ROOT)
        return
    yield from _program(tree, path, node, machine, path, 0)


def _last(tree: Tree, path: str) -> Node | None:
    folder = tree.find(os.path.dirname(path) or ".")
    node = folder.below.get(os.path.basename(path)) if folder else None
    return node if node is not None and node.kind == "l" else None


def _program(tree: Tree, path: str, node: Node, machine: int | None, init: str, depth: int) -> Iterator[Finding]:
    """What keeps a program from running; `path` is it, or what runs it."""

    def bad(problem: str, hint: str, number: int) -> Finding:
        return Finding("init" if path == init else "interpreter", path, problem, hint, _failed(init, number))

    if node.kind != "f":
        yield bad("is no file", "pack it again", -13)
        return
    if not node.mode & 0o111:
        yield bad(f"may not be run (mode {node.mode:04o})", "repair it: chmod +x", -13)
        return
    if depth > _DEPTH:
        yield bad("is a script of a script of a script ...", "name a program as interpreter", -40)
        return
    head, size = (node.content.head, node.content.member.size) if node.content else (b"", 0)
    if head.startswith(b"#!"):
        yield from _script(tree, path, head, machine, init, depth)
    elif head.startswith(b"\x7fELF"):
        yield from _elf(tree, path, head, size, machine, init)
    else:
        yield bad("is neither a script with #! nor a program" if size else "is empty", "look at what made it", -8)


def _failed(init: str, number: int) -> str:
    return f"Failed to execute /{init} (error {number})"


def _script(tree: Tree, path: str, head: bytes, machine: int | None, init: str, depth: int) -> Iterator[Finding]:
    line = head[2:].partition(b"\n")[0]
    words = line.strip(b" \t").split(None, 1) or [b""]
    name = line.strip(b" \t").partition(b" ")[0].partition(b"\t")[0].decode(errors="surrogateescape")
    if name.endswith("\r"):
        yield Finding(
            "line-ends",
            path,
            f"its first line ends as Windows has it: there is no {name.strip()}\\r",
            "repair it: its line ends become Unix'",
            _failed(init, -2),
        )
        return
    interpreter = tree.find(name) if name else None
    if interpreter is None:
        said = words[0].decode(errors="replace")
        yield Finding(
            "interpreter", path, f"is run by {said or 'nothing'}, which is not there", "pack it too", _failed(init, -2)
        )
        return
    yield from _program(tree, name.strip("/"), interpreter, machine, init, depth + 1)


def _elf(tree: Tree, path: str, head: bytes, size: int, machine: int | None, init: str) -> Iterator[Finding]:
    """ELF(5): whose machine's it is, whether all of it is there, and what loads it."""

    def bad(kind: str, problem: str, hint: str, number: int) -> Finding:
        return Finding(kind, path, problem, hint, _failed(init, number))

    wide = len(head) > 4 and head[4] == 2
    need = 64 if wide else 52
    if len(head) < need:
        yield bad("truncated", "ends within its header", "copy it again", -8)
        return
    own = struct.unpack_from("<H", head, 18)[0]
    if machine is not None and own != machine and not (machine == 62 and own == 3):
        names = _NAMES.get(own, own), _NAMES.get(machine, machine)
        yield bad("machine", f"is a program for {names[0]}, and the kernel is for {names[1]}", "build it for that", -8)
        return
    if wide:
        (offset,) = struct.unpack_from("<Q", head, 32)
        each, count = struct.unpack_from("<HH", head, 54)
    else:
        (offset,) = struct.unpack_from("<I", head, 28)
        each, count = struct.unpack_from("<HH", head, 42)
    if offset + each * count > size:
        yield bad("truncated", "ends within its headers", "copy it again", -8)
        return
    loader = b""
    for number in range(count):
        at = offset + each * number
        if at + each > min(len(head), HEAD):
            break
        (kind,) = struct.unpack_from("<I", head, at)
        if wide:
            (begin,) = struct.unpack_from("<Q", head, at + 8)
            (length,) = struct.unpack_from("<Q", head, at + 32)
        else:
            begin, length = struct.unpack_from("<I", head, at + 4)[0], struct.unpack_from("<I", head, at + 16)[0]
        if kind == 1 and begin + length > size:
            problem = f"has {size} bytes, and says that it has {begin + length}"
            # Linux 6.1 runs it until it comes to what isn't there; 7.2 has error -14.
            yield Finding("truncated", path, problem, "copy it again", "Attempted to kill init!")
            return
        if kind == 3:
            loader = head[begin : begin + length].rstrip(b"\0")
    if loader:
        yield from _loader(tree, path, loader.decode(errors="surrogateescape"), own, init)


def _loader(tree: Tree, path: str, name: str, machine: int, init: str) -> Iterator[Finding]:
    node = tree.find(name)

    def bad(kind: str, where: str, problem: str, hint: str, number: int) -> Finding:
        return Finding(kind, where, problem, hint, _failed(init, number))

    if node is None:
        yield bad("interpreter", path, f"is loaded by {name}, which is not there", "pack it too", -2)
        return
    name = name.strip("/")
    if node.kind != "f" or not node.mode & 0o111:
        yield bad("interpreter", name, f"may not be run (mode {node.mode:04o})", "repair it: chmod +x", -13)
        return
    head, size = (node.content.head, node.content.member.size) if node.content else (b"", 0)
    if size < 64 or not head.startswith(b"\x7fELF"):
        yield bad("truncated", name, f"is no loader: it has {size} bytes", "copy it again", -5 if size < 64 else -80)
        return
    own = struct.unpack_from("<H", head, 18)[0]
    if own != machine:
        names = _NAMES.get(own, own), _NAMES.get(machine, machine)
        yield bad(
            "machine", name, f"is a loader for {names[0]}, of a program for {names[1]}", "pack the other one", -80
        )
