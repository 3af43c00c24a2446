"""Recipes: what an image is to be, as a user writes it down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from buildlib import schema
from buildlib.bootmenu import argument_line
from buildlib.builder import Builder
from buildlib.schema import Dir, Doc, File, Range, Text, shorthand
from buildlib.user import ImagePath, Name, User

FILE = "recipe.yaml"
LOCK = "recipe.lock"

_ARCHITECTURES = {"amd64": "amd64", "x86_64": "amd64", "arm64": "arm64", "aarch64": "arm64"}


def _arch(text: str) -> str:
    if text not in _ARCHITECTURES:
        raise ValueError(f"unknown architecture {text!r}; known: amd64 (x86_64), arm64 (aarch64)")
    return _ARCHITECTURES[text]


def _one_line(text: str) -> str:
    if any(sign < " " for sign in text):
        raise ValueError("expects a single line")
    return text


Arch = Annotated[str, Text(example="amd64", what="an architecture", normal=_arch)]
Hostname = Annotated[
    str, Text(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*", what="a host name", example="node-1")
]
Unit = Annotated[str, Text(r"[A-Za-z0-9:_.\\@-]+", what="a systemd unit", example="ssh.service")]


class RootKind(StrEnum):
    """Where the root comes from."""

    NFS = "nfs"
    SQUASHFS = "squashfs"
    RAM = "ram"


class Clients(StrEnum):
    """How clients write."""

    RW = "rw"
    VOLATILE = "volatile"


@shorthand("kind")
@dataclass(frozen=True)
class Root:
    """Where the root file system comes from."""

    kind: Annotated[
        RootKind, Doc("nfs: a tree on an NFS server; squashfs: one compressed file; ram: all in the initrd.")
    ]
    over: Annotated[
        Literal["http", "nfs", "nbd"],
        Doc("squashfs only. http: fetched into RAM; nfs: stays on the NFS server; nbd: a network block device (Arch)."),
    ] = "http"
    size: Annotated[
        Annotated[str, Text(r"\d+[KMG%]?", what="a size", example="50%")] | None,
        Doc("Most that a client may write into RAM, like 2G or 50%; the kernel's default is half of it."),
    ] = None


@dataclass(frozen=True)
class Services:
    """Systemd units."""

    enable: Annotated[tuple[Unit, ...], Doc("Started at boot.")] = ()
    disable: Annotated[tuple[Unit, ...], Doc("Not started at boot.")] = ()
    mask: Annotated[tuple[Unit, ...], Doc("Never started.")] = ()


@dataclass(frozen=True)
class Owner:
    """Owner and mode of a path, where they aren't root's own and 0755 or 0644."""

    path: Annotated[ImagePath, Doc("Path of the image.")]
    owner: Annotated[
        Annotated[str, Text(r"[a-z0-9_-]+(:[a-z0-9_-]+)?", what="an owner", example="root:adm")] | None,
        Doc("user:group, by name or number."),
    ] = None
    mode: Annotated[
        Annotated[str, Text(r"[0-7]{3,4}", what="an octal mode", example="0640")] | None, Doc("Octal mode.")
    ] = None


@shorthand("run")
@dataclass(frozen=True)
class Hook:
    """A program that changes the root, run in it."""

    run: Annotated[Annotated[Path, File()], Doc("An executable file of the recipe.")]
    network: Annotated[bool, Doc("Whether it may use the network.")] = False


@dataclass(frozen=True)
class Ssh:
    """A command that must succeed in the booted machine."""

    command: Annotated[str, Text(r"[^\x00]+"), Doc("What is run.")]
    key: Annotated[Annotated[Path, File()], Doc("The private key that may log in; one that is for tests only.")]
    user: Annotated[Name, Doc("Who logs in.")] = "root"


@dataclass(frozen=True)
class Expect:
    """A sign that the machine has booted."""

    console: Annotated[Annotated[str, Text(r"[^\n]+")] | None, Doc("Text on the serial console, as it is.")] = None
    port: Annotated[
        Annotated[int, Range(1, 65535)] | None, Doc("A TCP port that answers; with `ssh`, the one that is not 22.")
    ] = None
    ssh: Annotated[Ssh | None, Doc("A command that succeeds by SSH.")] = None

    def check(self) -> Iterable[tuple[str, str]]:
        if (self.console is not None and (self.port or self.ssh)) or not (self.console or self.port or self.ssh):
            yield "", "expects one of `console`, `port` and `ssh`"


@dataclass(frozen=True)
class Boot:
    """How `doit boot` proves a release."""

    expect: Annotated[
        tuple[Expect, ...], Doc("What success is, all of it, in this order; a login prompt without.")
    ] = ()
    memory: Annotated[
        Annotated[int, Range(128, 1 << 20)] | None,
        Doc("The machine's memory in MiB; 1024 with `root: nfs` and 2048 with others without."),
    ] = None
    firmware: Annotated[
        tuple[Literal["bios-pxelinux", "bios-ipxe", "uefi-grub"], ...],
        Doc("Firmware and boot loader; what its hosts have without, else both of a PC, or `uefi-grub` with arm64."),
    ] = ()
    timeout: Annotated[
        Annotated[int, Range(5, 3600)],
        Doc("Seconds for all of `expect`; what the machine waits for a processor doesn't count."),
    ] = 300


@dataclass(frozen=True)
class Common:
    """What a recipe says whatever its distribution."""

    arch: Annotated[Arch, Doc("Architecture of the machines: amd64 (x86_64) or arm64 (aarch64).")]
    description: Annotated[str, Text(normal=_one_line), Doc("A line for `doit list`.")] = ""
    root: Annotated[Root, Doc("Where the root comes from: nfs, squashfs or ram.")] = Root(RootKind.NFS)
    clients: Annotated[
        Clients,
        Doc("rw: one client owns an NFS root; volatile: many share it, what they write is gone at power-off."),
    ] = Clients.VOLATILE
    persist: Annotated[
        tuple[ImagePath, ...],
        Doc("With volatile clients: files and folders that live on the NFS server, for each client's MAC."),
    ] = ()
    cmdline: Annotated[
        str, Text(normal=argument_line), Doc("Arguments added to the kernel command line, like `console=ttyS0`.")
    ] = ""
    hostname: Annotated[Hostname | None, Doc("Host name; without one, each client takes DHCP's.")] = None
    locale: Annotated[
        str,
        Text(r"[A-Za-z]+(_[A-Z]+)?(\.[A-Za-z0-9-]+)?(@[a-z]+)?", what="a locale", example="en_GB.UTF-8"),
        Doc("LANG."),
    ] = "C.UTF-8"
    timezone: Annotated[
        str, Text(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", what="a time zone", example="Europe/Berlin"), Doc("Time zone.")
    ] = "Etc/UTC"
    users: Annotated[tuple[User, ...], Doc("Accounts.")] = ()
    services: Annotated[Services, Doc("Systemd units to enable, disable or mask.")] = Services()
    overlay: Annotated[
        tuple[Annotated[Path, Dir()], ...],
        Doc("Folders that are copied over the root, later ones over earlier ones; root owns all."),
    ] = ()
    owners: Annotated[tuple[Owner, ...], Doc("Owners and modes of paths, after the overlay was copied.")] = ()
    hooks: Annotated[tuple[Hook, ...], Doc("Programs that change the root, run in it, in this order.")] = ()
    boot: Annotated[Boot, Doc("How `doit boot` proves a release.")] = Boot()


@dataclass(frozen=True)
class Recipe:
    """A recipe as loaded.

    name    -- its folder's name
    distro  -- whose section it has
    options -- that section, of the distribution's own type
    builders, ssh_config -- of the site file
    hosts   -- of the site file's hosts those that have this recipe: name by MAC
    cache   -- the checkout's folder of what stays between builds
    """

    name: str
    folder: Path
    distro: str
    common: Common
    options: Any = field(repr=False)
    builders: Mapping[str, Builder] = field(default_factory=dict)
    ssh_config: Path | None = None
    hosts: Mapping[str, str] = field(default_factory=dict)
    cache: Path = Path("out/cache")

    @property
    def lock(self) -> Path:
        return self.folder / LOCK

    def secrets(self) -> dict[str, str]:
        """Password hashes of users, as stages know them. Empty where there is none yet: `problems` says so."""
        users = [user for user in self.common.users if user.has_password]
        return {f"password of {user.name}": user.password_hash or "" for user in users}

    def problems(self) -> list[tuple[str, str]]:
        """What lacks on this machine of what the recipe names: pairs of what is wrong and what to do."""
        lacking = [user for user in self.common.users if user.has_password and user.password_hash is None]
        return [
            (
                f"users: {user.password_env or user.password_file} holds no password hash of {user.name}",
                "mkpasswd, or openssl passwd -6, makes one",
            )
            for user in lacking
        ]

    def relative(self, path: Path) -> str:
        """A recipe's file as users name it; a shared part's with the folder that it comes from."""
        if path.is_relative_to(self.folder):
            return str(path.relative_to(self.folder))
        return str(path.relative_to(self.folder.parent))


Validate = Callable[[Common, Any], Iterable[tuple[str, str]]]
"""Finds what a distribution can know wrong before a build: pairs of the key's path and what is wrong."""


