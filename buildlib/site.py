"""The site file: what is of this place, and not of an image."""

from __future__ import annotations

import ipaddress
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from buildlib import schema
from buildlib.bootmenu import argument_line
from buildlib.schema import Doc, Range, Text, shorthand
from buildlib.yamltree import meant

FILE = "site.yaml"

LOCAL = "local"
"""The target that every site has: `out/srv/` of the checkout, served by `doit serve`."""


def _mac(text: str) -> str:
    digits = text.lower().replace("-", ":").split(":")
    if len(digits) != 6 or any(len(pair) != 2 or set(pair) - set("0123456789abcdef") for pair in digits):
        raise ValueError(f"expects a MAC like '52:54:00:12:34:56', found {text!r}")
    return ":".join(digits)


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(f"expects an IPv4 address like '192.168.7.1', found {text!r}") from None


def _network(text: str) -> str:
    try:
        return str(ipaddress.IPv4Network(text))
    except ValueError as error:
        raise ValueError(f"expects a network like '192.168.7.0/24': {error}") from None


def _folder(text: str) -> str:
    if not text.startswith("/") or posixpath.normpath(text) != text or any(sign < " " for sign in text):
        raise ValueError(f"expects an absolute path like '/srv/tftp', found {text!r}")
    return text


Url = Annotated[str, Text(r"https?://\S+", what="a URL", example="http://apt.lab/debian")]
Mac = Annotated[str, Text(what="a MAC", example="52:54:00:12:34:56", normal=_mac)]
Address = Annotated[str, Text(what="an IPv4 address", example="192.168.7.1", normal=_address)]
Folder = Annotated[str, Text(what="an absolute path", example="/srv/tftp", normal=_folder)]
Id = Annotated[str, Text(r"[a-z0-9][a-z0-9_.-]*", what="a name", example="netboot-xyz")]
Line = Annotated[str, Text(normal=argument_line)]
Fetched = Annotated[str, Text(r"https?://[^\s\"'\\]+", what="a URL", example="http://boot.lab/vmlinuz")]


@dataclass(frozen=True)
class Mirror:
    """Where this site fetches a distribution's packages. They are verified all the same."""

    archive: Annotated[Url, Doc("The main archive.")]
    security: Annotated[Url | None, Doc("The security archive, where it isn't beside the main one.")] = None


@shorthand("mode")
@dataclass(frozen=True)
class Dhcp:
    """Who answers machines that ask for an address."""

    mode: Annotated[
        Literal["proxy", "full", "none"],
        Doc("proxy: beside the DHCP server that is there; full: in its place; none: leave DHCP alone."),
    ] = "proxy"
    first: Annotated[Address | None, Doc("full: first address that is given out.")] = None
    last: Annotated[Address | None, Doc("full: last address that is given out.")] = None
    router: Annotated[Address | None, Doc("full: the gateway; none without.")] = None
    dns: Annotated[tuple[Address, ...], Doc("full: name servers.")] = ()


@shorthand("path")
@dataclass(frozen=True)
class Http:
    """The HTTP server."""

    path: Annotated[Folder, Doc("The folder that it serves; the same as `tftp`, or a folder for big files alone.")]
    port: Annotated[Annotated[int, Range(1, 65535)], Doc("Its port.")] = 80


@shorthand("path")
@dataclass(frozen=True)
class Nfs:
    """The NFS server."""

    path: Annotated[Folder, Doc("The folder that root trees are put into.")]
    persist: Annotated[Folder | None, Doc("The folder of what clients keep; `persist` in `path` without.")] = None


@dataclass(frozen=True)
class Loaders:
    """Which boot loader a machine's firmware gets."""

    bios: Annotated[
        Literal["lpxelinux", "pxelinux", "ipxe"], Doc("BIOS. lpxelinux fetches by HTTP, pxelinux by TFTP alone.")
    ] = "lpxelinux"
    uefi: Annotated[
        Literal["grub", "shim", "ipxe"], Doc("UEFI. shim: with Secure Boot, shim and then the signed GRUB.")
    ] = "grub"


@dataclass(frozen=True)
class Entry:
    """A menu entry that is no release: a URL to go on with, the machine's disk, or a foreign kernel."""

    id: Annotated[Id, Doc("A word that is no recipe's name.")]
    title: Annotated[str, Text(r"[^\x00-\x1f]+"), Doc("What the menu shows.")]
    chain: Annotated[Fetched | None, Doc("URL of a boot loader or iPXE script, such as netboot.xyz's.")] = None
    local: Annotated[bool, Doc("Boot the machine's own disk.")] = False
    kernel: Annotated[Fetched | None, Doc("URL of a kernel.")] = None
    initrd: Annotated[tuple[Fetched, ...], Doc("URLs of what is unpacked as its initrd.")] = ()
    cmdline: Annotated[Line, Doc("The kernel's command line.")] = ""
    arch: Annotated[Literal["amd64", "arm64"] | None, Doc("Of the machines that can boot it; any without.")] = None

    def check(self) -> Iterable[tuple[str, str]]:
        said = [name for name in ("chain", "local", "kernel") if getattr(self, name)]
        if len(said) != 1:
            yield said[1] if said else "id", "an entry has one of `chain`, `local: yes` and `kernel`"
        if (self.initrd or self.cmdline) and not self.kernel:
            yield "initrd" if self.initrd else "cmdline", "goes with `kernel`"


