"""Debian and Ubuntu: roots by mmdebstrap or debootstrap, initrds by initramfs-tools."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from buildlib.distros import Taken
from buildlib.distros import squashfs as packed
from buildlib.distros.debian.options import Options, validate
from buildlib.plan import Json, Plan, Stage
from buildlib.recipe import Clients, Recipe, RootKind
from buildlib.user import Sudo

if TYPE_CHECKING:
    from buildlib.site import Site

__all__ = ["Options", "epoch", "needs", "plan", "problems", "take_lock", "validate"]

_COMPRESSORS = {"zstd": "zstd", "xz": "xz-utils", "lz4": "lz4", "gzip": "gzip", "lzma": "xz-utils", "bzip2": "bzip2"}
"""Compression of an initrd, and the package that the root needs for it."""

_GUEST = Path(__file__).with_name("guest")


def wanted_packages(recipe: Recipe) -> list[str]:
    """The recipe's packages, and those that its other words need."""
    options: Options = recipe.options
    common = recipe.common
    needed = ["init", "initramfs-tools", "busybox", "kmod", options.kernel_package(common.arch)]
    needed.append(_COMPRESSORS[options.initramfs.compression])
    if common.root.kind is RootKind.SQUASHFS:
        needed += ["live-boot", "live-boot-initramfs-tools"]
    if common.locale.split(".")[0] not in ("C", "POSIX"):
        needed.append("locales")
    needed.append("tzdata")
    if any(user.sudo is not Sudo.NO for user in common.users):
        needed.append("sudo")
    return sorted({*needed, *options.packages})