@cache
def file_type(sections: tuple[tuple[str, type[Any], Validate], ...]) -> type[Common]:
    """The dataclass of a recipe file: what is common, and an optional section for each distribution."""
    fields = [
        (name, Annotated[kind | None, Doc(f"What only {name} understands.")], field(default=None))
        for name, kind, _ in sections
    ]

    def check(self: Common) -> Iterable[tuple[str, str]]:
        found = [(name, validate) for name, _, validate in sections if getattr(self, name) is not None]
        yield from _check(self)
        if len(found) == 1:
            name, validate = found[0]
            yield from validate(self, getattr(self, name))
            return
        names = ", ".join(name for name, _, _ in sections)
        what = f"several distributions: {', '.join(name for name, _ in found)}" if found else "no distribution"
        yield found[1][0] if found else "", f"{what}; a recipe has one section of: {names}"

    return dataclasses.make_dataclass(
        "RecipeFile", fields, bases=(Common,), frozen=True, kw_only=True, namespace={"check": check}
    )


def load(folder: Path, sections: tuple[tuple[str, type[Any], Validate], ...]) -> Recipe:
    """The recipe in `folder`. `sections`: each distribution's name, type and validator. Raises SchemaError, all errors
    at once."""
    folder = folder.absolute()
    loaded = schema.load(folder / FILE, file_type(sections), root=folder.parent)
    distro = next(name for name, _, _ in sections if getattr(loaded, name) is not None)
    return Recipe(folder.name, folder, distro, loaded, getattr(loaded, distro))


