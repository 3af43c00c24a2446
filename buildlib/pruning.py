"""Old releases of a target: which nobody needs any more, and why the others stay."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from buildlib import history
from buildlib.bootmenu import ENTRIES
from buildlib.place import IMAGES, MENUS, canary_of, live
from buildlib.reach import Reached
from buildlib.server import Server
from buildlib.survey import ID


@dataclass(frozen=True)
class Plan:
    """What goes, with its machine, and what is said about all of it."""

    gone: tuple[tuple[Server, str], ...]
    lines: tuple[str, ...]


def plan(reached: Reached, *, ignore_clients: bool = False) -> Plan:
    """Decide on each release that is there, and on what killed pushes left."""
    gone: list[tuple[Server, str]] = []
    lines: list[str] = []
    for name, folders in _found(reached).items():
        reasons = _reasons(reached, name)
        for release in sorted({posixpath.basename(path) for _, path in folders}):
            paths = [(server, path) for server, path in folders if posixpath.basename(path) == release]
            trees = [path for server, path in paths if server is reached.nfs and f"/{IMAGES}/" not in path]
            why = reasons.get(release) or (None if ignore_clients else _mounted(reached, trees))
            lines.append(f"{'keep  ' if why else 'remove'} {name}/{release}  {why or _why_not(reached, name)}")
            if not why:
                gone += paths
    menus = 0
    for server, path, why in _left(reached):
        if why:
            lines.append(f"remove {path}  {why}")
        menus += not why
        gone.append((server, path))
    if menus:
        lines.append(f"remove menus of {menus} earlier switch{'es' if menus > 1 else ''}")
    return Plan(tuple(gone), tuple(lines) or ("nothing is there",))


def carry_out(reached: Reached, decided: Plan) -> None:
    """Remove: each folder is renamed first, so that nobody finds half of it."""
    for server, path in decided.gone:
        server.files.discard(path)
    for server in reached.servers:
        server.apply()


def _found(reached: Reached) -> dict[str, list[tuple[Server, str]]]:
    """Machine and folder of all that belongs to releases, by recipe."""
    found: dict[str, list[tuple[Server, str]]] = {}
    parents = [(server, f"{root}/{IMAGES}") for server, root in reached.image_roots]
    if reached.nfs is not None and reached.place.target.nfs is not None:
        parents.append((reached.nfs, reached.place.target.nfs.path))
    for server, parent in parents:
        for path in server.facts.folders:
            folder, _, release = path.rpartition("/")
            above, _, name = folder.rpartition("/")
            if above == parent and ID.fullmatch(release):
                found.setdefault(name, []).append((server, path))
    return found


def _reasons(reached: Reached, name: str) -> dict[str, str]:
    """Why releases of a recipe stay, the weakest reason last."""
    place = reached.place
    facts = live(place).get(name, {}) if reached.boot is not None else {}
    found: dict[str, str] = {}
    if "release" in facts:
        found[facts["release"]] = "is live"
    for only, release in canary_of(facts).items():
        found.setdefault(release, f"is what {only} boots")
    for host in place.hosts.values():
        if host.recipe == name and host.release:
            found.setdefault(host.release, f"is what {host.name} keeps, as site.yaml says")
    there = reached.releases(name)
    older = [each for each in history.trail(place, name, facts.get("release"), there) if each not in found]
    for number, release in enumerate(reversed(older[-place.target.keep :])):
        found[release] = f"to go back to ({number + 1} of {place.target.keep})"
    return found


def _why_not(reached: Reached, name: str) -> str:
    facts = live(reached.place).get(name)
    if facts is None:
        return "nothing of that recipe is live"
    return f"more than {reached.place.target.keep} to go back to, or never live"


def _mounted(reached: Reached, trees: list[str]) -> str | None:
    """Whether an NFS client may have one of these mounted: the server knows that of NFS 3 alone."""
    nfs = reached.nfs
    if nfs is None or not trees:
        return None
    known = {client for client, _ in nfs.facts.mounts}
    for client, path in sorted(nfs.facts.mounts):
        if any(path == tree or path.startswith(f"{tree}/") for tree in trees) and _is_connected(reached, client):
            return f"{client} has it mounted"
    unknown = sorted(nfs.facts.clients - known)
    if unknown:
        return f"{unknown[0]} is connected to the NFS server, which does not tell what it has mounted"
    return None


def _is_connected(reached: Reached, client: str) -> bool:
    """A client that rmtab names by address and that has no connection has gone without a word."""
    assert reached.nfs is not None
    try:
        ipaddress.ip_address(client)
    except ValueError:
        return True
    return client in reached.nfs.facts.clients


def _left(reached: Reached) -> Iterator[tuple[Server, str, str]]:
    """What killed pushes left, and why; without a word, menus that no entry points to any more."""
    for server in reached.servers:
        for path in server.facts.folders:
            folder, _, name = path.rpartition("/")
            if name.startswith(".") and name != ".lock":
                yield server, path, "left by a push that was ended"
    boot = reached.boot
    if boot is None or boot.want.boot is None:
        return
    root = boot.want.boot
    for path in boot.facts.folders:
        folder, _, digest = path.rpartition("/")
        above, _, name = folder.rpartition("/")
        if above == f"{root}/{MENUS}" and re.fullmatch(r"[0-9a-f]{12}", digest):
            to = boot.files.link(f"{root}/{ENTRIES}/{name}") or ""
            if posixpath.basename(to) != digest:
                yield boot, path, ""
