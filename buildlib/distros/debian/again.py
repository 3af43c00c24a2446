"""The stage `initramfs-final`: the initrd of a root with groups of packages.

`initramfs` has made one of what is below the groups. It is taken as it is, unless a group may have a part in it: then
mkinitramfs runs again, over the whole root. The outcome depends on the layers alone, never on what was built before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from buildlib import listing
from buildlib.distros.debian import initramfs, matters
from buildlib.distros.debian.packages import ASKED
from buildlib.sandbox import Bind
from buildlib.work import Work

BELOW = "/run/netboot/initrd"


def run(work: Work) -> None:
    groups = [path for name, path in work.inputs.items() if name.startswith("packages-")]
    below = [work.inputs[name] / "tree.list" for name in ("bootstrap", "packages", "initramfs")]
    paths, changed = _paths([group / "tree.list" for group in groups], below)
    made = work.inputs["initramfs"]
    arguments = {
        "asked": any((group / ASKED).exists() for group in groups),
        "paths": paths,
        "changed": changed,
    }
    binds = (Bind(made / "initrd", BELOW), Bind(work.out, initramfs.OUT, writable=True))
    work.progress(None, "initrd")
    work.facts.update(work.sandbox(change=False, binds=binds).call(make, arguments, log=work.log))
    if not (work.out / "initrd").exists():
        for name in ("initrd", "vmlinuz"):
            os.link(made / name, work.out / name)


def _paths(groups: Iterable[Path], below: Iterable[Path]) -> tuple[list[str], list[str]]:
    """What groups bring or remove, but for folders; and that part of it which was there before."""
    found = {path: None for group in groups for path, entry in listing.load(group).items() if entry.kind != "d"}
    known = {path for layer in below for path in listing.load(layer)}
    return list(found), [path for path in found if path in known]


def make(arguments: dict[str, Any]) -> dict[str, Any]:
    """In the root: make the initrd again if it could be another one now; give the kernel's version and the reasons."""
    reasons = ["a package has called update-initramfs"] if arguments["asked"] else []
    reasons += matters.reasons(BELOW, arguments["paths"], arguments["changed"])
    for reason in reasons:
        print(f"the initrd is made again: {reason}", flush=True)
    version = initramfs.write(initramfs.OUT) if reasons else initramfs.kernel_version()
    return {"kernel": version, "again": reasons[:3]}
