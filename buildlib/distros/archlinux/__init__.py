"""Arch Linux: official releases, ISOs, and roots of one's own, booted over HTTP, NFS or NBD.

    image                                                                     (release, iso, iso-url)
    packages -> initramfs ---------------------\\
       |                                        image                         (pacstrap)
       \\-----> system -> squashfs -------------/
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from buildlib.distros import Taken
from buildlib.distros import squashfs as packed
from buildlib.distros.archlinux.options import Options, validate
from buildlib.errors import BuildError
from buildlib.plan import Json, Plan, Stage
from buildlib.recipe import Recipe

if TYPE_CHECKING:
    from buildlib.site import Site

__all__ = ["Options", "epoch", "needs", "plan", "problems", "take_lock", "validate"]


def plan(recipe: Recipe, lock: Mapping[str, Json]) -> Plan:
    """What makes kernel, initramfs and root, and the stage that puts an image together."""
    from buildlib.distros.archlinux import files

    options: Options = recipe.options
    common = recipe.common
    known = lock if _fits(lock, recipe) else None
    before: tuple[Stage, ...] = ()
    there: Mapping[str, Json] = {files.KERNEL: None, files.INITRD: None, files.ROOTS[0]: None, files.CHECKSUM: None}
    facts: dict[str, Json] | None = {}
    if options.pacstrap is not None:
        before = _own_root(recipe, known)
    elif known is None:
        facts = None
    else:
        there = known["files"]
        facts = {"files": known["files"] if options.release else sorted(known["files"])}
        facts |= {"release": known["release"]} if options.release else {}
        facts |= {"iso": known["iso"]} if options.iso_url else {}
    image = _image(recipe, facts, before)
    if common.root.over == "nbd":
        names = ["vmlinuz", "initrd", "medium.squashfs"]
    else:
        _, microcode = files.names(there)
        names = [files.published(name) for name in there if name not in microcode]
    artifacts = {name: (image, name) for name in [*names, *_started(recipe)]}
    return Plan(
        name=recipe.name,
        stages=(*before, image),
        artifacts=artifacts,
        root=(),
        cmdline=" ".join(common.cmdline.split()),
        arguments=(image, "cmdline"),
        packages=(image, "packages.tsv"),
        facts=dict(lock),
    )


def _image(recipe: Recipe, facts: dict[str, Json] | None, before: tuple[Stage, ...]) -> Stage:
    options: Options = recipe.options
    common = recipe.common
    # What a root of one's own has in itself, an official one gets when it has started.
    later = options.pacstrap is None
    keys = {recipe.relative(path): path for user in common.users for path in user.authorized_keys} if later else {}
    overlays = common.overlay if later else ()
    scripts = {mac: options.host_scripts[name] for mac, name in recipe.hosts.items() if name in options.host_scripts}
    inputs = {"iso": options.iso, "signature": options.signature, "keyring": options.keyring if later else None}
    named = [*scripts.values(), *overlays, *inputs.values(), options.script]
    return Stage(
        "image",
        f"{__name__}.image:run",
        {
            "over": common.root.over,
            "check": options.check,
            "copytoram": options.copytoram,
            "cow": common.root.size,
            "script": recipe.relative(options.script) if options.script else None,
            "scripts": {mac: recipe.relative(path) for mac, path in sorted(scripts.items())},
            "overlays": [recipe.relative(path) for path in overlays],
            "hostname": common.hostname if later else None,
            "keys": list(keys),
            "start": bool(_started(recipe)),
            # One file may be several of them, and which one is what is not to be told from the files alone.
            "named": {name: recipe.relative(path) for name, path in inputs.items() if path is not None},
        },
        inputs=tuple(stage for stage in before if stage.name in ("packages", "initramfs", "squashfs")),
        files={**keys, **{recipe.relative(path): path for path in named if path is not None}},
        facts=facts,
        tools=(
            *(("bsdtar",) if _from_iso(options) else ()),
            *(("mksquashfs",) if common.root.over == "nbd" else ()),
            *(("unsquashfs",) if later else ()),
        ),
        routes={
            "mirrors": list(options.mirrors),
            "memory": common.boot.memory,
            "url": options.iso_url,
            **{name: str(path) if path else None for name, path in inputs.items()},
            "keyring": str(keyring(options)) if options.signature else None,
        },
    )


def _started(recipe: Recipe) -> list[str]:
    """What a booted machine fetches and runs, and what that fetches."""
    options: Options = recipe.options
    common = recipe.common
    later = options.pacstrap is None
    keys = any(user.authorized_keys for user in common.users)
    scripts = [mac for mac, name in sorted(recipe.hosts.items()) if name in options.host_scripts]
    if not (options.script or scripts or (later and (keys or common.overlay or common.hostname))):
        return []
    more = [
        name for name, wanted in (("script", options.script), ("overlay.tar.gz", common.overlay and later)) if wanted
    ]
    return ["start.sh", *more, *(f"hosts/{mac}" for mac in scripts)]


def _own_root(recipe: Recipe, known: Mapping[str, Json] | None) -> tuple[Stage, ...]:
    """packages, initramfs, system, squashfs-base and squashfs."""
    options: Options = recipe.options
    common = recipe.common
    here = f"{__name__}.root"
    own = options.pacstrap
    assert own is not None
    signed = keyring(options)
    packages = Stage(
        "packages",
        f"{here}:packages",
        files={"keyring": signed} if signed.exists() else {},
        tools=("pacman", "gpgv"),
        facts={"packages": known["packages"]} if known else None,
        arch=common.arch,
        routes={"mirrors": list(options.mirrors), "keyring": str(signed)},
    )
    words = {"modules": list(own.modules), "compression": own.compression}
    initramfs = Stage("initramfs", f"{here}:initramfs", words, inputs=(packages,), arch=common.arch)
    keys = {recipe.relative(path): path for user in common.users for path in user.authorized_keys}
    system = Stage(
        "system",
        f"{here}:system",
        {
            "locale": common.locale,
            "timezone": common.timezone,
            "hostname": common.hostname,
            "services": {name: list(units) for name, units in asdict(common.services).items()},
            "users": [
                {
                    "name": user.name,
                    "uid": user.uid,
                    "groups": list(user.groups),
                    "sudo": user.sudo.value,
                    "shell": user.shell,
                    "keys": [recipe.relative(path) for path in user.authorized_keys],
                }
                for user in common.users
            ],
            "owners": [asdict(owner) for owner in common.owners],
            "hooks": [{"name": recipe.relative(hook.run), "network": hook.network} for hook in common.hooks],
            "overlays": [recipe.relative(path) for path in common.overlay],
        },
        inputs=(packages,),
        files={
            **keys,
            **{recipe.relative(path): path for path in (*common.overlay, *(hook.run for hook in common.hooks))},
        },
        secrets=recipe.secrets(),
        arch=common.arch,
    )
    parts, squashfs = packed((packages,), (system,))
    return packages, initramfs, system, *parts, squashfs


def _wanted(options: Options) -> list[str]:
    """The packages of a root of one's own."""
    from buildlib.distros.archlinux import root

    assert options.pacstrap is not None
    return sorted({*root.NEEDED, options.pacstrap.kernel, *options.pacstrap.packages})


