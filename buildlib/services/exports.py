"""exports(5): a drop-in for `/etc/exports.d`, for the kernel's NFS server."""

from __future__ import annotations

from pathlib import Path

from buildlib.services import Wiring, sayable

FILE = "netboot.exports"
TOOL = None

# no_root_squash: root of a client must read what only root may, such as /etc/shadow of a root tree.
# No blank before the parenthesis: it would give the options to the whole world.
_OPTIONS = "sync,no_root_squash,no_subtree_check"


def render(wiring: Wiring) -> str | None:
    """No `fsid`: a disk's file system has a UUID to tell it by. tmpfs, overlayfs and loop mounts need one."""
    if wiring.target.nfs is None or not wiring.exports:
        return None
    lines = [f"# Target {wiring.name}. Read by `exportfs -ra`."]
    for export in sorted(wiring.exports, key=lambda export: export.path):
        if export.pseudo != export.path:
            raise ValueError(f"exports: {export.path} cannot be mounted as {export.pseudo}: the kernel exports paths")
        access = "rw" if export.writable else "ro"
        lines.append(f"{_escaped(export.path)} {wiring.target.network}({access},{_OPTIONS})")
    return "\n".join([*lines, ""])


def check(path: Path) -> list[str] | None:
    return None


def _escaped(path: str) -> str:
    return "".join(f"\\{ord(sign):03o}" if sign in " \"\\#'" else sign for sign in sayable("exports", path))
