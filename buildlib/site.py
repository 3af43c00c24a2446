"""The site file: what is of this place, and not of an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from buildlib import schema
from buildlib.builder import Builder
from buildlib.errors import BuildError
from buildlib.schema import Doc, Text
from buildlib.target import Dhcp, Entry, Http, Id, Line, Loaders, Nfs, Own, Target, local
from buildlib.yamltree import meant

__all__ = [
    "FILE",
    "LOCAL",
    "Builder",
    "Dhcp",
    "Entry",
    "Host",
    "Http",
    "Loaders",
    "Mirror",
    "Nfs",
    "Signing",
    "Site",
    "Target",
    "load",
    "local",
]

FILE = "site.yaml"

LOCAL = "local"
"""The target that every site has: `out/srv/` of the checkout, served by `doit serve`."""


def _mac(text: str) -> str:
    digits = text.lower().replace("-", ":").split(":")
    if len(digits) != 6 or any(len(pair) != 2 or set(pair) - set("0123456789abcdef") for pair in digits):
        raise ValueError(f"expects a MAC like '52:54:00:12:34:56', found {text!r}")
    return ":".join(digits)


Url = Annotated[str, Text(r"https?://\S+", what="a URL", example="http://apt.lab/debian")]
Mac = Annotated[str, Text(what="a MAC", example="52:54:00:12:34:56", normal=_mac)]


@dataclass(frozen=True)
class Mirror:
    """Where this site fetches a distribution's packages. They are verified all the same."""

    archive: Annotated[Url, Doc("The main archive.")]
    security: Annotated[Url | None, Doc("The security archive, where it isn't beside the main one.")] = None


@dataclass(frozen=True)
class Host:
    """A machine that boots something of its own."""

    name: Annotated[
        Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", what="a host name", example="node-01")],
        Doc("What it is called; `dhcp: full` gives it that name."),
    ]
    recipe: Annotated[Id | None, Doc("The recipe or entry that it boots by default; the target's default without.")] = (
        None
    )
    target: Annotated[Id | None, Doc("The target that it boots from; all without.")] = None
    release: Annotated[
        Annotated[str, Text(r"\d{8}T\d{6}Z-[0-9a-f]{12}", what="a release")] | None,
        Doc("The release of `recipe` that it keeps, whatever is published; it must have been published once."),
    ] = None
    cmdline: Annotated[Line, Doc("Arguments added to the kernel command line.")] = ""
    console: Annotated[
        Annotated[str, Text(r"tty[A-Za-z]*[0-9]+(,[0-9a-z]+)?", what="a console", example="ttyS1,115200n8")] | None,
        Doc("Its console, the last `console=` argument."),
    ] = None
    firmware: Annotated[
        Literal["bios", "uefi"] | None, Doc("What `./doit boot:RECIPE` proves with; bios and uefi without.")
    ] = None

    def check(self) -> Iterable[tuple[str, str]]:
        if self.release and not self.recipe:
            yield "release", "goes with `recipe`"


@dataclass(frozen=True)
class Signing:
    """An SSH key that signs what is published, and who may sign."""

    key: Annotated[Own, Doc("The private key; or the public key of one that an agent has.")]
    allowed_signers: Annotated[Own, Doc("Whose signatures `verify` accepts; see ssh-keygen(1), ALLOWED SIGNERS.")]


@dataclass(frozen=True)
class Site:
    """All of a site file; there may be none."""

    mirrors: Annotated[Mapping[str, Mirror], Doc("Mirrors by distribution: debian, ubuntu.")] = field(
        default_factory=dict
    )
    targets: Annotated[Mapping[Id, Target], Doc("Machines that are published to, by name.")] = field(
        default_factory=dict
    )
    hosts: Annotated[Mapping[Mac, Host], Doc("Machines that boot something of their own, by MAC.")] = field(
        default_factory=dict
    )
    builders: Annotated[Mapping[Id, Builder], Doc("Machines that build NixOS images, by name.")] = field(
        default_factory=dict
    )
    signing: Annotated[Signing | None, Doc("Sign what is published.")] = None
    ssh_config: Annotated[Own | None, Doc("OpenSSH's configuration for the targets; ~/.ssh/config without.")] = None

    def mirror_urls(self) -> dict[str, dict[str, str | None]]:
        """As plain data: distribution -> archive and security."""
        return {name: {"archive": mirror.archive, "security": mirror.security} for name, mirror in self.mirrors.items()}

    def hosts_of(self, target: str) -> dict[str, Host]:
        """The hosts that boot from a target, by MAC."""
        return {mac: host for mac, host in self.hosts.items() if host.target in (None, target)}

    def unknown(self, recipes: Iterable[str]) -> Iterator[str]:
        """Names of recipes, or of entries, that are neither: where they stand, for people."""
        known = set(recipes)
        for name, target in self.targets.items():
            entries = {entry.id for entry in target.entries}
            for entry in sorted(entries & known):
                yield f"targets.{name}.entries: {entry} is a recipe's name"
            for recipe in target.recipes:
                if recipe not in known:
                    yield f"targets.{name}.recipes: there is no recipe {recipe}{meant(recipe, list(known))}"
            if target.default and target.default not in known | entries:
                yield f"targets.{name}.default: {target.default} is no recipe and no entry"
        entries = {entry.id for target in self.targets.values() for entry in target.entries}
        for mac, host in self.hosts.items():
            if host.recipe and host.recipe not in known | entries:
                yield f"hosts.{mac}.recipe: there is no recipe {host.recipe}{meant(host.recipe, list(known | entries))}"

    def check(self) -> Iterable[tuple[str, str]]:
        if LOCAL in self.targets:
            yield f"targets.{LOCAL}", "every site has this target already: out/srv/ of the checkout"
        addresses: dict[str, str] = {}
        for name, builder in self.builders.items():
            if builder.host in addresses:
                yield (
                    f"builders.{name}.ssh",
                    f"{builder.host} is {addresses[builder.host]} already; nix needs two names",
                )
            addresses[builder.host] = name
        names: dict[str, str] = {}
        for mac, host in self.hosts.items():
            if host.target not in (None, LOCAL, *self.targets):
                yield f"hosts.{mac}.target", f"there is no target {host.target}"
            if host.name in names:
                yield f"hosts.{mac}.name", f"{host.name} is also {names[host.name]}"
            names[host.name] = mac


def load(folder: Path) -> Site:
    """The site file in `folder` or its `recipes/`, or an empty site. Raises SchemaError, all errors at once."""
    found = [path for path in (folder / FILE, folder / "recipes" / FILE) if path.exists()]
    if len(found) > 1:
        raise BuildError(f"there are two site files: {FILE} and recipes/{FILE}", hint="keep one of them")
    return schema.load(found[0], Site, root=folder) if found else Site()
