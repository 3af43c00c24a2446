"""A squashfs made of an earlier one: the tree that was wanted, byte for byte, and nothing of what is gone.

`ROUNDS=300 pytest tests/test_squashfs.py` compares so many more random trees.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from buildlib import listing, tree
from buildlib.errors import BuildError
from buildlib.release import latest
from buildlib.squashfs import form, making, reading, renewal
from tests import chain

EPOCH = 1_700_000_000
ROUNDS = int(os.environ.get("ROUNDS", "12"))
SIZES = (0, 1, 700, 40_000, 131_072, 131_073, 300_000)
"""Bytes of files: of none, ends only, blocks only, both."""


def unpack(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout


def squashed(folder: Path, out: Path, *options: str) -> Path:
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    subprocess.run(["mksquashfs", folder, out, "-quiet", *making.OPTIONS, *options], check=True, env=env)
    return out


def listed(folder: Path) -> str:
    return "".join(line for line, _ in tree.lines(folder, EPOCH))


def renewed(old: Path, new: Path, work: Path) -> tuple[Path, list[str]]:
    """The squashfs of `new`, made of that of `old`; and what was compressed."""
    work.mkdir()
    text = listed(new)
    entries, groups = listing.read(text), listing.groups_of(text)
    before = listing.read(listed(old))
    over = {path: 1 for path, entry in entries.items() if path not in before or before[path].content != entry.content}
    given = [reading.read(squashed(old, work / "base"), unpack)]
    shares = renewal.shares(entries, groups, [given[0].files], over)
    if shares[1]:
        (work / "names").write_bytes(b"".join(os.fsencode(path) + b"\0" for path in shares[1]))
        making.compress({"tree": str(new), "names": str(work / "names"), "out": str(work / "fresh")})
        given.append(reading.read(work / "fresh", unpack))
    renewal.write(work / "out", list(zip(given, shares, strict=False)), entries, groups, EPOCH)
    return work / "out", shares[1]


def unpacked(image: Path, folder: Path) -> str:
    """What unsquashfs makes of it, as a listing."""
    subprocess.run(["unsquashfs", "-quiet", "-no-progress", "-dest", folder, image], check=True)
    return listed(folder)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A tree of each kind of file."""
    made = tmp_path / "old"
    fill(made, Random(1))
    (made / "file1").write_text("a file")
    return made


