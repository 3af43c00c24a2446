"""Releases on a target's folders: complete beside each other, with one link a recipe that says which one boots.

`upload` puts a release into folders of its own, where nothing points at it; `switch` then renders its entry for every
boot loader into one new folder and replaces the link `entries/NAME` by a rename. So a machine that boots at any moment
gets one release's kernel, initrd, root and command line, whichever boot loader it has.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import string
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from buildlib import atomic, bootloaders, loaders, merge, sandbox
from buildlib.bootmenu import ENTRIES, HOSTS, BootEntry, BootHost, BootMenu, UnquotableError
from buildlib.errors import BuildError
from buildlib.plan import Json
from buildlib.release import MANIFEST, Release
from buildlib.site import Host, Target
from buildlib.store import describe

MENUS = "menus"
IMAGES = "images"
LIVE = "live.json"
"""In an entry's folder: what it was rendered from."""


@dataclass(frozen=True)
class Place:
    """A target whose folders are on this machine.

    hosts -- by MAC
    """

    name: str
    target: Target
    hosts: Mapping[str, Host] = field(default_factory=dict)

    @property
    def boot(self) -> Path:
        if self.target.boot_root is None:
            raise BuildError(f"target {self.name}: has neither `tftp` nor `http` for kernels and menus")
        return Path(self.target.boot_root)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders that big files go to: where they are fetched by HTTP, and by a loader that knows TFTP only."""
        found = [self.target.files_root]
        if self.target.http is None or self.target.loaders.bios == "pxelinux":
            found.append(self.target.tftp)
        return tuple(Path(path) for path in dict.fromkeys(found) if path)

    @property
    def by_tftp(self) -> tuple[str, ...]:
        """The boot loaders that fetch everything by TFTP."""
        return ("pxelinux",) if self.target.loaders.bios == "pxelinux" else ()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One publication at a time."""
        self.boot.mkdir(parents=True, exist_ok=True)
        with (self.boot / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def check(place: Place, release: Release, firmware: tuple[str, ...] = ()) -> None:
    """Everything that can be known before the first byte: what the release needs, and the target's gate.

    firmware -- what the release must have booted with, where the gate asks for that
    """
    content = release.manifest["content"]
    needs = set()
    if "${nfs_" in content["cmdline"]:
        needs.add("nfs")
    if "${http}" in content["cmdline"]:
        needs.add("http")
    lacking = [name for name in sorted(needs) if getattr(place.target, name) is None]
    if lacking:
        raise BuildError(
            f"{place.name}/{release.name}: the root comes over {' and '.join(lacking)}, which the target has not",
            hint=f"add `{lacking[0]}:` to the target in site.yaml, or build the recipe with another `root:`",
        )
    booted = {boot["firmware"] for boot in (release.proven() or {"boots": []})["boots"]}
    missing = [name for name in firmware if name not in booted]
    if place.target.gate == "boot" and (missing or not booted):
        raise BuildError(
            f"{place.name}/{release.name}: {release.id} has not booted with {' and '.join(missing) or 'anything'} yet, "
            "and the target's gate wants that",
            hint=f"./doit boot:{release.name}",
        )


def upload(place: Place, release: Release, layers: tuple[Path, ...], *, fresh: bool = False) -> list[str]:
    """Put a release into its folders, verified; what is there already is left alone.

    layers -- the trees of its root, lowest first
    fresh  -- make the NFS tree anew although it is there: its client has written to it
    Returns what was made, for people.
    """
    made = []
    content = release.manifest["content"]
    for root in place.roots:
        folder = root / IMAGES / release.name / release.id
        if not (folder / MANIFEST).exists():
            _copy_files(release, folder)
            made.append(str(folder))
    nfs = place.target.nfs
    if nfs is None or "${nfs_" not in content["cmdline"]:
        return made
    if "${nfs_persist}" in content["cmdline"]:
        (Path(str(place.target.persist)) / release.name).mkdir(parents=True, exist_ok=True)
    tree = Path(nfs.path) / release.name / release.id
    if fresh and tree.exists():
        sandbox.remove(tree)
    if "${nfs_root}" in content["cmdline"] and not tree.exists():
        if content["root"]["kind"] == "nfs":
            _make_tree(tree, layers, link=content["clients"] != "rw")
        else:
            _copy_files(release, tree)
        made.append(str(tree))
    return made


def _copy_files(release: Release, folder: Path) -> None:
    """The release's files by hard links where that can be, else copied and verified."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{release.id}."))
    try:
        new.chmod(0o755)
        artifacts = release.manifest["content"]["artifacts"]
        for name in (*artifacts, MANIFEST):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(release.folder / name, new / name)
            except OSError:
                shutil.copyfile(release.folder / name, new / name)
                (new / name).chmod(0o444)
                if name in artifacts and describe(new / name).digest != artifacts[name]["sha256"]:
                    raise BuildError(f"{new / name}: was not copied as it is in the release") from None
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _make_tree(tree: Path, layers: tuple[Path, ...], *, link: bool) -> None:
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".work-") as scratch:
        with sandbox.guard(Path(scratch) / "tree"):
            arguments: dict[str, Json] = {
                "layers": [str(layer.absolute()) for layer in layers],
                "target": str((Path(scratch) / "tree").absolute()),
                "link": link,
            }
            sandbox.host(Path(scratch) / "sandbox").call(merge.write, arguments)
        (Path(scratch) / "tree").rename(tree)


def switch(place: Place, name: str, release: str) -> bool:
    """Make `release`, which is uploaded, what `name` boots from now on; tell whether that is a change."""
    manifest = manifest_of(place, name, release)
    files: dict[str, str] = {}
    for prefix, host in [("", None), *((f"{HOSTS}/{folder}/", host) for folder, host in _variants(place, name))]:
        own = (
            manifest_of(place, name, host.release, host) if host and host.release and host.recipe == name else manifest
        )
        files |= {f"{prefix}{file}": text for file, text in _fragments(place, release_entry(place, own, host)).items()}
    return _point(place, name, files, {"release": release, "entry": asdict(release_entry(place, manifest))})


def entry(place: Place, given: BootEntry) -> bool:
    """Offer an entry that is no release."""
    return _point(place, given.id, _fragments(place, given), {"entry": asdict(given)})


def refresh(place: Place) -> list[str]:
    """Render everything again as the site file is now: its entries, the releases that are live, the menus.

    Returns the files that changed.
    """
    for given in place.target.entries:
        said = asdict(given)
        initrds = said.pop("initrd")
        entry(place, BootEntry(**said, initrds=initrds))
    there = live(place)
    wanted = {given.id for given in place.target.entries}
    for name, facts in there.items():
        if "release" in facts:
            switch(place, name, facts["release"])
        elif name not in wanted:
            (place.boot / ENTRIES / name).unlink()
    files = bootloaders.menu_files(boot_menu(place), by_tftp=place.by_tftp)
    changed = [path for path, text in files.items() if atomic.write(place.boot / path, text)]
    for folder in {str(Path(path).parent) for path in files} - {"."}:
        for old in (place.boot / folder).iterdir():
            # A host that the site file has no more.
            if old.name.startswith("01-") and f"{folder}/{old.name}" not in files:
                old.unlink()
                changed.append(f"{folder}/{old.name}")
    return changed


def install_loaders(place: Place, folder: Path) -> list[str]:
    """Put the boot loaders of `folder` into the boot root; returns the names of those that changed."""
    place.boot.mkdir(parents=True, exist_ok=True)
    return loaders.install(folder, place.boot)


def live(place: Place) -> dict[str, dict[str, Json]]:
    """What the target offers: by entry, the `entry` as everybody gets it and, of a recipe, the `release`."""
    found = {}
    for link in sorted((place.boot / ENTRIES).glob("*")):
        with contextlib.suppress(FileNotFoundError, ValueError):
            found[link.name] = json.loads((link / LIVE).read_bytes())
    return found


def boot_menu(place: Place) -> BootMenu:
    """The menu of what the target offers now, in the order of the site file."""
    there = live(place)
    order = [*place.target.recipes, *there, *(given.id for given in place.target.entries)]
    names = sorted(there, key=lambda name: (name in {e.id for e in place.target.entries}, order.index(name)))
    entries = tuple(
        BootEntry(**{**there[name]["entry"], "initrds": tuple(there[name]["entry"]["initrds"])}) for name in names
    )
    default = {}
    for arch in ("amd64", "arm64"):
        fitting = [given.id for given in entries if given.arch in (None, arch)]
        releases = [name for name in fitting if "release" in there[name]]
        if fitting:
            default[arch] = place.target.default if place.target.default in fitting else (releases or fitting)[0]
    hosts = []
    for mac, host in sorted(place.hosts.items()):
        own = tuple(name for name in names if "release" in there[name] and differs(host, name))
        chosen = host.recipe or place.target.default or ""
        if chosen in there or own:
            hosts.append(BootHost(mac, host.name, chosen if chosen in there else next(iter(default.values())), own))
    return BootMenu(
        f"{place.name}: network boot", entries, default, place.target.timeout, tuple(hosts), place.target.url
    )


def differs(host: Host, name: str) -> bool:
    """Whether a host boots a recipe's entry otherwise than others do."""
    return bool(host.cmdline or host.console or (host.release and host.recipe == name))


def release_entry(place: Place, manifest: Mapping[str, Json], host: Host | None = None) -> BootEntry:
    """The entry of a release, as `host` boots it."""
    content = manifest["content"]
    name, release = content["name"], manifest["id"]
    target = place.target
    known = {
        "nfs_server": target.address,
        "nfs_root": f"{target.nfs.path}/{name}/{release}" if target.nfs else "",
        "nfs_persist": f"{target.persist}/{name}",
        "http": f"{target.url}/{IMAGES}/{name}/{release}",
    }
    words = [string.Template(content["cmdline"]).substitute(known)]
    if host:
        words += [host.cmdline, f"console={host.console}" if host.console else ""]
    folder = f"{IMAGES}/{name}/{release}"
    return BootEntry(
        id=name,
        title=_title(manifest),
        arch=content["arch"],
        kernel=f"{folder}/vmlinuz",
        initrds=(f"{folder}/initrd",),
        cmdline=" ".join(word for word in words if word),
    )


def _variants(place: Place, name: str) -> Iterator[tuple[str, Host]]:
    for mac, host in place.hosts.items():
        if differs(host, name):
            yield BootHost(mac, host.name, name).folder, host


def _fragments(place: Place, given: BootEntry) -> dict[str, str]:
    """File name -> text of an entry, for each boot loader that can boot it."""
    try:
        return bootloaders.entry_files(given, place.target.url, by_tftp=place.by_tftp)
    except UnquotableError as error:
        raise BuildError(f"{place.name}/{given.id}: {error}", hint="see `cmdline` in recipe and site file") from None


def _point(place: Place, name: str, files: Mapping[str, str], said: Mapping[str, Json]) -> bool:
    """Write an entry's files into a new folder named by their digest, and replace the link: the switch."""
    files = {**files, LIVE: json.dumps(said, sort_keys=True) + "\n"}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:12]
    folder = place.boot / MENUS / name / digest
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
        new.chmod(0o755)
        for path, text in files.items():
            atomic.write(new / path, text)
        new.rename(folder)
    return atomic.point(place.boot / ENTRIES / name, f"../{MENUS}/{name}/{digest}")


def manifest_of(place: Place, name: str, release: str, host: Host | None = None) -> dict[str, Json]:
    path = place.roots[0] / IMAGES / name / release / MANIFEST
    try:
        said: dict[str, Json] = json.loads(path.read_bytes())
    except FileNotFoundError:
        why = f"host {host.name} keeps release {release}" if host else f"release {release} is not there"
        raise BuildError(
            f"{place.name}/{name}: {why}; {path.parent} does not exist", hint="is the release's ID right?"
        ) from None
    return said


def _title(manifest: Mapping[str, Json]) -> str:
    """Not of one release: iPXE's menu has the titles in it, and a push changes nothing but its own entry."""
    content = manifest["content"]
    return f"{content['description']} ({content['name']})" if content["description"] else str(content["name"])
