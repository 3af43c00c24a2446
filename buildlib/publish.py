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
from dataclasses import asdict
from pathlib import Path

from buildlib import bootloaders, loaders, merge, sandbox
from buildlib.bootmenu import ENTRIES, HOSTS, BootEntry, BootHost, BootMenu, UnquotableError
from buildlib.errors import BuildError
from buildlib.place import (
    IMAGES,
    LIVE,
    MENUS,
    Place,
    boot_menu,
    canary_of,
    differs,
    live,
    manifest_of,
    own_release,
    release_entry,
)
from buildlib.plan import Json
from buildlib.release import MANIFEST, Release
from buildlib.site import Host
from buildlib.store import describe


def check(place: Place, release: Release, firmware: tuple[str, ...] = (), *, user: int | None = None) -> None:
    """Everything that can be known before the first byte: what the release needs, and the target's gate.

    firmware -- what the release must have booted with, where the gate asks for that
    user     -- whose files an NFS server's trees would be; this process' user without
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
    if "nfs" in needs and content["root"]["kind"] == "nfs" and (os.geteuid() if user is None else user) != 0:
        raise BuildError(
            f"{place.name}/{release.name}: a root for NFS has files of many owners, and only root can make those",
            hint="run as root" if user is None else "log in as root there, or say `sudo: yes`",
        )
    if place.target.gate == "boot" and (missing or not booted):
        raise BuildError(
            f"{place.name}/{release.name}: {release.id} has not booted with {' and '.join(missing) or 'anything'} yet, "
            "and the target's gate wants that",
            hint=f"./doit boot:{release.name}",
        )


def foreign_menus(place: Place) -> list[str]:
    """Menus of somebody else, below the boot root: any that are there before anything was published."""
    if place.boot_files.names(f"{place.boot}/{MENUS}"):
        return []
    ours = {*bootloaders.menu_files(BootMenu("", (), {}, 0)), *_host_files(place)}
    return sorted(path for path in ours if place.boot_files.read(f"{place.boot}/{path}") is not None)


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
                    merged(tree, layers, link=content["clients"] != "rw")
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
        for name, output in release.files().items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(release.folder / name, new / name)
            except OSError:
                shutil.copyfile(release.folder / name, new / name)
                (new / name).chmod(0o444)
                if describe(new / name).digest != output.digest:
                    raise BuildError(f"{new / name}: was not copied as it is in the release") from None
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def merged(tree: Path, layers: tuple[Path, ...], *, link: bool = True) -> None:
    """Make the new folder `tree` of a root's layers, lowest first; nothing when it is there.

    link -- share files with the layers by hard links: for trees that nobody writes to
    """
    if tree.exists():
        return
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


def switch(place: Place, name: str, release: str, canary: Mapping[str, str] | None = None) -> bool:
    """Make `release`, which is uploaded, what `name` boots from now on; tell whether that is a change.

    canary -- another release for some hosts, by host name
    """
    canary = canary or {}
    manifest = manifest_of(place, name, release)
    files: dict[str, str] = {}
    variants = ((f"{HOSTS}/{folder}/", host) for folder, host in _variants(place, name, canary))
    for prefix, host in [("", None), *variants]:
        own = own_release(host, name, canary) if host else None
        said = manifest_of(place, name, own, host) if own else manifest
        files |= {f"{prefix}{file}": text for file, text in _fragments(place, release_entry(place, said, host)).items()}
    facts = {"release": release, "entry": asdict(release_entry(place, manifest))}
    return _point(place, name, files, facts | ({"canary": dict(canary)} if canary else {}))


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
            switch(place, name, facts["release"], canary_of(facts))
        elif name not in wanted:
            place.boot_files.remove(f"{place.boot}/{ENTRIES}/{name}")
    menu = boot_menu(place)
    files = bootloaders.menu_files(menu, by_tftp=place.by_tftp)
    changed = [path for path, text in files.items() if place.boot_files.write(f"{place.boot}/{path}", text.encode())]
    for path in _host_files(place) - files.keys():
        # Of a host that the site file has no more.
        place.boot_files.remove(f"{place.boot}/{path}")
        changed.append(path)
    return changed


def install_loaders(place: Place, folder: Path) -> list[str]:
    """Put the boot loaders of `folder` into the boot root; returns the names of those that changed."""
    return loaders.install(folder, str(place.boot), place.boot_files)


def menu_folders() -> set[str]:
    """The folders of menus, below the boot root; "." is the boot root itself."""
    some = BootMenu("", (), {}, 0, (BootHost("00:00:00:00:00:00", "some", None),))
    return {str(Path(path).parent) for path in bootloaders.menu_files(some)}


def _host_files(place: Place) -> set[str]:
    """The menus of hosts that are there, also of those that are known no more."""
    return {
        f"{folder}/{name}"
        for folder in menu_folders() - {"."}
        for name in place.boot_files.names(f"{place.boot}/{folder}")
        if name.startswith("01-")
    }


def _variants(place: Place, name: str, canary: Mapping[str, str]) -> Iterator[tuple[str, Host | None]]:
    """Folder and host of each variant of an entry."""
    hosts = {BootHost(mac, host.name, name).folder: host for mac, host in place.hosts.items()}
    wanted = {folder: host for folder, host in hosts.items() if differs(host, name, canary)}
    yield from wanted.items()
    # A machine that read its menu just now, as it was, goes on to the variant that this menu names.
    named = {Path(path).stem for path in _host_files(place)}
    there = place.boot_files.names(f"{place.boot}/{ENTRIES}/{name}/{HOSTS}")
    for folder in sorted(named.intersection(there) - wanted.keys()):
        yield folder, hosts.get(folder)


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
    folder = f"{place.boot}/{MENUS}/{name}/{digest}"
    place.boot_files.add(folder, {path: text.encode() for path, text in files.items()})
    return place.boot_files.point(f"{place.boot}/{ENTRIES}/{name}", f"../{MENUS}/{name}/{digest}")
