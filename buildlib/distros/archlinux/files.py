"""The files of an image, by their names on mirrors and ISOs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from buildlib import fetch
from buildlib.errors import BuildError

KERNEL = "arch/boot/x86_64/vmlinuz-linux"
INITRD = "arch/boot/x86_64/initramfs-linux.img"
ROOTS = ("arch/x86_64/airootfs.sfs", "arch/x86_64/airootfs.erofs")
CHECKSUM = "arch/x86_64/airootfs.sha512"
MICROCODE = ("arch/boot/intel-ucode.img", "arch/boot/amd-ucode.img")
"""Of releases before April 2024; they are unpacked before the initramfs."""

SUMS = "sha256sums.txt"

_ISO = re.compile(r"^([0-9a-f]{64})\s+\*?archlinux-(\d{4}\.\d{2}\.\d{2})-x86_64\.iso$", re.M)


def sides(root: str) -> tuple[str, str]:
    """What lies beside a root: its checksum, and its signature."""
    return CHECKSUM, f"{root}.cms.sig"


def base(mirror: str, release: str) -> str:
    """Where a release's files are."""
    return f"{mirror.rstrip('/')}/iso/{release}"


def newest(mirrors: Iterable[str]) -> str:
    """The newest release there is. Raises BuildError."""
    url, data = fetch.read([f"{base(mirror, 'latest')}/{SUMS}" for mirror in mirrors])
    found = _ISO.findall(data.decode(errors="replace"))
    if not found:
        raise BuildError(f"{url}: names no ISO of a release", hint="name another mirror")
    return max(str(release) for _, release in found)


def checksum(text: str, root: str, where: str) -> str:
    """The digest of a root in its checksum file."""
    found = re.search(rf"^([0-9a-f]{{128}})\s+\*?{re.escape(root.rpartition('/')[2])}$", text, re.M)
    if found is None:
        raise BuildError(f"{where}: has no checksum of {root.rpartition('/')[2]}", hint="the image is not whole")
    return found[1]


def names(files: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """The root among an image's files, and its microcode."""
    there = set(files)
    root: str = next((name for name in ROOTS if name in there), ROOTS[0])
    return root, tuple(name for name in MICROCODE if name in there)


def published(name: str) -> str:
    """What a file is called in a release of ours."""
    return {KERNEL: "vmlinuz", INITRD: "initrd"}.get(name, name)


def downloads(cache: Path, digest: str) -> Path:
    """Where a download of that digest is kept."""
    return cache / "downloads" / digest
