"""Releases on a target's folders: complete beside each other, with one link a recipe that says which one boots.

`upload` puts a release into folders of its own, where nothing points at it; `switch` then renders its entry for every
boot loader into one new folder and replaces the link `entries/NAME` by a rename. So a machine that boots at any moment
gets one release's kernel, initrd, root and command line, whichever boot loader it has.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from buildlib import atomic, bootloaders, loaders, merge, sandbox
from buildlib.bootmenu import ENTRIES, HOSTS, BootEntry, BootHost, UnquotableError
from buildlib.errors import BuildError
from buildlib.place import IMAGES, LIVE, Place, boot_menu, differs, live, manifest_of, release_entry
from buildlib.plan import Json
from buildlib.release import MANIFEST, Release
from buildlib.site import Host
from buildlib.store import describe

MENUS = "menus"


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
    if "nfs" in needs and content["root"]["kind"] == "nfs" and os.geteuid() != 0:
        raise BuildError(
            f"{place.name}/{release.name}: a root for NFS has files of many owners, and only root can make those",
            hint="run as root",
        )
    if place.target.gate == "boot" and (missing or not booted):
        raise BuildError(
            f"{place.name}/{release.name}: {release.id} has not booted with {' and '.join(missing) or 'anything'} yet, "
            "and the target's gate wants that",
            hint=f"./doit boot:{release.name}",
        )


def upload(place: Place, release: Release, layers: tuple[Path, ...]) -> list[str]:
    """Put a release into its folders, verified; what is there already is left alone.

    layers -- the trees of its root, lowest first
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
    if nfs is None:
        return made
    for export in (nfs.path, str(place.target.persist)):
        # Servers refuse a configuration that exports a folder which is not there.
        Path(export).mkdir(parents=True, exist_ok=True)
    if "${nfs_" not in content["cmdline"]:
        return made
    if "${nfs_persist}" in content["cmdline"]:
        (Path(str(place.target.persist)) / release.name).mkdir(parents=True, exist_ok=True)
    tree = Path(nfs.path) / release.name / release.id
    if "${nfs_root}" in content["cmdline"]:
        tree.parent.mkdir(parents=True, exist_ok=True)
        with (tree.parent / ".lock").open("w") as file:
            # Boots of one release share its tree.
            fcntl.flock(file, fcntl.LOCK_EX)
            if not tree.exists():
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
    menu = boot_menu(place)
    files = bootloaders.menu_files(menu, by_tftp=place.by_tftp)
    changed = [path for path, text in files.items() if atomic.write(place.boot / path, text)]
    # Where files of hosts lie, also when there is no host any more.
    some = bootloaders.menu_files(replace(menu, hosts=(BootHost("00:00:00:00:00:00", "some", None),)))
    for folder in {str(Path(path).parent) for path in some} - {"."}:
        for old in (place.boot / folder).glob("01-*"):
            # A host that the site file has no more.
            if f"{folder}/{old.name}" not in files:
                old.unlink()
                changed.append(f"{folder}/{old.name}")
    return changed


def install_loaders(place: Place, folder: Path) -> list[str]:
    """Put the boot loaders of `folder` into the boot root; returns the names of those that changed."""
    place.boot.mkdir(parents=True, exist_ok=True)
    return loaders.install(folder, place.boot)


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
