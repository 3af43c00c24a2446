"""Boots that fail, each with one fault planted between publication and power-on: is it explained?"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from buildlib import boot
from buildlib.house import House
from buildlib.recipe import Boot
from buildlib.release import latest
from tests.checkout import Checkout

pytestmark = pytest.mark.integration

Spec = dict[str, Any]
Plant = Callable[["Planted"], None]


@dataclass(frozen=True)
class Planted:
    """A boot that is prepared, to be spoilt."""

    folder: Path
    recipe: str
    spec: Spec
    tree: Path

    @property
    def root(self) -> Path:
        """What TFTP and HTTP serve."""
        return self.folder / "boot"

    @property
    def release(self) -> Path:
        return next((self.root / "images" / self.recipe).iterdir())

    def entry(self, change: Callable[[str], str]) -> None:
        """Rewrite the entry for every boot loader."""
        for path in (self.root / "entries" / self.recipe).glob("*"):
            if path.is_file() and path.name != "live.json":
                replace(path, change(path.read_text()).encode())

    def add(self, files: Mapping[str, bytes], mode: int = 0o100755) -> None:
        """Append a segment to the initrd: its files replace those that are there."""
        initrd = self.release / "initrd"
        old = initrd.read_bytes()
        replace(initrd, old + bytes(-len(old) % 4) + segment(files, mode))

    def modules(self, name: str) -> list[str]:
        """Paths of a kernel module, which the initrd has where the root has it."""
        found = self.tree.glob(f"usr/lib/modules/*/kernel/**/{name}.ko*")
        return [str(path.relative_to(self.tree)) for path in found]


def replace(path: Path, data: bytes) -> None:
    """A new file: the old one may be a hard link of what the store has."""
    path.unlink()
    path.write_bytes(data)


def segment(files: Mapping[str, bytes], mode: int) -> bytes:
    """A cpio archive as the kernel reads it."""
    out = b""
    for number, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + path
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return out


def elf(machine: int) -> bytes:
    """A program of an architecture, as far as a kernel looks before it refuses another one's."""
    return struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, machine, 1, 0x400000, 64, 0, 0, 64, 56, 1, 64, 0, 0)


def lacks(*paths: str) -> Plant:
    """Files of the boot root are gone; `*/` at the beginning stands for the release's folder."""

    def plant(boot: Planted) -> None:
        for path in paths:
            (boot.release / path[2:] if path.startswith("*/") else boot.root / path).unlink()

    return plant


def without(server: str) -> Plant:
    """A server is down."""
    return lambda boot: boot.spec["configs"].pop(server)


def configured(server: str, pattern: str, text: str) -> Plant:
    """A server's configuration says something else."""

    def plant(boot: Planted) -> None:
        configs = boot.spec["configs"]
        configs[server], found = re.subn(pattern, text, configs[server])
        assert found, configs[server]

    return plant


def wrong_root(boot: Planted) -> None:
    boot.entry(lambda text: re.sub(r"(nfsroot=[^ ,]+)", r"\1-gone", text))


def no_module(name: str) -> Plant:
    def plant(boot: Planted) -> None:
        paths = boot.modules(name)
        assert paths, name
        boot.add(dict.fromkeys(paths, b""), 0o100644)

    return plant


