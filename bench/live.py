"""live-build at the same image: a tar of the root, its bootstrap and its downloads cached."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from bench.image import ARCH, KERNEL, SUITE, Image, sources
from bench.measure import Cost
from bench.rivals import Peer, asked


class LiveBuild(Peer):
    """`lb clean && lb config && lb build` after each change, as its manual says: it sees none by itself."""

    name = "live-build"
    same: ClassVar = dict.fromkeys(("key", "cmdline", "module", "package", "group"), "file")
    slow = True

    def version(self) -> str:
        return asked("live-build", "lb", "--version")

    def write(self, image: Image) -> None:
        self.remove("config", "auto")
        archive, *_, security = sources()
        mirrors = {"--mirror-bootstrap": archive.uri, "--parent-mirror-bootstrap": archive.uri}
        for part in ("chroot", "binary"):
            for kind in ("mirror", "parent-mirror"):
                mirrors |= {f"--{kind}-{part}": archive.uri, f"--{kind}-{part}-security": security.uri}
        words = {
            **mirrors,
            "--mode": "debian",
            "--distribution": SUITE,
            "--architecture": ARCH,
            "--archive-areas": "main",
            "--apt-recommends": "false",
            "--apt-indices": "false",
            "--binary-images": "tar",
            "--bootloaders": "",
            "--bootappend-live": image.cmdline,
            "--chroot-filesystem": "none",
            "--checksums": "none",
            "--compression": "gzip",
            "--debian-installer": "none",
            "--debootstrap-options": "--variant=minbase",
            "--firmware-binary": "false",
            "--firmware-chroot": "false",
            "--initramfs": "none",
            "--linux-flavours": KERNEL.removeprefix("linux-image-"),
            "--linux-packages": "linux-image",
            "--memtest": "none",
            "--system": "normal",
            "--win32-loader": "false",
            "--zsync": "false",
        }
        line = [word for pair in words.items() for word in pair]
        # `lb clean` forgets that there was a configuration; `lb config` takes this one again.
        script = self.folder / "auto/config"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec lb config noauto {shlex.join(line)} "$@"\n')
        script.chmod(0o755)
        subprocess.run(["lb", "config"], cwd=self.folder, check=True, capture_output=True)
        lists = self.folder / "config/package-lists"
        lists.mkdir(parents=True, exist_ok=True)
        packages = [name for name in image.all_packages if name not in (KERNEL, "usr-is-merged")]
        (lists / "image.list.chroot").write_text("\n".join([*packages, ""]))
        image.files(self.folder / "config/includes.chroot")

    def forget(self) -> None:
        self.drop()
        self.remove("cache")

    def drop(self) -> None:
        subprocess.run(["lb", "clean"], cwd=self.folder, check=True, capture_output=True)
        self.remove("cache/bootstrap")

    def build(self, row: str) -> Cost:
        return self.run("sh", "-c", "lb build" if row == "nothing" else "lb clean && lb config && lb build")

    def outcome(self) -> Sequence[Path]:
        return sorted(self.folder.glob("*.tar*"))
