"""Alpine Linux, diskless: the official netboot bundle and an apkovl of the recipe's own."""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from buildlib.distros import Taken
from buildlib.distros.alpine.options import ARCHITECTURES, Options, validate
from buildlib.plan import Json, Plan, Stage
from buildlib.recipe import Recipe

if TYPE_CHECKING:
    from buildlib.site import Site

__all__ = ["Options", "epoch", "needs", "plan", "problems", "take_lock", "validate"]

_SUFFIX = ".apkovl.tar.gz"


def plan(recipe: Recipe, lock: Mapping[str, Json]) -> Plan:
    """netboot and apkovl, which know nothing of each other: another configuration leaves the rest as it is."""
    options: Options = recipe.options
    common = recipe.common
    asked = _asked(recipe)
    known = lock.get("bundle") if lock.get("asked") == asked else None
    arch = ARCHITECTURES[common.arch]
    netboot = Stage(
        "netboot",
        f"{__name__}.netboot:run",
        {"flavor": options.flavor},
        facts=known,
        tools=("unsquashfs",),
        routes={"mirrors": list(options.mirrors), "arch": arch},
    )
    branch = known["branch"] if known else "?"
    repositories = [f"{options.mirrors[0].rstrip('/')}/{branch}/{name}" for name in options.repositories]
    suffix = _suffix(options)
    if options.per_host:
        files = {f"ovl/{mac}{suffix}": name for mac, name in sorted(recipe.hosts.items())}
    else:
        files = {f"{recipe.name}{suffix}": common.hostname or "alpine"}
    secrets = {f"password of {user.name}": user.password for user in common.users if user.password is not None}
    if options.encryption:
        secrets["password of apkovls"] = options.encryption.password() or ""
    keys = {recipe.relative(path): path for user in common.users for path in user.authorized_keys}
    more = [path for path in (options.interfaces, options.base) if path is not None]
    apkovl = Stage(
        "apkovl",
        f"{__name__}.apkovl:run",
        {
            "packages": sorted(options.packages),
            "services": {name: list(names) for name, names in asdict(options.services).items()},
            "repositories": repositories,
            "timezone": common.timezone,
            "keys": list(keys),
            "overlays": [recipe.relative(path) for path in common.overlay],
            "interfaces": recipe.relative(options.interfaces) if options.interfaces else None,
            "base": recipe.relative(options.base) if options.base else None,
            "files": files,
            "cipher": options.encryption.cipher if options.encryption else None,
            "arch": arch,
        },
        files={**keys, **{recipe.relative(path): path for path in (*common.overlay, *more)}},
        secrets=secrets,
        tools=("openssl",) if options.encryption else (),
        facts={"branch": branch, "date": known["date"]} if known else None,
    )
    modloop = f"modloop-{options.flavor}"
    return Plan(
        name=recipe.name,
        stages=(netboot, apkovl),
        artifacts={
            "vmlinuz": (netboot, "vmlinuz"),
            "initrd": (netboot, "initrd"),
            modloop: (netboot, modloop),
            **{name: (apkovl, name) for name in files},
        },
        root=(),
        cmdline=" ".join(_cmdline(recipe, repositories)),
        packages=(apkovl, "packages.tsv"),
        facts=dict(lock),
    )


def _cmdline(recipe: Recipe, repositories: list[str]) -> list[str]:
    options: Options = recipe.options
    name = "ovl/{MAC}" if options.per_host else recipe.name
    words = ["ip=dhcp", f"alpine_repo={','.join(repositories)}", f"modloop=${{http}}/modloop-{options.flavor}"]
    words.append(f"apkovl=${{http}}/{name}{_suffix(options)}")
    if recipe.common.root.size:
        words.append(f"rootflags=size={recipe.common.root.size}")
    return [*words, *recipe.common.cmdline.split()]


def _suffix(options: Options) -> str:
    """The end of an apkovl's name, by which the initramfs knows how to read it."""
    return f"{_SUFFIX}.{options.encryption.cipher}" if options.encryption else _SUFFIX


def _asked(recipe: Recipe) -> dict[str, Json]:
    """What the lock is of."""
    return {"branch": recipe.options.branch, "arch": recipe.common.arch}


def problems(recipe: Recipe) -> list[tuple[str, str]]:
    """What keeps this machine from building the recipe."""
    options: Options = recipe.options
    if options.per_host and not recipe.hosts:
        return [("alpine.per-host: no host of site.yaml has this recipe", "add some under `hosts`, or leave it out")]
    if options.encryption and options.encryption.password() is None:
        said = options.encryption.password_env or options.encryption.password_file
        return [(f"alpine.encryption: {said} holds no password", "write it there, or leave `encryption` out")]
    return []


def needs(recipe: Recipe) -> tuple[list[str], list[tuple[str, str]]]:
    """Programs that the build runs, and files with the packages that bring them."""
    options: Options = recipe.options
    return ["unsquashfs", *(["openssl"] if options.encryption else [])], []


def take_lock(recipe: Recipe, site: Site, old: Mapping[str, Json], scratch: Path, log: Path, *, move: bool) -> Taken:
    """The branch's newest bundle: `{"asked": {"branch", "arch"}, "bundle": as mirror.look}`."""
    from buildlib.distros.alpine import mirror

    options: Options = recipe.options
    asked = _asked(recipe)
    if not move and old.get("asked") == asked:
        return Taken(dict(old))
    return Taken(
        {"asked": asked, "bundle": mirror.look(options.mirrors, options.branch, ARCHITECTURES[recipe.common.arch])}
    )


def epoch(lock: Mapping[str, Json]) -> int:
    """SOURCE_DATE_EPOCH: the day of the release."""
    date = lock.get("bundle", {}).get("date")
    return calendar.timegm(time.strptime(date, "%Y-%m-%d")) if date else 0
