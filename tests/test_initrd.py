"""Initrds read as other programs read them, taken apart, changed, and what is wrong with them found."""

from __future__ import annotations

import io
import lzma
import os
import random
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildlib.errors import BuildError
from buildlib.initrd import __main__ as command
from buildlib.initrd import checks, cpio, edit, segments, unpacking
from buildlib.initrd.scan import Initrd, scan
from buildlib.initrd.tree import build
from tests.initrdlab import INIT, TRAILER, elf, entry, folder, link, pack, program

PACKED = ("gzip", "bzip2", "xz", "lzma", "zstd", "lz4")
EPOCH = 1_700_000_000


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def small() -> bytes:
    """An archive whose init a kernel would run, without all that it needs to boot."""
    return folder("bin") + program("bin/sh", elf(62)) + program("init", INIT) + TRAILER


def wrong(path: Path, **more: str) -> list[str]:
    return [finding.what for finding in checks.check(scan(path), arch=more.get("arch", "amd64"))]


def paths(found: Initrd) -> list[str]:
    return [each.member.path for each in found.entries]


def read(path: Path, name: str) -> bytes:
    out = io.BytesIO()
    unpacking.extract(path, name, out)
    return out.getvalue()


# Other programs' archives


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with what a tree can have."""
    made = tmp_path_factory.mktemp("source") / "tree"
    put(made / "init", INIT).chmod(0o755)
    put(made / "bin/sh", elf(62)).chmod(0o755)
    put(made / "etc/a b", b"blank")
    put(made / "etc/ünï", b"utf-8")
    put(made / "etc/empty", b"")
    put(made / "etc/big", random.Random(1).randbytes(3_000_001))
    put(made / "etc/zeros", bytes(1_000_000))
    put(made / "etc/suid", b"#!/bin/sh\n").chmod(0o4755)
    (made / "etc/hard").hardlink_to(made / "etc/big")
    (made / "usr").mkdir()
    (made / "usr/none").mkdir()
    (made / "lib").symlink_to("usr/none")
    (made / "dangling").symlink_to("/nowhere")
    os.mkfifo(made / "pipe")
    for path in sorted(made.rglob("*"), reverse=True):
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    return made


def archived(by: str, tree: Path, out: Path) -> Path:
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    line = {
        "cpio": ["cpio", "--create", "--format=newc", "--quiet", "--null"],
        "crc": ["cpio", "--create", "--format=crc", "--quiet", "--null"],
        "bsdtar": ["bsdtar", "--create", "--format=newc", "--no-recursion", "--null", "--files-from=-", "--file=-"],
    }[by]
    done = subprocess.run(line, cwd=tree, input="\0".join(names).encode(), stdout=subprocess.PIPE, check=True)
    return put(out, done.stdout)


def told(tree: Path) -> dict[str, tuple[object, ...]]:
    """All of a tree but its top, by path: type, mode, time, content, and which files are one."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(tree.rglob("*")):
        said = path.lstat()
        data: object = None
        if path.is_symlink():
            data = os.readlink(path)
        elif path.is_file():
            data = (
                path.read_bytes(),
                sorted(str(each.relative_to(tree)) for each in tree.rglob("*") if same(path, each)),
            )
        mode = said.st_mode if not path.is_symlink() else stat.S_IFLNK
        found[str(path.relative_to(tree))] = mode, int(said.st_mtime), data
    return found


def same(one: Path, other: Path) -> bool:
    return not other.is_symlink() and os.path.samefile(one, other)


@pytest.mark.parametrize("by", ["cpio", "crc", "bsdtar"])
@pytest.mark.parametrize("kind", ["cpio", *PACKED])
def test_what_others_made_is_read(by: str, kind: str, source: Path, tmp_path: Path) -> None:
    made = archived(by, source, tmp_path / "made")
    if kind != "cpio":
        put(made, pack(kind, made.read_bytes()))
    found = scan(made)
    assert [(each.kind, each.offset, each.archives) for each in found.segments] == [(kind, 0, 1)]
    assert (found.damages, found.tail, wrong(made)) == ([], found.size, [])
    assert sorted(paths(found)) == sorted(str(path.relative_to(source)) for path in source.rglob("*"))
    assert unpacking.unpack(made, tmp_path / "out") == []
    assert told(tmp_path / "out") == told(source)
    assert read(made, "etc/hard") == (source / "etc/big").read_bytes()


