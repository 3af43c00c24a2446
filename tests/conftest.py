"""What tests share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout import SHARED, Checkout

HASH = "$6$netboot$GT/TvmgqUb8cWC5D1aOz7153Dik4jCFmAFPHAvSb5KkyoPXlLymqamG312MOu9GNlzNfOI8.kn6mfCYGwMM/l/"
"""Of root's password in the small roots, which is `netboot`."""

os.environ["NETBOOT_TEST_HASH"] = HASH

SMALL = ("small-rw", "small-volatile", "small-persist", "small-squashfs", "small-ram", "small-arm", "small-arm-ram")


@pytest.fixture(scope="session")
def small() -> Checkout:
    """The checkout of the small roots; each test builds those that it needs, mostly out of the store."""
    SHARED.mkdir(parents=True, exist_ok=True)
    with (SHARED / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return Checkout.make(SHARED, *SMALL)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """An empty folder for an unpacked root, which is too big to be kept with pytest's last three runs."""
    import shutil

    folder = tmp_path / "tree"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
