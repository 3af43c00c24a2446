"""What a recipe's `alpine:` section may say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from buildlib.recipe import Clients, Common, Root, RootKind, Services
from buildlib.schema import Doc, File, Text

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
"""How Alpine calls an architecture."""

Package = Annotated[str, Text(r"[a-z0-9][a-zA-Z0-9+._-]*([=<>~@]\S+)?", what="a package", example="chrony")]
Service = Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9._-]*", what="a service", example="chronyd")]
Mirror = Annotated[str, Text(r"https?://[^\s'\"\\$,]+", what="a URL", example="https://dl-cdn.alpinelinux.org/alpine")]


def _branch(text: str) -> str:
    if text not in ("latest-stable", "edge") and not re.fullmatch(r"3\.\d{1,2}", text.removeprefix("v")):
        raise ValueError(f"expects a branch like '3.22', 'latest-stable' or 'edge', found {text!r}")
    return text.removeprefix("v")


@dataclass(frozen=True)
class Runlevels:
    """Services by OpenRC's runlevels, beside those that every machine needs."""

    sysinit: Annotated[tuple[Service, ...], Doc("Before all.")] = ()
    boot: Annotated[tuple[Service, ...], Doc("While the machine starts.")] = ()
    default: Annotated[tuple[Service, ...], Doc("When it has started.")] = ()
    shutdown: Annotated[tuple[Service, ...], Doc("When it ends.")] = ()


@dataclass(frozen=True)
class Encryption:
    """An apkovl that asks for its password at the machine's console."""

    password_file: Annotated[
        Annotated[str, Text(r"\S.*", what="a path", example="~/.secrets/apkovl")] | None,
        Doc("The file whose first line is the password; no file of the recipe."),
    ] = None
    password_env: Annotated[
        Annotated[str, Text(r"[A-Z_][A-Z0-9_]*", what="a variable", example="APKOVL_PASSWORD")] | None,
        Doc("In place of that: a variable of the environment."),
    ] = None
    cipher: Annotated[
        Literal["aes-256-cbc", "aes-192-cbc", "aes-128-cbc", "camellia-256-cbc", "chacha20"],
        Doc("OpenSSL's name of it."),
    ] = "aes-256-cbc"

    def check(self) -> Iterator[tuple[str, str]]:
        if (self.password_file is None) == (self.password_env is None):
            yield "", "says one of `password-file` and `password-env`"

    def password(self) -> str | None:
        """The password; None where it isn't there."""
        if self.password_env is not None:
            return os.environ.get(self.password_env) or None
        try:
            lines = Path(str(self.password_file)).expanduser().read_text().splitlines()
        except OSError:
            return None
        return lines[0] if lines and lines[0] else None


@dataclass(frozen=True)
class Options:
    """What only Alpine understands."""

    branch: Annotated[
        Annotated[str, Text(what="a branch", example="3.22", normal=_branch)],
        Doc("A branch, such as 3.22; its newest release when `./doit lock:NAME` was run last."),
    ] = "latest-stable"
    flavor: Annotated[Literal["lts", "virt", "rpi"], Doc("The kernel: lts, or virt for virtual machines.")] = "lts"
    mirrors: Annotated[
        tuple[Mirror, ...], Doc("Where releases are fetched, and packages at every boot: the first one then.")
    ] = ("https://dl-cdn.alpinelinux.org/alpine",)
    repositories: Annotated[tuple[Literal["main", "community", "testing"], ...], Doc("What packages may be of.")] = (
        "main",
        "community",
    )
    packages: Annotated[tuple[Package, ...], Doc("Packages that machines install at boot.")] = ()
    services: Annotated[Runlevels, Doc("Services that are started, by runlevel.")] = Runlevels()
    interfaces: Annotated[
        Annotated[Path, File()] | None, Doc("/etc/network/interfaces; without, the first Ethernet interface by DHCP.")
    ] = None
    base: Annotated[Annotated[Path, File()] | None, Doc("An apkovl to start from, such as lbu has made.")] = None
    encryption: Annotated[Encryption | None, Doc("Encrypt apkovls; they are plain without.")] = None
    per_host: Annotated[
        bool, Doc("An apkovl for each host of the site file that has this recipe, with its name as host name.")
    ] = False


def validate(common: Common, options: Options) -> Iterator[tuple[str, str]]:
    """All that can be known wrong before a build."""
    if common.root not in (Root(RootKind.RAM), Root(RootKind.RAM, size=common.root.size)):
        yield "root", "a diskless Alpine is in RAM; say `root: ram`"
    if common.clients is not Clients.VOLATILE or common.persist:
        yield "clients" if not common.persist else "persist", "what a diskless Alpine writes is gone at power-off"
    if not options.mirrors:
        yield "alpine.mirrors", "at least one is needed"
    if not options.repositories:
        yield "alpine.repositories", "at least one is needed"
    if "testing" in options.repositories and options.branch != "edge":
        yield "alpine.repositories", "only edge has `testing`"
    if options.flavor == "rpi" and common.arch != "arm64":
        yield "alpine.flavor", "rpi is for arm64"
    for index, user in enumerate(common.users):
        if user.name != "root":
            yield f"users.{index}.name", "in an apkovl only root's keys and password can be set; others by a service"
    for name in ("owners", "hooks"):
        if getattr(common, name):
            yield name, "nothing is built that could be changed; put what you need into `overlay`"
    if common.services != Services():
        yield "services", "these are systemd's; say `alpine.services`"
    if common.locale != Common.__dataclass_fields__["locale"].default:
        yield "locale", "musl knows C.UTF-8 alone"
    if options.per_host and common.hostname:
        yield "hostname", "with `per-host` each has its own"
