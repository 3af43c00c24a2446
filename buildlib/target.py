"""Targets, as the site file tells them: a boot server, of one machine or several, and the network that it serves."""

from __future__ import annotations

import ipaddress
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from buildlib.bootmenu import argument_line
from buildlib.schema import Doc, Range, Text, shorthand


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


Address = Annotated[str, Text(what="an IPv4 address", example="192.168.7.1", normal=_address)]
Folder = Annotated[str, Text(what="an absolute path", example="/srv/tftp", normal=_folder)]
Id = Annotated[str, Text(r"[a-z0-9][a-z0-9_.-]*", what="a name", example="netboot-xyz")]
Line = Annotated[str, Text(normal=argument_line)]
Own = Annotated[str, Text(r"\S.*", what="a path", example="~/.ssh/id_ed25519")]
Login = Annotated[
    str,
    Text(
        r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.-]*(:[0-9]{1,5})?",
        what="an SSH destination",
        example="root@boot.lab:22",
    ),
]
Base = Annotated[
    str,
    Text(r"http://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*", what="a URL", example="http://192.168.7.2/boot"),
]
Fetched = Annotated[str, Text(r"https?://[^\s\"'\\]+", what="a URL", example="http://boot.lab/vmlinuz")]


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
    """The HTTP server: a folder of its target, or of a machine of its own."""

    path: Annotated[Folder, Doc("The folder that it serves; the same as `tftp`, or a folder for big files alone.")]
    port: Annotated[Annotated[int, Range(1, 65535)], Doc("Its port.")] = 80
    url: Annotated[Base | None, Doc("Where clients fetch that folder; `http://ADDRESS:PORT` without.")] = None
    ssh: Annotated[Login | None, Doc("The machine that it is on, where that is not the target's.")] = None
    sudo: Annotated[bool | None, Doc("Become root there by sudo; as the target without.")] = None

    def check(self) -> Iterable[tuple[str, str]]:
        if self.url and self.port != 80:
            yield "port", "`url` says the port"
        if self.ssh and not self.url:
            yield "ssh", "on a machine of its own it has a `url` of its own"


@shorthand("path")
@dataclass(frozen=True)
class Nfs:
    """The NFS server: a folder of its target, or of a machine of its own."""

    path: Annotated[Folder, Doc("The folder that root trees are put into.")]
    persist: Annotated[Folder | None, Doc("The folder of what clients keep; `persist` in `path` without.")] = None
    address: Annotated[Address | None, Doc("The server's address as clients see it; the target's without.")] = None
    ssh: Annotated[Login | None, Doc("The machine that it is on, where that is not the target's.")] = None
    sudo: Annotated[bool | None, Doc("Become root there by sudo; as the target without.")] = None

    def check(self) -> Iterable[tuple[str, str]]:
        if self.ssh and not self.address:
            yield "ssh", "on a machine of its own it has an `address` of its own"


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
    """A boot server, of one machine or several, and the network that it serves."""

    address: Annotated[Address, Doc("The server's address as clients see it.")]
    network: Annotated[
        Annotated[str, Text(what="a network", example="192.168.7.0/24", normal=_network)], Doc("The clients' network.")
    ]
    ssh: Annotated[
        Login | None, Doc("How to reach it: an alias of ~/.ssh/config, or user@host:port; this machine without.")
    ] = None
    sudo: Annotated[bool, Doc("Become root there by sudo, which must not ask for a password.")] = False
    keep: Annotated[
        Annotated[int, Range(1, 1000)], Doc("How many releases of a recipe `prune` leaves to go back to.")
    ] = 3
    tftp: Annotated[Folder | None, Doc("The folder that its TFTP server serves: boot loaders, menus, entries.")] = None
    http: Annotated[Http | None, Doc("Its HTTP server.")] = None
    nfs: Annotated[Nfs | None, Doc("Its NFS server.")] = None
    interface: Annotated[
        Annotated[str, Text(r"[A-Za-z0-9_.@-]{1,15}", what="an interface", example="eth1")] | None,
        Doc("The interface that dnsmasq answers on."),
    ] = None
    dhcp: Annotated[Dhcp, Doc("Who answers machines that ask for an address.")] = Dhcp()
    loaders: Annotated[Loaders, Doc("Which boot loader a machine's firmware gets.")] = Loaders()
    recipes: Annotated[
        tuple[Id, ...], Doc("What may be published here, in the menu's order; all recipes without.")
    ] = ()
    default: Annotated[
        Id | None, Doc("A recipe or entry that boots when nobody chooses; the first that the machine can boot without.")
    ] = None
    timeout: Annotated[Annotated[int, Range(0, 3600)], Doc("Seconds until the default boots; 0: at once.")] = 5
    entries: Annotated[tuple[Entry, ...], Doc("What its menu offers beside releases.")] = ()
    gate: Annotated[
        Literal["boot", "none"],
        Doc("boot: a release is published only after it has booted with all firmware that its recipe's proof wants."),
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
        if self.http.url:
            return self.http.url
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

    @property
    def files_address(self) -> str:
        """The machine that has what is big, as clients see it."""
        host = urlsplit(self.http.url).hostname if self.http and self.http.url else None
        return host or self.address

    @property
    def nfs_address(self) -> str:
        """The NFS server as clients see it."""
        return (self.nfs and self.nfs.address) or self.address

    @property
    def boot_login(self) -> tuple[str | None, bool]:
        """SSH destination, None for this machine, and whether to use sudo there: where the boot root is."""
        return self._login(None if self.tftp else self.http)

    @property
    def files_login(self) -> tuple[str | None, bool]:
        """As `boot_login`: where what is big is."""
        return self._login(self.http)

    @property
    def nfs_login(self) -> tuple[str | None, bool]:
        """As `boot_login`: where root trees are."""
        return self._login(self.nfs)

    @property
    def is_far(self) -> bool:
        """Whether any of its machines is reached by SSH."""
        return any(login[0] for login in (self.boot_login, self.files_login, self.nfs_login))

    def _login(self, part: Http | Nfs | None) -> tuple[str | None, bool]:
        own = part.sudo if part else None
        return (part.ssh if part else None) or self.ssh, self.sudo if own is None else own

    def check(self) -> Iterable[tuple[str, str]]:
        net = ipaddress.IPv4Network(self.network)
        if ipaddress.IPv4Address(self.address) not in net:
            yield "address", f"{self.address} is not in the network {self.network}"
        if not (self.tftp or self.http or self.nfs):
            yield "", "a target has at least one of `tftp`, `http` and `nfs`"
        for name in ("sudo", "http", "nfs"):
            part = self if name == "sudo" else getattr(self, name)
            if part and part.sudo and not (part.ssh or self.ssh):
                yield name, "`sudo` goes with `ssh`; on this machine run ./doit as root"
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


def local(folder: Path, address: str, network: str) -> Target:
    """The target that every site has: `folder`, served by this machine at `address`."""
    boot = str(folder.resolve() / "boot")
    nfs = Nfs(str(folder.resolve() / "nfs"))
    return Target(address=address, network=network, tftp=boot, http=Http(boot), nfs=nfs)
