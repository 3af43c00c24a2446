"""The image that all tools build: Debian with a kernel, an initrd, one overlay file and one user's SSH key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from buildlib.distros.debian import archive
from buildlib.distros.debian.options import Options

SUITE = "bookworm"
ARCH = "amd64"
KERNEL = "linux-image-cloud-amd64"
ADDED, GROUPED = "less", "vim-tiny"
MODULE = "nbd"
_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{} admin@lab\n"


@dataclass(frozen=True)
class Image:
    """What the image is to be."""

    motd: str = "0\n"
    key: str = _KEY.format("0" * 43)
    cmdline: str = "console=ttyS0"
    packages: tuple[str, ...] = ("dbus", "iproute2", "openssh-server")
    modules: tuple[str, ...] = ()
    group: tuple[str, ...] = ()

    @property
    def all_packages(self) -> list[str]:
        """With those that a recipe need not name, for tools that must be told."""
        needed = ["init", "initramfs-tools", "busybox", "kmod", KERNEL, "zstd", "tzdata", "usr-is-merged"]
        return sorted({*needed, *self.packages, *self.group})

    def files(self, root: Path) -> None:
        """The overlay as a folder, the key's file in it: for tools without users."""
        for path, text in {"etc/motd": self.motd, "root/.ssh/authorized_keys": self.key}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)

    @property
    def initrd(self) -> str:
        """A script that makes the initrd in a root, as the recipe has it made."""
        added = "".join(f"echo {name} >> /etc/initramfs-tools/modules\n" for name in self.modules)
        return (
            "#!/bin/sh\nset -e\n"
            "echo MODULES=netboot > /etc/initramfs-tools/conf.d/netboot\n"
            f"{added}"
            "version=$(basename /usr/lib/modules/*)\n"
            "mkinitramfs -o /boot/initrd.img-$version $version\n"
        )


CHANGES: dict[str, Callable[[Image, int], Image]] = {
    "file": lambda image, number: replace(image, motd=f"{number}\n"),
    "key": lambda image, number: replace(image, key=_KEY.format(f"{number:043}")),
    "cmdline": lambda image, number: replace(image, cmdline=f"console=ttyS0 round={number}"),
    "module": lambda image, _number: replace(image, modules=(*image.modules, MODULE)),
    "package": lambda image, _number: replace(image, packages=(*image.packages, ADDED)),
    "group": lambda image, _number: replace(image, group=(*image.group, GROUPED)),
}
"""Each changes one thing; the number makes it new in each round."""


def sources() -> list[archive.Source]:
    """Where the packages come from: this machine's own mirrors."""
    options = Options(suite=SUITE)
    where = {
        "distribution": "debian",
        "suites": options.suites,
        "components": ["main"],
        "arch": ARCH,
        "mirror": None,
        "security_mirror": None,
        "snapshot": None,
    }
    return archive.sources(where, archive.build_mirrors(where, {}))


def keyring() -> Path:
    return Options(suite=SUITE).signed_by
