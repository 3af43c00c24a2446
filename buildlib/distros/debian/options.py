"""What a recipe's `debian:` section may say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from buildlib.recipe import Common, RootKind
from buildlib.schema import Doc, File, Text

DEBIAN = {"bullseye": True, "bookworm": True, "trixie": True, "forky": False, "sid": False}
UBUNTU = {"jammy": True, "noble": True, "resolute": True}
"""Suites, and whether they have companions for updates and security."""

GROUPS = 8
"""Most groups of packages: each is a layer, and what overlayfs is told of all layers must fit into a page."""


def _suite(text: str) -> str:
    if text in ("stable", "testing", "oldstable", "unstable"):
        raise ValueError(f"{text} is another suite every few years; name it by its code name, like bookworm")
    if text not in DEBIAN and text not in UBUNTU:
        raise ValueError(f"unknown suite {text!r}; known: {', '.join([*DEBIAN, *UBUNTU])}")
    return text


Package = Annotated[str, Text(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?([=/]\S+)?", what="a package", example="vim-tiny")]
Group = Annotated[str, Text(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", what="a group's name", example="tools")]
Url = Annotated[str, Text(r"https?://\S+", what="a URL", example="http://apt.lab/debian")]


@dataclass(frozen=True)
class Initramfs:
    """What the initrd holds."""

    modules: Annotated[
        Literal["most", "netboot"], Doc("netboot: network drivers only, smaller; most: disks and others too.")
    ] = "netboot"
    include: Annotated[
        tuple[Annotated[str, Text(r"[A-Za-z0-9_-]+", what="a kernel module", example="mlx5_core")], ...],
        Doc("Kernel modules beside those, loaded at boot."),
    ] = ()
    compression: Annotated[Literal["zstd", "xz", "lz4", "gzip", "lzma", "bzip2"], Doc("How it is compressed.")] = "zstd"


@dataclass(frozen=True)
class Options:
    """What only Debian and Ubuntu understand."""

    suite: Annotated[
        str,
        Text(what="a suite", example="bookworm", normal=_suite),
        Doc(f"Code name: {', '.join([*DEBIAN, *UBUNTU])}. Updates and security come with it."),
    ]
    engine: Annotated[
        Literal["mmdebstrap", "debootstrap"],
        Doc("mmdebstrap: needs no root; debootstrap: needs root. The same recipe gives the same packages."),
    ] = "mmdebstrap"
    variant: Annotated[
        Literal["minbase", "important"], Doc("minbase: required packages and apt; important: a usual small system.")
    ] = "minbase"
    mirror: Annotated[
        Url | None,
        Doc(
            "Where packages come from, for the build and in the image. Without: the build asks the site file, then "
            "this machine's own apt; the image gets the distribution's public mirror."
        ),
    ] = None
    security_mirror: Annotated[Url | None, Doc("The security archive that goes with `mirror`.")] = None
    snapshot: Annotated[
        Annotated[str, Text(r"\d{8}T\d{6}Z", what="a time", example="20261101T000000Z")] | None,
        Doc("The archive as it was at that time; with `mirror`, that is where the times' folders lie."),
    ] = None
    components: Annotated[
        tuple[Annotated[str, Text(r"[a-z-]+", what="a component", example="non-free-firmware")], ...],
        Doc("Parts of the archive. Firmware is in non-free-firmware."),
    ] = ("main",)
    keyring: Annotated[
        Annotated[Path, File()] | None,
        Doc("Keys that sign the archive, for a mirror of your own; the distribution's own without. Always verified."),
    ] = None
    packages: Annotated[
        tuple[Package, ...], Doc("Packages beside the kernel, init and what the root's kind needs.")
    ] = ()
    package_groups: Annotated[
        Mapping[Group, tuple[Package, ...]],
        Doc("More packages, by the name of their group: each a layer on top of the one before, in this order."),
    ] = field(default_factory=dict)
    recommends: Annotated[bool, Doc("Whether recommended packages come too.")] = False
    kernel: Annotated[
        Package | None,
        Doc("Its package; linux-image-amd64 and the like without. Cloud kernels lack real machines' network drivers."),
    ] = None
    initramfs: Annotated[Initramfs, Doc("What the initrd holds.")] = Initramfs()

    @property
    def distribution(self) -> str:
        return "debian" if self.suite in DEBIAN else "ubuntu"

    @property
    def signed_by(self) -> Path:
        """The keys that sign the archive, whether or not the file is there; its ending changed from .gpg to .pgp in
        2025."""
        base = Path(f"/usr/share/keyrings/{self.distribution}-archive-keyring")
        new = base.with_suffix(".pgp")
        return self.keyring or (new if new.exists() else base.with_suffix(".gpg"))

    @property
    def suites(self) -> list[str]:
        """The suite and its companions."""
        if {**DEBIAN, **UBUNTU}[self.suite]:
            return [self.suite, f"{self.suite}-updates", f"{self.suite}-security"]
        return [self.suite]

    def kernel_package(self, arch: str) -> str:
        return self.kernel or (f"linux-image-{arch}" if self.distribution == "debian" else "linux-image-generic")


def validate(common: Common, options: Options) -> Iterator[tuple[str, str]]:
    """All that can be known wrong before a build."""
    if "main" not in options.components:
        yield "debian.components", "`main` is missing: nothing installs without it"
    for where, package in _named(options):
        if package == "dracut":
            yield where, "dracut would replace initramfs-tools, which makes the initrd here"
    yield from _groups(options)
    if options.security_mirror and not options.mirror:
        yield "debian.security-mirror", "goes with `mirror`, which is missing"
    if common.root.over == "nbd":
        yield "root.over", "live-boot knows no network block devices; take `http` or `nfs`"
    if common.root.kind is RootKind.SQUASHFS and options.suite in UBUNTU:
        yield "root", "Ubuntu has no live-boot; take `root: nfs` or `root: ram`"


def _groups(options: Options) -> Iterator[tuple[str, str]]:
    if len(options.package_groups) > GROUPS:
        yield "debian.package-groups", f"{len(options.package_groups)} groups; a root can have {GROUPS}"
    for group, packages in options.package_groups.items():
        if not packages:
            yield f"debian.package-groups.{group}", "has no packages: name some, or leave the group out"
    first: dict[str, str] = {}
    for where, package in _named(options):
        name = re.split("[=/]", package)[0]
        other = first.setdefault(name, where).rpartition(".")[0]
        if other != where.rpartition(".")[0]:
            yield where, f"{name} is in {other.removeprefix('debian.')} already; a package belongs to one group"


def _named(options: Options) -> Iterator[tuple[str, str]]:
    """All packages that the recipe names, each with its place in the file."""
    yield from ((f"debian.packages.{number}", package) for number, package in enumerate(options.packages))
    for group, packages in options.package_groups.items():
        yield from ((f"debian.package-groups.{group}.{number}", package) for number, package in enumerate(packages))
