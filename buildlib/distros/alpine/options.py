"""What a recipe's `alpine:` section may say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from buildlib import secret
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
        Annotated[str, Text(r"[A-Z_][A-Z0-9_]*", what="a variable", example="APKOVL_PASSWORD", secret=True)] | None,
        Doc("In place of that: a variable of the environment."),
    ] = None
    cipher: Annotated[
        Literal["aes-256-cbc", "aes-192-cbc", "aes-128-cbc", "camellia-256-cbc", "chacha20"],
        Doc("OpenSSL's name of the cipher."),
    ] = "aes-256-cbc"

    def check(self) -> Iterator[tuple[str, str]]:
        if (self.password_file is None) == (self.password_env is None):
            yield "", "says one of `password-file` and `password-env`"

    def password(self) -> str | None:
        """The password; None where it isn't there."""
        return secret.line(self.password_file, self.password_env)


@dataclass(frozen=True)
class SigningKey:
    """A private RSA key that stays outside of recipes."""

    file: Annotated[
        Annotated[str, Text(r"\S.*", what="a path", example="~/.secrets/site.rsa")] | None,
        Doc("The file of it; `openssl genrsa -out FILE 4096` makes one."),
    ] = None
    env: Annotated[
        Annotated[str, Text(r"[A-Z_][A-Z0-9_]*", what="a variable", example="SIGNING_KEY")] | None,
        Doc("In place of that: a variable of the environment that holds it."),
    ] = None

    def check(self) -> Iterator[tuple[str, str]]:
        if (self.file is None) == (self.env is None):
            yield "", "says one of `file` and `env`"

    def read(self) -> str | None:
        """The key; None where it isn't there."""
        return secret.read(self.file, self.env)


@dataclass(frozen=True)
class Mkinitfs:
    """What `source: mkinitfs` makes an initramfs of."""

    features: Annotated[
        tuple[Annotated[str, Text(r"[a-z0-9_-]+", what="a feature", example="nvme")], ...],
        Doc("mkinitfs' features; `network` has all Ethernet drivers."),
    ] = ("base", "network", "squashfs", "usb", "virtio")
    files: Annotated[
        tuple[Annotated[str, Text(r"/\S+", what="a path or pattern", example="/usr/bin/strace")], ...],
        Doc("More files of the root that it is made in, with the libraries that they need."),
    ] = ()
    modules: Annotated[
        tuple[Annotated[str, Text(r"kernel/\S+", what="a pattern", example="kernel/drivers/net/bonding")], ...],
        Doc("More modules, by patterns below the kernel's folder."),
    ] = ()
    packages: Annotated[tuple[Package, ...], Doc("Packages that `files` are of.")] = ()
    firmware: Annotated[
        tuple[Package, ...], Doc("Packages of firmware: what the modloop has, and the initramfs where modules want it.")
    ] = ()
    compression: Annotated[Literal["gzip", "xz", "zstd", "lz4"], Doc("Of the initramfs.")] = "gzip"


@dataclass(frozen=True)
class Options:
    """What only Alpine understands."""

    branch: Annotated[
        Annotated[str, Text(what="a branch", example="3.22", normal=_branch)],
        Doc("Its newest release when `./doit lock:NAME` was run last; latest-stable is pinned by its number."),
    ] = "latest-stable"
    flavor: Annotated[Literal["lts", "virt", "rpi"], Doc("The kernel: lts, or virt for virtual machines.")] = "lts"
    source: Annotated[
        Literal["netboot", "mkinitfs"],
        Doc("netboot: the official bundle as it is; mkinitfs: kernel, initramfs and modloop of packages."),
    ] = "netboot"
    mkinitfs: Annotated[Mkinitfs, Doc("With `source: mkinitfs`: what the initramfs has.")] = Mkinitfs()
    repository: Annotated[
        Literal["mirror", "release"],
        Doc("Where machines get packages at boot. mirror: what it has then; release: what the lock says, from there."),
    ] = "mirror"
    signing_key: Annotated[
        SigningKey | None, Doc("Signs the release's own repository, and the modloop of `source: mkinitfs`.")
    ] = None
    keys: Annotated[
        tuple[Annotated[Path, File()], ...],
        Doc("Public keys that are trusted beside Alpine's, by their file names: of a mirror with packages of its own."),
    ] = ()
    mirrors: Annotated[
        tuple[Mirror, ...], Doc("Where releases are fetched, and packages at every boot: the first one then.")
    ] = ("https://dl-cdn.alpinelinux.org/alpine",)
    repositories: Annotated[
        tuple[Literal["main", "community", "testing"], ...], Doc("What packages may be of; `testing` with edge alone.")
    ] = (
        "main",
        "community",
    )
    packages: Annotated[tuple[Package, ...], Doc("Packages that machines install at boot.")] = ()
    services: Annotated[Runlevels, Doc("Services that are started, by runlevel.")] = Runlevels()
    interfaces: Annotated[
        Annotated[Path, File()] | None, Doc("A file for /etc/network/interfaces; without, `eth0` by DHCP.")
    ] = None
    base: Annotated[
        Annotated[Path, File()] | None,
        Doc("An apkovl to start from, such as `lbu pkg` has made; the recipe's words go over it."),
    ] = None
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
    if options.signing_key is None and (options.source == "mkinitfs" or options.repository == "release"):
        word = "source" if options.source == "mkinitfs" else "repository"
        yield f"alpine.{word}", "needs `signing-key`: what is made here has to be signed by somebody"
    if options.source == "netboot" and options.mkinitfs != Mkinitfs():
        yield "alpine.mkinitfs", "the official initramfs is as it is; say `source: mkinitfs`"
    if "main" not in options.repositories:
        yield "alpine.repositories", "without `main` there is no Alpine"
    for index, key in enumerate(options.keys):
        if "PUBLIC KEY" not in key.read_text(errors="replace"):
            yield f"alpine.keys.{index}", f"{key.name} is no public key (PEM)"
        if not key.name.endswith(".rsa.pub"):
            yield f"alpine.keys.{index}", f"{key.name}: apk knows keys by their file names, which end in .rsa.pub"
    if options.per_host and common.hostname:
        yield "hostname", "with `per-host` each has its own"
