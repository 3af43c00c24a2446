"""What a recipe's `nixos:` section may say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from buildlib.recipe import FILE, Clients, Common, Root, RootKind, Services
from buildlib.schema import Dir, Doc, Text

SYSTEMS = {"amd64": "x86_64-linux", "arm64": "aarch64-linux"}
"""How nix calls an architecture."""

Attribute = Annotated[str, Text(r"[A-Za-z0-9_'.\"/+-]+", what="an attribute", example="packages.aarch64-linux.netboot")]


@dataclass(frozen=True)
class Options:
    """What only NixOS understands."""

    flake: Annotated[Annotated[Path, Dir()] | None, Doc("The folder of the flake, such as `flake`.")] = None
    reference: Annotated[
        Annotated[
            str,
            Text(
                r"(github|gitlab|sourcehut|git|git\+https?|git\+ssh|git\+file|path|https?|file|tarball\+https?|hg\+https?)"
                r":[^\s#]+",
                what="a flake reference",
                example="github:lab/images",
            ),
        ]
        | None,
        Doc("In place of `flake`: a flake of another repository, such as github:OWNER/REPOSITORY?dir=FOLDER."),
    ] = None
    configuration: Annotated[
        Annotated[str, Text(r"[A-Za-z0-9_-]+", what="a name", example="spark-netboot")] | None,
        Doc("Which of the flake's nixosConfigurations: its kernel, netbootRamdisk and toplevel are built."),
    ] = None
    netboot: Annotated[
        Attribute | None,
        Doc("In place of `configuration`: the attribute of a folder with kernel, initrd and kernel parameters."),
    ] = None
    store: Annotated[
        Annotated[str, Text(r"[a-z0-9][a-z0-9_.-]*", what="a builder", example="spark-1")] | None,
        Doc("A builder of the site file in whose store all is built and stays; kernel and initrd are fetched."),
    ] = None


def validate(common: Common, options: Options) -> Iterator[tuple[str, str]]:
    """All that can be known wrong before a build."""
    if (options.flake is None) == (options.reference is None):
        yield "nixos.flake", "a recipe has one of `flake` and `reference`"
    if (options.configuration is None) == (options.netboot is None):
        yield "nixos.configuration", "a recipe has one of `configuration` and `netboot`"
    if options.flake is not None:
        if not (options.flake / "flake.nix").is_file():
            yield "nixos.flake", f"there is no flake.nix in {options.flake.name}"
        elif (options.flake / FILE).exists():
            yield "nixos.flake", "is to be a folder of its own: with recipe.lock in it, each lock would change it"
    if common.root != Root(RootKind.RAM):
        yield "root", "the whole of a NixOS netboot image is in its initrd; say `root: ram`, without a size"
    if common.clients is not Clients.VOLATILE:
        yield "clients", "what clients write is gone at power-off; say it in the flake where it should not be"
    for name in ("persist", "hostname", "users", "overlay", "owners", "hooks"):
        if getattr(common, name):
            yield name, "NixOS takes it from the flake; say it there"
    if common.services != Services():
        yield "services", "NixOS takes them from the flake; say it there"
    for name in ("locale", "timezone"):
        if getattr(common, name) != Common.__dataclass_fields__[name].default:
            yield name, "NixOS takes it from the flake; say it there"