@pytest.mark.parametrize("kind", edit.KINDS)
def test_what_is_appended_others_read(kind: str, source: Path, tmp_path: Path) -> None:
    base = put(tmp_path / "base", pack("gzip", small()) + b"\0")
    plain = tmp_path / "tree"
    subprocess.run(["cp", "-a", source, plain], check=True)
    (plain / "pipe").unlink()
    out = tmp_path / "out"
    size = edit.append(base, plain, out, kind=kind, epoch=EPOCH)
    edit.append(base, plain, tmp_path / "again", kind=kind, epoch=EPOCH)
    assert out.read_bytes() == (tmp_path / "again").read_bytes()
    assert out.read_bytes().startswith(base.read_bytes())
    segment = put(tmp_path / "segment", out.read_bytes()[-size:])
    (only,) = scan(segment).segments
    assert only.kind == kind
    # Not all of libarchive's filters take padding.
    os.truncate(segment, only.size)
    listed = subprocess.run(["bsdtar", "-tf", segment], capture_output=True, text=True, check=True).stdout.split("\n")
    if kind == "cpio":
        said = subprocess.run(["cpio", "-it", "--quiet"], stdin=segment.open("rb"), capture_output=True, check=True)
        assert sorted(said.stdout.decode().split("\n")) == sorted(listed)
    assert sorted(filter(None, listed)) == sorted(str(path.relative_to(plain)) for path in plain.rglob("*"))
    assert wrong(out) == []


def test_segments_as_machines_get_them(tmp_path: Path) -> None:
    """Microcode, the distribution's own and a root of its own, as NixOS has them; padded in every way that there is."""
    early = folder("kernel") + entry("kernel/microcode.bin", b"\1" * 70_000) + TRAILER
    late = entry("nix-store.squashfs", random.Random(3).randbytes(200_000)) + TRAILER
    main = pack("zstd", small())
    data = early + bytes(-len(early) % 512) + main + bytes(-len(main) % 4) + late + bytes(1024)
    made = put(tmp_path / "made", data)
    found = scan(made)
    assert [each.kind for each in found.segments] == ["cpio", "zstd", "cpio"]
    for segment, size in zip(found.segments, (len(early), len(main), len(late)), strict=True):
        assert (segment.size, segment.offset % 4) == (size, 0)
    assert (found.damages, found.tail) == ([], len(data))
    assert read(made, "nix-store.squashfs") == late[cpio.HEADER + 22 :][:200_000]


def test_later_entries_lie_over_earlier_ones(tmp_path: Path) -> None:
    first = folder("usr") + folder("usr/lib") + link("lib", "usr/lib") + entry("usr/lib/a", b"old") + entry("b", b"old")
    second = entry("lib/a", b"new") + folder("b") + entry("usr", b"") + link("usr/lib/up", "../../c") + entry("c", b"c")
    made = put(tmp_path / "made", first + TRAILER + second + TRAILER)
    tree = build(scan(made).entries)
    assert [path for path, _ in tree.walk()] == [".", "b", "c", "lib", "usr", "usr/lib", "usr/lib/a", "usr/lib/up"]
    assert [each.member.path for each in tree.blocked] == ["usr"]
    assert (read(made, "lib/a"), read(made, "/usr/lib/up")) == (b"new", b"c")


def test_nothing_gets_out_of_the_folder(tmp_path: Path) -> None:
    bad = entry("../out1", b"bad") + entry("/out2", b"own") + link("away", "../..") + entry("away/out3", b"own")
    bad += link("abs", str(tmp_path)) + entry("abs/out4", b"bad") + folder("d") + entry("d/../out5", b"own")
    made = put(tmp_path / "made", bad + TRAILER)
    unpacking.unpack(made, tmp_path / "in")
    assert sorted(os.listdir(tmp_path)) == ["in", "made"]
    assert sorted(os.listdir(tmp_path / "in")) == ["abs", "away", "d", "out1", "out2", "out3", "out5"]


def test_an_ordinary_user_takes_it_apart_too(tmp_path: Path) -> None:
    put(tmp_path / "made", small()[: -len(TRAILER)] + entry("null", b"", 0o020666, rdev=(1, 3)) + TRAILER)
    tmp_path.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    if os.geteuid() == 0:
        os.chown(out, 65534, 65534)
    # Another program would have to be found and read by that user first.
    child = os.fork()
    if child == 0:
        try:
            os.chdir(tmp_path)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os._exit(0 if unpacking.unpack(Path("made"), Path("out")) == ["null"] else 2)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["bin", "init"]
    assert (tmp_path / "out/init").read_bytes() == INIT