def fill(folder: Path, chance: Random, count: int = 60, more: str = "") -> None:
    """Files whose content can't be compressed, so that it can be looked for."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        path = folder / chance.choice(("", "a", "a/b", "a/b/c", "d")) / f"file{number}{more}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.choice(SIZES)))
        if chance.random() < 0.1:
            os.link(path, path.with_name(f"again{number}{more}"))
        if chance.random() < 0.1:
            shutil.copyfile(path, folder / f"same{number}{more}")
    (folder / f"link{more}").symlink_to("a/b")


def change(folder: Path, chance: Random) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    for path in chance.sample(files, chance.randint(0, len(files))):
        match chance.randrange(4):
            case 0:
                path.unlink()
            case 1:
                content = chance.randbytes(chance.choice(SIZES))
                path.unlink()
                path.write_bytes(content)
            case 2:
                path.chmod(0o4711)
                os.utime(path, (5, 5))
            case 3:
                path.rename(path.with_name(f"{path.name}.moved"))
    fill(folder, chance, chance.randrange(5), ".new")


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_any_change_gives_the_tree_that_was_wanted(seed: int, tmp_path: Path) -> None:
    chance = Random(seed)
    fill(tmp_path / "old", chance)
    subprocess.run(["cp", "--archive", tmp_path / "old", tmp_path / "new"], check=True)
    change(tmp_path / "new", chance)
    image, _ = renewed(tmp_path / "old", tmp_path / "new", tmp_path / "work")
    assert unpacked(image, tmp_path / "out") == listed(tmp_path / "new")
    whole = squashed(tmp_path / "new", tmp_path / "whole").stat().st_size
    assert image.stat().st_size <= whole * 1.2


def _devices(folder: Path) -> None:
    os.mkfifo(folder / "pipe", 0o620)
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(folder)
        try:
            made.bind("socket")
        finally:
            os.chdir(here)
    os.mknod(folder / "char", 0o600 | stat.S_IFCHR, os.makedev(5, 300))
    os.mknod(folder / "block", 0o660 | stat.S_IFBLK, os.makedev(1000, 1))


def _owners(folder: Path) -> None:
    for number in range(300):
        (folder / f"own{number}").touch()
        os.chown(folder / f"own{number}", number, 70_000 + number)


def _attributes(folder: Path) -> None:
    subprocess.run(["setcap", "cap_net_raw+ep", folder / "file1"], check=True)
    for name, path in (("one", folder / "file1"), ("two", folder / "a"), ("three", folder)):
        os.setxattr(path, f"user.{name}", b"x" * 1000)
    for number in range(600):
        (folder / f"many{number}").touch()
        os.setxattr(folder / f"many{number}", "user.number", str(number).encode())


def _large_folder(folder: Path) -> None:
    for number in range(1500):
        (folder / "a" / f"a file with quite a long name, and the number {number}").write_text(str(number % 7))


def _names(folder: Path) -> None:
    for name in (b"\xff\xfe", "é".encode(), b"-rf", b"new\nline", b"b" * 255, b"tab\t", b"back\\slash", b"a b"):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(name)


def _links(folder: Path) -> None:
    """One more name of a file that was there, and three of a new one."""
    os.link(folder / "file1", folder / "0")
    (folder / "z").write_text("new")
    os.link(folder / "z", folder / "a/z")
    os.link(folder / "z", folder / "y")


def _sparse(folder: Path) -> None:
    with (folder / "sparse").open("wb") as file:
        file.truncate(1_000_000)
        file.seek(500_000)
        file.write(b"x")


def _zeros(folder: Path) -> None:
    _empty(folder)
    with (folder / "zeros").open("wb") as file:
        file.truncate(1_000_000)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _all_new(folder: Path) -> None:
    _empty(folder)
    fill(folder, Random(2))


CHANGES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda folder: None,
    "devices": _devices,
    "owners": _owners,
    "extended attributes": _attributes,
    "a large folder": _large_folder,
    "names": _names,
    "several names": _links,
    "sparse": _sparse,
    "nothing but zeros": _zeros,
    "all gone": _empty,
    "all new": _all_new,
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_a_tree_may_have(case: str, old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    subprocess.run(["cp", "--archive", old, new], check=True)
    CHANGES[case](new)
    image, _ = renewed(old, new, tmp_path / "work")
    assert unpacked(image, tmp_path / "out") == listed(new)
    # Once more on top of what is there: now it is in the earlier one.
    shutil.rmtree(tmp_path / "out")
    image, fresh = renewed(new, new, tmp_path / "again")
    assert fresh == []
    assert unpacked(image, tmp_path / "out") == listed(new)


def test_several_are_put_together(old: Path, tmp_path: Path) -> None:
    """A layer over another, and one over both."""
    places: dict[str, int] = {}
    whole = tmp_path / "whole"
    subprocess.run(["cp", "--archive", old, whole], check=True)
    images = [squashed(old, tmp_path / "0.squashfs")]
    for number in (1, 2):
        layer = tmp_path / f"layer{number}"
        fill(layer, Random(number + 5), 30, ".new" if number == 2 else "")
        (layer / f"motd{number}").write_text("more")
        subprocess.run(["cp", "--archive", "--remove-destination", f"{layer}/.", whole], check=True)
        places |= {path: number for path, entry in listing.read(listed(layer)).items() if entry.kind == "f"}
        images.append(squashed(layer, tmp_path / f"{number}.squashfs"))
    text = listed(whole)
    entries, groups = listing.read(text), listing.groups_of(text)
    given = [reading.read(image, unpack) for image in images]
    shares = renewal.shares(entries, groups, [image.files for image in given], places)
    assert [bool(share) for share in shares] == [True, True, True, True]
    (tmp_path / "names").write_bytes(b"".join(os.fsencode(path) + b"\0" for path in shares[-1]))
    making.compress({"tree": str(whole), "names": str(tmp_path / "names"), "out": str(tmp_path / "fresh")})
    given.append(reading.read(tmp_path / "fresh", unpack))
    renewal.write(tmp_path / "out", list(zip(given, shares, strict=True)), entries, groups, EPOCH)
    assert unpacked(tmp_path / "out", tmp_path / "unpacked") == text


def test_inode_numbers_may_be_far_from_each_other(tmp_path: Path) -> None:
    """Two entries of a folder with more inodes between them than a header's numbers can say."""
    empty = tmp_path / "empty"
    empty.mkdir()
    entry = listing.Entry(".", "d", 0o755, "0:0", 0, 0, "-")
    links = [entry._replace(path=f"a/{number:05}", kind="l", content=f"to {number}") for number in range(33_000)]
    entries = {one.path: one for one in (entry, entry._replace(path="a"), *links, entry._replace(path="b"))}
    base = reading.read(squashed(empty, tmp_path / "base"), unpack)
    renewal.write(tmp_path / "out", [(base, [])], entries, set(), EPOCH)
    said = subprocess.run(["unsquashfs", "-l", "-d", "", tmp_path / "out"], check=True, stdout=subprocess.PIPE)
    assert said.stdout.decode().splitlines() == ["", "/a", *(f"/{one.path}" for one in links), "/b"]