def _asked(options: Options) -> Json:
    """What a lock is of."""
    if options.pacstrap is not None:
        return {"packages": _wanted(options), "repositories": list(options.pacstrap.repositories)}
    return options.release or options.iso_url


def _fits(lock: Mapping[str, Json], recipe: Recipe) -> bool:
    """Whether a lock is of what the recipe asks for."""
    return "asked" in lock and lock["asked"] == _asked(recipe.options)


def _from_iso(options: Options) -> bool:
    return options.iso is not None or options.iso_url is not None


def keyring(options: Options) -> Path:
    """The keys that may have signed an ISO, or packages."""
    from buildlib.distros.archlinux import iso

    return options.keyring or iso.KEYRING


def problems(recipe: Recipe) -> list[tuple[str, str]]:
    """What keeps this machine from building the recipe, beside programs."""
    from buildlib import sandbox

    options: Options = recipe.options
    lost = sorted({*options.host_scripts} - {*recipe.hosts.values()})
    found = []
    if lost:
        hint = "add it under `hosts`, with this recipe, or take it out of `host-scripts`"
        found.append((f"archlinux.host-scripts: no host {', '.join(lost)} of site.yaml has this recipe", hint))
    return [*found, *(sandbox.problems(recipe.common.arch) if options.pacstrap else [])]


def needs(recipe: Recipe) -> tuple[list[str], list[tuple[str, str]]]:
    """Programs that the build runs, and files with the packages that bring them."""
    options: Options = recipe.options
    packer = ["unsquashfs", *(["mksquashfs"] if recipe.common.root.over == "nbd" else [])]
    own = [] if options.keyring else [(str(keyring(options)), "archlinux-keyring")]
    if options.pacstrap is not None:
        return ["pacman", "gpgv", "mksquashfs", "zstd"], own
    if not _from_iso(options):
        return packer, []
    return ["bsdtar", *packer, *(["gpgv"] if options.signature else [])], own if options.signature else []


def take_lock(recipe: Recipe, site: Site, old: Mapping[str, Json], scratch: Path, log: Path, *, move: bool) -> Taken:
    """Which release it is, and the digest of each of its files; or which packages.

    Shape: `{"asked", "release": ..., "files": {NAME: {"algorithm", "digest", "size"}}}`; of an ISO the names alone,
    since the ISO itself is a file of the recipe, or `iso`: `{"sha256", "size"}`; of packages as pacman.resolve.
    """
    from buildlib.distros.archlinux import iso, mirror, pacman

    options: Options = recipe.options
    asked = _asked(options)
    if options.iso is not None:
        return Taken({"asked": None, "release": None, "files": dict.fromkeys(iso.names(options.iso))})
    if not move and _fits(old, recipe):
        return Taken(dict(old))
    if options.pacstrap is not None:
        if not keyring(options).exists():
            raise BuildError(f"{keyring(options)}: no such keyring", hint="apt-get install archlinux-keyring")
        made = pacman.resolve(options.mirrors, options.pacstrap.repositories, _wanted(options), scratch / "pacman")
        return Taken({"asked": asked, "release": None, **made})
    if options.iso_url is not None:
        path, facts = mirror.kept_iso(options.iso_url, recipe.cache)
        return Taken({"asked": asked, "release": None, "iso": facts, "files": dict.fromkeys(iso.names(path))})
    return Taken({"asked": asked, **mirror.look(options, recipe.cache)})


def epoch(lock: Mapping[str, Json]) -> int:
    """SOURCE_DATE_EPOCH: the day of the release; of packages, their newest build."""
    release = lock.get("release")
    built = max((said["built"] for said in lock.get("packages", {}).values()), default=0)
    return calendar.timegm(time.strptime(release, "%Y.%m.%d")) if release else built