def test_taking_apart_needs_a_new_folder(tmp_path: Path) -> None:
    made = put(tmp_path / "made", small())
    put(tmp_path / "out/there", b"")
    with pytest.raises(BuildError, match="is not empty"):
        unpacking.unpack(made, tmp_path / "out")


# What is wrong


def broken() -> dict[str, tuple[bytes, list[str]]]:
    """Initrds, and the kinds of findings in each."""
    base = folder("bin") + program("bin/sh", elf(62))
    dynamic = program("init", elf(62, interpreter=b"/lib/ld.so"))
    lib = folder("lib")
    whole = small()
    twice = entry("bin/sh", b"", 0o100755, inode=7, nlink=2) + program("init", INIT) + TRAILER
    first = folder("bin") + entry("bin/busybox", elf(62), 0o100755, inode=7, nlink=2) + TRAILER
    return {
        "nothing": (whole, []),
        "padding": (whole + b"\0\0" + entry("x") + TRAILER, ["damage"]),
        "unaligned": (
            pack("gzip", whole) + bytes(1 + (-len(pack("gzip", whole)) % 4)) + entry("x") + TRAILER,
            ["damage"],
        ),
        "xz": (lzma.compress(whole), ["damage", "init"]),
        "lz4": (b"\x04\x22\x4d\x18" + whole, ["damage", "init"]),
        "a file system": (b"hsqs" + whole, ["damage", "init"]),
        "old format": (b"070707" + whole[6:], ["damage", "init"]),
        "no trailer within gzip": (pack("gzip", whole[: -len(TRAILER)]), []),
        "no trailer": (whole[: -len(TRAILER)], []),
        "junk": (pack("gzip", whole + b"junk"), ["damage"]),
        "cut": (pack("zstd", whole)[:-9], ["damage", "init"]),
        "no init": (base + TRAILER, ["init"]),
        "dangling": (base + link("init", "/bin/none") + TRAILER, ["init"]),
        "circle": (base + link("init", "init") + TRAILER, ["init"]),
        "mode": (base + program("init", INIT, 0o100644) + TRAILER, ["init"]),
        "a folder": (base + folder("init") + TRAILER, ["init"]),
        "line ends": (base + program("init", INIT.replace(b"\n", b"\r\n")) + TRAILER, ["line-ends"]),
        "no interpreter": (program("init", INIT) + TRAILER, ["interpreter"]),
        "interpreter's mode": (
            folder("bin") + program("bin/sh", elf(62), 0o100644) + program("init", INIT),
            ["interpreter"],
        ),
        "machine": (base + program("init", elf(183)) + TRAILER, ["machine"]),
        "empty": (base + program("init", b"") + TRAILER, ["init"]),
        "text": (base + program("init", b"echo hello\n") + TRAILER, ["init"]),
        "cut header": (program("init", elf(62)[:50]) + TRAILER, ["truncated"]),
        "cut program": (program("init", elf(62, size=5000)[:3000]) + TRAILER, ["truncated"]),
        "no loader": (base + dynamic + TRAILER, ["interpreter"]),
        "empty loader": (lib + program("lib/ld.so", b"") + dynamic + TRAILER, ["truncated"]),
        "loader's machine": (lib + program("lib/ld.so", elf(183)) + dynamic + TRAILER, ["machine"]),
        "loader's mode": (lib + program("lib/ld.so", elf(62), 0o100644) + dynamic + TRAILER, ["interpreter"]),
        "parent": (program("init", elf(62)) + program("bin/sh", elf(62)) + TRAILER, ["parent"]),
        "link": (first + twice, ["link", "interpreter"]),
        "device": (folder("dev") + entry("dev/console") + whole, ["device"]),
    }


@pytest.mark.parametrize("name", broken())
def test_what_is_wrong_is_found(name: str, tmp_path: Path) -> None:
    data, expected = broken()[name]
    made = put(tmp_path / "made", data)
    assert wrong(made) == expected


