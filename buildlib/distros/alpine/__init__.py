"""Alpine Linux, diskless: kernel, initramfs and modloop of the official bundle or of packages, and an apkovl.

netboot                                 (source: netboot)
buildroot -> modloop -> initramfs       (source: mkinitfs)
[repository ->] apkovl
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from buildlib.distros import Taken
from buildlib.distros.alpine.options import ARCHITECTURES, Options, validate
from buildlib.errors import BuildError
from buildlib.plan import Json, Plan, Stage
from buildlib.recipe import Recipe

if TYPE_CHECKING:
    from buildlib.site import Site

__all__ = ["Options", "epoch", "needs", "plan", "problems", "take_lock", "validate"]

_SUFFIX = ".apkovl.tar.gz"


def plan(recipe: Recipe, lock: Mapping[str, Json]) -> Plan:
    """Kernel and configuration know nothing of each other: another configuration leaves the rest as it is."""
    options: Options = recipe.options
    known = lock if lock.get("asked") == _asked(recipe) else None
    machine = _machine(recipe, known)
    repository = _repository(recipe, known)
    branch = known["bundle"]["branch"] if known else "?"
    urls = [f"{options.mirrors[0].rstrip('/')}/{branch}/{name}" for name in options.repositories]
    own = ["${http}/apks"] if repository else urls
    apkovl = _apkovl(recipe, known, repository, [] if repository else urls)
    packages = known["packages"] if known and repository else {}
    arch = ARCHITECTURES[recipe.common.arch]
    files = [f"apks/{arch}/{name}-{said['version']}.apk" for name, said in packages.items()]
    files += [f"apks/{arch}/APKINDEX.tar.gz"] if repository else []
    return Plan(
        name=recipe.name,
        stages=(*machine.values(), *([repository] if repository else []), apkovl),
        artifacts={
            **_kernel(options, machine),
            **{name: (repository, name) for name in files if repository},
            **{name: (apkovl, name) for name in _overlays(recipe)},
        },
        root=(),
        cmdline=" ".join(_cmdline(recipe, own)),
        packages=(apkovl, "packages.tsv"),
        facts=dict(lock),
    )


def _machine(recipe: Recipe, known: Mapping[str, Json] | None) -> dict[str, Stage]:
    """The stages of kernel, initramfs and modloop."""
    options: Options = recipe.options
    here = f"{__name__}.buildroot"
    arch = ARCHITECTURES[recipe.common.arch]
    routes = {"mirrors": list(options.mirrors), "arch": arch}
    if options.source == "netboot":
        flavor = {"flavor": options.flavor}
        facts = known["bundle"] if known else None
        run = f"{__name__}.netboot:run"
        return {"netboot": Stage("netboot", run, flavor, facts=facts, tools=("unsquashfs",), routes=routes)}
    secrets = _secrets(options)
    flavor = {"flavor": options.flavor}
    root = Stage(
        "buildroot",
        f"{here}:run",
        {**flavor, "packages": _build_world(options)},
        files={recipe.relative(path): path for path in options.keys},
        secrets=secrets,
        facts=_facts(known, "buildroot", "tool"),
        arch=recipe.common.arch,
        routes=routes,
    )
    modloop = Stage("modloop", f"{here}:modloop", flavor, inputs=(root,), secrets=secrets, tools=("mksquashfs",))
    said = {name: getattr(options.mkinitfs, name) for name in ("features", "files", "modules", "compression")}
    words = {name: value if isinstance(value, str) else list(value) for name, value in said.items()}
    initramfs = Stage(
        "initramfs",
        f"{here}:initramfs",
        words,
        inputs=(root, modloop),
        tools=_packer(options),
        arch=recipe.common.arch,
    )
    return {"buildroot": root, "modloop": modloop, "initramfs": initramfs}


def _packer(options: Options) -> tuple[str, ...]:
    """The program that compresses an initramfs; some need none."""
    return (options.mkinitfs.compression,) if options.mkinitfs.compression in ("zstd", "lz4") else ()


def _kernel(options: Options, stages: Mapping[str, Stage]) -> dict[str, tuple[Stage, str]]:
    """Artifacts of these."""
    modloop = f"modloop-{options.flavor}"
    if "netboot" in stages:
        return {name: (stages["netboot"], name) for name in ("vmlinuz", "initrd", modloop)}
    return {
        "vmlinuz": (stages["buildroot"], "vmlinuz"),
        "initrd": (stages["initramfs"], "initrd"),
        modloop: (stages["modloop"], modloop),
    }


def _repository(recipe: Recipe, known: Mapping[str, Json] | None) -> Stage | None:
    options: Options = recipe.options
    if options.repository == "mirror":
        return None
    return Stage(
        "repository",
        f"{__name__}.repository:run",
        secrets=_secrets(options),
        facts=_facts(known, "packages"),
        routes={"mirrors": list(options.mirrors), "arch": ARCHITECTURES[recipe.common.arch]},
    )


def _apkovl(recipe: Recipe, known: Mapping[str, Json] | None, repository: Stage | None, urls: list[str]) -> Stage:
    options: Options = recipe.options
    common = recipe.common
    secrets = recipe.secrets()
    if options.encryption:
        secrets["password of apkovls"] = options.encryption.password() or ""
    if repository:
        secrets |= _secrets(options)
    keys = {recipe.relative(path): path for user in common.users for path in user.authorized_keys}
    trusted = {recipe.relative(path): path for path in options.keys}
    more = [path for path in (options.interfaces, options.base) if path is not None]
    return Stage(
        "apkovl",
        f"{__name__}.apkovl:run",
        {
            "packages": sorted(options.packages),
            "services": {name: list(names) for name, names in asdict(options.services).items()},
            "repositories": urls,
            "timezone": common.timezone,
            "keys": list(keys),
            "trusted": list(trusted),
            "overlays": [recipe.relative(path) for path in common.overlay],
            "interfaces": recipe.relative(options.interfaces) if options.interfaces else None,
            "base": recipe.relative(options.base) if options.base else None,
            "files": _overlays(recipe),
            "cipher": options.encryption.cipher if options.encryption else None,
            "arch": ARCHITECTURES[common.arch],
        },
        inputs=(repository,) if repository else (),
        files={**keys, **trusted, **{recipe.relative(path): path for path in (*common.overlay, *more)}},
        secrets=secrets,
        tools=("openssl",) if options.encryption else (),
        facts=_facts(known, "packages"),
    )


def _overlays(recipe: Recipe) -> dict[str, str]:
    """Names of apkovls, and of the machines that they are for."""
    suffix = _suffix(recipe.options)
    if recipe.options.per_host:
        return {f"ovl/{mac}{suffix}": name for mac, name in sorted(recipe.hosts.items())}
    return {f"{recipe.name}{suffix}": recipe.common.hostname or "alpine"}


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


def _facts(known: Mapping[str, Json] | None, *names: str) -> dict[str, Json] | None:
    """What a stage needs of the lock."""
    if known is None:
        return None
    bundle = known["bundle"]
    return {"branch": bundle["branch"], "date": bundle["date"], **{name: known[name] for name in names}}


def _secrets(options: Options) -> dict[str, str]:
    return {"signing key": (options.signing_key.read() if options.signing_key else None) or ""}


def _build_world(options: Options) -> list[str]:
    """Packages of the root that mkinitfs runs in."""
    said = options.mkinitfs
    firmware = said.firmware or ("linux-firmware-none",)
    return sorted({"alpine-base", "mkinitfs", f"linux-{options.flavor}", *firmware, *said.packages})


def _world(recipe: Recipe) -> list[str]:
    """Packages that machines install."""
    from buildlib.distros.alpine import apkovl

    common = recipe.common
    said = {"packages": recipe.options.packages, "timezone": common.timezone}
    try:
        before = apkovl.below(recipe.options.base, common.overlay)
    except BuildError:
        # The stage says what is wrong with it.
        before = {}
    world = apkovl.world(said, ssh=any(user.authorized_keys for user in common.users), before=before)
    return sorted({*world, *apkovl.BOOT})


def _asked(recipe: Recipe) -> dict[str, Json]:
    """What the lock is of."""
    options: Options = recipe.options
    build = _build_world(options) if options.source == "mkinitfs" else []
    asked = {"branch": options.branch, "arch": recipe.common.arch, "repositories": list(options.repositories)}
    return {**asked, "packages": _world(recipe), "buildroot": build}


def problems(recipe: Recipe) -> list[tuple[str, str]]:
    """What keeps this machine from building the recipe."""
    from buildlib import sandbox

    options: Options = recipe.options
    found = sandbox.problems(recipe.common.arch)
    if options.per_host and not recipe.hosts:
        found.append(
            ("alpine.per-host: no host of site.yaml has this recipe", "add some under `hosts`, or leave it out")
        )
    if options.encryption and options.encryption.password() is None:
        said = options.encryption.password_env or options.encryption.password_file
        found.append((f"alpine.encryption: {said} holds no password", "write it there, or leave `encryption` out"))
    if options.signing_key and options.signing_key.read() is None:
        said = options.signing_key.env or options.signing_key.file
        found.append((f"alpine.signing-key: {said} holds no key", "openssl genrsa -out FILE 4096 makes one"))
    return found


def needs(recipe: Recipe) -> tuple[list[str], list[tuple[str, str]]]:
    """Programs that the build runs, and files with the packages that bring them."""
    from buildlib import sandbox

    options: Options = recipe.options
    found = [
        "unsquashfs" if options.source == "netboot" else "mksquashfs",
        *(["openssl"] if options.encryption else []),
    ]
    found += _packer(options) if options.source == "mkinitfs" else ()
    foreign = sandbox.is_foreign(recipe.common.arch)
    return [*found, *([sandbox.emulator(recipe.common.arch)] if foreign else [])], []


def take_lock(recipe: Recipe, site: Site, old: Mapping[str, Json], scratch: Path, log: Path, *, move: bool) -> Taken:
    """The branch's newest bundle, its indexes, and what apk makes of the recipe's packages with them.

    Shape: `{"asked", "bundle": as mirror.look, "indexes": {REPOSITORY: SHA-256}, "packages": as resolving.Packages,
    "buildroot": the same, "tool": as resolving.described}`. When only packages were asked for anew, the indexes stay
    what they were, as long as they are here.
    """
    from buildlib.distros.alpine import apk, mirror, resolving

    options: Options = recipe.options
    asked = _asked(recipe)
    if not move and old.get("asked") == asked:
        return Taken(dict(old))
    arch = ARCHITECTURES[recipe.common.arch]
    same = not move and all(old.get("asked", {}).get(name) == asked[name] for name in ("branch", "arch"))
    bundle = old["bundle"] if same else mirror.look(options.mirrors, options.branch, arch)
    keys = apk.trusted(options.keys)
    where = resolving.Where(options.mirrors, bundle["branch"], options.repositories, arch, keys, recipe.cache)
    found = resolving.indexes(where, old.get("indexes", {}) if same else {})
    repository, tool = found.newest(apk.TOOL)
    tools = {apk.TOOL: resolving.described(repository, tool)}
    package = resolving.fetched(where, tools, lambda _done, _total: None)[apk.TOOL]
    worlds = {name: asked[name] for name in ("packages", "buildroot")}
    work = scratch / "alpine"
    work.mkdir()
    made = resolving.resolved(found, apk.program(package, work / "apk.static"), worlds, work, log)
    return Taken({"asked": asked, "bundle": bundle, "indexes": found.digests, "tool": tools[apk.TOOL], **made})


def epoch(lock: Mapping[str, Json]) -> int:
    """SOURCE_DATE_EPOCH: the day of the release."""
    date = lock.get("bundle", {}).get("date")
    return calendar.timegm(time.strptime(date, "%Y-%m-%d")) if date else 0
