"""Releases on their way to real machines, and a client that boots what it finds there: parts for tests."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import multiprocessing.process
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from buildlib import back, listing, loaders, pruning, push, tree
from buildlib import reach as reaching
from buildlib.release import CHECKSUMS, LISTING, MANIFEST, PACKAGES, Release, digest_of
from buildlib.site import Host, Http, Nfs, Target
from buildlib.store import describe
from tests.sshlab import Box

NFS = "boot=nfs nfsroot=${nfs_server}:${nfs_root} quiet"


@dataclass(frozen=True)
class Made:
    """A release with the layers of its root."""

    release: Release
    layers: tuple[Path, ...]

    @property
    def name(self) -> str:
        return self.release.name

    @property
    def id(self) -> str:
        return self.release.id


def make(
    folder: Path,
    name: str,
    number: int,
    *,
    size: int = 200_000,
    files: int = 30,
    cmdline: str = NFS,
    layers: tuple[Path, ...] = (),
    **content: Any,
) -> Made:
    """A release that differs from those of other numbers in each of its files, and in some of its root's.

    size  -- bytes of its kernel and its initrd each
    files -- in each of the root's two layers; none: its root is in RAM
    layers -- of its root, in place of those, each with its listing beside it
    """
    chance = random.Random(number)
    work = folder / "work" / name / str(number)
    work.mkdir(parents=True)
    if files and not layers:
        layers = tuple(_layer(work / word, word, files, number) for word in ("lower", "upper"))
    for file in ("vmlinuz", "initrd"):
        with (work / file).open("wb") as sink:
            for begin in range(0, size, 1 << 20):
                sink.write(chance.randbytes(min(1 << 20, size - begin)))
    artifacts = {
        file: {"sha256": describe(work / file).digest, "size": describe(work / file).size}
        for file in ("vmlinuz", "initrd")
    }
    said = {
        "name": name,
        "arch": "amd64",
        "description": "",
        "clients": "volatile",
        "root": {"kind": "nfs" if files else "ram", "layers": [{"size": 1000 * files} for _ in layers]},
        "cmdline": cmdline if files else f"word={number}",
        "artifacts": artifacts,
        **content,
    }
    identity = f"202601{number // 86400 + 1:02}T{number % 86400 // 3600:02}{number % 3600 // 60:02}{number % 60:02}Z-"
    identity += digest_of(said)
    out = folder / "images" / name / identity
    out.mkdir(parents=True)
    for file in ("vmlinuz", "initrd"):
        (work / file).rename(out / file)
    (out / MANIFEST).write_text(json.dumps({"id": identity, "content": said, "build": {}}))
    (out / PACKAGES).write_text(f"name\tversion\tarchitecture\nlinux\t{number}\tamd64\n")
    if layers:
        lists = [layer.parent / LISTING for layer in layers]
        merged = listing.merge(lists)
        (out / LISTING).write_text(listing.text(merged, listing.links(lists, merged)))
    names = sorted(path.name for path in out.iterdir())
    (out / CHECKSUMS).write_text("".join(f"{describe(out / file).digest}  {file}\n" for file in names))
    for path in out.iterdir():
        path.chmod(0o444)
    return Made(Release(name, identity, out), layers)


def _layer(folder: Path, word: str, files: int, number: int) -> Path:
    made = folder / "tree"
    (made / "etc").mkdir(parents=True)
    (made / f"usr/{word}").mkdir(parents=True)
    (made / "etc/release").write_text(f"{word} {number}")
    for each in range(files):
        # Most files are the same in all releases.
        text = f"{word} {each} {number if each % 10 == 0 else 0}\n" * 50
        (made / f"usr/{word}/{each}").write_text(text)
        os.utime(made / f"usr/{word}/{each}", (1_700_000_000, 1_700_000_000))
    tree.write_listing({"tree": str(made), "listing": str(folder / LISTING), "epoch": 1_800_000_000})
    return made


def target(box: Box, **settings: Any) -> Target:
    """A target that is all on one machine, below its folder."""
    root = box.folder / "srv"
    boot = str(root / "boot")
    made = Target("10.0.0.1", "10.0.0.0/24", ssh=box.name, tftp=boot, http=Http(boot), nfs=Nfs(str(root / "nfs")))
    for path in (boot, str(root / "nfs")):
        Path(path).mkdir(parents=True, exist_ok=True)
        os.chown(path, root.parent.stat().st_uid, root.parent.stat().st_gid)
    return replace(made, **settings)


def bench(folder: Path) -> push.Bench:
    """With boot loaders that are words."""
    made = folder / "loaders"
    made.mkdir(exist_ok=True)
    for name in loaders.FILES:
        (made / name).write_text(name)
    return push.Bench(folder / "trees", folder / "images", made)


def publish(
    folder: Path,
    where: Target,
    *made: Made,
    config: Path | None = None,
    hosts: Mapping[str, Host] | None = None,
    host: str | None = None,
    lines: list[str] | None = None,
) -> None:
    """What `push` does with one target."""
    its = bench(folder)
    jobs = [push.Job(each.release, each.layers, host=host) for each in made]
    tell = (lines if lines is not None else []).append
    with reaching.reach("lab", where, hosts or {}, config=config, lock=True, tell=tell) as reached:
        push.check(reached, jobs)
        for job in jobs:
            push.send(reached, job, its, lambda _what, _done, _total: None)
        push.publish_all(reached, jobs, its.loaders)


def rollback(
    where: Target,
    name: str,
    to: str | None = None,
    *,
    config: Path | None = None,
    hosts: Mapping[str, Host] | None = None,
) -> str:
    with reaching.reach("lab", where, hosts or {}, config=config, lock=True) as reached:
        _was, now, _done = back.rollback(reached, name, to)
    return now


def prune(where: Target, *, config: Path | None = None, **more: Any) -> list[str]:
    with reaching.reach("lab", where, more.get("hosts", {}), config=config, lock=True) as reached:
        decided = pruning.plan(reached)
        pruning.carry_out(reached, decided)
    return list(decided.lines)


def booted(where: Target, name: str, known: Sequence[Made], host: str | None = None) -> str:
    """Fetch as a machine that boots does, in its order; the ID of the release that this was, all of it.

    Fails when it gets anything but one release, bit for bit. Reads on this machine: a box' folder is here too.
    """
    root = Path(str(where.boot_root))
    folder = root / "entries" / name / (f"hosts/{host}" if host else "")
    text = (folder / "boot.ipxe").read_text()
    found = set(re.findall(r"\d{8}T\d{6}Z-[0-9a-f]{12}", text))
    assert len(found) == 1, text
    identity: str = found.pop()
    made = next(each for each in known if each.id == identity)
    for file, output in made.release.files().items():
        data = (root / "images" / name / identity / file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == output.digest, file
    assert where.nfs is not None
    if made.layers:
        assert f"{where.nfs.path}/{name}/{identity}" in text
        there = content(Path(where.nfs.path) / name / identity)
        assert there == content_of(made)
    return identity


def content(folder: Path) -> dict[str, str]:
    """All files of a folder, by path."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def content_of(made: Made) -> dict[str, str]:
    """All files of a release's root, by path."""
    found: dict[str, str] = {}
    for layer in made.layers:
        found |= content(layer)
    return found


def apart(call: Callable[..., None], *arguments: Any, **named: Any) -> multiprocessing.process.BaseProcess:
    """Call it in a process of its own, in a session of its own."""

    def run() -> None:
        os.setsid()
        call(*arguments, **named)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process