@pytest.mark.parametrize("kind", ["cpio", *PACKED])
@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_broken_is_survived(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, taken out or put in anywhere: no crash, and what is read is within the file."""
    whole = bytearray(small() if kind == "cpio" else pack(kind, small()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert", "end"])):
            case "change":
                whole[at] = data.draw(st.integers(0, 255))
            case "cut":
                del whole[at : at + data.draw(st.integers(1, 9))]
            case "insert":
                whole[at:at] = data.draw(st.binary(max_size=9))
            case _:
                del whole[at + 1 :]
        if not whole:
            whole = bytearray(b"\0")
    made = put(tmp_path / "made", bytes(whole))
    found = scan(made)
    assert 0 <= found.tail <= found.size
    checks.check(found)


# Changes


@pytest.mark.parametrize("kind", edit.KINDS)
def test_a_file_is_replaced_where_it_is(kind: str, source: Path, tmp_path: Path) -> None:
    first = archived("cpio", source, tmp_path / "first").read_bytes()
    made = put(tmp_path / "made", pack(kind, first) if kind != "cpio" else first)
    with made.open("ab") as file:
        file.write(bytes(-made.stat().st_size % 4) + entry("last", b"last") + TRAILER)
    new = put(tmp_path / "new", b"another")
    edit.replace(made, "etc/big", new, tmp_path / "out")
    edit.replace(made, "etc/big", new, tmp_path / "again")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "again").read_bytes()
    assert [each.kind for each in scan(tmp_path / "out").segments] == [kind, "cpio"]
    unpacking.unpack(tmp_path / "out", tmp_path / "tree")
    (tmp_path / "tree/last").unlink()
    expected, found = told(source), told(tmp_path / "tree")
    names = (b"another", ["etc/big", "etc/hard"])
    assert found == {**expected, **{path: (*expected[path][:2], names) for path in ("etc/big", "etc/hard")}}


def test_what_is_not_there_is_not_replaced(tmp_path: Path) -> None:
    made, new = put(tmp_path / "made", small()), put(tmp_path / "new", b"")
    with pytest.raises(BuildError, match="etc/motd is not in it"):
        edit.replace(made, "etc/motd", new, tmp_path / "out")


@pytest.mark.parametrize("name", ["padding", "xz", "mode", "line ends", "interpreter's mode", "parent"])
def test_what_can_be_repaired(name: str, tmp_path: Path) -> None:
    made = put(tmp_path / "made", broken()[name][0])
    assert edit.repair(made, tmp_path / "out")
    assert wrong(tmp_path / "out") == []
    assert {*paths(scan(made))} <= {*paths(scan(tmp_path / "out"))}
    assert edit.repair(tmp_path / "out", tmp_path / "twice") == []
    assert (tmp_path / "out").read_bytes() == (tmp_path / "twice").read_bytes()


def test_what_cannot_be_repaired_is_refused(tmp_path: Path) -> None:
    made = put(tmp_path / "made", broken()["cut"][0])
    with pytest.raises(BuildError, match="segment 1: its zstd"):
        edit.repair(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_no_archive_holds_is_refused(tmp_path: Path) -> None:
    made = put(tmp_path / "made", small())
    big = put(tmp_path / "tree/big", b"")
    os.truncate(big, cpio.LIMIT + 1)
    with pytest.raises(BuildError, match=r"has 4,294,967,296 bytes; an initrd holds files below 4 GiB"):
        edit.append(made, big.parent, tmp_path / "out")
    with pytest.raises(BuildError, match="below 4 GiB"):
        edit.replace(made, "init", big, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Its command line


def test_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = put(tmp_path / "made", broken()["mode"][0])
    assert command.main([str(made)]) == 1
    said = capfd.readouterr().out
    assert "init: may not be run (mode 0644)" in said
    assert "the console shows: Failed to execute /init (error -13)" in said
    assert command.main([str(made), "repair", "-o", str(tmp_path / "out")]) == 0
    assert capfd.readouterr().out == "init: may be run now\n"
    assert command.main([str(tmp_path / "out"), "list"]) == 0
    assert " -rwxr-xr-x       0/0           51 1970-01-01 00:00 init\n" in capfd.readouterr().out
    assert command.main([str(tmp_path / "out"), "cat", "init"]) == 0
    assert capfd.readouterr().out == INIT.decode()
    assert command.main([str(tmp_path / "none")]) == 2
    assert capfd.readouterr().err == f"{tmp_path}/none: No such file or directory\n"


def test_zstd_says_what_memory_it_needs(tmp_path: Path) -> None:
    line = ["zstd", "-q", "-19", "--long=28", "-c"]
    done = subprocess.run(line, input=small() + bytes(300 << 20), capture_output=True, check=True)
    made = put(tmp_path / "made", done.stdout)
    assert segments.window(made, 0) == 256 << 20
    (damage,) = scan(made).damages
    assert damage.problem == "zstd that needs a window of 256 MiB; the kernel has 128 MiB"
