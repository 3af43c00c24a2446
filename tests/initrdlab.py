"""Initrds made byte by byte, good ones and broken ones, and a machine that boots them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
import stat
import struct
import subprocess
import threading
from pathlib import Path

from buildlib import command

MARKER = "init-was-here"

INIT = f"#!/bin/sh\necho {MARKER}\nexec /bin/poweroff -f\n".encode()


def entry(
    path: str,
    data: bytes = b"",
    mode: int = 0o100644,
    *,
    inode: int = 1,
    nlink: int = 1,
    rdev: tuple[int, int] = (0, 0),
    magic: bytes = b"070701",
    check: int = 0,
) -> bytes:
    """An entry by the format's document, with whatever is wrong in it."""
    name = path.encode() + b"\0"
    numbers = (inode, mode, 0, 0, nlink, 0, len(data), 0, 0, *rdev, len(name), check)
    made = magic + b"".join(b"%08x" % number for number in numbers) + name
    made += b"\0" * (-len(made) % 4) + data
    return made + b"\0" * (-len(made) % 4)


def folder(path: str) -> bytes:
    return entry(path, mode=stat.S_IFDIR | 0o755, nlink=2)


def link(path: str, target: str) -> bytes:
    return entry(path, target.encode(), stat.S_IFLNK | 0o777)


def program(path: str, data: bytes, mode: int = 0o100755) -> bytes:
    return entry(path, data, mode)


TRAILER = entry("TRAILER!!!")


def busybox() -> bytes:
    found = shutil.which("busybox")
    assert found, "busybox is missing: ./doit test installs it"
    return Path(found).read_bytes()


def tools() -> bytes:
    """Folders and programs that init needs."""
    names = b"".join(link(f"bin/{name}", "busybox") for name in ("sh", "poweroff", "echo"))
    return folder("bin") + program("bin/busybox", busybox()) + names


def good() -> bytes:
    """An archive that boots."""
    return tools() + program("init", INIT) + TRAILER


def elf(machine: int, *, interpreter: bytes = b"", size: int = 0) -> bytes:
    """A program of one segment: 64-bit, little-endian."""
    count = 2 if interpreter else 1
    begin = 64 + 56 * count
    whole = begin + len(interpreter) + 1 + size
    made = b"\x7fELF\x02\x01\x01" + bytes(9)
    made += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400000 + begin, 64, 0, 0, 64, 56, count, 64, 0, 0)
    if interpreter:
        at = 0x400000 + begin
        made += struct.pack("<IIQQQQQQ", 3, 4, begin, at, at, len(interpreter) + 1, len(interpreter) + 1, 1)
    made += struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, whole, whole, 0x1000)
    return made + interpreter + b"\0" + bytes(size)


def pack(kind: str, data: bytes) -> bytes:
    """Compressed as the kernel reads it."""
    if kind == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if kind == "bzip2":
        return bz2.compress(data, 6)
    if kind == "xz":
        return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, preset=1)
    if kind == "lzma":
        return lzma.compress(data, lzma.FORMAT_ALONE, preset=1)
    line = {"zstd": ["zstd", "-q", "-3", "-c"], "lz4": ["lz4", "-q", "-l", "-c"]}[kind]
    return subprocess.run(line, input=data, capture_output=True, check=True).stdout


_OVER = re.compile(
    rf"{MARKER}|Kernel panic.*\n|Failed to execute /init \(error -\d+\)|reboot: |end trace [0-9a-f]+".encode()
)


def boot(kernel: Path, initrd: Path, *, seconds: float = 120) -> str:
    """What the console of a machine shows until it is clear what becomes of it, or so long."""
    line = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "512", "-nodefaults", "-no-reboot"]
    line += ["-display", "none", "-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initrd)]
    line += ["-append", "console=ttyS0 panic=-1 loglevel=6 random.trust_cpu=on"]
    seen = b""
    process = command.converse(line)
    assert process.stdout
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        while data := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            seen += data
            if _OVER.search(seen):
                break
    finally:
        timer.cancel()
        command.end(process)
    return seen.decode(errors="replace")
