"""A root tree as one file: squashfs, tar, or a segment of the initrd; the same tree gives the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from buildlib import atomic, command, listing, relist
from buildlib.errors import BuildError
from buildlib.sandbox import Sandbox
from buildlib.squashfs import making, reading, renewal
from buildlib.squashfs.reading import Image
from buildlib.store import LISTING, describe
from buildlib.work import Work

NEWC_LIMIT = 2**32 - 1
"""Most bytes of a file in a newc archive: its size is 8 hex digits."""


_PART = "part.squashfs"
_LEFT_OUT = "boot/"
"""What a root doesn't need that has its kernel and initrd from elsewhere."""


def squashfs_part(work: Work) -> None:
    """A stage before `squashfs`: `part.squashfs` of some of the root's layers."""
    out = work.out / _PART
    work.progress(None, "squashfs")
    line = ["mksquashfs", str(work.mount), str(out.absolute()), *making.OPTIONS, "-wildcards", "-e", f"{_LEFT_OUT}*"]
    # SOURCE_DATE_EPOCH of the sandbox sets the file system's time and bounds that of files.
    with atomic.flushed(out):
        work.sandbox(change=False, chroot=False).run(line, log=work.log)
    out.chmod(0o644)


def squashfs(work: Work) -> None:
    """The stage `squashfs`: `rootfs.squashfs` of the root, without what only its own kernel's boot needs."""
    work.progress(None, "listing")
    lists = {name: path for name, folder in work.inputs.items() if (path := folder / LISTING).exists()}
    layers = [(describe(path).digest, path) for path in lists.values()]
    said = b"".join(relist.text(layers, work.cache / "listings")).decode(errors="surrogateescape")
    entries = {path: entry for path, entry in listing.read(said).items() if not path.startswith(_LEFT_OUT)}
    groups = listing.groups_of(said)
    work.progress(None, "squashfs")
    images = [reading.read(work.inputs[name] / _PART, partial(_unpacked, work)) for name, _ in work.options["parts"]]
    shares = renewal.shares(entries, groups, [image.files for image in images], _places(work, lists))
    if shares[-1]:
        images.append(_fresh(work, shares[-1]))
    out = work.out / "rootfs.squashfs"
    with atomic.flushed(out):
        renewal.write(out, list(zip(images, shares, strict=False)), entries, groups, work.epoch)
    out.chmod(0o644)


def _places(work: Work, lists: Mapping[str, Path]) -> dict[str, int]:
    """Paths of files that are not those of the first part, with the number of the one that has them; one more than
    there are says that none has."""
    parts = work.options["parts"]
    numbers = {stage: number for number, (_, stages) in enumerate(parts) for stage in stages}
    found: dict[str, int] = {}
    for name, path in lists.items():
        number = numbers.get(name, len(parts))
        if number:
            found |= {one: number for one, entry in listing.load(path).items() if entry.kind == "f"}
    return found


def _fresh(work: Work, paths: list[str]) -> Image:
    """A squashfs of these files of the root."""
    out, names = work.scratch / "fresh.squashfs", work.scratch / "fresh"
    names.write_bytes(b"".join(os.fsencode(path) + b"\0" for path in paths))
    arguments = {"tree": str(work.mount), "names": str(names.absolute()), "out": str(out.absolute())}
    work.sandbox(change=False, chroot=False).call(making.compress, arguments, log=work.log)
    return reading.read(out, partial(_unpacked, work))


def _unpacked(work: Work, data: bytes) -> bytes:
    packed, plain = work.scratch / "blocks.zst", work.scratch / "blocks"
    packed.write_bytes(data)
    command.run(["zstd", "-q", "-d", "-f", "-o", str(plain), str(packed)], log=work.log)
    return plain.read_bytes()


def initrd(work: Work) -> None:
    """The stage `initrd`: the initrd with `/rootfs.squashfs` appended as an uncompressed segment of its own."""
    image = work.inputs["squashfs"] / "rootfs.squashfs"
    if image.stat().st_size > NEWC_LIMIT:
        raise BuildError(
            f"the root has {image.stat().st_size:,} bytes as a squashfs; an initrd holds files below 4 GiB",
            hint="take `root: squashfs`",
        )
    folder = work.scratch / "segment"
    folder.mkdir()
    os.link(image, folder / "rootfs.squashfs")
    os.utime(folder / "rootfs.squashfs", (work.epoch, work.epoch))
    segment = work.scratch / "segment.cpio"
    line = ["cpio", "--create", "--format=newc", "--reproducible", "--owner=0:0", "--quiet"]
    command.run([*line, f"--file={segment.absolute()}"], cwd=folder, log=work.log, text="rootfs.squashfs\n")
    (own,) = (path for name, path in work.inputs.items() if name != "squashfs")
    shutil.copyfile(own / "initrd", work.out / "initrd")
    with (work.out / "initrd").open("ab") as target, segment.open("rb") as source:
        # The kernel takes an uncompressed archive only at a multiple of four bytes.
        target.write(b"\0" * (-target.tell() % 4))
        shutil.copyfileobj(source, target, 1 << 20)


def tar(layers: tuple[Path, ...], out: Path, *, epoch: int, scratch: Path, log: Path) -> None:
    """The merged tree of `layers` (lowest first) as a tar that keeps owners, modes, capabilities and ACLs."""
    sandbox = Sandbox(work=scratch, layers=layers, chroot=False)
    sandbox.run(
        [
            "tar",
            "--create",
            f"--file={out.absolute()}",
            f"--directory={sandbox.mount}",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=security.*",
            "--acls",
            "--sort=name",
            "--format=posix",
            "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
            f"--mtime=@{epoch}",
            "--clamp-mtime",
            ".",
        ],
        log=log,
    )
