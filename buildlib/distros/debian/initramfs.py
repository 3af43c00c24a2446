"""The stage `initramfs`: kernel and initrd, of the one package set that is in the root.

An initrd of an earlier build is taken where nothing that differs between the roots may have a part in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from glob import glob
from pathlib import Path
from typing import Any

from buildlib import rootfs
from buildlib.distros.debian import clean, matters
from buildlib.distros.debian.kept import Initrds
from buildlib.errors import BuildError
from buildlib.sandbox import Bind
from buildlib.work import Work

GUEST = Path(__file__).with_name("guest")
"""What the client needs in its initrd and root; paths are the image's."""

SETTINGS = "/etc/initramfs-tools/conf.d/netboot"
MODULES = "/etc/initramfs-tools/modules"
OUT = "/run/netboot/out"
SOURCE = "/run/netboot/guest"
BEFORE = "/run/netboot/before"


def run(work: Work) -> None:
    initrds = Initrds.of(work)
    before = initrds.nearest()
    binds = [Bind(GUEST, SOURCE), Bind(work.out, OUT, writable=True)]
    if before:
        binds.append(Bind(before.initrd, BEFORE))
    arguments = {"options": dict(work.options), "before": before and before[1:]}
    work.progress(None, "initrd")
    work.facts["kernel"] = work.sandbox(binds=tuple(binds)).call(make, arguments, log=work.log)
    if before and not (work.out / "initrd").exists():
        os.link(before.initrd, work.out / "initrd")
    initrds.keep(work.out / "initrd")


def make(arguments: dict[str, Any]) -> str:
    """In the root: copy the kernel to OUT, and make the initrd there unless the one of before will do.

    before -- paths that are others than in the root of the one before, and those of them which were there; None
              without one
    Gives the kernel's version.
    """
    options = arguments["options"]
    base = f"{SOURCE}/usr/share/initramfs-tools"
    rootfs.copy_tree(base, "/usr/share/initramfs-tools")
    rootfs.write(SETTINGS, f"MODULES={options['modules']}\nCOMPRESS={options['compression']}\nRESUME=none\n")
    named = Path(MODULES).read_text() if Path(MODULES).exists() else ""
    rootfs.write(MODULES, named + "".join(f"{name}\n" for name in options["include"]))
    before = arguments["before"]
    why = matters.reasons(BEFORE, *before) if before else ["it is the first one"]
    for reason in why:
        print(f"the initrd is made: {reason}", flush=True)
    if not why:
        print("the initrd is that of an earlier build: nothing that has changed has a part in it", flush=True)
    version = write(OUT) if why else copy_kernel(OUT)
    # Clients never load it from here; the kernel's package links to it all the same.
    for path in (*glob("/boot/initrd.img*"), *glob("/initrd.img*")):
        Path(path).unlink()
    clean.clean()
    return version


def write(folder: str) -> str:
    """In the root: kernel and initrd into a folder, as initramfs-tools is configured; give the kernel's version."""
    version = copy_kernel(folder)
    subprocess.run(["mkinitramfs", "-o", f"{folder}/initrd", version], check=True)
    return version


def copy_kernel(folder: str) -> str:
    """In the root: the kernel into a folder; give its version."""
    version = kernel_version()
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
