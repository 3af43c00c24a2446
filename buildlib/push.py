"""The way of releases to targets: everything checked, everything sent and verified, and only then the switch."""

from __future__ import annotations

import os
import shlex
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from buildlib import listing, merge, publish, sandbox, switching, transfer
from buildlib.errors import BuildError
from buildlib.place import IMAGES, canary_of, live
from buildlib.reach import Reached
from buildlib.release import LISTING, MANIFEST, Release
from buildlib.server import Server
from buildlib.together import every, raise_all
from buildlib.yamltree import meant

Progress = Callable[[str, int, int], None]
"""Called with what is sent, bytes of it, and of how many."""


@dataclass(frozen=True)
class Job:
    """A release on its way.

    layers   -- the trees of its root, lowest first
    firmware -- what it must have booted with, where the target wants that
    host     -- the only host that is to boot it
    """

    release: Release
    layers: tuple[Path, ...]
    firmware: tuple[str, ...] = ()
    host: str | None = None


@dataclass(frozen=True)
class Bench:
    """Folders of this machine: `trees` for merged roots, among those of other processes, by their numbers; `images` of
    releases; `loaders` with the boot loaders."""

    trees: Path
    images: Path
    loaders: Path


def check(reached: Reached, jobs: Iterable[Job]) -> None:
    """All that can be known before the first byte is sent. Raises BuildError with everything that was found."""
    wrong: list[BuildError] = []
    place = reached.place
    if reached.boot is None:
        raise BuildError(f"target {place.name}: has neither `tftp` nor `http` for kernels and menus")
    for server in reached.servers:
        wrong += _problems(server)
    foreign = publish.foreign_menus(place)
    if foreign:
        wrong.append(
            BuildError(
                f"{reached.boot.name}: {reached.boot.shell.where}: {place.boot} has menus that are not ours: "
                f"{', '.join(foreign)}",
                hint=f"a folder of its own, like {place.boot}/netboot, or move them away: docs/targets.md",
            )
        )
    for job in jobs:
        try:
            nfs = reached.nfs
            far = nfs is not None and nfs.ssh
            publish.check(place, job.release, job.firmware, user=nfs.facts.user if nfs and far else None)
            if far and os.geteuid() != 0 and _is_tree(job.release):
                raise BuildError(
                    f"{place.name}/{job.release.name}: the files of a root for NFS are many owners', and only root "
                    "can read them all",
                    hint="run as root",
                )
            _check_host(reached, job)
        except BuildError as error:
            wrong.append(error)
    raise_all([*wrong, *_full(reached, list(jobs))])


def _problems(server: Server) -> Iterator[BuildError]:
    """What a machine lacks."""
    where = f"{server.name}: {server.shell.where}"
    for path, root in server.facts.roots.items():
        if not root.there and server.ssh:
            yield BuildError(
                f"{where}: there is no folder {path}", hint=f"mkdir -p {shlex.quote(path)} there, or mend site.yaml"
            )
        elif not root.writable and server.facts.user == 0:
            yield BuildError(f"{where}: {path} is on a file system that is mounted read-only")
        elif not root.writable:
            yield BuildError(
                f"{where}: {path} may not be written to", hint="log in as somebody who may, or say `sudo: yes`"
            )
    for path in server.facts.planted:
        yield BuildError(
            f"{where}: {path} is a symbolic link that nobody here made; nothing is written through it",
            hint="look who made it, and remove it",
        )
    lacking = [tool for tool in ("sha256sum", "tar") if tool not in server.facts.tools]
    if lacking:
        yield BuildError(f"{where}: has no {' and no '.join(lacking)}", hint="install it there; BusyBox' will do")


def _check_host(reached: Reached, job: Job) -> None:
    if job.host is None:
        return
    place, name = reached.place, job.release.name
    hosts = {host.name: host for host in place.hosts.values()}
    host = hosts.get(job.host)
    if host is None:
        raise BuildError(
            f"{place.name}: there is no host {job.host}{meant(job.host, list(hosts))}", hint="see site.yaml"
        )
    if host.release and host.recipe == name:
        raise BuildError(f"{place.name}/{name}: {host.name} keeps {host.release}, as site.yaml says")
    if "release" not in live(place).get(name, {}):
        raise BuildError(
            f"{place.name}/{name}: nothing is live yet that other hosts could keep",
            hint=f"./doit push:{place.name}/{name} without --host first",
        )


