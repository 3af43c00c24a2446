"""A root tree as one file: squashfs, tar, or a segment of the initrd; the same tree gives the same bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from buildlib import atomic, command
from buildlib.errors import BuildError
from buildlib.sandbox import Sandbox
from buildlib.work import Work

NEWC_LIMIT = 2**32 - 1
"""Most bytes of a file in a newc archive: its size is 8 hex digits."""


def squashfs(work: Work) -> None:
    """The stage `squashfs`: `rootfs.squashfs` of the root, without what only its own kernel's boot needs."""
    out = work.out / "rootfs.squashfs"
    work.progress(None, "squashfs")
    # SOURCE_DATE_EPOCH of the sandbox sets the file system's time and bounds that of files.
    with atomic.flushed(out):
        work.sandbox(change=False, chroot=False).run(
            [
                "mksquashfs",
                str(work.mount),
                str(out.absolute()),
                "-noappend",
                "-no-progress",
                "-comp",
                "zstd",
                # The default, 15, takes ten times as long for 6 % less (290 MB of Debian: 47 s, 86 MB; 5 s, 91 MB).
                "-Xcompression-level",
                "8",
                "-wildcards",
                "-e",
                "boot/*",
            ],
            log=work.log,
        )
    out.chmod(0o644)


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
