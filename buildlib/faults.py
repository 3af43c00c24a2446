"""What is known to stop a boot, and how it shows.

Looked up in one text: the console's, then `[SERVER] WHAT` for each thing that a server saw, with FAILED at its end if
the client did not get it. Standard library only, as all that a sandbox calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, auto


class Reached(IntEnum):
    """How far a boot came, in the order of things."""

    POWER = auto()
    FIRMWARE = auto()
    ADDRESS = auto()
    FIRST = auto()
    LOADER = auto()
    LOADED = auto()
    KERNEL = auto()
    UNPACKED = auto()
    INIT = auto()
    NETWORK = auto()
    ROOT = auto()
    SYSTEM = auto()
    LOGIN = auto()


@dataclass(frozen=True)
class Fault:
    """sign -- what tells it; cause, hint -- with the sign's groups and the facts in braces.

    before -- what such a boot can't have reached: firmware and boot loaders may try in vain what they need not have
    """

    sign: str
    cause: str
    hint: str
    before: Reached | None = None


def _before(reached: Reached | None, *rows: tuple[str, str, str]) -> Iterator[Fault]:
    return (Fault(*row, reached) for row in rows)


_DHCP = "is the DHCP server up, on the machine's network, with free addresses? In proxy mode another one gives them"
_LOADERS = "put the boot loaders there: publish anything to the target"
_FILES = "is the release published as a whole? Publish it again"
_BOTH = "kernel and initrd must be of one release; build it again"
_MORE = "give the machine more memory (`boot: {{memory: MiB}}` for the proof), or use a root that is not loaded into it"

LPXELINUX = r"^PXELINUX \S+ lwIP(?:(?![Ff]ailed)[\s\S])*?Boot failed: press a key to retry"
"""A crash: what it can't fetch it says first."""