def _full(reached: Reached, jobs: list[Job]) -> Iterator[BuildError]:
    """File systems that are too small for what will be sent, as far as that can be told before."""
    wanted: dict[tuple[int, str], int] = {}
    for job in jobs:
        for server, folder, size in _missing(reached, job):
            within = next(path for path in server.want.roots if folder.startswith(f"{path}/"))
            wanted[id(server), within] = wanted.get((id(server), within), 0) + size
    for server in reached.servers:
        if not server.ssh:
            # Files are shared with what is built.
            continue
        for path, root in server.facts.roots.items():
            size = wanted.get((id(server), path), 0)
            if size > root.space:
                yield BuildError(
                    f"{server.name}: {server.shell.where}: no space in {path}: {size // 10**6} MB are to be sent, "
                    f"{root.space // 10**6} MB are free",
                    hint=f"./doit prune:{server.name}",
                )


def _missing(reached: Reached, job: Job) -> Iterator[tuple[Server, str, int]]:
    """What a target lacks of a release: machine, folder, and bytes at most; of a tree that has a predecessor, none."""
    release = job.release
    for server, root in reached.image_roots:
        parent = f"{root}/{IMAGES}/{release.name}"
        if release.id not in server.facts.releases(parent):
            yield server, f"{parent}/{release.id}", sum(output.size for output in release.files().values())
    nfs, target = reached.nfs, reached.place.target
    if nfs is not None and target.nfs is not None and _has_tree(release):
        parent = f"{target.nfs.path}/{release.name}"
        there = nfs.facts.releases(parent)
        if release.id not in there:
            yield nfs, f"{parent}/{release.id}", 0 if there else release.size


def send(reached: Reached, job: Job, bench: Bench, progress: Progress) -> int:
    """Put a release wherever it must be, verified there. Nothing points at it yet. Returns the bytes that were sent."""
    release = job.release
    place = reached.place
    if not any(server.ssh for server in reached.servers):
        publish.upload(place, release, job.layers)
        _learn(reached, release)
        return 0

    def put(missing: tuple[Server, str, int]) -> int:
        server, folder, _size = missing
        before = _predecessor(reached, server, folder, release.name)

        def tell(done: int, total: int) -> None:
            progress(folder, done, total)

        if _is_tree(release) and server is reached.nfs and f"/{IMAGES}/" not in folder:
            # What its client writes to shares no file with anything.
            own = release.manifest["content"]["clients"] == "rw"
            old = _listing(reached, bench, release.name, before) if before and not own else None
            root = _Root(job, bench.trees / release.name / release.id)
            return transfer.tree(server.way, root, folder, previous=old, progress=tell)
        return transfer.files(server.way, release.folder, release.files(), folder, previous=before, progress=tell)

    # A little of each takes longer to be begun than to be sent: side by side.
    sent = sum(every(list(_missing(reached, job)), put))
    if reached.nfs is not None and "${nfs_persist}" in release.manifest["content"]["cmdline"]:
        answer = reached.nfs.shell.run(f"mkdir -p {shlex.quote(f'{place.target.persist}/{release.name}')}")
        if answer.status:
            raise BuildError(f"{place.name}: {reached.nfs.shell.where}: {answer.err.strip()}")
    _learn(reached, release)
    return sent


