"""Arch Linux: official releases and ISOs, booted over HTTP or NFS."""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from buildlib.distros import Taken
from buildlib.distros.archlinux.options import Options, validate
from buildlib.plan import Json, Plan, Stage
from buildlib.recipe import Recipe

if TYPE_CHECKING:
    from buildlib.site import Site

__all__ = ["Options", "epoch", "needs", "plan", "problems", "take_lock", "validate"]


def plan(recipe: Recipe, lock: Mapping[str, Json]) -> Plan:
    """One stage, of the locked release or of the ISO."""
    from buildlib.distros.archlinux import files

    options: Options = recipe.options
    common = recipe.common
    known = lock if lock.get("asked") == options.release and "files" in lock else None
    facts: dict[str, Json] | None = {}
    there: dict[str, Json] = {files.KERNEL: None, files.INITRD: None, files.ROOTS[0]: None, files.CHECKSUM: None}
    if options.release is not None:
        facts = {"release": known["release"], "files": known["files"]} if known else None
        there = known["files"] if known else there
    elif known is None:
        facts = None
    else:
        facts, there = {"files": sorted(known["files"])}, known["files"]
    keys = {recipe.relative(path): path for user in common.users for path in user.authorized_keys}
    started = ["start.sh"] if options.script or keys or common.overlay or common.hostname else []
    started += [name for name, wanted in (("script", options.script), ("overlay.tar.gz", common.overlay)) if wanted]
    inputs = {"iso": options.iso, "signature": options.signature, "keyring": options.keyring}
    image = Stage(
        "image",
        f"{__name__}.image:run",
        {
            "over": common.root.over,
            "check": options.check,
            "copytoram": options.copytoram,
            "cow": common.root.size,
            "script": recipe.relative(options.script) if options.script else None,
            "overlays": [recipe.relative(path) for path in common.overlay],
            "hostname": common.hostname,
            "keys": list(keys),
            "start": bool(started),
        },
        files={
            **({recipe.relative(options.script): options.script} if options.script else {}),
            **keys,
            **{recipe.relative(path): path for path in common.overlay},
            **{recipe.relative(path): path for path in inputs.values() if path is not None},
        },
        facts=facts,
        tools=("bsdtar",) if options.iso else (),
        routes={
            "mirrors": list(options.mirrors),
            "memory": common.boot.memory,
            **{name: str(path) if path else None for name, path in inputs.items()},
            "keyring": str(keyring(options)) if options.signature else None,
        },
    )
    _, microcode = files.names(there)
    names = [files.published(name) for name in there if name not in microcode]
    artifacts = {name: (image, name) for name in [*names, *started]}
    return Plan(
        name=recipe.name,
        stages=(image,),
        artifacts=artifacts,
        root=(),
        cmdline=" ".join(common.cmdline.split()),
        arguments=(image, "cmdline"),
        packages=(image, "packages.tsv"),
        facts=dict(lock),
    )


def keyring(options: Options) -> Path:
    """The keys that may have signed an ISO."""
    from buildlib.distros.archlinux import iso

    return options.keyring or iso.KEYRING


def problems(recipe: Recipe) -> list[tuple[str, str]]:
    """What keeps this machine from building the recipe: nothing but programs."""
    return []


def needs(recipe: Recipe) -> tuple[list[str], list[tuple[str, str]]]:
    """Programs that the build runs, and files with the packages that bring them."""
    options: Options = recipe.options
    if options.iso is None:
        return [], []
    if options.signature is None:
        return ["bsdtar"], []
    own = [] if options.keyring else [(str(keyring(options)), "archlinux-keyring")]
    return ["bsdtar", "gpgv"], own


def take_lock(recipe: Recipe, site: Site, old: Mapping[str, Json], scratch: Path, log: Path, *, move: bool) -> Taken:
    """Which release it is, and the digest of each of its files.

    Shape: `{"asked": release or None, "release": ..., "files": {NAME: {"algorithm", "digest", "size"}}}`; of an ISO the
    names alone, since the ISO itself is a file of the recipe.
    """
    from buildlib.distros.archlinux import iso, mirror

    options: Options = recipe.options
    if options.iso is not None:
        found = iso.names(options.iso)
        return Taken({"asked": None, "release": None, "files": dict.fromkeys(found)})
    if not move and old.get("asked") == options.release and "files" in old:
        return Taken(dict(old))
    return Taken({"asked": options.release, **mirror.look(options, recipe.cache)})


def epoch(lock: Mapping[str, Json]) -> int:
    """SOURCE_DATE_EPOCH: the day of the release."""
    release = lock.get("release")
    return calendar.timegm(time.strptime(release, "%Y.%m.%d")) if release else 0
