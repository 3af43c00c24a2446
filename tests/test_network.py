"""Machines on one network, each getting its own: by architecture, by MAC, beside a DHCP server, from a disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buildlib import lab, publish, serverside, services
from buildlib.place import Place
from buildlib.release import Release
from buildlib.sandbox import Sandbox
from buildlib.site import Dhcp, Host, Http, Loaders, Target
from tests import marker, netlab
from tests.checkout import Checkout

pytestmark = pytest.mark.integration

ADDRESS, NETWORK = lab.ADDRESSES["bridge"]
SITE = """
port=0
dhcp-range=10.77.0.100,10.77.0.200,255.255.255.0
dhcp-option=3
"""
"""A site's own DHCP server, which knows nothing of booting."""

A, B, C = ("52:54:00:00:01:0a", "52:54:00:00:01:0b", "52:54:00:00:01:0c")


@pytest.fixture(scope="module")
def loaders(small: Checkout) -> Path:
    return small.folder / small.doit("bootloaders").splitlines()[-1]


def place(folder: Path, hosts: Mapping[str, Host] | None = None, **settings: Any) -> Place:
    """A target in `folder` on the lab's bridge."""
    boot = str(folder / "boot")
    target = Target(
        ADDRESS,
        NETWORK,
        tftp=boot,
        http=Http(boot),
        interface=lab.BRIDGE,
        timeout=0,
        dhcp=Dhcp("full", "10.77.0.50", "10.77.0.99"),
    )
    return Place("lab", replace(target, **settings), hosts or {})


def offer(where: Place, loaders: Path, *releases: Release) -> None:
    """Publish releases, later ones of a name in the place of earlier ones."""
    publish.install_loaders(where, loaders)
    for release in releases:
        publish.upload(where, release, ())
        publish.switch(where, release.name, release.id)
    publish.refresh(where)


def boot(where: Place, folder: Path, *machines: dict[str, str], dhcp: str | None = None) -> dict[str, Any]:
    """Power machines on; each is expected to show a marker."""
    configs = {**services.render_all(serverside.wiring(where))}
    spec = {
        "folder": str(folder),
        "configs": {name: configs[name] for name in ("dnsmasq", "nginx") if name in configs},
        "dhcp": dhcp,
        "machines": [{"expect": r"MARKER \S+ cmdline: .*\n", **machine} for machine in machines],
        "seconds": 300,
    }
    said: dict[str, Any] = Sandbox(work=folder / "sandbox", chroot=False, user=False).call(netlab.boot, spec)
    return said


def shown(said: Mapping[str, Any], mac: str) -> str:
    """The line with the marker."""
    console = said["consoles"][mac]
    assert console["went"] == "done", console["text"][-2000:] + "\n".join(said["events"])
    text: str = console["text"]
    return next(line for line in text.splitlines() if "MARKER" in line)


def test_two_architectures_at_once_beside_another_dhcp_server(tmp_path: Path, loaders: Path) -> None:
    where = place(tmp_path, dhcp=Dhcp("proxy"))
    offer(
        where,
        loaders,
        marker.make(tmp_path / "m", "pc", "amd64", "pc"),
        marker.make(tmp_path / "m", "arm", "arm64", "arm"),
    )
    said = boot(
        where,
        tmp_path,
        {"arch": "amd64", "firmware": "bios-pxelinux", "mac": A},
        {"arch": "arm64", "firmware": "uefi-grub", "mac": B},
        dhcp=SITE,
    )
    assert "MARKER pc" in shown(said, A)
    assert "MARKER arm" in shown(said, B)
    assert "BOOTIF=01-52-54-00-00-01-0a" in shown(said, A)
    assert "BOOTIF=01-52-54-00-00-01-0b" in shown(said, B)
    site = (tmp_path / "site.log").read_text()
    assert A in site
    assert B in site, "the address came from the site's own server"
    assert "dhcp  has address" not in "\n".join(said["events"])


@pytest.mark.parametrize(
    "firmware", ["bios-pxelinux", pytest.param("bios-ipxe", marks=pytest.mark.nightly), "uefi-grub"]
)
def test_hosts_get_their_own_recipe_arguments_and_pinned_release(firmware: str, tmp_path: Path, loaders: Path) -> None:
    old = marker.make(tmp_path / "m", "one", "amd64", "old")
    new = marker.make(tmp_path / "m", "one", "amd64", "new")
    other = marker.make(tmp_path / "m", "two", "amd64", "two")
    hosts = {
        A: Host("pinned", recipe="one", release=old.id),
        B: Host("other", recipe="two", cmdline='told="a b" x=1;2', console="ttyS0,115200"),
    }
    settings = {"loaders": Loaders(bios="ipxe")} if firmware == "bios-ipxe" else {}
    where = place(tmp_path, hosts, **settings)
    publish.upload(where, old, ())
    offer(where, loaders, new, other)
    first = boot(where, tmp_path, *({"arch": "amd64", "firmware": firmware, "mac": mac} for mac in (A, B)))
    assert "MARKER old" in shown(first, A)
    assert "MARKER two" in shown(first, B)
    assert "x=1;2" in shown(first, B)
    assert '"a b"' in shown(first, B) or '"told=a b"' in shown(first, B)
    (tmp_path / "again").mkdir()
    again = boot(where, tmp_path / "again", {"arch": "amd64", "firmware": firmware, "mac": C})
    assert "MARKER new" in shown(again, C), "a machine that nobody named gets the default, in its newest release"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"http": None}, id="tftp alone"),
        pytest.param({"loaders": Loaders(bios="pxelinux")}, id="pxelinux", marks=pytest.mark.nightly),
    ],
)
def test_big_files_by_tftp(settings: dict[str, Any], tmp_path: Path, loaders: Path) -> None:
    where = place(tmp_path, **settings)
    offer(where, loaders, marker.make(tmp_path / "m", "one", "amd64", "one"))
    said = boot(where, tmp_path, {"arch": "amd64", "firmware": "bios-pxelinux", "mac": A})
    assert "MARKER one" in shown(said, A)
    assert any("tftp" in event and "vmlinuz" in event for event in said["events"])


def test_the_switch_is_one_link(tmp_path: Path, loaders: Path) -> None:
    where = place(tmp_path)
    offer(where, loaders, marker.make(tmp_path / "m", "one", "amd64", "old"))
    link = tmp_path / "boot/entries/one"
    before = link.readlink()
    texts = {path: path.read_bytes() for path in (tmp_path / "boot").rglob("*") if path.is_file()}
    offer(where, loaders, marker.make(tmp_path / "m", "one", "amd64", "new"))
    assert link.readlink() != before
    assert [path for path, data in texts.items() if path.read_bytes() != data and link not in path.parents] == []
    assert "new" in (link / "grub.cfg").read_text()
