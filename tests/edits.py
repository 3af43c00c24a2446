"""What each word of a recipe, and each file that it names, is to rebuild: by hand, beside the code that decides it.

A table a distribution: place of a field -> stage -> what of the recipe the stage sees there. A stage runs again if it
sees something else, or if one before it runs again; nothing else may run again. `lock` stands for upstream being asked
anew, `release` for the manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from buildlib import shape
from buildlib.distros import alpine, archlinux, debian, nixos
from buildlib.recipe import Boot, Recipe, RootKind
from buildlib.user import Sudo, User

View = Callable[[Recipe], Any]
Views = Mapping[str, View | None]
Table = dict[str, list[tuple[str, View | None]]]
"""None: the value itself; a path by its name and all that it holds."""


def places(kind: type, above: str = "") -> list[str]:
    """The places of all fields of a dataclass and of those in it, as in `users.*.name`."""
    found = []
    for name, key in shape.keys(kind).items():
        nested = key.shape.nested or next((part.nested for part in key.shape.inner if part.nested), None)
        star = ".*" if key.shape.base is tuple and nested else ""
        found += places(nested, f"{above}{name}{star}.") if nested else [f"{above}{name}"]
    return found


def value(recipe: Recipe, place: str) -> Any:
    """What a recipe says at a place; of a list's elements, what each says."""
    first, _, rest = place.partition(".")
    if first == recipe.distro:
        return _value(recipe, recipe.options, rest)
    return _value(recipe, recipe.common, place)


def _value(recipe: Recipe, at: Any, place: str) -> Any:
    if at is None:
        return None
    if not place:
        return _seen(recipe, at)
    first, _, rest = place.partition(".")
    if first == "*":
        return [_value(recipe, one, rest) for one in at]
    return _value(recipe, getattr(at, first.replace("-", "_")), rest)


def _seen(recipe: Recipe, at: Any) -> Any:
    if isinstance(at, Path):
        return str(recipe.relative(at)), content(at)
    if isinstance(at, tuple):
        return [_seen(recipe, one) for one in at]
    if isinstance(at, Mapping):
        return {name: _seen(recipe, one) for name, one in at.items()}
    assert not is_dataclass(at)
    return at


def content(path: Path | None) -> Any:
    """What of a file or a folder is the same in every checkout: names, content, x bits, links."""
    if path is None:
        return None
    if not path.is_dir():
        return [bool(path.stat().st_mode & 0o100), path.read_bytes()]
    found: dict[str, Any] = {}
    for folder, names, files in os.walk(path):
        for name in (*names, *files):
            here = Path(folder, name)
            is_link = here.is_symlink()
            found[str(here.relative_to(path))] = (
                os.readlink(here) if is_link else "folder" if here.is_dir() else content(here)
            )
    return found