FAULTS = (
    # Firmware.
    *_before(
        Reached.ADDRESS,
        (
            r"No configuration methods\s+succeeded|PXE-E(?:16|18|51)\b|>>Start PXE over IPv4\.(?![\s\S]*Station IP)",
            "no DHCP server answered the firmware",
            _DHCP,
        ),
    ),
    *_before(
        Reached.FIRST,
        (
            r"^Nothing to boot",
            "DHCP gave an address but no file to boot",
            "is the architecture that the firmware tells one that the target has a boot loader for?",
        ),
        (
            r"Server IP address is (?P<server>\S+)\s+NBP filename is (?P<file>\S+)\s+NBP filesize is 0 Bytes",
            "TFTP: {server} has no {file}, which DHCP told the firmware to boot",
            _LOADERS,
        ),
        (
            r"PXE-E(?:11|12|32)\b.*",
            "TFTP: the server does not answer the firmware ({line})",
            "is it up, and is UDP port 69 open?",
        ),
    ),
    # PXELINUX; before iPXE, whose ROM loads it.
    *_before(
        Reached.KERNEL,
        (
            r"Failed to load (?:COM32 file )?(?P<file>\S+\.c32)",
            "PXELINUX: there is no {file} beside it on the TFTP server",
            "it must be of PXELINUX's own build: publish anything to the target to have both put there",
        ),
        (
            r"No DEFAULT or UI configuration directive found|Unable to locate configuration file",
            "PXELINUX: it found no menu in pxelinux.cfg/ on the TFTP server",
            _FILES,
        ),
        (
            r"^Loading http://(?P<server>[^/\s]+)/(?P<file>\S+?)\.\.\. *netconn_connect error",
            "HTTP: {server} does not answer PXELINUX, which asks for /{file}",
            "is the HTTP server up, and its port open?",
        ),
        (r"^Loading (?P<url>\S+?)\.\.\. *failed: (?P<error>.*)", "PXELINUX: cannot load {url}: {error}", _FILES),
        (
            LPXELINUX,
            "lpxelinux crashed while it fetched what the server has, as version 6.04 does now and then",
            "a real machine restarts after five minutes, or at a key; `loaders: {{bios: ipxe}}` has no such fault",
        ),
        (
            r"Invalid or corrupt kernel image|Booting kernel failed.*",
            "PXELINUX: the kernel is none, or one of another architecture ({line})",
            "is the recipe's `arch` that of the machine?",
        ),
        # iPXE, also as a card's ROM.
        (
            r"^tftp://(?P<server>[^/\s]+)/(?P<file>\S+)\.\.\. +(?:No such file|File not found)",
            "TFTP: {server} has no {file}, which the network card asks for",
            _LOADERS,
        ),
        (
            r"^http://(?P<server>[^/\s]+)/(?P<file>\S+)\.\.\. +(?:No such file|File not found)",
            "HTTP: {server} has no /{file}, which iPXE asks for",
            _FILES,
        ),
        (
            r"^http://(?P<server>[^/\s]+)/(?P<file>\S+)\.\.\. +(?P<error>(?!ok\b)[A-Z][^(\n]*?) *\(",
            "HTTP: {server} does not answer iPXE, which asks for /{file}: {error}",
            "is the HTTP server up, and its port open?",
        ),
        (
            r"^tftp://(?P<server>[^/\s]+)/(?P<file>\S+)\.\.\. +(?P<error>(?!ok\b)[A-Z][^(\n]*?) *\(",
            "TFTP: {server} does not answer the network card, which asks for {file}: {error}",
            "is the TFTP server up, and UDP port 69 open?",
        ),
        (
            r"Exec format error",
            "iPXE: {loaded} is no kernel, or one of another architecture",
            "is the recipe's `arch` that of the machine?",
        ),
    ),
    *_before(
        Reached.LOADED,
        (r"^(?P<file>[^\s:]+)\.\.\. +(?:No such file|File not found)", "iPXE: the server has no {file}", _FILES),
    ),
    # GRUB.
    *_before(
        Reached.KERNEL,
        (
            r"^error: (?:.*: ?)?(?:invalid magic number|invalid arch|plain image kernel not supp).*",
            "GRUB: the kernel is none, or one of another architecture ({line})",
            "is the recipe's `arch` that of the machine?",
        ),
        (
            r"^\[(?P<server>tftp|http)\] (?:GET )?(?P<file>\S*grub/grub\.cfg): .*FAILED",
            "GRUB: the server has no {file}, its menu",
            _FILES,
        ),
        (
            r"^\[http\] GET (?P<file>\S*/(?:vmlinuz|initrd)\S*): ended after (?P<size>[\d,]+) bytes *FAILED",
            "HTTP: the boot loader stopped after {size} bytes of {file}",
            "restart the machine; where lpxelinux does so more often, take `loaders: {{bios: ipxe}}` for its target",
        ),
        (
            r"^\[http\] GET (?P<file>\S*/(?:vmlinuz|initrd)\S*): (?P<error>.*?) *FAILED",
            "HTTP: the server has no {file} ({error})",
            _FILES,
        ),
        (
            r"^error: (?:.*: ?)?premature end of file\s+\((?P<device>[^)]*)\)(?P<file>\S*[^.\s])",
            "GRUB: {device} gave nothing, or not all, of {file}",
            _FILES,
        ),
        (r"^error: (?:.*: ?)?file `(?P<file>[^']*)' not found", "GRUB: the server has no {file}", _FILES),
        (
            r"^error: (?:.*: ?)?(?P<error>connection refused|(?:time ?out|timed out|couldn't|no (?:server|DNS)).*)",
            "HTTP: {server} does not answer GRUB, which asks for the kernel: {error}",
            "is the HTTP server up, and its port open?",
        ),
    ),
    # Kernel.
    *_before(
        None,
        (
            r"Initramfs unpacking failed: write error",
            "memory: the initrd does not fit into this machine's (Initramfs unpacking failed: write error)",
            _MORE,
        ),
        (
            r"System is deadlocked on memory|Out of memory and no killable processes|Out of memory: Killed process.*",
            "memory: this machine has too little ({line})",
            _MORE,
        ),
        (
            r"Initramfs unpacking failed: (?P<error>.*)",
            "the initrd was not read as a whole: {error}",
            "is the file cut, or compressed in a way that this kernel does not know? Publish, or build, again",
        ),
        (
            r"Failed to execute (?P<file>/init) \(error -(?P<number>8|80)\)",
            "{file} of the initrd is no program of the kernel's architecture (error -{number})",
            _BOTH,
        ),
        (
            r"Failed to execute (?P<file>/init) \(error -2\)",
            "{file} of the initrd lacks the interpreter that it names, or its dynamic loader (error -2)",
            "see its first line (no CR at its end), or with `ldd` what it is linked with",
        ),
        (
            r"Failed to execute (?P<file>/init) \(error -13\)",
            "{file} of the initrd is not executable (error -13)",
            "chmod +x before the initrd is made",
        ),
        (
            r"Failed to execute (?P<file>/init) \(error -(?P<number>5|14|26)\)",
            "{file} of the initrd, or its dynamic loader, is not whole (error -{number})",
            "build the initrd again",
        ),
        (
            r"Failed to execute (?P<file>\S+) \(error -(?P<number>\d+)\)",
            "the kernel cannot run {file} of the initrd (error -{number})",
            _BOTH,
        ),
        (
            r"VFS: Unable to mount root fs|VFS: Cannot open root device",
            "the kernel found no /init in the initrd, or no initrd",
            "was the initrd loaded, and as a whole? See the server's lines",
        ),
    ),
    # Network of the initrd.
    *_before(
        Reached.NETWORK,
        (
            r"Waiting up to \d+ secs for device with address (?P<mac>\S+) to become available \.\.\. (?!done)"
            r"|ipconfig: no devices to configure",
            "the initrd finds no network card {mac}: it has no driver for the one that the machine booted from",
            "put the module into the initrd (`initramfs: {{include: [MODULE]}}`), or take a fuller kernel package",
        ),
        (
            r"IP-Config: no response after \d+ secs - giving up(?![\s\S]*IP-Config: \S+ complete)",
            "no DHCP server answered the initrd",
            "it asks again after the firmware did: is the DHCP server still up, and the lease free?",
        ),
    ),
    # NFS and HTTP of the initrd.
    *_before(
        Reached.ROOT,
        (
            r"^\[nfs\] mount of (?P<path>\S+) refused: .*Export entry / .* client (?:::ffff:)?(?P<client>\S+)",
            "NFS: {path} lies in nothing that the server exports to {client}",
            "compare `nfsroot=` with the server's exports; ask it with `showmount -e`",
        ),
        (
            r"^\[nfs\] mount of (?P<path>\S+) refused: .*entry (?P<export>/\S+) .* client (?:::ffff:)?(?P<client>\S+)",
            "NFS: the server refused {path} to {client}: the export {export} is not for that address",
            "is the machine in the target's `network`?",
        ),
        (
            r"^\[nfs\] mount of (?P<path>\S+) refused: (?P<error>.*?) *FAILED",
            "NFS: the server refused {path}: {error}",
            "compare `nfsroot=` and the machine's address with the server's exports",
        ),
        (
            r"^\[nfs\] asked to mount (?P<path>\S+)(?![\s\S]*^\[nfs\] mounted)",
            "NFS: {path} is not there on the server",
            "compare `nfsroot=` with the server's folders: is the release still published?",
        ),
        (
            r"mount call failed - server replied: (?P<error>[^.\n]*)",
            "NFS: the server refused {nfsroot}: {error}",
            "is that path there on the server, and exported to this machine?",
        ),
        (
            r"NFS over TCP not available|^(?:connect|read): Connection (?:refused|timed out)|RPC: Unable to receive",
            "NFS: no NFS server with version 3 answers at {nfsserver}, which is to mount {nfsroot}",
            "is it up, with rpcbind and mountd, and are its ports open?",
        ),
        (
            r"^\[http\] GET (?P<file>\S+\.squashfs): ended after (?P<size>[\d,]+) bytes *FAILED",
            "HTTP: the machine stopped after {size} bytes of {file}, which is the root",
            _MORE,
        ),
        (
            r"^\[http\] GET (?P<file>\S+\.squashfs): (?P<error>.*?) *FAILED",
            "HTTP: the server has no {file}, which is the root ({error})",
            _FILES,
        ),
    ),
    # What the initrd says itself.
    *_before(
        Reached.SYSTEM,
        (
            r"Unable to find a live file system on the network",
            "the root was not found at {fetch}",
            "is that file there, and does its server answer?",
        ),
        (
            r"netboot: this kernel \((?P<version>[^)]*)\) has no overlay",
            "the initrd cannot load the module overlay of kernel {version}, which a root that is not kept needs",
            "is it in the initrd, and of that kernel? `lsinitramfs` shows it",
        ),
        (
            r"netboot\.persist: cannot mount (?P<path>\S+) after",
            "NFS: {path}, where this machine's files persist, cannot be mounted",
            "is it exported to this machine, for writing?",
        ),
        (
            r"netboot: /rootfs\.squashfs of the initrd cannot be mounted",
            "the root in the initrd cannot be mounted: it is not whole, as when this machine has too little memory",
            _MORE,
        ),
        (r"(?P<name>netboot(?:\.persist)?): (?P<error>.*[^.\s])", "{name}: {error}", "the message says what it wants"),
        (
            r"No init found\. Try passing init=",
            "the root has no init that runs: {root} has neither /sbin/init nor /bin/sh",
            "does the recipe install an init (systemd-sysv), and is this the right folder?",
        ),
        (
            r"run-init: (?P<file>\S+): (?P<error>.*)",
            "init of the root cannot be run: {file}: {error}",
            "is the root of the kernel's architecture?",
        ),
    ),
    # The root.
    *_before(
        Reached.LOGIN,
        (
            r"You are in emergency mode|Cannot open access to console",
            "systemd is in emergency mode; what failed last: {unit}",
            "see its lines above; `systemd.log_level=debug` on the command line tells more",
        ),
    ),
    *_before(
        None,
        (
            r"nfs: server (?P<server>\S+) not responding(?![\s\S]*nfs: server \S+ OK)",
            "NFS: {server} answers no more",
            "is the server, and the network to it, still up?",
        ),
        (r"Kernel panic - not syncing: (?P<error>.*)", "the kernel panicked: {error}", "the lines before it say why"),
    ),
)
"""The most specific first."""