class _Root:
    """The root of a release, which is merged as far as that is needed.

    folder -- where it is made whole, for all targets
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self._layers = job.layers
        self._folder = folder
        own = job.release.folder / LISTING
        lists = [layer.parent / LISTING for layer in job.layers]
        # Releases of before there were listings of it have those of their layers alone.
        self.entries: Mapping[str, listing.Entry] = listing.load(own) if own.exists() else listing.merge(lists)
        self.groups = listing.links(lists, self.entries)

    def whole(self) -> Path:
        with _MERGING:
            publish.merged(self._folder, self._layers)
        return self._folder

    def some(self, paths: Collection[str]) -> Path:
        if self._folder.exists():
            return self._folder
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=self._folder.parent, prefix=".some-")) / "tree"
        merge.some(self._layers, paths, made)
        return made


_MERGING = threading.Lock()
"""Targets are served side by side, and share what is merged."""


def _learn(reached: Reached, release: Release) -> None:
    """What was sent is there now."""
    for server, root in reached.image_roots:
        server.files.know(
            f"{root}/{IMAGES}/{release.name}/{release.id}/{MANIFEST}", (release.folder / MANIFEST).read_bytes()
        )


def _predecessor(reached: Reached, server: Server, folder: str, name: str) -> str | None:
    """The folder of the release that this one is likely to share most with: what is live, else the newest."""
    parent = folder.rpartition("/")[0]
    there = server.facts.releases(parent)
    now = live(reached.place).get(name, {}).get("release")
    chosen = now if now in there else there[-1] if there else None
    return f"{parent}/{chosen}" if chosen else None


def _listing(reached: Reached, bench: Bench, name: str, tree: str) -> transfer.Previous | None:
    """A tree on the target and what it holds, as this machine still knows or the target tells."""
    identity = tree.rpartition("/")[2]
    own = bench.images / name / identity / LISTING
    text = own.read_bytes() if own.exists() else b""
    for server, root in reached.image_roots:
        if not text:
            path = f"{root}/{IMAGES}/{name}/{identity}/{LISTING}"
            answer = server.shell.run(f"[ ! -f {shlex.quote(path)} ] || cat {shlex.quote(path)}")
            text = answer.out if answer.status == 0 else b""
    if not text:
        return None
    said = text.decode(errors="surrogateescape")
    return transfer.Previous(tree, listing.read(said), listing.groups_of(said))


def clear(bench: Bench) -> None:
    """Remove the merged roots again, which were made of links: this push's, and those of processes that are no more."""
    sandbox.remove(bench.trees)
    for folder in bench.trees.parent.glob("[0-9]*"):
        if folder.name.isdigit() and not Path("/proc", folder.name).exists():
            sandbox.remove(folder)


def publish_all(reached: Reached, jobs: Iterable[Job], loaders: Path) -> switching.Done:
    """Make releases that were sent live: for all hosts, or for the one of a canary."""
    return switching.switch(reached, _wanted(reached, jobs), "push", loaders)


def plan(reached: Reached, jobs: list[Job], bench: Bench) -> Iterator[str]:
    """What a push would do, a line each; nothing is touched."""
    for job in jobs:
        for server, folder, size in _missing(reached, job):
            before = _predecessor(reached, server, folder, job.release.name)
            much = f", at most {size // 10**6} MB" if size else ""
            like = f", what differs from {before.rpartition('/')[2]}" if before else ""
            yield f"send {folder}/{much}{like}"
        _learn(reached, job.release)
    switching.switch(reached, _wanted(reached, jobs), "push", bench.loaders, dry=True)
    for server in reached.servers:
        yield from (str(step) for step in server.files.steps)


def _wanted(reached: Reached, jobs: Iterable[Job]) -> dict[str, tuple[str, Mapping[str, str]]]:
    """By recipe: what all boot then, and what single hosts do."""
    there = live(reached.place)
    found: dict[str, tuple[str, Mapping[str, str]]] = {}
    for job in jobs:
        name, identity = job.release.name, job.release.id
        facts = there.get(name, {})
        if job.host is None:
            found[name] = (identity, {})
        elif facts["release"] == identity:
            # What all boot: no canary is left of that host.
            found[name] = (identity, {host: its for host, its in canary_of(facts).items() if host != job.host})
        else:
            found[name] = (facts["release"], {**canary_of(facts), job.host: identity})
    return found


def _is_tree(release: Release) -> bool:
    return bool(release.manifest["content"]["root"]["kind"] == "nfs")


def _has_tree(release: Release) -> bool:
    return "${nfs_root}" in release.manifest["content"]["cmdline"]
