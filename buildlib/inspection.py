"""What a target has, told to people: its state, and whether what was published is still what lies there."""

from __future__ import annotations

import json
import posixpath
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from buildlib import compare, history, listing, release, signature
from buildlib import verify as verifying
from buildlib.errors import BuildError
from buildlib.place import IMAGES, canary_of, live, manifest_of
from buildlib.plan import Json
from buildlib.reach import Reached
from buildlib.release import CHECKSUMS, LISTING, MANIFEST, PACKAGES, Release
from buildlib.server import Server
from buildlib.shell import quote


def status(
    reached: Reached, names: Iterable[str], built: Callable[[str], Release | None], images: Path
) -> Iterator[str]:
    """Lines on each recipe and each folder of a target.

    built  -- gives a recipe's current release, if it is built
    images -- the folder of releases on this machine
    """
    place = reached.place
    there = live(place) if reached.boot is not None else {}
    recipes = dict.fromkeys([*names, *(name for name, facts in there.items() if "release" in facts)])
    for name in recipes:
        facts = there.get(name, {})
        here = built(name) or release.latest(images, name)
        if "release" not in facts:
            if here is not None:
                yield f"{name:<20} not published; built here: {here.id}"
            continue
        now: str = facts["release"]
        since = history.since(place, name, now)
        newer = f"; newer here: {here.id}" if here is not None and here.id > now else ""
        yield f"{name:<20} live {now}{f' since {since}' if since else ''}{newer}"
        back = history.trail(place, name, now, reached.releases(name))[:-1]
        if back:
            yield f"{'':<20} back to {', '.join(reversed(back))}"
        for only, identity in sorted(canary_of(facts).items()):
            yield f"{'':<20} {only} boots {identity} (canary)"
        for host in sorted(place.hosts.values(), key=lambda host: host.name):
            if host.recipe == name and host.release:
                yield f"{'':<20} {host.name} keeps {host.release} (site.yaml)"
    for server in reached.servers:
        for path, root in server.facts.roots.items():
            note = "" if root.there else "  is not there yet" if not server.ssh else "  is not there"
            yield f"{path:<20} {root.space / 1e9:.1f} GB free on {server.shell.where}{note}"


def side(reached: Reached, name: str, images: Path) -> compare.Side:
    """What is live of a recipe, for a comparison: from this machine where it has that release too."""
    place = reached.place
    facts = live(place).get(name, {})
    if "release" not in facts:
        raise BuildError(f"{place.name}/{name}: nothing was published yet", hint=f"./doit push:{place.name}/{name}")
    identity: str = facts["release"]
    kept = images / name / identity
    if (kept / MANIFEST).exists():
        return own(Release(name, identity, kept))
    server, root = reached.image_roots[0]
    folder = f"{root}/{IMAGES}/{name}/{identity}"
    texts = [_text(server, f"{folder}/{file}") for file in (PACKAGES, LISTING)]
    return compare.Side(manifest_of(place, name, identity), *texts)


def own(made: Release) -> compare.Side:
    """A release of this machine, for a comparison."""
    texts = [
        path.read_bytes().decode(errors="surrogateescape") if path.exists() else None
        for path in (made.folder / PACKAGES, made.folder / LISTING)
    ]
    return compare.Side(made.manifest, *texts)


def verify(reached: Reached, name: str, allowed: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Read each of a recipe's releases again where it lies: its ID, and lines, those on what is wrong with a `!`.

    allowed -- who may have signed them; None: nobody needs to
    """
    found = reached.releases(name)
    if not found:
        raise BuildError(f"{reached.place.name}/{name}: no release is there")
    for identity in found:
        yield identity, list(_verify(reached, name, identity, allowed))


def _verify(reached: Reached, name: str, identity: str, allowed: Path | None) -> Iterator[str]:
    tree: str | None = None
    manifest: dict[str, Json] = {}
    for server, root in reached.image_roots:
        folder = f"{root}/{IMAGES}/{name}/{identity}"
        sums = _text(server, f"{folder}/{CHECKSUMS}")
        if sums is None:
            yield f"! {folder}: {CHECKSUMS} is not there"
            continue
        yield from (f"! {folder}/{finding}" for finding in verifying.release(server.shell, folder, sums))
        if allowed is not None:
            yield _signed(server, folder, sums, allowed)
        said = _text(server, f"{folder}/{MANIFEST}")
        if said is not None and not _is_named_right(identity, said):
            yield f"! {folder}/{MANIFEST} is not that of {identity}"
        manifest = json.loads(said) if said else {}
        tree = _text(server, f"{folder}/{LISTING}")
    if not manifest:
        return
    content: Mapping[str, Json] = manifest["content"]
    nfs, target = reached.nfs, reached.place.target
    if nfs is None or target.nfs is None or content["root"]["kind"] != "nfs":
        return
    path = posixpath.join(target.nfs.path, name, identity)
    if content["clients"] == "rw":
        yield "its tree is its client's own and was not read"
    elif tree is None:
        yield f"! {path}: there is no {LISTING} to compare it with"
    else:
        yield from (f"! {path}/{finding}" for finding in verifying.tree(nfs.shell, path, tree))
        yield f"{len(listing.read(tree))} entries in its tree"


def _signed(server: Server, folder: str, sums: str, allowed: Path) -> str:
    """A line on the signature of a release's checksums."""
    made = _text(server, f"{folder}/{CHECKSUMS}.sig")
    if made is None:
        return f"! {folder}: is not signed"
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / CHECKSUMS).write_bytes(sums.encode(errors="surrogateescape"))
        (Path(scratch) / "signature").write_text(made)
        try:
            return f"signed by {signature.check(Path(scratch) / CHECKSUMS, Path(scratch) / 'signature', allowed)}"
        except BuildError as error:
            return f"! {folder}: {error.message.removeprefix(f'{scratch}/{CHECKSUMS}: ')}"


def _is_named_right(identity: str, manifest: str) -> bool:
    """Whether an ID ends with the digest of that manifest's content."""
    try:
        said = json.loads(manifest)
        return release.digest_of(said["content"]) == identity.partition("-")[2]
    except (KeyError, TypeError, ValueError):
        return False


def _text(server: Server, path: str) -> str | None:
    """A file's text; None without one."""
    answer = server.shell.run(f"[ ! -f {quote(path)} ] || {{ printf x; cat {quote(path)}; }}")
    if answer.status != 0 or not answer.out:
        return None
    return answer.out[1:].decode(errors="surrogateescape")
