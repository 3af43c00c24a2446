"""The stage `initramfs`: kernel and initrd, of the one package set that is in the root."""

from __future__ import annotations

import shutil
import subprocess
from glob import glob
from pathlib import Path
from typing import Any

from buildlib import rootfs
from buildlib.distros.debian import clean
from buildlib.errors import BuildError
from buildlib.sandbox import Bind
from buildlib.work import Work

GUEST = Path(__file__).with_name("guest")
"""What the client needs in its initrd and root; paths are the image's."""

SETTINGS = "/etc/initramfs-tools/conf.d/netboot"
MODULES = "/etc/initramfs-tools/modules"
OUT = "/run/netboot/out"
SOURCE = "/run/netboot/guest"


def run(work: Work) -> None:
    binds = (
        Bind(GUEST, SOURCE),
        Bind(work.out, OUT, writable=True),
    )
    work.progress(None, "initrd")
    work.facts["kernel"] = work.sandbox(binds=binds).call(make, dict(work.options), log=work.log)


def make(options: dict[str, Any]) -> str:
    """In the root: make the initrd, copy kernel and initrd to OUT; give the kernel's version."""
    base = f"{SOURCE}/usr/share/initramfs-tools"
    rootfs.copy_tree(base, "/usr/share/initramfs-tools")
    rootfs.write(SETTINGS, f"MODULES={options['modules']}\nCOMPRESS={options['compression']}\nRESUME=none\n")
    named = Path(MODULES).read_text() if Path(MODULES).exists() else ""
    rootfs.write(MODULES, named + "".join(f"{name}\n" for name in options["include"]))
    version = write(OUT)
    # Clients never load it from here; the kernel's package links to it all the same.
    for path in (*glob("/boot/initrd.img*"), *glob("/initrd.img*")):
        Path(path).unlink()
    clean.clean()
    return version


def write(folder: str) -> str:
    """In the root: kernel and initrd into a folder, as initramfs-tools is configured; give the kernel's version."""
    version = kernel_version()
    subprocess.run(["mkinitramfs", "-o", f"{folder}/initrd", version], check=True)
    shutil.copyfile(_kernel(version), f"{folder}/vmlinuz")
    return version


def kernel_version() -> str:
    """The root's one kernel. Newer packages keep it beside its modules and copy it to /boot; look in both."""
    found = {Path(path).name.removeprefix("vmlinuz-") for path in glob("/boot/vmlinuz-*")}
    found |= {Path(path).parent.name for path in glob("/usr/lib/modules/*/vmlinuz")}
    if not found:
        raise BuildError("no kernel in the root", hint="name its package in the recipe's `kernel:`")
    if len(found) > 1:
        raise BuildError(
            f"several kernels in the root: {', '.join(sorted(found))}",
            hint="which one shall boot? Let `kernel:` and `packages:` bring just one",
        )
    version = found.pop()
    if not Path(f"/usr/lib/modules/{version}/modules.dep").exists():
        raise BuildError(f"the root has kernel {version}, but not its modules")
    return version


def _kernel(version: str) -> str:
    places = (f"/boot/vmlinuz-{version}", f"/usr/lib/modules/{version}/vmlinuz")
    return next(path for path in places if Path(path).exists())
