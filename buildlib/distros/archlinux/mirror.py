"""An official release on mirrors: found out once, then pinned by the recipe's lock."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from buildlib import fetch
from buildlib.distros.archlinux import files
from buildlib.distros.archlinux.options import LATEST, Options
from buildlib.errors import BuildError
from buildlib.plan import Json


def look(options: Options, cache: Path) -> dict[str, Json]:
    """What the lock says of a release: `{"release": ..., "files": {NAME: {"algorithm", "digest", "size"}}}`.

    The root's digest is the release's own word. Of kernel and initramfs it has none that can be checked without Arch's
    own iPXE: they are pinned as they are now, over TLS where the mirror has it.
    """
    assert options.release is not None
    release = files.newest(options.mirrors) if options.release == LATEST else options.release
    bases = [files.base(mirror, release) for mirror in options.mirrors]
    found: dict[str, Json] = {}
    for name in (files.KERNEL, files.INITRD):
        found[name] = _kept(bases, name, cache, options, release)
    for name in files.MICROCODE:
        try:
            found[name] = _kept(bases, name, cache, options, release)
        except BuildError:
            # Since April 2024 it is in the initramfs.
            continue
    where, data = fetch.read([f"{base}/{files.CHECKSUM}" for base in bases])
    text = data.decode(errors="replace")
    root = next((name for name in files.ROOTS if name.rpartition("/")[2] in text), files.ROOTS[0])
    found[root] = {"algorithm": "sha512", "digest": files.checksum(text, root, where), "size": None}
    for name in files.sides(root):
        try:
            found[name] = _kept(bases, name, cache, options, release)
        except BuildError:
            continue
    return {"release": release, "files": found}


def _kept(bases: list[str], name: str, cache: Path, options: Options, release: str) -> dict[str, Json]:
    """Fetch a small file whose digest nobody says, keep it, and describe it."""
    try:
        _, data = fetch.read([f"{base}/{name}" for base in bases], limit=1 << 30)
    except BuildError as error:
        if name != files.KERNEL or options.release == LATEST:
            raise
        there = files.newest(options.mirrors)
        raise BuildError(
            f"release {release} is gone from the mirrors: {error.message}",
            hint=f"the newest is {there}: say `release: {there}` or `latest`",
        ) from None
    digest = hashlib.sha256(data).hexdigest()
    path = files.downloads(cache, digest)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{digest}.new")
        part.write_bytes(data)
        part.rename(path)
    return {"algorithm": "sha256", "digest": digest, "size": len(data)}


def kept_iso(url: str, cache: Path) -> tuple[Path, dict[str, Json]]:
    """An ISO, fetched and kept, and what a lock says of it: `{"sha256", "size"}`. Raises BuildError."""
    name = hashlib.sha256(url.encode()).hexdigest()
    part = files.downloads(cache, f"{name}.new")
    fetch.get(fetch.Job((url,), part, None))
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path = files.downloads(cache, digest)
    part.replace(path)
    return path, {"sha256": digest, "size": path.stat().st_size}


def locked_iso(url: str, said: Mapping[str, Json], cache: Path, tell: fetch.Tell) -> Path:
    """An ISO as it was locked. Raises BuildError."""
    path = files.downloads(cache, said["sha256"])
    try:
        return fetch.get(fetch.Job((url,), path, fetch.Digest("sha256", said["sha256"]), said["size"]), tell)
    except BuildError as error:
        hint = "./doit lock:NAME takes what is there now"
        raise BuildError(f"the ISO is not what recipe.lock says: {error.message}", hint=hint) from None


def have(
    release: str, wanted: Mapping[str, Mapping[str, Json]], mirrors: list[str], cache: Path, tell: fetch.Tell
) -> dict[str, Path]:
    """All files of a locked release, verified; those that are here already are not fetched. Raises BuildError."""
    found = {}
    for name, said in wanted.items():
        path = files.downloads(cache, said["digest"])
        urls = tuple(f"{files.base(mirror, release)}/{name}" for mirror in mirrors)
        try:
            fetch.get(fetch.Job(urls, path, fetch.Digest(said["algorithm"], said["digest"]), said["size"]), tell)
        except BuildError as error:
            raise BuildError(
                f"recipe.lock says release {release}, but its {name} can't be had:\n{error.message}",
                hint=_newer(mirrors),
            ) from None
        found[name] = path
    return found


def _newer(mirrors: list[str]) -> str:
    """What to do when a locked release is gone: what there is now."""
    try:
        return f"the newest release is {files.newest(mirrors)}: ./doit lock:NAME takes it"
    except BuildError:
        return "name another mirror"
