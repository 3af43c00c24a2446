"""The same locked recipe gives the same bytes: for whomever, wherever and whenever it is built."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildlib import boot
from buildlib.errors import BuildError
from tests import apklab, elsewhere, test_apk, test_pacstrap
from tests.checkout import SHARED, Checkout
from tests.elsewhere import Elsewhere, digests

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def surrounding() -> Iterator[None]:
    with elsewhere.surrounding():
        yield


@pytest.fixture(scope="module")
def home(surrounding: None) -> Iterator[Path]:
    with elsewhere.stranger() as made:
        yield made


def test_the_surrounding_is_another_one(home: Path) -> None:
    place = Elsewhere(home)
    script = "date +%Y; hostname; nproc; umask; locale charmap; date +%z"
    line = [*place.command()[:-3], "sh", "-c", script]
    said = subprocess.run(line, env=place.environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == [elsewhere.year(), "elsewhere", "1", "0077", "UTF-8", "+1400"]


HOW = ("manifest.json", "SHA256SUMS")
"""Files that name the keys of stages: a release that was made by older code keeps those of that time."""


def test_a_debian_release_is_the_same_everywhere(small: Checkout, home: Path) -> None:
    """Kernel, initrd, squashfs, tar, listing, manifest: by an ordinary user, without any network."""
    names = ("small-squashfs", "small-volatile")
    # All locks first: each may bring lists and packages.
    for name in names:
        small.doit(f"build:{name}", f"tar:{name}")
    there = elsewhere.moved(home, small, *names, network=False)
    for name in names:
        there.doit(f"build:{name}", f"tar:{name}")
        _same(small, there, name)
    # The clock was another one in the root too.
    year = elsewhere.year()
    assert f"it is {year}\n" in there.doit("shell:small-squashfs", text="date '+it is %Y'\n")
    plain = dataclasses.replace(there, plain=True)
    said = plain.doit("boot:small-squashfs", "-f", "bios-ipxe", "--network", "user")
    assert "small-squashfs       boot        booted" in said
    refused = plain.doit("boot:small-volatile", "-f", "bios-ipxe", "--network", "user", status=1)
    assert "nfs-ganesha needs root" in refused


def _same(here: Checkout, there: Checkout, name: str) -> None:
    first, second = (digests(place.release(name)) for place in (here, there))
    lists = [set((place.release(name) / "tree.list").read_text().splitlines()) for place in (here, there)]
    assert sorted(lists[0] ^ lists[1]) == []
    assert {file: first[file] for file in first if file not in HOW} == {
        file: second[file] for file in second if file not in HOW
    }
    assert _manifest(here, name) == _manifest(there, name)
    tars = [sorted((place.folder / "out/tar").glob(f"{name}-*.tar"))[-1] for place in (here, there)]
    assert subprocess.run(["cmp", *map(str, tars)], check=False).returncode == 0


def test_an_ordinary_user_boots_no_root_over_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = {"name": "one", "arch": "amd64", "cmdline": "nfsroot=${nfs_server}:${nfs_root}"}
    with pytest.raises(BuildError, match="nfs-ganesha needs root"):
        boot._check(said, "bios-ipxe")


def _manifest(place: Checkout, name: str) -> dict[str, Any]:
    """A manifest with the keys that are built now."""
    said = json.loads((place.release(name) / "manifest.json").read_bytes())
    keys = json.loads((place.folder / f"out/state/{name}.json").read_bytes())["stages"]
    return {**said, "build": {**said["build"], "keys": keys}}


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["small-classic", "small-arm-ram"])
def test_a_second_build_is_the_same(name: str, small: Checkout, tmp_path: Path) -> None:
    """By debootstrap; of another architecture, all in the initrd."""
    small.doit("build:small-volatile")
    checkout = Checkout.beside(tmp_path / "checkout", name) if name == "small-classic" else small
    checkout.doit(f"build:{name}")
    # Which `small-arm-ram` extends.
    again = Checkout.make(tmp_path / "again", name, "small-arm").folder
    (again / "out").symlink_to(SHARED / "out")
    shutil.copy(checkout.folder / "recipes" / name / "recipe.lock", again / "recipes" / name)
    elsewhere.otherwise(again)
    assert "every byte, built twice" in Elsewhere(again).doit(f"verify:{name}")


def same_everywhere(checkout: Checkout, home: Path) -> None:
    """Build the recipe `one` here and elsewhere."""
    checkout.doit("build:one")
    there = elsewhere.moved(home, checkout, "one")
    there.doit("build:one")
    assert digests(there.release("one")) == digests(checkout.release("one"))


def test_alpine_is_the_same_everywhere(home: Path, tmp_path: Path) -> None:
    """Initramfs, modloop, repository and its index, encrypted apkovl, checksums and manifest."""
    modules, kernel = test_apk.modules(tmp_path), test_apk.kernel(tmp_path)
    lab = test_apk.Lab(tmp_path, apklab.base(modules, kernel, "#!/bin/busybox sh\n"))
    # The user must be able to read it.
    lab.key = Path(shutil.move(lab.key, home / "site.rsa"))
    (home / "password").write_text("secret\n")
    try:
        more = f"{test_apk.RELEASE}{test_apk.MKINITFS}  packages: [chrony]\n"
        lab.recipe(
            f"{more}  encryption: {{cipher: aes-256-cbc, password-file: {home / 'password'}}}\n", "hostname: box\n"
        )
        same_everywhere(lab.checkout, home)
    finally:
        lab.close()


def test_arch_linux_is_the_same_everywhere(home: Path, tmp_path: Path) -> None:
    lab = test_pacstrap.Lab(tmp_path, test_pacstrap.small_packages(tmp_path))
    try:
        recipe = lab.recipe("openssh, vim", test_pacstrap.HEAD)
        (recipe / "overlay/etc").mkdir(parents=True)
        (recipe / "overlay/etc/motd").write_text("hello\n")
        (recipe / "hook").write_text("#!/bin/sh\necho hooked >/etc/hooked\n")
        (recipe / "hook").chmod(0o755)
        same_everywhere(lab.checkout, home)
    finally:
        lab.close()