def digest(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()


def option(name: str) -> View:
    return lambda recipe: getattr(recipe.options, name)


def words(recipe: Recipe) -> list[str]:
    return recipe.common.cmdline.split()


def _keys(recipe: Recipe) -> Any:
    """Root's keys, whoever of several entries they stand at."""
    return {str(recipe.relative(path)): content(path) for user in recipe.common.users for path in user.authorized_keys}


@dataclass(frozen=True)
class Model:
    """What is to happen with the recipes of a distribution.

    options -- the type of its section
    stages  -- the stages of a recipe, and those before each
    lock    -- what upstream offers, the same at all times
    """

    distro: str
    options: type
    table: Table
    stages: Callable[[Recipe], Mapping[str, Iterable[str]]]
    lock: Callable[[Recipe], dict[str, Any]]
    more: Callable[[Recipe], dict[str, Any]] = lambda _recipe: {}
    """What stages see whose names are the recipe's."""

    def sees(self, recipe: Recipe) -> dict[str, dict[str, Any]]:
        """By stage and place, what it sees."""
        found: dict[str, dict[str, Any]] = {stage: {} for stage in ("lock", *self.stages(recipe), "release")}
        for place, views in self.table.items():
            for number, (stage, view) in enumerate(views):
                if stage in found:
                    seen = value(recipe, place) if view is None else view(recipe)
                    found[stage][f"{place} {number}"] = seen
        for stage, seen in self.more(recipe).items():
            found[stage]["more"] = seen
        return found

    def changes(self, old: Recipe, new: Recipe, before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
        """Stages that have to run again; `before` and `after` are what `sees` said of them."""
        olds, news = self.stages(old), self.stages(new)
        found: set[str] = set()
        for stage in {**olds, **news}:
            # In the order of the plan: one that is new or gone is another one.
            there = stage in olds and stage in news and {*olds[stage]} == {*news[stage]}
            if not there or before[stage] != after[stage] or found & {*news[stage]}:
                found.add(stage)
        return found | ({"release"} if found or before["release"] != after["release"] else set())


def _table(text: str, views: Mapping[str, Views | Sequence[Views]]) -> Table:
    """`place: stage stage` a line, for what is seen as it is; and what is not."""
    found: Table = {}
    for line in text.strip().splitlines():
        place, _, stages = line.strip().partition(":")
        found[place] = [(stage, None) for stage in stages.split()]
    for place, given in views.items():
        for more in [given] if isinstance(given, Mapping) else given:
            found.setdefault(place, []).extend(more.items())
    return found


def _passwords(recipe: Recipe) -> list[Any]:
    """Hashes, wherever they are, of those who have one; of a name in the environment, nothing."""
    return [user.password_hash or "" for user in recipe.common.users if user.has_password]


BOOT = [f"boot.{place}" for place in places(Boot)]


# Debian


def _debian_stages(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    groups = [f"packages-{name}" for name in recipe.options.package_groups]
    root = ("bootstrap", "packages", "initramfs", *groups, "system", "customise")
    found: dict[str, tuple[str, ...]] = {"index": (), "bootstrap": ("index",), "packages": ("index", "bootstrap")}
    found |= {name: root[: root.index(name)] for name in root[2:]}
    found |= {name: ("index", *found[name]) for name in groups}
    if groups:
        # Before `system`, which does not need it.
        found = {name: found[name] for name in ("index", *root[:-2])} | {"initramfs-final": root[:-2]} | found
    if recipe.common.root.kind is not RootKind.NFS:
        parts = {"squashfs-base": root[:3], **{f"squashfs-{name}": (name,) for name in groups}}
        found |= {**parts, "squashfs": (*root, *parts)}
    if recipe.common.root.kind is RootKind.RAM:
        found["initrd"] = ("initramfs-final" if groups else "initramfs", "squashfs")
    return found


def _debian_wanted(recipe: Recipe) -> set[str]:
    """All packages, however they come to be wanted."""
    common, options = recipe.common, recipe.options
    ubuntu = options.suite in ("jammy", "noble", "resolute")
    kernel = options.kernel or ("linux-image-generic" if ubuntu else f"linux-image-{common.arch}")
    found = {"init", "initramfs-tools", "busybox", "kmod", "tzdata", kernel, *options.packages}
    found.add({"xz": "xz-utils", "lzma": "xz-utils"}.get(options.initramfs.compression, options.initramfs.compression))
    if common.root.kind is RootKind.SQUASHFS:
        found |= {"live-boot", "live-boot-initramfs-tools"}
    if not common.locale.startswith(("C.", "POSIX")) and common.locale != "C":
        found.add("locales")
    if any(user.sudo is not Sudo.NO for user in common.users):
        found.add("sudo")
    return found


def _debian_lock(recipe: Recipe) -> dict[str, Any]:
    snapshot = recipe.options.snapshot
    facts = {
        suite: {"inrelease": digest(suite, snapshot), "date": 1, "snapshot": snapshot}
        for suite in recipe.options.suites
    }
    return {"suites": facts}


def _limit(recipe: Recipe) -> Any:
    """Of an rw root nothing is limited."""
    return recipe.common.root.size if recipe.common.clients.value == "volatile" else None


WANTED: Views = {"packages": _debian_wanted}

DEBIAN = Model(
    "debian",
    debian.Options,
    _table(
        """
        arch: index bootstrap packages initramfs system customise release
        description: release
        root.kind: release
        root.over: release
        root.size:
        clients: system release
        persist: system release
        cmdline:
        hostname: system
        locale: system
        timezone: system
        users.*.name: system
        users.*.uid: system
        users.*.groups: system
        users.*.sudo: system
        users.*.password-file:
        users.*.password-env:
        users.*.shell: system
        users.*.authorized-keys: system
        services.enable: system
        services.disable: system
        services.mask: system
        overlay: customise
        owners.*.path: customise
        owners.*.owner: customise
        owners.*.mode: customise
        hooks.*.run: customise
        hooks.*.network: customise
        debian.suite: lock index bootstrap packages system
        debian.engine: bootstrap
        debian.variant: bootstrap
        debian.mirror: system
        debian.security-mirror: system
        debian.snapshot: lock index system
        debian.components: index bootstrap packages system
        debian.keyring:
        debian.packages:
        debian.package-groups:
        debian.recommends: packages
        debian.kernel:
        debian.initramfs.modules: initramfs
        debian.initramfs.include: initramfs
        debian.initramfs.compression: initramfs
        """,
        {
            **{place: {} for place in BOOT},
            "root.size": {"release": _limit},
            **{key: {"system": _passwords} for key in ("users.*.password-file", "users.*.password-env")},
            "cmdline": {"release": words},
            "debian.keyring": dict.fromkeys(("index", "system"), lambda recipe: content(recipe.options.keyring)),
            **dict.fromkeys(("root.kind", "locale", "users.*.sudo", "debian.packages", "debian.kernel"), WANTED),
            "debian.initramfs.compression": WANTED,
        },
    ),
    _debian_stages,
    _debian_lock,
    lambda recipe: {f"packages-{name}": sorted(packages) for name, packages in recipe.options.package_groups.items()},
)


# Alpine


def _alpine_stages(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    own = {"buildroot": (), "modloop": ("buildroot",), "initramfs": ("buildroot", "modloop")}
    found: dict[str, tuple[str, ...]] = {"netboot": ()} if recipe.options.source == "netboot" else {**own}
    if recipe.options.repository == "release":
        return {**found, "repository": (), "apkovl": ("repository",)}
    return {**found, "apkovl": ()}


BASE_WORLD = "strace\n"
"""What `/etc/apk/world` of an apkovl says that recipes start from."""


def _alpine_world(recipe: Recipe) -> set[str]:
    """What machines install."""
    found = {"alpine-base", "openssl", *recipe.options.packages}
    if any(user.authorized_keys for user in recipe.common.users):
        found.add("openssh")
    if recipe.common.timezone != "Etc/UTC":
        found.add("tzdata")
    said = BASE_WORLD if recipe.options.base else ""
    for folder in recipe.common.overlay:
        world = folder / "etc/apk/world"
        said = world.read_text() if world.is_file() else said
    return found | {*said.split()}


def _alpine_build(recipe: Recipe) -> set[str]:
    """What the root of mkinitfs has."""
    own = recipe.options.mkinitfs
    if recipe.options.source != "mkinitfs":
        return set()
    return {
        "alpine-base",
        "mkinitfs",
        f"linux-{recipe.options.flavor}",
        *(own.firmware or ("linux-firmware-none",)),
        *own.packages,
    }


def _alpine_lock(recipe: Recipe) -> dict[str, Any]:
    """As `take_lock` writes it; of other repositories come the same packages here."""
    options = recipe.options
    upstream = options.branch, recipe.common.arch

    def known(names: Iterable[str]) -> dict[str, Any]:
        return {
            name: {"version": "1-r0", "repository": "main", "checksum": digest(name, *upstream)}
            for name in sorted(names)
        }

    asked = {"branch": options.branch, "arch": recipe.common.arch, "repositories": list(options.repositories)}
    worlds = {"packages": _alpine_world(recipe), "buildroot": _alpine_build(recipe)}
    bundle = {"branch": f"v{options.branch}", "version": "1", "file": "f", "sha256": digest(*upstream), "size": 1}
    return {
        "asked": {**asked, **{name: sorted(world) for name, world in worlds.items()}},
        **{name: known(world) for name, world in worlds.items()},
        "bundle": {**bundle, "date": "2026-07-15"},
        "tool": known(["apk-tools-static"]),
        "indexes": {},
    }


def _with_repository(view: View) -> View:
    return lambda recipe: view(recipe) if recipe.options.repository == "release" else None


def _from_mirrors(view: View) -> View:
    return lambda recipe: view(recipe) if recipe.options.repository == "mirror" else None


def _first_mirror(recipe: Recipe) -> str:
    return str(recipe.options.mirrors[0]).rstrip("/")


def _password(recipe: Recipe) -> str | None:
    said = recipe.options.encryption
    return said.password() if said else None


def _signed(recipe: Recipe) -> str | None:
    said = recipe.options.signing_key
    return said.read() if said else None


def _cipher(recipe: Recipe) -> str | None:
    said = recipe.options.encryption
    return said.cipher if said else None


def _alpine_names(recipe: Recipe) -> Any:
    """Host names by machine, or that of all."""
    return dict(recipe.hosts) if recipe.options.per_host else recipe.common.hostname or "alpine"


LOCKED_WORLD: Views = {"lock": _alpine_world, "repository": _alpine_world, "apkovl": _alpine_world}
LOCKED_BUILD: Views = {"lock": _alpine_build, "buildroot": _alpine_build}
REFUSED = ("owners.*.path", "owners.*.owner", "owners.*.mode", "hooks.*.run", "hooks.*.network")
"""What some distributions never take."""

SIGNED: Views = {
    "buildroot": _signed,
    "modloop": _signed,
    "repository": _signed,
    "apkovl": _with_repository(_signed),
}
SECRET: Views = {"apkovl": _password}

ALPINE = Model(
    "alpine",
    alpine.Options,
    _table(
        """
        arch: lock netboot buildroot initramfs repository apkovl release
        description: release
        root.kind: release
        root.over: release
        root.size: release
        clients: release
        persist: release
        cmdline:
        locale:
        users.*.name:
        users.*.uid:
        users.*.groups:
        users.*.sudo:
        users.*.shell:
        users.*.password-file:
        users.*.password-env:
        services.enable:
        services.disable:
        services.mask:
        timezone: apkovl
        overlay: apkovl
        alpine.branch: lock netboot buildroot repository apkovl release
        alpine.flavor: netboot buildroot modloop release
        alpine.source:
        alpine.mkinitfs.features: initramfs
        alpine.mkinitfs.files: initramfs
        alpine.mkinitfs.modules: initramfs
        alpine.mkinitfs.compression: initramfs
        alpine.repository: apkovl release
        alpine.keys: buildroot apkovl
        alpine.repositories: lock
        alpine.services.sysinit: apkovl
        alpine.services.boot: apkovl
        alpine.services.default: apkovl
        alpine.services.shutdown: apkovl
        alpine.interfaces: apkovl
        alpine.base: apkovl
        """,
        {
            **{place: {} for place in (*BOOT, *REFUSED)},
            "cmdline": {"release": words},
            "hostname": {"apkovl": _alpine_names},
            "alpine.per-host": {"apkovl": _alpine_names, "release": option("per_host")},
            **{key: {"apkovl": _passwords} for key in ("users.*.password-file", "users.*.password-env")},
            "users.*.authorized-keys": [{"apkovl": lambda recipe: list(_keys(recipe).items())}, LOCKED_WORLD],
            "timezone": LOCKED_WORLD,
            "overlay": LOCKED_WORLD,
            "alpine.base": LOCKED_WORLD,
            "alpine.packages": [{"apkovl": lambda recipe: sorted(recipe.options.packages)}, LOCKED_WORLD],
            "alpine.flavor": LOCKED_BUILD,
            "alpine.source": LOCKED_BUILD,
            "alpine.mkinitfs.packages": LOCKED_BUILD,
            "alpine.mkinitfs.firmware": LOCKED_BUILD,
            "alpine.signing-key.file": SIGNED,
            "alpine.signing-key.env": SIGNED,
            "alpine.encryption.password-file": SECRET,
            "alpine.encryption.password-env": SECRET,
            "alpine.encryption.cipher": {"apkovl": _cipher, "release": _cipher},
            "alpine.mirrors": dict.fromkeys(("apkovl", "release"), _from_mirrors(_first_mirror)),
            "alpine.repositories": dict.fromkeys(("apkovl", "release"), _from_mirrors(option("repositories"))),
        },
    ),
    _alpine_stages,
    _alpine_lock,
)


# Arch Linux

ARCH_FILES = ("arch/boot/x86_64/vmlinuz-linux", "arch/boot/x86_64/initramfs-linux.img", "arch/x86_64/airootfs.sfs")


def _arch_stages(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    if recipe.options.pacstrap is None:
        return {"image": ()}
    return {
        "packages": (),
        "initramfs": ("packages",),
        "system": ("packages",),
        "squashfs-base": ("packages",),
        "squashfs": ("packages", "system", "squashfs-base"),
        "image": ("packages", "initramfs", "squashfs"),
    }


def _arch_wanted(recipe: Recipe) -> Any:
    own = recipe.options.pacstrap
    needed = {"base", "mkinitcpio", "mkinitcpio-archiso", "mkinitcpio-nfs-utils", "nbd", "curl"}
    return {*needed, own.kernel, *own.packages} if own else None


def _arch_repositories(recipe: Recipe) -> Any:
    return recipe.options.pacstrap.repositories if recipe.options.pacstrap else None


def _arch_is_own(recipe: Recipe) -> bool:
    return recipe.options.pacstrap is not None


def _arch_source(recipe: Recipe) -> Any:
    """What a lock is of: an ISO of the recipe's own needs no other one."""
    return _arch_is_own(recipe), recipe.options.release or recipe.options.iso_url


def _arch_release(recipe: Recipe) -> Any:
    """The newest is one with a number too."""
    return "2026.11.01" if recipe.options.release == "latest" else recipe.options.release


def _arch_lock(recipe: Recipe) -> dict[str, Any]:
    options = recipe.options
    if options.pacstrap is not None:
        asked = {"packages": sorted(_arch_wanted(recipe)), "repositories": list(options.pacstrap.repositories)}
        known = {name: {"sha256": digest(name), "built": 1} for name in _arch_wanted(recipe)}
        return {"asked": asked, "release": None, "packages": known}
    if options.iso is not None:
        return {"asked": None, "release": None, "files": dict.fromkeys(ARCH_FILES)}
    if options.iso_url is not None:
        facts = {"iso": {"sha256": digest(options.iso_url), "size": 1}, "files": dict.fromkeys(ARCH_FILES)}
        return {"asked": options.iso_url, "release": None, **facts}
    release = _arch_release(recipe)
    known = {name: {"algorithm": "sha256", "digest": digest(name, release), "size": 1} for name in ARCH_FILES}
    return {"asked": options.release, "release": release, "files": known}


def _arch_url(recipe: Recipe) -> Any:
    """An ISO by what is in it."""
    return digest(recipe.options.iso_url) if recipe.options.iso_url else None


def _arch_later(place: str) -> View:
    """What an official image gets when it has started."""
    return lambda recipe: None if _arch_is_own(recipe) else value(recipe, place)


def _arch_scripts(recipe: Recipe) -> Any:
    scripts = recipe.options.host_scripts
    return {mac: _seen(recipe, scripts[name]) for mac, name in recipe.hosts.items() if name in scripts}


def _arch_keyring(recipe: Recipe) -> Any:
    return content(recipe.options.keyring) if _arch_is_own(recipe) else None


SOURCE: Views = {"lock": _arch_source}
PACKAGES: Views = {"lock": _arch_wanted, "packages": _arch_wanted}

ARCH = Model(
    "archlinux",
    archlinux.Options,
    _table(
        """
        arch: packages initramfs system release
        description: release
        root.kind: release
        root.over: image release
        root.size: image
        clients: release
        persist: release
        cmdline:
        hostname: system
        locale: system
        timezone: system
        users.*.name: system
        users.*.uid: system
        users.*.groups: system
        users.*.sudo: system
        users.*.password-file:
        users.*.password-env:
        users.*.shell: system
        users.*.authorized-keys: system
        services.enable: system
        services.disable: system
        services.mask: system
        overlay: system
        owners.*.path: system
        owners.*.owner: system
        owners.*.mode: system
        hooks.*.run: system
        hooks.*.network: system
        archlinux.pacstrap.modules: initramfs
        archlinux.pacstrap.compression: initramfs
        archlinux.iso: image
        archlinux.signature: image
        archlinux.check: image
        archlinux.copytoram: image
        archlinux.script: image
        archlinux.mirrors:
        """,
        {
            **{place: {} for place in BOOT},
            "cmdline": {"release": words},
            **{key: {"system": _passwords} for key in ("users.*.password-file", "users.*.password-env")},
            "hostname": {"image": _arch_later("hostname")},
            "overlay": {"image": _arch_later("overlay")},
            "users.*.authorized-keys": {
                "image": lambda recipe: None if _arch_is_own(recipe) else list(_keys(recipe).items())
            },
            "archlinux.pacstrap.packages": PACKAGES,
            "archlinux.pacstrap.kernel": PACKAGES,
            "archlinux.pacstrap.repositories": {"lock": _arch_repositories},
            "archlinux.release": {**SOURCE, "image": _arch_release},
            "archlinux.iso": SOURCE,
            "archlinux.iso-url": {**SOURCE, "image": _arch_url},
            "archlinux.keyring": {"packages": _arch_keyring, "image": _arch_later("archlinux.keyring")},
            "archlinux.host-scripts": {"image": _arch_scripts},
        },
    ),
    _arch_stages,
    _arch_lock,
)


# NixOS


def _nix_asked(recipe: Recipe) -> Any:
    """What is evaluated anew when it changes: more than what may come out otherwise."""
    options = recipe.options
    flake = content(options.flake) if options.flake else None
    if flake is not None:
        flake = {name: said for name, said in flake.items() if said != "folder"}
    return flake, options.reference, options.configuration, options.netboot, recipe.common.arch


def _nix_derivations(recipe: Recipe) -> dict[str, str]:
    """Here all but `flake.nix` is a matter of words."""
    options = recipe.options
    text = (options.flake / "flake.nix").read_text() if options.flake else options.reference
    parts = ("kernel", "netbootRamdisk", "toplevel") if options.configuration else ("netboot",)
    what = options.configuration, options.netboot, recipe.common.arch, text
    return {part: f"/nix/store/{digest(part, *what)[:32]}-{part}.drv" for part in parts}


def _nix_lock(recipe: Recipe) -> dict[str, Any]:
    from buildlib.distros.nixos import flake

    options = recipe.options
    pinned = f"{options.reference}?rev=1" if options.reference else None
    said = {"state": flake.state(recipe, pinned, options.flake), "asked": options.reference, "reference": pinned}
    return {"flake": {**said, "inputs": {}, "modified": 1}, "derivations": _nix_derivations(recipe)}


EVALUATED: Views = {"lock": _nix_asked, "build": _nix_derivations}

NIXOS = Model(
    "nixos",
    nixos.Options,
    _table(
        """
        arch: build release
        description: release
        root.kind: release
        root.over: release
        root.size: release
        clients: release
        persist: release
        cmdline:
        hostname:
        locale:
        timezone:
        overlay:
        services.enable:
        services.disable:
        services.mask:
        nixos.store:
        """,
        {
            **{place: {} for place in (*BOOT, *REFUSED)},
            **{f"users.*.{place}": {} for place in places(User)},
            "cmdline": {"release": words},
            **{f"nixos.{name}": EVALUATED for name in ("flake", "reference", "configuration", "netboot")},
            "arch": EVALUATED,
        },
    ),
    lambda _recipe: {"build": ()},
    _nix_lock,
)

MODELS = {model.distro: model for model in (DEBIAN, ALPINE, ARCH, NIXOS)}
