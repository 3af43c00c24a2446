"""Tiny real releases for tests of the way to the kernel: a distribution's kernel, and an initrd that says a word."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from buildlib.release import CHECKSUMS, MANIFEST, Release
from buildlib.store import describe
from tests.checkout import SHARED

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
/bin/busybox echo "MARKER $(/bin/busybox cat /word) cmdline: $(/bin/busybox cat /proc/cmdline)"
/bin/busybox sleep 1000
"""


def make(folder: Path, name: str, arch: str, word: str, cmdline: str = "", *, padding: int = 0) -> Release:
    """A release in `folder` that shows `MARKER word` and its kernel command line on the console.

    padding -- MB that the initrd is larger than it need be
    """
    parts = _parts(arch)
    out = folder / name / f"20260101T000000Z-{word:0>12}"
    out.mkdir(parents=True)
    shutil.copy(parts / "vmlinuz", out / "vmlinuz")
    root = folder / f".initrd-{name}-{word}"
    (root / "bin").mkdir(parents=True)
    (root / "dev").mkdir()
    shutil.copy(parts / "busybox", root / "bin/busybox")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    (root / "word").write_text(word)
    if padding:
        (root / "padding").write_bytes(os.urandom(padding * 1_000_000))
    files = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
    with (out / "initrd").open("wb") as initrd:
        line = ["cpio", "--create", "--format=newc", "--quiet", "--owner=0:0"]
        subprocess.run(line, cwd=root, input=files.encode(), stdout=initrd, check=True)
    shutil.rmtree(root)
    artifacts = {
        file: {"sha256": describe(out / file).digest, "size": describe(out / file).size}
        for file in ("vmlinuz", "initrd")
    }
    content = {
        "name": name,
        "arch": arch,
        "description": "a marker",
        "clients": "volatile",
        "root": {"kind": "ram", "layers": []},
        "cmdline": cmdline or ("console=ttyAMA0" if arch == "arm64" else "console=ttyS0"),
        "artifacts": artifacts,
    }
    (out / MANIFEST).write_text(json.dumps({"id": out.name, "content": content}))
    (out / CHECKSUMS).write_text(f"{describe(out / MANIFEST).digest}  {MANIFEST}\n")
    return Release(name, out.name, out)


def _parts(arch: str) -> Path:
    """Kernel and static busybox of Debian, unpacked without running anything of that architecture; kept for later."""
    folder = SHARED / "out" / "markers" / arch
    if (folder / "busybox").exists():
        return folder
    work = folder.with_name(f".{arch}.{os.getpid()}")
    work.mkdir(parents=True)
    packages = f"busybox-static,linux-image-cloud-{arch}"
    line = ["mmdebstrap", "--variant=extract", f"--architectures={arch}", f"--include={packages}", "--quiet"]
    # Nothing of it is run, so no emulator is needed, nor asked for.
    subprocess.run([*line, "--skip=check/qemu", "bookworm", str(work / "root")], check=True)
    kernel = next((work / "root/boot").glob("vmlinuz-*"))
    shutil.copy(kernel, work / "vmlinuz")
    shutil.copy(work / "root/bin/busybox", work / "busybox")
    shutil.rmtree(work / "root")
    if folder.exists():
        shutil.rmtree(work)
    else:
        work.rename(folder)
    return folder
