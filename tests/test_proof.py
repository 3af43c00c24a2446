"""`doit boot`: roots by firmware and boot loader, over both networks, until the login prompt."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.checkout import Checkout

pytestmark = pytest.mark.integration

LONG = pytest.mark.nightly

PXELINUX, IPXE, GRUB = "bios-pxelinux", "bios-ipxe", "uefi-grub"

CELLS = [
    *(pytest.param("small-rw", firmware, "bridge", marks=LONG) for firmware in (PXELINUX, IPXE, GRUB)),
    *(pytest.param("small-volatile", firmware, "bridge", marks=LONG) for firmware in (PXELINUX, IPXE, GRUB)),
    *(pytest.param("small-persist", firmware, "bridge", marks=LONG) for firmware in (PXELINUX, IPXE)),
    pytest.param("small-persist", GRUB, "bridge"),
    pytest.param("small-arm", GRUB, "bridge", marks=LONG),
    *(pytest.param("small-squashfs", firmware, "bridge", marks=LONG) for firmware in (PXELINUX, GRUB)),
    pytest.param("small-squashfs", IPXE, "bridge"),
    *(pytest.param("small-ram", firmware, "bridge", marks=LONG) for firmware in (PXELINUX, GRUB)),
    pytest.param("small-arm-ram", GRUB, "bridge", marks=LONG),
    pytest.param("small-ram", PXELINUX, "user"),
    *(pytest.param(name, GRUB, "user", marks=LONG) for name in ("small-volatile", "small-squashfs", "small-arm-ram")),
]


@pytest.mark.parametrize(("name", "firmware", "network"), CELLS)
def test_a_release_boots(name: str, firmware: str, network: str, small: Checkout) -> None:
    said = small.doit(f"boot:{name}", "-f", firmware, "--network", network)
    assert f"{name:<20} boot        booted" in said
    proof = json.loads((small.release(name) / "proof.json").read_bytes())
    assert proof["release"] == small.release(name).name
    assert {"firmware": firmware, "network": network}.items() <= next(
        boot for boot in proof["boots"] if boot["firmware"] == firmware
    ).items()
    console = (small.folder / "out/boot" / name / firmware / "console.log").read_text()
    assert "login: " in console
    left = {path.name for path in (small.folder / "out/boot" / name / firmware).iterdir()}
    assert left <= {"boot.log", "console.log", "servers"}, "nothing but logs is left"


def test_a_port_and_a_command_by_ssh_can_be_expected(small: Checkout, tmp_path: Path) -> None:
    checkout = Checkout.beside(tmp_path / "beside")
    key = tmp_path / "beside/recipes/small-ssh/keys/test"
    key.parent.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    checkout.recipe(
        "small-ssh",
        "description: answers by SSH\n"
        "extends: ../_parts/base.yaml\n"
        "users: [{name: ops, authorized-keys: [keys/test.pub]}]\n"
        "boot:\n"
        "  firmware: [bios-ipxe]\n"
        "  expect:\n"
        "    - console: 'Linux version'\n"
        "    - port: 22\n"
        "    - ssh: {command: 'systemctl is-active ssh && grep -q overlay /proc/mounts', key: keys/test, user: ops}\n",
    )
    small.doit("build:small-volatile", "bootloaders")
    checkout.lock("small-ssh")
    (checkout.folder / "recipes/bootloaders.lock").write_bytes((small.folder / "recipes/bootloaders.lock").read_bytes())
    said = checkout.doit("boot:small-ssh")
    assert "booted" in said


def test_what_cannot_be_booted_is_said_before(small: Checkout) -> None:
    assert "unknown firmware coreboot" in small.doit("boot:small-ram", "-f", "coreboot", status=1)