def cut_initrd(boot: Planted) -> None:
    path = boot.release / "initrd"
    data = path.read_bytes()
    replace(path, data[: len(data) * 2 // 3])


def foreign_init(boot: Planted) -> None:
    boot.add({"init": elf(183)})


def foreign_kernel(boot: Planted) -> None:
    header = bytearray(4096)
    header[0x38:0x3C] = b"ARM\x64"
    replace(boot.release / "vmlinuz", bytes(header) * 512)


def empty_root(boot: Planted) -> None:
    """Another export's folder, which has what a root is mounted over but nothing to run."""
    root = boot.folder / "persist" / "empty"
    for name in ("dev", "proc", "sys", "run", "etc"):
        (root / name).mkdir(parents=True)
    boot.entry(lambda text: re.sub(r"(nfsroot=[0-9.]+:)[^ ,]+", rf"\1{root.absolute()}", text))


def little_memory(boot: Planted) -> None:
    boot.spec["memory"] = 256


def never(boot: Planted) -> None:
    boot.spec["expect"] = [{"console": "a line that never comes"}]


@dataclass(frozen=True)
class Fault:
    """step, cause -- words that the explanation must have; tests/golden/consoles/NAME.txt is a record of it."""

    name: str
    recipe: str
    firmware: str
    plant: Plant
    step: str
    cause: tuple[str, ...]
    timeout: int = 60
    nightly: bool = True
    network: str = "bridge"

    def check(self, step: str, cause: str) -> None:
        """Is that the explanation?"""
        assert self.step in step
        assert [word for word in self.cause if word not in cause] == [], cause


V, S, R = "small-volatile", "small-squashfs", "small-ram"
PXE, IPXE, GRUB = "bios-pxelinux", "bios-ipxe", "uefi-grub"

NOT_THE_TREES = configured("ganesha", r'"[^"]*/nfs"', '"/usr"')
OTHER_CLIENTS = configured("ganesha", r"Clients = .*;", "Clients = 10.99.0.0/24;")

FAULTS = (
    # Quick and telling.
    Fault("no-first-stage", V, PXE, lacks("lpxelinux.0"), "DHCP", ("TFTP", "lpxelinux.0"), nightly=False),
    Fault("no-ldlinux", V, PXE, lacks("ldlinux.c32"), "PXELINUX", ("ldlinux.c32",), nightly=False),
    Fault("no-kernel-ipxe", V, IPXE, lacks("*/vmlinuz"), "boot loader", ("HTTP", "/vmlinuz"), nightly=False),
    Fault("cut-initrd", V, IPXE, cut_initrd, "kernel", ("initrd", "whole", "truncated"), nightly=False),
    Fault("wrong-nfsroot", V, IPXE, wrong_root, "network", ("NFS", "-gone", "not there"), nightly=False),
    # Firmware.
    Fault("no-dhcp", V, PXE, without("dnsmasq"), "firmware", ("DHCP",)),
    Fault("no-dhcp-uefi", V, GRUB, without("dnsmasq"), "firmware", ("DHCP",)),
    Fault("no-first-stage-user", V, PXE, lacks("lpxelinux.0"), "DHCP", ("TFTP", "lpxelinux.0"), network="user"),
    Fault("no-first-stage-uefi", V, GRUB, lacks("grubx64.efi"), "DHCP", ("TFTP", "grubx64.efi")),
    Fault("no-script-ipxe", V, IPXE, lacks("boot.ipxe"), "DHCP", ("HTTP", "/boot.ipxe")),
    Fault("no-http-ipxe", V, IPXE, without("nginx"), "DHCP", ("HTTP", "10.77.0.1", "/boot.ipxe")),
    # Boot loaders.
    Fault("no-menu-grub", V, GRUB, lacks("grub/grub.cfg"), "GRUB", ("grub/grub.cfg",)),
    Fault("no-http-pxelinux", V, PXE, without("nginx"), "boot loader", ("HTTP", "10.77.0.1", "/vmlinuz")),
    Fault("no-http-grub", V, GRUB, without("nginx"), "boot loader", ("HTTP", "10.77.0.1", "refused")),
    Fault("no-kernel-pxelinux", V, PXE, lacks("*/vmlinuz"), "boot loader", ("/vmlinuz", "No such file")),
    Fault("no-kernel-grub", V, GRUB, lacks("*/vmlinuz"), "boot loader", ("HTTP", "/vmlinuz", "404")),
    Fault("foreign-kernel", V, IPXE, foreign_kernel, "boot loader", ("/vmlinuz", "architecture")),
    Fault("foreign-kernel-pxelinux", V, PXE, foreign_kernel, "boot loader", ("kernel", "architecture")),
    Fault("foreign-kernel-grub", V, GRUB, foreign_kernel, "boot loader", ("kernel", "architecture")),
    # Kernel and initrd.
    Fault("foreign-init", V, IPXE, foreign_init, "kernel", ("/init", "architecture", "-8")),
    Fault("little-memory", R, IPXE, little_memory, "kernel", ("memory",)),
    Fault("no-driver", V, IPXE, no_module("virtio_net"), "initrd", ("network card", "driver")),
    Fault("not-exported", V, IPXE, NOT_THE_TREES, "network", ("NFS", "small-volatile", "exports")),
    Fault("refused", V, IPXE, OTHER_CLIENTS, "network", ("NFS", "refused", "10.77.0.", "/nfs")),
    Fault("no-nfs", V, IPXE, without("ganesha"), "network", ("NFS", "10.77.0.1", "small-volatile")),
    Fault("no-squashfs", S, IPXE, lacks("*/rootfs.squashfs"), "network", ("HTTP", "/rootfs.squashfs", "404")),
    Fault("no-overlay", V, IPXE, no_module("overlay"), "NFS", ("module overlay",)),
    # Root.
    Fault("empty-root", V, IPXE, empty_root, "NFS", ("init", "/persist/empty")),
    Fault("never", V, IPXE, never, "login", ("a line that never comes",), 90),
)


def spoilt(small: Checkout, fault: Fault) -> tuple[dict[str, Any], boot.Bench]:
    """Boot with the fault."""
    house = House(small.folder)
    release = latest(house.images, fault.recipe)
    loaders = house.loaders_key()
    assert release is not None
    assert loaders is not None
    keys = house.keys(fault.recipe)
    trees = (house.store.path(keys[stage.name].key, "tree") for stage in house.plan(fault.recipe).root)
    bench = boot.Bench(
        house.out / "boot" / f"fault-{fault.name}",
        house.out / "srv",
        house.store.path(loaders.key),
        house.out / "state" / "kvm.json",
    )
    spec = boot.prepare(
        release,
        tuple(path for path in trees if path.exists()),
        bench,
        Boot(timeout=fault.timeout),
        firmware=fault.firmware,
        network=fault.network,
    )
    fault.plant(Planted(bench.folder, fault.recipe, spec, bench.srv / "nfs" / release.name / release.id))
    return boot.prove(spec, bench, lambda _line: None), bench


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.name, marks=[pytest.mark.nightly] if f.nightly else []) for f in FAULTS],
)
def test_fault_is_explained(small: Checkout, fault: Fault) -> None:
    small.doit("bootloaders")
    small.doit(f"build:{fault.recipe}")
    said, bench = spoilt(small, fault)
    try:
        assert not said["ok"]
        fault.check(said["step"], said["cause"])
        assert said["hint"]
        assert said["evidence"]
    finally:
        boot.clear(bench)
