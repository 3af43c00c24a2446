"""Releases: the artifacts that belong together, in a folder that never changes once it is there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from buildlib import atomic, relist, sbom
from buildlib.errors import BuildError
from buildlib.plan import Json, Keyed, Plan
from buildlib.store import LISTING as LAYER
from buildlib.store import Output, Store, describe

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
SIGNATURE = f"{CHECKSUMS}.sig"
PACKAGES = "packages.tsv"
LISTING = "tree.list"
"""What the whole root holds, in the form of `tree`; there if the root has layers."""
LATEST = "latest"
PROOF = "proof.json"
"""Added when a release has booted: the one file of it that its checksums don't know."""
FORMAT = 1


@dataclass(frozen=True)
class Release:
    """A release in its folder. `id` is UTC time and 12 hex digits of its content."""

    name: str
    id: str
    folder: Path

    @property
    def manifest(self) -> dict[str, Json]:
        """The manifest, and the ID: this has a time in it, and the file is the same whenever it is made."""
        manifest: dict[str, Json] = json.loads((self.folder / MANIFEST).read_bytes())
        return {**manifest, "id": self.id}

    def files(self) -> dict[str, Output]:
        """All files that a target gets, by name: what the checksums name, these themselves, and their signature."""
        found = _sums(self.folder)
        artifacts = {name: said["sha256"] for name, said in self.manifest["content"]["artifacts"].items()}
        own = [name for name in (CHECKSUMS, SIGNATURE) if (self.folder / name).exists()]
        digests = found | artifacts | {name: describe(self.folder / name).digest for name in (MANIFEST, *own)}
        return {name: Output(digest, (self.folder / name).stat().st_size) for name, digest in sorted(digests.items())}

    @property
    def size(self) -> int:
        """Bytes that clients load or mount: artifacts and, for a tree, its layers."""
        content = self.manifest["content"]
        layers = content["root"]["layers"] if content["root"]["kind"] == "nfs" else ()
        return sum(part["size"] for part in (*content["artifacts"].values(), *layers))

    @property
    def digest(self) -> str:
        """SHA-256 of its checksums, and so of all that it consists of."""
        return describe(self.folder / CHECKSUMS).digest

    def proven(self) -> dict[str, Json] | None:
        """How it booted, if it did: `{"release": ID, "digest": of its checksums, "boots": [...]}`."""
        try:
            said: dict[str, Json] = json.loads((self.folder / PROOF).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return said if said.get("digest") == self.digest and said["boots"] else None


def latest(images: Path, name: str) -> Release | None:
    """The newest release of a recipe, if there is one."""
    link = images / name / LATEST
    if not (link / MANIFEST).exists():
        return None
    folder = link.resolve()
    return Release(name, folder.name, folder)


def content(plan: Plan, keys: Mapping[str, Keyed], store: Store, about: Mapping[str, Json]) -> dict[str, Json]:
    """What makes one release differ from another; no time, key or path of the machine that built it."""
    receipts = {name: store.get(keys[name].key) for name in {stage.name for stage, _ in plan.artifacts.values()}}
    artifacts = {}
    for name, (stage, file) in sorted(plan.artifacts.items()):
        output = receipts[stage.name].outputs[file]
        artifacts[name] = {"sha256": output.digest, "size": output.size}
    layers = []
    for stage in plan.root:
        layer = store.get(keys[stage.name].key).layer
        if layer is not None:
            layers.append({"stage": stage.name, "digest": layer.digest, "size": layer.size})
    stage, file = plan.packages
    return {
        **about,
        "name": plan.name,
        "cmdline": cmdline(plan, keys, store),
        "artifacts": artifacts,
        "root": {**about["root"], "tree": tree_digest(layers), "layers": layers},
        "packages": store.get(keys[stage.name].key).outputs[file].digest,
    }


def cmdline(plan: Plan, keys: Mapping[str, Keyed], store: Store) -> str:
    """The kernel command line; what only the outcome of a stage tells comes first."""
    if plan.arguments is None:
        return plan.cmdline
    stage, file = plan.arguments
    return f"{store.path(keys[stage.name].key, file).read_text()} {plan.cmdline}".rstrip()


def digest_of(content: Mapping[str, Json]) -> str:
    """What an ID ends with: 12 hex digits of a manifest's content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def tree_digest(layers: list[dict[str, Json]]) -> str:
    """A tree's digest from those of its layers, lowest first: a small change hashes only what changed."""
    return hashlib.sha256("".join(f"{layer['digest']}\n" for layer in layers).encode()).hexdigest()


def assemble(plan: Plan, keys: Mapping[str, Keyed], store: Store, images: Path, about: Mapping[str, Json]) -> Release:
    """The release of what the store holds: the one that is there already, or a new one, whose files are the store's
    own."""
    lost = [name for name, keyed in keys.items() if not store.has(keyed.key)]
    if lost:
        raise BuildError(
            f"the store no longer has the outcome of {', '.join(lost)}: it went while this build ran",
            hint="build again: what lacks is made anew",
        )
    made = content(plan, keys, store, about)
    _check_urls(made["cmdline"], plan.artifacts)
    digest = digest_of(made)
    home = images / plan.name
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(".2*"):
        # Of a process that was killed right here. The caller sees to it that there is one at a time.
        shutil.rmtree(left)
    own = {name: store.path(keys[stage.name].key, file) for name, (stage, file) in plan.artifacts.items()}
    known = next((folder for folder in sorted(home.glob(f"*-{digest}")) if (folder / MANIFEST).exists()), None)
    if known is not None and _is_whole(known, own):
        atomic.point(home / LATEST, known.name)
        return Release(plan.name, known.name, known)
    identity = known.name if known else f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{digest}"
    new = home / f".{identity}.{os.getpid()}"
    try:
        new.mkdir()
        # Artifacts are the store's own files, which it has told the digests of.
        told = {new / name: said["sha256"] for name, said in made["artifacts"].items()}
        for name, path in own.items():
            _share(path, new / name)
        if "initrd" in plan.artifacts:
            _inspect(new / "initrd", about["arch"], made["cmdline"], home / LATEST)
        stage, file = plan.packages
        _share(store.path(keys[stage.name].key, file), new / PACKAGES)
        known_as = (new / PACKAGES).read_text()
        _share(sbom.kept(images.parent / "cache/sbom", plan.name, about["distro"], known_as), new / sbom.FILE)
        listings = list(_listings(plan, keys, store))
        if listings:
            told[new / LISTING] = _write(new / LISTING, relist.text(listings, images.parent / "cache/listings"))
        manifest = {
            "format": FORMAT,
            "content": made,
            "build": {
                "keys": {name: keyed.key for name, keyed in keys.items()},
                "facts": {name: dict(store.get(keyed.key).facts) for name, keyed in keys.items()},
                "lock": dict(plan.facts),
                "tools": {name: keyed.document["tools"] for name, keyed in keys.items() if keyed.document["tools"]},
            },
        }
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        files = sorted(path for path in new.rglob("*") if path.is_file())
        sums = "".join(f"{told.get(path) or describe(path).digest}  {path.relative_to(new)}\n" for path in files)
        (new / CHECKSUMS).write_text(sums)
        if known is not None:
            _replace(known, new)
        atomic.sync(new)
        new.rename(home / identity)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    atomic.point(home / LATEST, identity)
    return Release(plan.name, identity, home / identity)


def damage(release: Release) -> list[str]:
    """Names of the files of a release that are not what its checksums say; every byte is read."""
    try:
        sums = _sums(release.folder)
    except (OSError, ValueError):
        return [CHECKSUMS]
    paths = {release.folder / name: digest for name, digest in sums.items()}
    wrong = [path for path, digest in paths.items() if not path.is_file() or describe(path).digest != digest]
    return [str(path.relative_to(release.folder)) for path in wrong]


def _sums(folder: Path) -> dict[str, str]:
    """Digests by name, as a release's checksums say."""
    lines = (folder / CHECKSUMS).read_text().splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _is_whole(folder: Path, own: Mapping[str, Path]) -> bool:
    """Whether a release's files are what its checksums say. own: artifacts as the store has them, whose files they
    are: of those it is enough to see that they are the same."""
    try:
        found = _sums(folder)
        same = all((folder / name).samefile(path) for name, path in own.items())
        return same and all(
            describe(folder / name).digest == digest for name, digest in found.items() if name not in own
        )
    except (OSError, ValueError, BuildError):
        return False


def _replace(old: Path, new: Path) -> None:
    """Make room for a release that is the same as `old`, a damaged one; what was added to that stays."""
    for name in (PROOF, SIGNATURE):
        if (old / name).exists():
            shutil.copy2(old / name, new / name)
    aside = old.with_name(f".{old.name}.old")
    old.rename(aside)
    shutil.rmtree(aside)


def _check_urls(cmdline: str, artifacts: Iterable[str]) -> None:
    """Raise BuildError for a URL of the release in its command line that the release has nothing for."""
    names = set(artifacts)
    for name in re.findall(r"\$\{http\}/([^\s,]+)", cmdline):
        pattern = re.escape(name.rstrip("/")).replace(re.escape("{MAC}"), "[0-9a-f:]+")
        if not any(re.match(rf"{pattern}(/|$)", one) for one in names):
            raise BuildError(
                f"the command line has ${{http}}/{name}, but the release has no such file",
                hint=f"there are: {', '.join(sorted(names))}",
            )


def _inspect(initrd: Path, arch: str, cmdline: str, before: Path) -> None:
    """Raise BuildError for an initrd that would not boot, with what its kernel would say.

    before -- the release before this one: if it has the very same file, and starts it as this one does, it was seen
    """
    if _same_start(initrd, arch, cmdline, before):
        return
    from buildlib.initrd import checks, show
    from buildlib.initrd.scan import scan

    wrong = checks.check(scan(initrd), arch=arch, init=_init(cmdline))
    if wrong:
        raise BuildError("\n".join(["the initrd would not boot:", *show.findings(wrong)]))


def _same_start(initrd: Path, arch: str, cmdline: str, before: Path) -> bool:
    try:
        said = json.loads((before / MANIFEST).read_bytes())["content"]
        same = initrd.samefile(before / initrd.name)
        return same and (said["arch"], _init(said["cmdline"])) == (arch, _init(cmdline))
    except (OSError, KeyError, TypeError, ValueError):
        return False


def _init(cmdline: str) -> str:
    found = re.search(r"(?:^| )rdinit=(\S+)", cmdline)
    return found[1] if found else "init"


def _listings(plan: Plan, keys: Mapping[str, Keyed], store: Store) -> Iterator[tuple[str, Path]]:
    """Digests and listings of the root's layers, lowest first."""
    for stage in plan.root:
        key = keys[stage.name].key
        layer = store.get(key).layer
        if layer is not None:
            yield layer.digest, store.path(key, LAYER)


def _write(path: Path, pieces: relist.Pieces) -> str:
    """Write a file; its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def _share(source: Path, target: Path) -> None:
    """One file under two names: read-only, so that nobody changes the store through the release."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)
    target.chmod(0o444)
