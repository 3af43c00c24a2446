"""Real releases, booted in QEMU over real servers until somebody logs in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.checkout import Checkout
from tests.vm import Lab, Machine

pytestmark = pytest.mark.integration

MAC_A, MAC_B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
PASSWORD = "netboot"


def boot(
    lab: Lab, small: Checkout, name: str, target: Mapping[str, str], mac: str = MAC_A, *, memory: int = 1024
) -> Machine:
    """Power on a machine with the release's own kernel, initrd and command line."""
    release = small.release(name)
    return lab.boot(
        kernel=release / "vmlinuz",
        initrd=release / "initrd",
        append=small.cmdline(name, **target),
        mac=mac,
        memory=memory,
    )


def on_nfs(where: str) -> dict[str, str]:
    server, _, root = where.partition(":")
    return {"nfs_server": server, "nfs_root": root}


def test_rw_root_belongs_to_its_client(small: Checkout, tmp_path: Path, tree: Path) -> None:
    small.doit("build:small-rw")
    small.unpack("small-rw", tree)
    with Lab(tmp_path / "lab") as lab:
        vm = boot(lab, small, "small-rw", on_nfs(lab.export(tree, "/root")))
        vm.login(password=PASSWORD)
        assert vm.settle() == "running"
        assert vm.run("stat -f -c %T /").strip() == "nfs"
        assert vm.run("cat /etc/motd").strip() == "netboot test root"
        assert vm.run("systemctl is-active ssh").strip() == "active"
        vm.run("echo kept > /root/written; sync")
        vm.off()
    assert (tree / "root" / "written").read_text() == "kept\n"
    assert (tree / "etc" / "machine-id").read_text().strip(), "an rw root keeps its client's machine-id"


def test_volatile_clients_share_a_root_and_are_different_machines(small: Checkout, tmp_path: Path, tree: Path) -> None:
    small.doit("build:small-volatile")
    small.unpack("small-volatile", tree)
    with Lab(tmp_path / "lab") as lab:
        where = on_nfs(lab.export(tree, "/root", writable=False))
        both = [boot(lab, small, "small-volatile", where, mac, memory=640) for mac in (MAC_A, MAC_B)]
        for vm in both:
            vm.login(password=PASSWORD)
            assert vm.settle() == "running"
        ids = [vm.run("cat /etc/machine-id").strip() for vm in both]
        assert [len(text) for text in ids] == [32, 32]
        assert ids[0] != ids[1]
        keys = [vm.run("ssh-keyscan -t ed25519 localhost 2>/dev/null | cut -d' ' -f3").strip() for vm in both]
        assert all(key.startswith("AAAA") for key in keys)
        assert keys[0] != keys[1]
        both[0].run("echo gone > /root/written && test -s /root/written")
        assert both[1].run("ls -A /root/written 2>&1", check=False).strip().endswith("No such file or directory")
        both[0].off()
        both[1].kill()
        again = boot(lab, small, "small-volatile", where)
        again.login(password=PASSWORD)
        assert not again.run("ls /root").strip()
    assert not (tree / "root" / "written").exists()
    assert (tree / "etc" / "machine-id").read_text() == ""


def test_persist_keeps_paths_for_each_mac(small: Checkout, tmp_path: Path, tree: Path) -> None:
    small.doit("build:small-persist")
    small.unpack("small-persist", tree)
    kept = tmp_path / "kept"
    kept.mkdir()
    with Lab(tmp_path / "lab") as lab:
        where = {
            **on_nfs(lab.export(tree, "/root", writable=False)),
            "nfs_persist": lab.export(kept, "/kept").partition(":")[2],
        }
        first = boot(lab, small, "small-persist", where, memory=640)
        other = boot(lab, small, "small-persist", where, MAC_B, memory=640)
        first.login(password=PASSWORD)
        first.settle()
        first.run("echo mine > /var/lib/keep/file; sync")
        told = [first.run(f"cat {path}") for path in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub")]
        other.login(password=PASSWORD)
        assert other.run("ls -A /var/lib/keep").strip() == ""
        assert other.run("cat /etc/machine-id") != told[0]
        first.off()
        other.kill()
        again = boot(lab, small, "small-persist", where)
        again.login(password=PASSWORD)
        again.settle()
        assert again.run("cat /var/lib/keep/file").strip() == "mine"
        assert [again.run(f"cat {path}") for path in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub")] == told
        again.kill()
    assert sorted(path.name for path in kept.iterdir()) == ["52-54-00-00-00-0a", "52-54-00-00-00-0b"]


def test_squashfs_is_fetched_over_http(small: Checkout, tmp_path: Path) -> None:
    small.doit("build:small-squashfs")
    with Lab(tmp_path / "lab") as lab:
        served = tmp_path / "served"
        served.mkdir()
        shutil.copy(small.release("small-squashfs") / "rootfs.squashfs", served)
        vm = boot(lab, small, "small-squashfs", {"http": lab.http(served)}, memory=1536)
        vm.login(password=PASSWORD)
        assert vm.settle() == "running"
        assert vm.run("stat -f -c %T /").strip() == "overlayfs"
        assert vm.run("cat /etc/motd").strip() == "netboot test root"
        assert vm.run("systemctl is-active ssh").strip() == "active"
        vm.kill()


def test_ram_root_needs_no_server(small: Checkout, tmp_path: Path) -> None:
    small.doit("build:small-ram")
    with Lab(tmp_path / "lab") as lab:
        vm = boot(lab, small, "small-ram", {}, memory=1536)
        vm.login(password=PASSWORD)
        assert vm.settle() == "running"
        assert vm.run("stat -f -c %T /").strip() == "overlayfs"
        assert not vm.run("grep -c ' nfs' /proc/mounts", check=False).strip().strip("0")
        vm.kill()
