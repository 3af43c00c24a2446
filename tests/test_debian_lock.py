"""What moves in a Debian archive is told, taken when asked for, and keeps nobody from building what is locked."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import pacmanlab
from tests.checkout import SHARED, Checkout
from tests.test_fetch import Server

RECIPE = """\
arch: amd64
root: nfs
debian:
  suite: sid
  keyring: keys.gpg
  mirror: {mirror}
  recommends: {recommends}
  package-groups: {{late: [app]}}
"""

PACKAGES = {
    "base-files": ("13", "Essential: yes"),
    "libc6": ("2.40-1", "Priority: required"),
    "apt": ("3.0", "Depends: libc6\nRecommends: ca-certificates"),
    "ca-certificates": ("20261001", ""),
    "linux-image-amd64": ("6.12.1-1", "Depends: linux-image-6.12.1-amd64"),
    "linux-image-6.12.1-amd64": ("6.12.1-1", ""),
    "app": ("1:1.0-1", "Recommends: app-data"),
    "app-data": ("1.0-1", ""),
    "other": ("1.0-1", ""),
    **dict.fromkeys(("init", "initramfs-tools", "busybox", "kmod", "zstd", "tzdata"), ("1.0-1", "")),
}


class Archive(Server):
    """A signed archive of packages that have no files."""

    def __init__(self, folder: Path) -> None:
        super().__init__({})
        self.key = pacmanlab.Key(folder / "gpg")
        self.keys = self.key.export(folder / "keys.gpg")
        self.offer({})

    def offer(self, changes: Mapping[str, tuple[str, str] | None], day: int = 1) -> None:
        known = {name: said for name, said in {**PACKAGES, **changes}.items() if said}
        index = "\n".join(_stanza(name, *said) for name, said in known.items()).encode()
        place = "main/binary-amd64/Packages"
        text = (
            "Origin: Debian\nLabel: Debian\nSuite: unstable\nCodename: sid\nArchitectures: amd64\nComponents: main\n"
            f"Date: Sun, {day:02} Nov 2026 08:00:00 UTC\n"
            f"SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} {place}\n"
        )
        self.files = {"dists/sid/InRelease": self.key.clearsigned(text), f"dists/sid/{place}": index}


def _stanza(name: str, version: str, more: str) -> str:
    head = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: lab <lab@lab>\nDescription: lab\n"
    file = f"pool/{name}_{version.rpartition(':')[2]}_amd64.deb"
    tail = "" if "Priority" in more else "Priority: optional\n"
    return f"{head}{tail}{more}{chr(10) if more else ''}Filename: {file}\nSize: 1000\nSHA256: {'0' * 64}\n"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive(tmp_path)
    yield made
    made.key.close()
    made.shutdown()
    made.server_close()


@pytest.fixture
def checkout(tmp_path: Path, archive: Archive) -> Checkout:
    made = Checkout.make(tmp_path / "checkout")
    shutil.rmtree(made.folder / "recipes/_parts")
    recipe(made, archive)
    return made


def recipe(checkout: Checkout, archive: Archive, recommends: str = "false") -> None:
    home = checkout.recipe("one", RECIPE.format(mirror=archive.url("")[:-1], recommends=recommends))
    shutil.copy(archive.keys, home)


NEWER: dict[str, tuple[str, str] | None] = {
    "libc6": ("2.40-2", "Priority: required"),
    "linux-image-amd64": ("6.12.2-1", "Depends: linux-image-6.12.2-amd64"),
    "linux-image-6.12.1-amd64": None,
    "linux-image-6.12.2-amd64": ("6.12.2-1", ""),
    "app-data": ("2.0-1", ""),
    "other": ("2.0-1", ""),
}


def moves(printed: str, word: str) -> list[str]:
    return re.findall(rf"^one +lock +{word} +(\S.*)$", printed, re.MULTILINE)


@pytest.mark.parametrize("recommends", ["false", "true"])
def test_a_lock_says_which_packages_moved(recommends: str, checkout: Checkout, archive: Archive) -> None:
    recipe(checkout, archive, recommends)
    lock = checkout.folder / "recipes/one/recipe.lock"
    assert re.search(r"lock +written", checkout.doit("lock:one"))
    assert re.search(r"lock +same", checkout.doit("lock:one", "--check"))
    archive.offer(NEWER, day=8)
    before = lock.read_bytes()
    told = moves(checkout.doit("lock:one", "--check", status=1), "moved")
    assert lock.read_bytes() == before
    # The recipe has no `other`, and `ca-certificates` would come to a bootstrap with recommendations alone.
    assert [line for line in told if not line.startswith("suites/")] == [
        "kernel: 6.12.1-amd64 -> 6.12.2-amd64",
        *(["packages/app-data: 1.0-1 -> 2.0-1"] if recommends == "true" else []),
        "packages/libc6: 2.40-1 -> 2.40-2",
        "packages/linux-image-6.12.1-amd64 removed",
        "packages/linux-image-6.12.2-amd64 added: 6.12.2-1",
        "packages/linux-image-amd64: 6.12.1-1 -> 6.12.2-1",
    ]
    assert moves(checkout.doit("lock:one"), "changed") == told
    assert lock.read_bytes() != before
    # The lists that no lock names any more.
    lists = checkout.folder / "out/cache/lists"
    assert len(list(lists.iterdir())) == 2
    checkout.doit("gc")
    assert len(list(lists.iterdir())) == 1


def test_what_cannot_be_compared_is_said(checkout: Checkout, archive: Archive) -> None:
    checkout.doit("lock:one")
    archive.offer({"app": None}, day=8)
    assert "E: Unable to locate package app" in checkout.doit("lock:one", "--check", status=1)
    archive.offer(NEWER, day=9)
    shutil.rmtree(checkout.folder / "out/cache/lists")
    told = moves(checkout.doit("lock:one", "--check", status=1), "moved")
    assert "packages: what they were is not known, as the cache has not the old package lists" in told


def test_what_is_locked_outlives_its_mirror(checkout: Checkout, archive: Archive) -> None:
    """Package lists are in the cache; packages are fetched, or are named when nobody has them."""
    checkout.doit("lock:one")
    before = archive.files
    archive.offer(NEWER, day=8)
    out = checkout.folder / "out"
    shutil.rmtree(out / "store")
    archive.asked.clear()
    checkout.doit("_stage:one/index")
    assert archive.asked == []
    said = checkout.doit("_stage:one/bootstrap", status=1)
    assert "the mirror no longer has base-files 13: locked, and not in the cache of downloads either" in said
    assert "./doit lock:NAME" in said
    assert "Traceback" not in said
    # A cache that was damaged is no cache.
    shutil.rmtree(out / "store")
    (index,) = (out / "cache/lists").glob("*/dists/sid/main/binary-amd64/Packages")
    text = index.read_bytes()
    index.unlink()
    index.write_bytes(text.replace(b"13", b"14"))
    assert "sid moved on since the lock was written" in checkout.doit("_stage:one/index", status=1)
    archive.files = before
    checkout.doit("_stage:one/index")
    assert index.read_bytes() == text


def test_a_package_that_nobody_has_is_named(small: Checkout, archive: Archive, tmp_path: Path) -> None:
    """By the root's own apt: lists and all other packages are there."""
    small.doit("build:small-volatile")
    checkout = Checkout.beside(tmp_path / "beside")
    text = "extends: ../_parts/base.yaml\ndebian: {{packages: [sl], mirror: '{0}/debian', security-mirror: '{0}/s'}}\n"
    home = checkout.recipe("small-gone", text.format(archive.url("")[:-1]))
    shutil.copy(SHARED / "recipes/small-volatile/recipe.lock", home)
    said = checkout.doit("build:small-gone", status=1)
    assert re.search(r"the mirror no longer has libncurses6 6\S+, sl \d\S+: locked, and not in the cache", said)
    assert re.search(r"bootstrap +cached", said)