def tools(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Programs of the host, by stage."""
    options: Options = recipe.options
    return {
        "index": ("apt-get", "gpgv"),
        "bootstrap": (options.engine,),
        "system": ("debootstrap",),
        "squashfs": ("mksquashfs", "zstd"),
        "initrd": ("cpio",),
    }


def plan(recipe: Recipe, lock: Mapping[str, Json]) -> Plan:
    """index -> bootstrap -> packages -> initramfs -> groups of packages, the initrd again where they have a part in it
    -> system -> customise -> what the root's kind needs."""
    options: Options = recipe.options
    common = recipe.common
    here = f"{__name__}."
    programs = tools(recipe)
    suites = options.suites
    signed = options.signed_by
    known = _locked(options, lock)
    facts = _digests(known) if len(known) == len(suites) else None
    where = {
        "distribution": options.distribution,
        "suites": suites,
        "components": list(options.components),
        "arch": common.arch,
    }
    # From where is no part of what: a mirror that the key knew would rebuild all when a build moves to another site.
    routes = {**_routes(options), "keyring": str(signed)}
    # Names of what is not the recipe's end as no file's of a recipe does.
    keys = {"keyring/": signed} if signed.exists() else {}

    index = Stage("index", f"{here}index:run", where, files=keys, tools=programs["index"], facts=facts, routes=routes)
    bootstrap = Stage(
        "bootstrap",
        f"{here}bootstrap:run",
        {**where, "engine": options.engine, "variant": options.variant},
        inputs=(index,),
        tools=programs["bootstrap"],
        facts=facts if options.engine == "debootstrap" else {},
        arch=common.arch,
        routes=routes,
    )
    packages = Stage(
        "packages",
        f"{here}packages:run",
        {**where, "packages": wanted_packages(recipe), "recommends": options.recommends},
        inputs=(index, bootstrap),
        arch=common.arch,
        routes=routes,
    )
    initramfs = Stage(
        "initramfs",
        f"{here}initramfs:run",
        asdict(options.initramfs),
        inputs=(bootstrap, packages),
        files={"guest/": _GUEST / "usr/share/initramfs-tools"},
        arch=common.arch,
    )
    groups: list[Stage] = []
    for name, wanted in options.package_groups.items():
        below = (index, bootstrap, packages, initramfs, *groups)
        said = {**where, "packages": sorted(wanted), "recommends": options.recommends}
        more = Stage(f"packages-{name}", f"{here}packages:add", said, below, arch=common.arch, routes=routes)
        groups.append(more)
    below = (bootstrap, packages, initramfs, *groups)
    boot = Stage("initramfs-final", f"{here}again:run", inputs=below, arch=common.arch) if groups else initramfs
    system = Stage(
        "system",
        f"{here}system:run",
        {
            **where,
            **_routes(options),
            "locale": common.locale,
            "timezone": common.timezone,
            "hostname": common.hostname,
            "clients": common.clients.value,
            "persist": list(common.persist),
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
        },
        inputs=below,
        files={
            "guest/": _GUEST / "usr/lib",
            **keys,
            **{recipe.relative(path): path for user in common.users for path in user.authorized_keys},
        },
        tools=programs["system"],
        routes=routes,
        secrets=recipe.secrets(),
        arch=common.arch,
    )
    customise = Stage(
        "customise",
        f"{here}customise:run",
        {
            "owners": [asdict(owner) for owner in common.owners],
            "hooks": [{"name": recipe.relative(hook.run), "network": hook.network} for hook in common.hooks],
            "overlays": [recipe.relative(path) for path in common.overlay],
        },
        inputs=(*below, system),
        files={recipe.relative(path): path for path in (*common.overlay, *(hook.run for hook in common.hooks))},
        arch=common.arch,
    )
    root = (*below, system, customise)
    stages = [index, *below, *([boot] if groups else []), system, customise]
    artifacts: dict[str, tuple[Stage, str]] = {"vmlinuz": (boot, "vmlinuz"), "initrd": (boot, "initrd")}
    if common.root.kind is not RootKind.NFS:
        parts, squashfs = packed((bootstrap, packages, initramfs), (system, customise), tuple(groups))
        # What they are of is there before `system` is.
        stages[-2:] = [*parts, system, customise, squashfs]
        if common.root.kind is RootKind.SQUASHFS:
            name = "rootfs.squashfs" if common.root.over == "http" else "live/filesystem.squashfs"
            artifacts[name] = (squashfs, "rootfs.squashfs")
        else:
            initrd = Stage("initrd", "buildlib.pack:initrd", {}, inputs=(boot, squashfs), tools=programs["initrd"])
            stages.append(initrd)
            artifacts["initrd"] = (initrd, "initrd")
    return Plan(
        name=recipe.name,
        stages=tuple(stages),
        artifacts=artifacts,
        root=root,
        cmdline=" ".join(cmdline(recipe)),
        packages=(customise, "packages.tsv"),
        facts=dict(lock),
    )


def cmdline(recipe: Recipe) -> Iterator[str]:
    """The kernel command line's words; `${...}` is filled in for each target."""
    common = recipe.common
    size = common.root.size
    volatile = "netboot.volatile" + (f"={size}" if size else "")
    nfs = "${nfs_server}:${nfs_root}"
    if common.root.kind is RootKind.NFS:
        yield from ("boot=nfs", "root=/dev/nfs", f"nfsroot={nfs},vers=3,tcp")
        yield from ("ro", volatile) if common.clients is Clients.VOLATILE else ("rw",)
    elif common.root.kind is RootKind.SQUASHFS:
        # live-boot waits 15 s for each interface without a cable.
        yield from ("boot=live", "ethdevice-timeout=1")
        yield from (
            ("fetch=${http}/rootfs.squashfs",) if common.root.over == "http" else ("netboot=nfs", f"nfsroot={nfs}")
        )
        if size:
            yield f"overlay-size={size}"
    else:
        # Any root= lifts the kernel's limit of half the memory for what the initrd unpacks to.
        yield from ("boot=ram", "root=ram", volatile)
    yield "ip=dhcp"
    if common.persist:
        yield "netboot.persist=${nfs_server}:${nfs_persist}"
    yield from common.cmdline.split()


def problems(recipe: Recipe) -> list[tuple[str, str]]:
    """What this machine lacks for the recipe, beside programs."""
    from buildlib import sandbox

    options: Options = recipe.options
    found = sandbox.problems(recipe.common.arch, user=options.engine == "mmdebstrap")
    if not options.signed_by.exists():
        wrong = f"{options.signed_by}: no such keyring, so nothing of {options.suite} can be verified"
        found.append((wrong, f"apt-get install {options.signed_by.stem}, or name a file by `keyring:` in the recipe"))
    if options.engine == "debootstrap" and os.geteuid() != 0:
        found.append(("engine debootstrap needs root", "run as root, or take `engine: mmdebstrap`"))
    return found


def needs(recipe: Recipe) -> tuple[list[str], list[tuple[str, str]]]:
    """Programs that the build runs, and files with the packages that bring them."""
    from buildlib import sandbox

    options: Options = recipe.options
    programs = {tool for found in tools(recipe).values() for tool in found}
    if recipe.common.root.kind is RootKind.NFS:
        programs -= {"mksquashfs", "zstd", "cpio"}
    if sandbox.is_foreign(recipe.common.arch):
        programs.add(sandbox.emulator(recipe.common.arch))
    if os.geteuid() != 0:
        programs.add("newuidmap")
    # Of Ubuntu's keyring there is no package in every Debian: see `problems`.
    known = options.distribution == "debian" and not options.keyring
    return sorted(programs), [(str(options.signed_by), options.signed_by.stem)] if known else []


def take_lock(recipe: Recipe, site: Site, old: Mapping[str, Json], scratch: Path, log: Path, *, move: bool) -> Taken:
    """What upstream offers now, where `old` doesn't say; and folders with what stages would fetch again, by name.

    Shape: `{"suites": {SUITE: {"inrelease": SHA-256, "date": seconds, "snapshot": time or None}}}`.
    """
    from buildlib.distros.debian import archive, index, resolving

    options: Options = recipe.options
    arch = recipe.common.arch
    where = {
        "distribution": options.distribution,
        "suites": options.suites,
        "components": list(options.components),
        "arch": arch,
        **_routes(options),
    }
    wanted = archive.sources(where, archive.build_mirrors(where, site.mirror_urls().get(options.distribution, {})))
    lists = scratch / "lists"
    archive.update(lists, wanted, arch, options.signed_by, scratch / "apt", log)
    found = {suite: {**facts, "snapshot": options.snapshot} for suite, facts in archive.releases(lists, wanted).items()}
    kept = _locked(options, old)
    archive.keep(lists, wanted, scratch / "index" / "lists")
    cached = index.Lists(recipe.cache / index.FOLDER)
    cached.keep(scratch / "index" / "lists")
    packages = [*wanted_packages(recipe), *(name for group in options.package_groups.values() for name in group)]
    wish = resolving.Wish(wanted, arch, options.signed_by, options.variant, packages, options.recommends)

    def moved(before: Mapping[str, Json]) -> list[str]:
        sides = (_digests(before.get("suites", {})), _digests(found))
        return resolving.moved(wish, cached, *sides, scratch / "moved", log)

    return Taken({"suites": {**found, **kept}}, {} if kept else {"index": scratch / "index"}, moved=moved)


def epoch(lock: Mapping[str, Json]) -> int:
    """SOURCE_DATE_EPOCH: when the newest of the locked suites was published."""
    return max((facts["date"] for facts in lock.get("suites", {}).values()), default=0)


def _locked(options: Options, lock: Mapping[str, Json]) -> dict[str, Json]:
    """What the lock says of the recipe's suites; of another snapshot it says nothing."""
    known = lock.get("suites", {})
    return {
        suite: known[suite]
        for suite in options.suites
        if suite in known and known[suite]["snapshot"] == options.snapshot
    }


def _digests(suites: Mapping[str, Json]) -> dict[str, str]:
    return {suite: facts["inrelease"] for suite, facts in suites.items()}


def _routes(options: Options) -> dict[str, Json]:
    return {"mirror": options.mirror, "security_mirror": options.security_mirror, "snapshot": options.snapshot}
