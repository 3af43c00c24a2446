"""A target's folders, and what it offers now: read from the folders, since they are the truth."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from buildlib.bootmenu import ENTRIES, BootEntry, BootHost, BootMenu
from buildlib.errors import BuildError
from buildlib.files import Files, Here
from buildlib.plan import Json
from buildlib.release import MANIFEST
from buildlib.site import Host, Target

IMAGES = "images"
MENUS = "menus"
LIVE = "live.json"
"""In an entry's folder: what it was rendered from."""


@dataclass(frozen=True)
class Place:
    """A target and its folders, on this machine or on others.

    hosts       -- by MAC
    boot_files  -- of the machine that has the boot root
    image_files -- of the machine that has what is big
    """

    name: str
    target: Target
    hosts: Mapping[str, Host] = field(default_factory=dict)
    boot_files: Files = field(default_factory=Here)
    image_files: Files = field(default_factory=Here)

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


def live(place: Place) -> dict[str, dict[str, Json]]:
    """What the target offers, by entry: the `entry` as everybody gets it and, of a recipe, the `release`.

    Of a recipe also `canary`, where hosts boot another release of it: release by host name.
    """
    found = {}
    folder = f"{place.boot}/{ENTRIES}"
    for name in place.boot_files.names(folder):
        data = place.boot_files.read(f"{folder}/{name}/{LIVE}")
        if data is not None and place.boot_files.link(f"{folder}/{name}") is not None:
            found[name] = json.loads(data)
    return found


def boot_menu(place: Place) -> BootMenu:
    """The menu of what the target offers now, in the order of the site file."""
    shown = {*place.target.recipes, *(given.id for given in place.target.entries)}
    there = {name: facts for name, facts in live(place).items() if not place.target.recipes or name in shown}
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
        own = tuple(name for name in names if "release" in there[name] and differs(host, name, canary_of(there[name])))
        chosen = host.recipe if host.recipe in there else None
        if chosen or own:
            hosts.append(BootHost(mac, host.name, chosen, own))
    return BootMenu(
        f"{place.name}: network boot", entries, default, place.target.timeout, tuple(hosts), place.target.url
    )


def canary_of(facts: Mapping[str, Json]) -> Mapping[str, str]:
    """The hosts that boot another release of a recipe than all: release by host name."""
    said: Mapping[str, str] = facts.get("canary", {})
    return said


def differs(host: Host, name: str, canary: Mapping[str, str]) -> bool:
    """Whether a host boots a recipe's entry otherwise than others do."""
    return bool(host.cmdline or host.console or own_release(host, name, canary))


def own_release(host: Host, name: str, canary: Mapping[str, str]) -> str | None:
    """The release of a recipe that a host boots, where that is not what all boot."""
    return (host.release if host.recipe == name else None) or canary.get(host.name)


def release_entry(place: Place, manifest: Mapping[str, Json], host: Host | None = None) -> BootEntry:
    """The entry of a release, as `host` boots it."""
    content = manifest["content"]
    name, release = content["name"], manifest["id"]
    target = place.target
    known = {
        "nfs_server": target.nfs_address,
        "nfs_root": f"{target.nfs.path}/{name}/{release}" if target.nfs else "",
        "nfs_persist": f"{target.persist}/{name}",
        "http": f"{target.url}/{IMAGES}/{name}/{release}",
        "nbd_server": target.files_address,
        "nbd_name": f"{name}/{release}",
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


def manifest_of(place: Place, name: str, release: str, host: Host | None = None) -> dict[str, Json]:
    folder = place.roots[0] / IMAGES / name / release
    data = place.image_files.read(str(folder / MANIFEST))
    if data is None:
        why = f"host {host.name} keeps release {release}" if host else f"release {release} is not there"
        raise BuildError(
            f"{place.name}/{name}: {why}; {folder} does not exist", hint=f"./doit status shows what {place.name} has"
        )
    said: dict[str, Json] = json.loads(data)
    return {**said, "id": release}


def _title(manifest: Mapping[str, Json]) -> str:
    """Not of one release: iPXE's menu has the titles in it, and a push changes nothing but its own entry."""
    content = manifest["content"]
    return f"{content['description']} ({content['name']})" if content["description"] else str(content["name"])
