"""What a recipe's `archlinux:` section may say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from buildlib.recipe import Clients, Common, Hostname, RootKind, Services
from buildlib.schema import Doc, File, Text

LATEST = "latest"

Mirror = Annotated[str, Text(r"https?://[^\s'\"\\$&?#]+", what="a URL", example="https://geo.mirror.pkgbuild.com")]


def _release(text: str) -> str:
    if text != LATEST and not re.fullmatch(r"\d{4}\.\d{2}\.\d{2}", text):
        raise ValueError(f"expects a release like '2026.11.01', or 'latest', found {text!r}")
    return text


Package = Annotated[str, Text(r"[a-z0-9@_+][a-z0-9@._+-]*", what="a package", example="openssh")]


@dataclass(frozen=True)
class Pacstrap:
    """A root of one's own."""

    packages: Annotated[tuple[Package, ...], Doc("Packages beside `base`, and what the initramfs needs.")] = ()
    kernel: Annotated[Package, Doc("The kernel's package.")] = "linux"
    repositories: Annotated[
        tuple[Annotated[str, Text(r"[a-z0-9][a-z0-9-]*", what="a repository", example="core")], ...],
        Doc("What packages may be of."),
    ] = ("core", "extra")
    modules: Annotated[
        tuple[Annotated[str, Text(r"[A-Za-z0-9_-]+", what="a module", example="bonding")], ...],
        Doc("Modules that the initramfs loads first, beside what its hooks put into it."),
    ] = ()
    compression: Annotated[Literal["zstd", "xz", "gzip", "lz4"], Doc("Of the initramfs.")] = "zstd"


@dataclass(frozen=True)
class Options:
    """What only Arch Linux understands."""

    pacstrap: Annotated[Pacstrap | None, Doc("In place of `release`: a root of your own, of packages.")] = None
    release: Annotated[
        Annotated[str, Text(what="a release", example="2026.11.01", normal=_release)] | None,
        Doc("An official release; `latest`: the newest when `./doit lock:NAME` was run last."),
    ] = None
    iso: Annotated[Annotated[Path, File()] | None, Doc("In place of `release`: an ISO, official or one's own.")] = None
    iso_url: Annotated[
        Mirror | None, Doc("In place of `release`: where an ISO is; it is pinned as it was when it was locked.")
    ] = None
    signature: Annotated[
        Annotated[Path, File()] | None, Doc("The ISO's PGP signature, the `.sig` beside it on mirrors.")
    ] = None
    keyring: Annotated[
        Annotated[Path, File()] | None,
        Doc("Keys that may have signed it, or packages; without, Debian's archlinux-keyring."),
    ] = None
    mirrors: Annotated[tuple[Mirror, ...], Doc("Where releases are fetched; the next one when one fails.")] = (
        "https://geo.mirror.pkgbuild.com",
        "https://mirror.rackspace.com/archlinux",
    )
    check: Annotated[
        Literal["auto", "cms", "checksum"],
        Doc(
            "How a machine checks its root; auto: by signature where its initrd has the certificate, else by checksum."
        ),
    ] = "auto"
    copytoram: Annotated[
        Literal["auto", "yes", "no"],
        Doc("Whether the root is copied into RAM. `no`: less memory, but the network must stay."),
    ] = "auto"
    script: Annotated[
        Annotated[Path, File()] | None, Doc("A program that a booted machine fetches and runs as root at its console.")
    ] = None
    host_scripts: Annotated[
        Mapping[Hostname, Annotated[Path, File()]],
        Doc("More programs, for single hosts of the site file, by their names; run before `script`."),
    ] = field(default_factory=dict)


def validate(common: Common, options: Options) -> Iterator[tuple[str, str]]:
    """All that can be known wrong before a build."""
    if common.arch != "amd64":
        yield "arch", "Arch Linux is for amd64 (x86_64) only; Arch Linux ARM has no netboot images"
    sources = [name for name in ("release", "iso", "iso_url", "pacstrap") if getattr(options, name) is not None]
    if len(sources) != 1:
        where = sources[1].replace("_", "-") if sources else "release"
        yield f"archlinux.{where}", "a recipe has one of `release`, `iso`, `iso-url` and `pacstrap`"
    own = options.pacstrap is not None
    if options.signature is not None and options.iso is None and options.iso_url is None:
        yield "archlinux.signature", "goes with `iso`; a release is pinned by the recipe's lock"
    if options.keyring is not None and options.signature is None and not own:
        yield "archlinux.keyring", "goes with `signature`, which is missing"
    if own and options.check == "cms":
        yield "archlinux.check", "a root of your own is checked by its checksum"
    if not options.mirrors:
        yield "archlinux.mirrors", "at least one is needed"
    if common.root.kind is not RootKind.SQUASHFS:
        yield "root", "the root of Arch's images is a squashfs; say `root: squashfs`, or `{kind: squashfs, over: nfs}`"
    if common.root.over == "http" and options.copytoram == "no":
        yield "archlinux.copytoram", "what comes over HTTP is in RAM; `no` goes with `over: nfs`"
    if common.clients is not Clients.VOLATILE:
        yield "clients", "what clients write is gone at power-off"
    for index, user in enumerate(common.users if not own else ()):
        if user.name != "root" or user.has_password:
            yield (
                f"users.{index}.name",
                "of an official image only root's keys can be set; others by `archlinux.script`",
            )
    if common.persist:
        yield "persist", "what clients write is gone at power-off"
    if own:
        return
    for name in ("owners", "hooks"):
        if getattr(common, name):
            yield name, "an official image is taken as it is; `archlinux.script` changes it when it has booted"
    if common.services != Services():
        yield "services", "an official image is taken as it is; `archlinux.script` changes it when it has booted"
    for name in ("locale", "timezone"):
        if getattr(common, name) != Common.__dataclass_fields__[name].default:
            yield name, "an official image is taken as it is"