def find(recipes: Path) -> list[Path]:
    """The folders that hold a recipe, by name; those with a leading underscore are shared parts."""
    found = [path.parent for path in recipes.glob(f"*/{FILE}")]
    return sorted(path for path in found if not path.name.startswith(("_", ".")))


def _check(common: Common) -> Iterable[tuple[str, str]]:
    """What single values can't show."""
    if common.clients is Clients.RW and common.root.kind is not RootKind.NFS:
        yield "clients", f"clients can't own a root that is {common.root.kind}; only `root: nfs` can be rw"
    if common.persist and common.clients is Clients.RW:
        yield "persist", "an rw root keeps everything; `persist` is for volatile clients"
    if common.root.over != "http" and common.root.kind is not RootKind.SQUASHFS:
        yield "root.over", "only a squashfs can choose"
    for index, path in enumerate(common.persist):
        inside = [other for other in common.persist if path.startswith(f"{other}/")]
        if inside:
            yield f"persist.{index}", f"{path} is kept already, below {inside[0]}"
    names = [user.name for user in common.users]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"users.{index}.name", f"user {name} is there twice"
    for index, hook in enumerate(common.hooks):
        if not hook.run.stat().st_mode & 0o100:
            yield f"hooks.{index}", f"{hook.run.name} is not executable; chmod +x {hook.run.name}"
    for index, owner in enumerate(common.owners):
        if owner.owner is None and owner.mode is None:
            yield f"owners.{index}", "states neither owner nor mode"
    for index, user in enumerate(common.users):
        for number, key in enumerate(user.authorized_keys):
            if "PRIVATE KEY" in key.read_text(errors="replace"):
                yield f"users.{index}.authorized-keys.{number}", f"{key.name} is a private key; name the public one"