def test_what_did_not_change_is_not_compressed_again(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    subprocess.run(["cp", "--archive", old, new], check=True)
    (new / "motd").write_text("hello")
    _, fresh = renewed(old, new, tmp_path / "work")
    assert fresh == ["motd"]


@pytest.mark.parametrize("size", [600, 150_000])
def test_nothing_of_what_is_gone_is_left(size: int, old: Path, tmp_path: Path) -> None:
    """Neither a block of its own nor its end, which others share a block with."""
    new = tmp_path / "new"
    secret = Random(3).randbytes(size)
    (old / "a/secret").write_bytes(secret)
    subprocess.run(["cp", "--archive", old, new], check=True)
    (new / "a/secret").unlink()
    image, fresh = renewed(old, new, tmp_path / "work")
    before, after = (tmp_path / "work/base").read_bytes(), image.read_bytes()
    for piece in (secret[:500], secret[-500:]):
        assert piece in before
        assert piece not in after
    assert len(fresh) < 40
    assert unpacked(image, tmp_path / "out") == listed(new)


def test_a_build_after_a_change_is_the_same_as_one_from_nothing(tmp_path: Path) -> None:
    made = []
    for out, texts in (("one", ["first", "second"]), ("two", ["second"])):
        for text in texts:
            chain.make(tmp_path / out, text)
        release = latest(tmp_path / out / "images", chain.NAME)
        assert release is not None
        made.append((release.folder / "rootfs.squashfs").read_bytes())
    assert made[0] == made[1]


def _cut(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(image.stat().st_size // 2)


def _garbled(image: Path) -> None:
    head = form.Head(*form.HEAD.unpack_from(image.read_bytes()))
    with image.open("r+b") as file:
        file.seek(head.inode_table + 2)
        file.write(b"\xee" * 40)


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda image: image.write_bytes(b""), "no squashfs that can be read"),
    "something else": (lambda image: image.write_bytes(bytes(4096)), "not a squashfs of version 4.0"),
    "cut": (_cut, "no squashfs that can be read"),
    "garbled": (_garbled, "no squashfs that can be read"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_can_not_be_read_is_an_error(case: str, old: Path, tmp_path: Path) -> None:
    spoil, said = DAMAGED[case]
    image = squashed(old, tmp_path / "image")
    spoil(image)
    with pytest.raises(BuildError, match=said):
        reading.read(image, unpack)


def test_compressed_inodes_are_an_error(old: Path, tmp_path: Path) -> None:
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    subprocess.run(["mksquashfs", old, tmp_path / "image", "-quiet", "-comp", "zstd"], check=True, env=env)
    with pytest.raises(BuildError, match="its inodes are compressed"):
        reading.read(tmp_path / "image", unpack)


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets a program fail."""

    def fail(name: str) -> None:
        program = tmp_path / "bin" / name
        program.parent.mkdir()
        program.write_text("#!/bin/sh\nexit 3\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    yield fail


@pytest.mark.parametrize("name", ["tar", "mksquashfs"])
def test_a_program_that_fails_is_an_error(name: str, old: Path, tmp_path: Path, without: Callable[[str], None]) -> None:
    without(name)
    (tmp_path / "names").write_bytes(b"file1\0")
    with pytest.raises(BuildError, match=f"{name}: exit status 3"):
        making.compress({"tree": str(old), "names": str(tmp_path / "names"), "out": str(tmp_path / "fresh")})


def test_a_lower_layer_that_lacks_a_file_is_an_error(old: Path, tmp_path: Path) -> None:
    entries = listing.read(listed(old))
    with pytest.raises(BuildError, match="the squashfs of lower layers lacks"):
        renewal.shares(entries, set(), [{}], {})
