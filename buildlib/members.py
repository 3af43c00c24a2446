"""Files that are packed into a gzipped tar: root's own, and the same bytes for the same files."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from buildlib.errors import BuildError


@dataclass(frozen=True)
class Member:
    """What is at a path. kind -- f, d or l; data -- of a link, where it points."""

    kind: str
    data: bytes = b""
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)


Members = dict[str, Member]
"""By path, without a slash before it."""


def of_folder(folder: Path) -> Members:
    """Files of an overlay: root's own; of modes, whether they may be run is kept."""
    found: Members = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = Member("l", str(path.readlink()).encode())
        elif path.is_dir():
            found[name] = Member("d", mode=0o755)
        elif path.is_file():
            found[name] = Member("f", path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644)
        else:
            raise BuildError(f"{path}: is neither file, folder nor link", hint="take it out of the overlay")
    return found


def packed(members: Members, epoch: int) -> bytes:
    """A gzipped tar, the same for the same members: sorted, each folder before what is in it."""
    whole = dict(members)
    for name in members:
        for folder in _above(name):
            whole.setdefault(folder, Member("d", mode=0o755))
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(whole, key=lambda name: name.split("/")):
            member = whole[name]
            info = tarfile.TarInfo(name)
            info.mtime = epoch
            info.uid, info.gid = member.owner
            info.mode = member.mode
            if member.kind == "l":
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, member.data.decode(), 0o777
                archive.addfile(info)
            elif member.kind == "d":
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(member.data)
                archive.addfile(info, io.BytesIO(member.data))
    return gzip.compress(raw.getvalue(), 9, mtime=0)


def _above(name: str) -> Iterable[str]:
    parts = name.split("/")[:-1]
    return ("/".join(parts[: number + 1]) for number in range(len(parts)))