@dataclass(frozen=True)
class Target:
    """A machine that is published to, and the network that it serves."""

    address: Annotated[Address, Doc("The server's address as clients see it.")]
    network: Annotated[
        Annotated[str, Text(what="a network", example="192.168.7.0/24", normal=_network)], Doc("The clients' network.")
    ]
    tftp: Annotated[Folder | None, Doc("The folder that its TFTP server serves.")] = None
    http: Annotated[Http | None, Doc("Its HTTP server.")] = None
    nfs: Annotated[Nfs | None, Doc("Its NFS server.")] = None
    interface: Annotated[
        Annotated[str, Text(r"[A-Za-z0-9_.@-]{1,15}", what="an interface", example="eth1")] | None,
        Doc("The interface that dnsmasq answers on."),
    ] = None
    dhcp: Annotated[Dhcp, Doc("Who answers machines that ask for an address.")] = Dhcp()
    loaders: Annotated[Loaders, Doc("Which boot loader a machine's firmware gets.")] = Loaders()
    recipes: Annotated[tuple[Id, ...], Doc("What it offers; all recipes without.")] = ()
    default: Annotated[Id | None, Doc("What boots when nobody chooses; the first without.")] = None
    timeout: Annotated[Annotated[int, Range(0, 3600)], Doc("Seconds until the default boots; 0: at once.")] = 5
    entries: Annotated[tuple[Entry, ...], Doc("What its menu offers beside releases.")] = ()
    gate: Annotated[
        Literal["boot", "none"], Doc("boot: a release is published only after it booted (`doit boot:NAME`).")
    ] = "none"
    services: Annotated[
        Mapping[Literal["dnsmasq", "exports", "ganesha", "nbd", "nginx"], Folder],
        Doc("Configuration files that publishing writes, by service."),
    ] = field(default_factory=dict)

    @property
    def url(self) -> str | None:
        """Where the boot root is fetched by HTTP, without a slash at the end."""
        if self.http is None:
            return None
        return f"http://{self.address}" + ("" if self.http.port == 80 else f":{self.http.port}")

    @property
    def boot_root(self) -> str | None:
        """The folder of boot loaders, menus and entries."""
        return self.tftp or (self.http.path if self.http else None)

    @property
    def files_root(self) -> str | None:
        """The folder of what is big."""
        return self.http.path if self.http else self.tftp

    @property
    def persist(self) -> str | None:
        """The folder of what clients keep."""
        return (self.nfs.persist or f"{self.nfs.path}/persist") if self.nfs else None

    def check(self) -> Iterable[tuple[str, str]]:
        net = ipaddress.IPv4Network(self.network)
        if ipaddress.IPv4Address(self.address) not in net:
            yield "address", f"{self.address} is not in the network {self.network}"
        if not (self.tftp or self.http or self.nfs):
            yield "", "a target has at least one of `tftp`, `http` and `nfs`"
        for name in ("first", "last", "router"):
            value = getattr(self.dhcp, name)
            if value and ipaddress.IPv4Address(value) not in net:
                yield f"dhcp.{name}", f"{value} is not in the network {self.network}"
            if self.dhcp.mode == "full" and name != "router" and value is None:
                yield "dhcp", f"full DHCP needs `{name}`"
        if self.dhcp.mode != "full" and any((self.dhcp.first, self.dhcp.last, self.dhcp.router, self.dhcp.dns)):
            yield "dhcp", f"addresses are given out by `mode: full` only, not by {self.dhcp.mode}"
        ids = [entry.id for entry in self.entries]
        for index, entry in enumerate(self.entries):
            if entry.id in ids[:index] or entry.id in self.recipes:
                yield f"entries.{index}.id", f"{entry.id} is there twice"
        if self.default and self.recipes and self.default not in (*self.recipes, *ids):
            yield "default", f"{self.default} is neither among `recipes` nor among `entries`"


@dataclass(frozen=True)
class Host:
    """A machine that boots something of its own."""

    name: Annotated[
        Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", what="a host name", example="node-01")],
        Doc("What it is called."),
    ]
    recipe: Annotated[Id | None, Doc("What it boots; the target's default without. Also an entry's id.")] = None
    target: Annotated[Id | None, Doc("The target that it boots from; all without.")] = None
    release: Annotated[
        Annotated[str, Text(r"\d{8}T\d{6}Z-[0-9a-f]{12}", what="a release")] | None,
        Doc("The release of `recipe` that it keeps, whatever is published."),
    ] = None
    cmdline: Annotated[Line, Doc("Arguments added to the kernel command line.")] = ""
    console: Annotated[
        Annotated[str, Text(r"tty[A-Za-z]*[0-9]+(,[0-9a-z]+)?", what="a console", example="ttyS1,115200n8")] | None,
        Doc("Its console, the last `console=` argument."),
    ] = None
    firmware: Annotated[
        Literal["bios", "uefi"] | None, Doc("What `doit boot` of its recipe boots with; bios and uefi without.")
    ] = None

    def check(self) -> Iterable[tuple[str, str]]:
        if self.release and not self.recipe:
            yield "release", "goes with `recipe`"


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
        names: dict[str, str] = {}
        for mac, host in self.hosts.items():
            if host.target not in (None, LOCAL, *self.targets):
                yield f"hosts.{mac}.target", f"there is no target {host.target}"
            if host.name in names:
                yield f"hosts.{mac}.name", f"{host.name} is also {names[host.name]}"
            names[host.name] = mac


def local(folder: Path, address: str, network: str) -> Target:
    """The target that every site has: `folder`, served by this machine at `address`."""
    boot = str(folder.resolve() / "boot")
    nfs = Nfs(str(folder.resolve() / "nfs"))
    return Target(address=address, network=network, tftp=boot, http=Http(boot), nfs=nfs)


def load(folder: Path) -> Site:
    """The site file in `folder`, or an empty site. Raises SchemaError, all errors at once."""
    path = folder / FILE
    return schema.load(path, Site, root=folder) if path.exists() else Site()
