"""Arch Linux of packages: resolved, verified and installed by pacman, with an initramfs made in the root."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import archlab, pacmanlab
from tests.checkout import Checkout
from tests.pacmanlab import Package
from tests.test_archlinux import Mirror

RECIPE = """\
arch: amd64
root: {root}
cmdline: console=ttyS0
{head}archlinux:
  keyring: keys.gpg
  mirrors: ['{mirror}']
  pacstrap:
    compression: gzip
    packages: [{packages}]
"""


class Lab:
    """A checkout, a mirror and a key."""

    def __init__(self, folder: Path, packages: dict[str, Package]) -> None:
        self.home = folder / "mirror"
        self.key = pacmanlab.Key(folder / "gpg")
        self.keys = self.key.export(folder / "keys.gpg")
        self.packages = packages
        self.mirror = Mirror(self.home)
        self.serve()
        self.checkout = Checkout.make(folder / "checkout")
        shutil.rmtree(self.checkout.folder / "recipes/_parts")

    def serve(self, *, embedded: bool = False) -> None:
        pacmanlab.repository(self.home, "core", self.packages, self.key, embedded=embedded)
        pacmanlab.repository(self.home, "extra", {"vim": Package("9.1-1")}, self.key, embedded=embedded)
        self.mirror.refresh()

    def recipe(self, packages: str = "", head: str = "", root: str = "squashfs") -> Path:
        text = RECIPE.format(mirror=self.mirror.url("")[:-1], packages=packages, head=head, root=root)
        home = self.checkout.recipe("one", text)
        shutil.copy(self.keys, home / "keys.gpg")
        return home

    def close(self) -> None:
        self.key.close()
        self.mirror.shutdown()
        self.mirror.server_close()


def small_packages(folder: Path) -> dict[str, Package]:
    modules = folder / "modules/6.12.1-arch1"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("")
    kernel = folder / "kernel"
    kernel.write_bytes(b"a kernel")
    return pacmanlab.packages(modules, kernel, archlab.made(folder / "initramfs"))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path, small_packages(tmp_path))
    yield made
    made.close()


def shown(path: Path, name: str) -> str:
    done = subprocess.run(["unsquashfs", "-cat", path, name], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


def listed(path: Path) -> str:
    return subprocess.run(["unsquashfs", "-lln", path], check=True, stdout=subprocess.PIPE, text=True).stdout


HEAD = """\
hostname: node-7
overlay: [overlay]
services: {enable: [sshd.service]}
owners: [{path: /etc/motd, mode: '0600'}]
hooks: [hook]
"""


def test_a_root_of_packages_is_a_release(lab: Lab, tmp_path: Path) -> None:
    home = lab.recipe("openssh, vim", HEAD)
    (home / "overlay/etc").mkdir(parents=True)
    (home / "overlay/etc/motd").write_text("hello\n")
    (home / "hook").write_text("#!/bin/sh\necho hooked >/etc/hooked\n")
    (home / "hook").chmod(0o755)
    lab.checkout.doit("build:one")
    release = lab.checkout.release("one")
    root = release / "arch/x86_64/airootfs.sfs"
    text = listed(root)
    assert shown(root, "etc/hostname") == "node-7\n"
    assert shown(root, "etc/hooked") == "hooked\n"
    assert re.search(r"-rw------- 0/0 .* squashfs-root/etc/motd", text)
    assert "multi-user.target.wants/sshd.service" in text
    # Nobody gets in at the console, nothing of the build is in it, and all machines are their own.
    assert shown(root, "etc/shadow") == "root:!*:14871::::::\n"
    assert shown(root, "etc/machine-id") == ""
    for lost in ("pacman.log", "mkinitcpio-install.hook", "ssh_host"):
        assert lost not in text
    # What pacman thinks of it.
    tree = tmp_path / "root"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tree, root], check=True)
    line = ["pacman", "--root", str(tree), "--dbpath", str(tree / "var/lib/pacman"), "--config", "/dev/null"]
    assert "vim 9.1-1" in subprocess.run([*line, "-Q"], check=True, capture_output=True, text=True).stdout
    said = subprocess.run([*line, "-Qk", "busybox", "systemd"], capture_output=True, text=True, check=True).stdout
    assert said.count(" 0 missing files") == 2
    assert "vim\t9.1-1\tx86_64\tvim@9.1-1\tMIT\n" in (release / "packages.tsv").read_text()
    assert lab.checkout.licenses("one")["vim"] == "MIT"
    assert lab.checkout.cmdline("one", http="http://h") == (
        "archisobasedir=arch archiso_http_srv=http://h/ checksum=y ip=dhcp console=ttyS0"
    )
    digest = (release / "arch/x86_64/airootfs.sha512").read_text()
    subprocess.run(["sha512sum", "-c", "-"], input=digest, cwd=root.parent, text=True, check=True, capture_output=True)
    # A word of the system is no reason for another initramfs.
    (home / "overlay/etc/motd").write_text("hello again\n")
    said = lab.checkout.doit("build:one")
    for stage, how in (("packages", "cached"), ("initramfs", "cached"), ("system", "built"), ("image", "built")):
        assert re.search(rf"{stage} +{how}", said), said


@pytest.mark.parametrize("embedded", [False, True])
def test_packages_are_those_of_the_lock_and_signed(embedded: bool, lab: Lab) -> None:
    lab.serve(embedded=embedded)
    lab.recipe()
    lab.checkout.doit("build:one")
    lock = json.loads((lab.checkout.folder / "recipes/one/recipe.lock").read_bytes())
    assert "vim" not in lock["packages"]
    assert ("signature" in lock["packages"]["base"]) == embedded
    lab.packages["systemd"] = Package("2.0-1", ("busybox",), files=lab.packages["systemd"].files)
    lab.serve(embedded=embedded)
    assert "nothing would run" in lab.checkout.doit("why:one")
    said = lab.checkout.doit("lock:one", "--check", status=1)
    assert "packages/systemd/version: 1.0-1 -> 2.0-1" in said
    shutil.rmtree(lab.checkout.folder / "out")
    said = lab.checkout.doit("build:one", status=1)
    assert "recipe.lock wants systemd-1.0-1-x86_64.pkg.tar.gz, which the mirror has no more" in said
    lab.checkout.doit("lock:one")
    lab.checkout.doit("build:one")


def test_what_cannot_be_right(lab: Lab, tmp_path: Path) -> None:
    def fails(text: str) -> None:
        said = lab.checkout.doit("build:one", status=1)
        assert text in said, said
        assert "Traceback" not in said
        assert not (lab.checkout.folder / "out/images/one").exists()

    home = lab.recipe("no-such, vim")
    fails("no package no-such")
    lab.recipe()
    other = pacmanlab.Key(tmp_path / "other")
    other.export(home / "keys.gpg")
    other.close()
    fails("is not signed by a key of keys.gpg")
    lab.recipe("", "services: {enable: [no-such.service]}\n")
    fails("cannot enable no-such.service")
    lab.recipe()
    name = "core/os/x86_64/base-1.0-1-x86_64.pkg.tar.gz"
    shutil.rmtree(lab.checkout.folder / "out")
    whole = lab.mirror.files[name]
    lab.mirror.files[name] = whole[:-1] + b"x"
    fails("is not what it should be: sha256")
    lab.mirror.files[name] = whole
    lab.mirror.files["core/os/x86_64/core.db"] = b"no index"
    (home / "recipe.lock").unlink()
    fails("core.db: can't be read")
    linux = lab.packages["linux"]
    lab.packages["linux"] = Package("6.12.1-1", files={"usr/lib/modules/x/none": ""})
    lab.serve()
    fails("the root has not one kernel: none")
    lab.packages["linux"] = linux


@pytest.mark.parametrize("over", ["http", "nbd"])
def test_it_boots(over: str, small: Checkout, tmp_path: Path) -> None:
    initramfs = archlab.made(tmp_path / "initramfs")
    tree = archlab.bootable(small, tmp_path / "vmlinuz", initramfs)
    packages = pacmanlab.packages(initramfs / "lib/modules" / tree.name, tmp_path / "vmlinuz", initramfs)
    lab = Lab(tmp_path, packages)
    try:
        boot = f"boot: {{memory: 1024, expect: [{{console: 'archiso: checked'}}, {{console: {archlab.MARKER}}}]}}\n"
        lab.recipe(head=boot, root=f"{{kind: squashfs, over: {over}}}")
        lab.checkout.doit("boot:one", "--firmware=bios-pxelinux")
    finally:
        lab.close()
