"""Whether a kernel says of initrds what is said of them: each defect is booted, and the console read."""

from __future__ import annotations

import functools
import lzma
import stat
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from buildlib.initrd import unpacking
from buildlib.initrd.checks import Finding, check
from buildlib.initrd.scan import scan
from buildlib.initrd.tree import build
from tests.checkout import Checkout
from tests.initrdlab import (
    INIT,
    MARKER,
    TRAILER,
    boot,
    busybox,
    elf,
    entry,
    folder,
    good,
    link,
    pack,
    program,
    tools,
)

pytestmark = pytest.mark.integration

PACKED = ("gzip", "bzip2", "xz", "lzma", "zstd", "lz4")
LOADER = "lib64/ld-linux-x86-64.so.2"


@functools.cache
def initrds() -> dict[str, bytes]:
    """By what is right or wrong with each."""
    whole, base = good(), tools()
    dynamic = program("init", elf(62, interpreter=f"/{LOADER}".encode()))
    gzipped = pack("gzip", whole)
    packed = {kind: pack(kind, whole) for kind in PACKED}
    shared = entry("bin/busybox", busybox(), 0o100755, inode=7, nlink=2)
    frames = subprocess.run(["lz4", "-q", "-c"], input=whole, capture_output=True, check=True).stdout
    return {
        "plain": whole,
        **packed,
        "two segments": gzipped + bytes(-len(gzipped) % 4) + entry("more") + TRAILER,
        "no trailer": base + program("init", INIT),
        "no trailer in gzip": pack("gzip", base + program("init", INIT)),
        "padding": whole + b"\0\0" + entry("more") + TRAILER,
        "unaligned": gzipped + bytes(-len(gzipped) % 4 + 1) + entry("more") + TRAILER,
        "crc64": lzma.compress(whole, preset=1),
        "lz4 in frames": frames,
        **{f"cut {kind}": data[: len(data) // 2] for kind, data in packed.items()},
        "cut archive": whole[:-1000],
        "cut archive in gzip": pack("gzip", whole[:-200]),
        "junk": pack("gzip", whole + b"junk"),
        "old format": b"070707" + whole[6:],
        "no archive": b"070709" + whole[6:],
        "a file system": b"hsqs" + whole,
        "no init": base + TRAILER,
        "dangling": base + link("init", "bin/nothing") + TRAILER,
        "mode": base + program("init", INIT, 0o100644) + TRAILER,
        "a folder": base + folder("init") + TRAILER,
        "line ends": base + program("init", INIT.replace(b"\n", b"\r\n")) + TRAILER,
        "no interpreter": program("init", INIT) + TRAILER,
        "interpreter's mode": folder("bin") + program("bin/sh", busybox(), 0o100644) + program("init", INIT) + TRAILER,
        "machine": base + program("init", elf(183)) + TRAILER,
        "empty": base + program("init", b"") + TRAILER,
        "text": base + program("init", b"echo hello\n") + TRAILER,
        "cut header": program("init", busybox()[:100]) + TRAILER,
        "cut program": program("init", busybox()[:100_000]) + TRAILER,
        "no loader": base + dynamic + TRAILER,
        "empty loader": base + folder("lib64") + program(LOADER, b"") + dynamic + TRAILER,
        "loader's machine": base + folder("lib64") + program(LOADER, elf(183, size=200)) + dynamic + TRAILER,
        "loader's mode": base + folder("lib64") + program(LOADER, elf(62, size=200), 0o100644) + dynamic + TRAILER,
        "parent": program("bin/sh", busybox()) + program("init", INIT) + TRAILER,
        "link": folder("bin")
        + shared
        + TRAILER
        + entry("bin/sh", b"", 0o100755, inode=7, nlink=2)
        + program("init", INIT),
        "device": folder("dev") + entry("dev/console") + whole,
    }


Seen = tuple[list[Finding], str]


@pytest.fixture(scope="module")
def seen(small: Checkout, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Seen]]:
    """What is said of each, and what the console shows: boots two at a time, in the order of the tests."""
    small.doit("build:small-volatile")
    kernel = small.release("small-volatile") / "vmlinuz"
    place = tmp_path_factory.mktemp("initrds")

    def run(path: Path) -> Seen:
        return check(scan(path), arch="amd64"), boot(kernel, path)

    pool = ThreadPoolExecutor(2)
    found = {}
    for number, (name, data) in enumerate(initrds().items()):
        path = place / str(number)
        path.write_bytes(data)
        found[name] = pool.submit(run, path)
    return found


@pytest.mark.parametrize("name", initrds())
def test_the_kernel_says_it_too(name: str, seen: dict[str, Future[Seen]]) -> None:
    findings, console = seen[name].result()
    for finding in findings:
        assert finding.kernel in console, finding
    boots = not findings or name in ("padding", "unaligned", "junk")
    assert (MARKER in console) == boots, console[-2000:]
    if name == "device":
        # It ran, and what it said is in that file.
        assert "reboot: " in console


def test_debians_is_read_as_its_own_tools_read_it(small: Checkout, tmp_path: Path) -> None:
    small.doit("build:small-volatile")
    initrd = small.release("small-volatile") / "initrd"
    line = " ".join(small.doit("initrd:small-volatile").split())
    assert f"{initrd}".endswith(line.partition(" ")[0].rpartition("out/")[2])
    assert check(scan(initrd), arch="amd64") == []
    listed = subprocess.run(["lsinitramfs", initrd], capture_output=True, text=True, check=True).stdout.split("\n")
    assert sorted({name for name in listed if name not in ("", ".")}) == sorted(
        path for path, _ in build(scan(initrd).entries).walk() if path != "."
    )
    subprocess.run(["unmkinitramfs", initrd, tmp_path / "theirs"], check=True)
    unpacking.unpack(initrd, tmp_path / "ours")
    subprocess.run(["diff", "-r", "--no-dereference", tmp_path / "theirs", tmp_path / "ours"], check=True)


def test_dracuts_is_read_as_its_own_tool_reads_it(tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    line = ["dracut", "--no-kernel", "--no-hostonly", "--gzip", "--modules", "base", "--kver", "none", "--force"]
    done = subprocess.run([*line, initrd], capture_output=True, text=True, check=False)
    assert initrd.exists(), done.stderr
    assert check(scan(initrd), arch="amd64") == []
    unpacked = tmp_path / "theirs"
    unpacked.mkdir()
    subprocess.run(["lsinitrd", "--unpack", initrd], cwd=unpacked, check=True, capture_output=True)
    unpacking.unpack(initrd, tmp_path / "ours")
    # Which dracut makes where it may; diff compares no devices.
    assert _devices(unpacked) == _devices(tmp_path / "ours")
    subprocess.run(["diff", "-r", "--no-dereference", unpacked, tmp_path / "ours"], check=True)


def _devices(folder: Path) -> dict[str, tuple[int, int]]:
    """Mode and number of each device in a folder, which is rid of them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        said = path.lstat()
        if stat.S_ISCHR(said.st_mode) or stat.S_ISBLK(said.st_mode):
            found[str(path.relative_to(folder))] = said.st_mode, said.st_rdev
            path.unlink()
    return found
