"""The README's commands on a machine where nothing is set up, as root and as an ordinary user."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import fresh, sshlab
from tests.checkout import Checkout
from tests.fresh import PROJECT, USER, Fresh

pytestmark = [pytest.mark.integration, sshlab.needed]


def minimal(small: Checkout, folder: Path) -> Fresh:
    """Debian 12 as mmdebstrap makes it, with git and Python."""
    small.doit("build:small-volatile")
    key = small.manifest("small-volatile")["build"]["keys"]["bootstrap"]
    made = Fresh("bookworm", (small.folder / "out/store" / key / "tree",), folder)
    lines = "\\n".join(fresh.sources("bookworm"))
    status, said = made.run(
        f"printf '{lines}\\n' >/etc/apt/sources.list && apt-get -q update && "
        "apt-get -q install --yes --no-install-recommends git python3"
    )
    assert status == 0, said
    return made


def test_an_ordinary_user_is_told_what_root_must_do(small: Checkout, tmp_path: Path) -> None:
    root = minimal(small, tmp_path / "root")
    root.clone(USER)
    line = "apt-get install --yes --no-install-recommends"
    status, said = root.run("./doit list", user=USER)
    assert (status, said) == (
        1,
        f"missing system packages: python3 python3-venv\nhint: as root: {line} python3 python3-venv",
    )
    status, said = root.run(f"{line} python3 python3-venv")
    assert status == 0, said
    status, said = root.run("./doit list", user=USER)
    assert status == 0, said
    assert "debian-nfs           not built" in said
    status, said = root.run("./doit build:debian-nfs", user=USER)
    assert status == 1
    assert f"hint: as root: {line} " in said
    for package in ("mmdebstrap", "uidmap", "zstd"):
        assert package in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.nightly
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_release_is_built_on_a_fresh_machine(suite: str, tmp_path: Path) -> None:
    made = Fresh(suite, (fresh.of_debian(suite, PROJECT / "out/fresh" / suite),), tmp_path / "root")
    made.clone()
    status, said = made.run("./doit build:debian-nfs")
    assert status == 0, said
    assert "release     built" in said
