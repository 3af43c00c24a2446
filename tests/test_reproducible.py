"""The same locked recipe gives the same bytes: for whomever, wherever and whenever it is built."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import apklab, elsewhere, test_apk, test_pacstrap
from tests.checkout import Checkout
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
    year = subprocess.run(["date", "-d", "400 days", "+%Y"], capture_output=True, text=True, check=True).stdout.strip()
    assert said.split() == [year, "elsewhere", "1", "0077", "UTF-8", "+1400"]


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
    lab.key = lab.key.rename(home / "site.rsa")
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
