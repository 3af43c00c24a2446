"""A second build is the same, or is told apart by byte and likely cause."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildlib import rebuild
from tests import alpinelab
from tests.checkout import Checkout
from tests.test_alpine import RECIPE, mirror_of


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout.make(tmp_path / "checkout")
    shutil.rmtree(made.folder / "recipes/_parts")
    mirror = mirror_of(tmp_path / "mirror", alpinelab.bundle(tmp_path / "files"))
    made.recipe("one", f"{RECIPE}  mirrors: ['{mirror.url('')[:-1]}']\n")
    yield made
    mirror.shutdown()
    mirror.server_close()


def test_the_same_is_the_same(checkout: Checkout) -> None:
    said = checkout.doit("verify:one")
    assert f"{checkout.release('one').name}: every byte, built twice" in said
    assert not (checkout.folder / "out/verify/one").exists()


def test_a_difference_is_found(checkout: Checkout) -> None:
    checkout.doit("build:one")
    # As if the first build had made another one: receipt, manifest and checksums say so too.
    path = checkout.release("one") / "one.apkovl.tar.gz"
    data = bytearray(path.read_bytes())
    old = hashlib.sha256(data).hexdigest()
    data[4] ^= 1
    path.write_bytes(data)
    manifest = path.with_name("manifest.json")
    known = hashlib.sha256(manifest.read_bytes()).hexdigest()
    for file in (*checkout.folder.glob("out/store/*/receipt.json"), manifest, path.with_name("SHA256SUMS")):
        text = file.read_text().replace(old, hashlib.sha256(data).hexdigest())
        file.write_text(text.replace(known, hashlib.sha256(manifest.read_bytes()).hexdigest()))
    said = checkout.doit("verify:one", status=1)
    assert "one.apkovl.tar.gz: the first byte that differs is number 4 (gzip keeps the time when it packed" in said
    assert "is another one when it is built again: " in said
    assert (checkout.folder / "out/verify/one/images").exists()


def test_a_debian_root_is_the_same(small: Checkout) -> None:
    assert "every byte, built twice" in small.doit("verify:small-volatile")


def test_trees_are_compared_by_path(tmp_path: Path) -> None:
    head = ". d 0755 0:0 1 0 -\n"
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(
        f"{head}a.pyc f 0644 0:0 1 1 {'0' * 64}\nb f 0644 0:0 1 1 {'0' * 64}\nc f 0644 0:0 1 1 {'0' * 64}\n"
    )
    second.write_text(
        f"{head}a.pyc f 0644 0:0 1 1 {'1' * 64}\nc f 0644 0:0 2 1 {'0' * 64}\nd f 0644 0:0 1 1 {'0' * 64}\n"
    )
    assert list(rebuild._tree("packages", first, second)) == [
        "packages: d: added",
        "packages: b: removed",
        "packages: a.pyc: changed (Python compiled it again: a time or a path of the build is in it)",
        "packages: c: its time alone",
    ]


@pytest.mark.parametrize(
    ("first", "second", "at"),
    [(b"abc", b"abd", 2), (b"abc", b"ab", 2), (b"", b"a", 0), (b"x" * 3_000_000, b"x" * 2_999_999 + b"y", 2_999_999)],
)
def test_the_first_byte_that_differs(first: bytes, second: bytes, at: int, tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(first)
    (tmp_path / "2").write_bytes(second)
    assert rebuild.differs_at(tmp_path / "1", tmp_path / "2") == at
