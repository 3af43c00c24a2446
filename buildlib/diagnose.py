"""How far a boot came, and what usually keeps it from going on.

Two tables: `STAGES` are what a boot goes through, `FAULTS` what is known to stop it. Both are looked up in one text:
the console's, and after it a line for each thing that a server saw.
Standard library only, as all that a sandbox calls.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Protocol


class Step(Protocol):
    """What a server saw; `serve.Event` is one."""

    @property
    def server(self) -> str: ...

    @property
    def what(self) -> str: ...

    @property
    def ok(self) -> bool: ...


@dataclass(frozen=True)
class Diagnosis:
    """step -- the last that happened; cause -- of the stop; evidence -- lines of the console and the servers."""

    step: str
    cause: str
    hint: str
    evidence: tuple[str, ...]


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
class Stage:
    """sign -- that it happened; of several places the last one counts; step -- what people read, with its groups."""

    reached: Reached
    sign: str
    step: str


@dataclass(frozen=True)
class Fault:
    """sign -- what tells it; cause, hint -- with the sign's groups and the facts in braces.

    before -- what such a boot can't have reached: messages of firmware and boot loaders may come of attempts that are
    in order, as long as the boot goes on
    """

    sign: str
    cause: str
    hint: str
    before: Reached | None = None


STAGES = (
    Stage(Reached.POWER, r"\A", "power-on"),
    Stage(Reached.FIRMWARE, r"SeaBIOS|iPXE initialising|>>Start \w+|BdsDxe: ", "firmware: it runs"),
    Stage(
        Reached.ADDRESS,
        r"^net\d: (?P<address>\d+\.\d+\.\d+\.\d+)/|Station IP address is (?P<station>\S+)",
        "DHCP: the firmware has address {address}{station}",
    ),
    Stage(
        Reached.FIRST,
        r"^(?P<url>(?:tftp|http)://\S+)\.\.\. ok|NBP filename is (?P<file>\S+)[^>]*?NBP file downloaded successfully",
        "first stage: the firmware has loaded {url}{file}",
    ),
    Stage(Reached.LOADER, r"LINUX \d\.\d\d .*Anvin", "boot loader: PXELINUX runs"),
    Stage(Reached.LOADER, r"^\S+ : \d+ bytes \[script\]", "boot loader: iPXE runs its script"),
    Stage(Reached.LOADER, r"GNU GRUB|^ *Booting `|^\[tftp\] sent \S*grub\.cfg", "boot loader: GRUB runs"),
    Stage(
        Reached.LOADER,
        r"^\[(?:tftp|http)\] (?:sent |GET )(?P<file>\S*(?:pxelinux\.cfg|grub\.cfg|\.ipxe)[^\s,]*)(?:, .*|$)(?<!FAILED)",
        "boot loader: it has read {file}",
    ),
    Stage(
        Reached.LOADED,
        r"^\[(?:tftp|http)\] (?:sent |GET )(?P<file>\S*/(?:vmlinuz|initrd)\b[^\s,]*)(?:, .*|$)(?<!FAILED)",
        "boot loader: it has fetched {file}",
    ),
    Stage(Reached.KERNEL, r"Linux version (?P<version>\S+)", "kernel: {version} runs"),
    Stage(
        Reached.UNPACKED,
        r"\A(?![\s\S]*unpacking failed)[\s\S]*Freeing initrd memory",
        "kernel: the initrd is unpacked",
    ),
    Stage(Reached.INIT, r"Loading, please wait|Starting systemd-udevd", "initrd: its init runs"),
    Stage(Reached.NETWORK, r"^Writing DEVICE='(?P<card>[^']+)'", "network: the initrd takes {card}"),
    Stage(
        Reached.NETWORK,
        r"IP-Config: (?P<card>\S+) (?:complete|guessed)[^\n]*(?:\n address: (?P<address>\S+))?",
        "network: the initrd has address {address} on {card}",
    ),
    Stage(Reached.ROOT, r"Begin: Running /scripts/(?:nfs-bottom|init-bottom)", "root: it is mounted"),
    Stage(Reached.ROOT, r"^\[nfs\] mounted (?P<path>\S+)$", "NFS: {path} is mounted"),
    Stage(Reached.ROOT, r"^\[http\] GET (?P<path>\S+\.squashfs), (?P<size>[\d,]+) bytes", "root: {path} is fetched"),
    Stage(Reached.SYSTEM, r"systemd\[1\]: (?P<version>systemd \S+) running|^Welcome to ", "init of the root: it runs"),
    Stage(Reached.LOGIN, r"^[^\n]*\blogin: ", "login: the prompt is there"),
)

_LOADERS = "put the boot loaders there: publish anything to the target"
_FILES = "is the release published as a whole? Publish it again"
_BOTH = "kernel and initrd must be of one release; build it again"
_MORE = "give the machine more memory (`boot: {{memory: MiB}}` for the proof), or use a root that is not loaded into it"

FAULTS = (
    # Firmware.
    Fault(
        r"No configuration methods\s+succeeded",
        "no DHCP server answered the network card",
        "is the DHCP server up, on the machine's network, with free addresses? In proxy mode another one gives them",
        Reached.ADDRESS,
    ),
    Fault(
        r"PXE-E16: No valid offer received|PXE-E18|PXE-E51",
        "no DHCP server answered the firmware",
        "is the DHCP server up, on the machine's network, with free addresses? In proxy mode another one gives them",
        Reached.ADDRESS,
    ),
    Fault(
        r"^Nothing to boot",
        "DHCP gave an address but no file to boot",
        "is the architecture that the firmware tells one that the target has a boot loader for?",
        Reached.FIRST,
    ),
    Fault(
        r"Server IP address is (?P<server>\S+)\s+NBP filename is (?P<file>\S+)\s+NBP filesize is 0 Bytes",
        "TFTP: {server} has no {file}, which DHCP told the firmware to boot",
        _LOADERS,
        Reached.FIRST,
    ),
    Fault(
        r"PXE-E(?:11|12|32)\b.*",
        "TFTP: the server does not answer the firmware ({line})",
        "is it up, and is UDP port 69 open?",
        Reached.FIRST,
    ),
    # PXELINUX; before iPXE, whose ROM loads it.
    Fault(
        r"Failed to load (?:COM32 file )?(?P<file>\S+\.c32)",
        "PXELINUX: there is no {file} beside it on the TFTP server",
        "it must be of PXELINUX's own build: publish anything to the target to have both put there",
        Reached.LOADED,
    ),
    Fault(
        r"No DEFAULT or UI configuration directive found|Unable to locate configuration file",
        "PXELINUX: it found no menu in pxelinux.cfg/ on the TFTP server",
        _FILES,
        Reached.LOADED,
    ),
    Fault(
        r"^Loading http://(?P<server>[^/\s]+)/(?P<file>\S+?)\.\.\. *netconn_connect error",
        "HTTP: {server} does not answer PXELINUX, which asks for /{file}",
        "is the HTTP server up, and its port open?",
        Reached.KERNEL,
    ),
    Fault(
        r"^Loading (?P<url>\S+?)\.\.\. *failed: (?P<error>.*)",
        "PXELINUX: cannot load {url}: {error}",
        _FILES,
        Reached.KERNEL,
    ),
    Fault(
        r"Invalid or corrupt kernel image",
        "PXELINUX: the kernel is none, or one of another architecture",
        "is the recipe's `arch` that of the machine?",
        Reached.KERNEL,
    ),
    # iPXE.
    Fault(
        r"^tftp://(?P<server>[^/\s]+)/(?P<file>\S+)\.\.\. +(?:No such file|File not found)",
        "TFTP: {server} has no {file}, which the network card asks for",
        _LOADERS,
        Reached.FIRST,
    ),
    Fault(
        r"^http://(?P<server>[^/\s]+)/(?P<file>\S+)\.\.\. +(?:No such file|File not found)",
        "HTTP: {server} has no /{file}, which iPXE asks for",
        _FILES,
        Reached.KERNEL,
    ),
    Fault(
        r"^http://(?P<server>[^/\s]+)/(?P<file>\S+)\.\.\. +(?P<error>(?!ok\b)[A-Z][^(\n]*?) *\(",
        "HTTP: {server} does not answer iPXE, which asks for /{file}: {error}",
        "is the HTTP server up, and its port open?",
        Reached.KERNEL,
    ),
    Fault(
        r"^tftp://(?P<server>[^/\s]+)/(?P<file>\S+)\.\.\. +(?P<error>(?!ok\b)[A-Z][^(\n]*?) *\(",
        "TFTP: {server} does not answer the network card, which asks for {file}: {error}",
        "is the TFTP server up, and UDP port 69 open?",
        Reached.FIRST,
    ),
    Fault(
        r"^(?P<file>[^\s:]+)\.\.\. +(?:No such file|File not found)",
        "iPXE: the server has no {file}",
        _FILES,
        Reached.LOADED,
    ),
    Fault(
        r"Exec format error",
        "iPXE: {loaded} is no kernel, or one of another architecture",
        "is the recipe's `arch` that of the machine?",
        Reached.KERNEL,
    ),
    # GRUB.
    Fault(
        r"^error: (?:.*: ?)?(?:invalid magic number|invalid arch|plain image kernel not supp).*",
        "GRUB: the kernel is none, or one of another architecture ({line})",
        "is the recipe's `arch` that of the machine?",
        Reached.KERNEL,
    ),
    Fault(
        r"^\[(?P<server>tftp|http)\] (?:GET )?(?P<file>\S*grub/grub\.cfg): .*FAILED",
        "GRUB: the server has no {file}, its menu",
        _FILES,
        Reached.LOADED,
    ),
    Fault(
        r"^\[http\] GET (?P<file>\S*/(?:vmlinuz|initrd)\S*): (?P<error>.*?) *FAILED",
        "HTTP: the server has no {file} ({error})",
        _FILES,
        Reached.KERNEL,
    ),
    Fault(
        r"^error: (?:.*: ?)?premature end of file\s+\((?P<device>[^)]*)\)(?P<file>\S*[^.\s])",
        "GRUB: {device} gave nothing, or not all, of {file}",
        _FILES,
        Reached.KERNEL,
    ),
    Fault(
        r"^error: (?:.*: ?)?file `(?P<file>[^']*)' not found",
        "GRUB: the server has no {file}",
        _FILES,
        Reached.KERNEL,
    ),
    Fault(
        r"^error: (?:.*: ?)?(?P<error>connection refused|(?:time ?out|timed out|couldn't|no (?:server|DNS)).*)",
        "HTTP: {server} does not answer GRUB, which asks for the kernel: {error}",
        "is the HTTP server up, and its port open?",
        Reached.KERNEL,
    ),
    # Kernel.
    Fault(
        r"Initramfs unpacking failed: write error",
        "memory: the initrd does not fit into this machine's (Initramfs unpacking failed: write error)",
        _MORE,
    ),
    Fault(
        r"System is deadlocked on memory|Out of memory and no killable processes|Out of memory: Killed process.*",
        "memory: this machine has too little ({line})",
        _MORE,
    ),
    Fault(
        r"Initramfs unpacking failed: (?P<error>.*)",
        "the initrd was not read as a whole: {error}",
        "is the file cut, or compressed in a way that this kernel does not know? Publish, or build, again",
    ),
    Fault(
        r"Failed to execute (?P<file>/init) \(error -(?P<number>8|80)\)",
        "{file} of the initrd is no program of the kernel's architecture (error -{number})",
        _BOTH,
    ),
    Fault(
        r"Failed to execute (?P<file>/init) \(error -2\)",
        "{file} of the initrd lacks the interpreter that it names, or its dynamic loader (error -2)",
        "see its first line (no CR at its end), or with `ldd` what it is linked with",
    ),
    Fault(
        r"Failed to execute (?P<file>/init) \(error -13\)",
        "{file} of the initrd is not executable (error -13)",
        "chmod +x before the initrd is made",
    ),
    Fault(
        r"Failed to execute (?P<file>/init) \(error -(?P<number>5|14|26)\)",
        "{file} of the initrd, or its dynamic loader, is not whole (error -{number})",
        "build the initrd again",
    ),
    Fault(
        r"Failed to execute (?P<file>\S+) \(error -(?P<number>\d+)\)",
        "the kernel cannot run {file} of the initrd (error -{number})",
        _BOTH,
    ),
    Fault(
        r"VFS: Unable to mount root fs|VFS: Cannot open root device",
        "the kernel found no /init in the initrd, or no initrd",
        "was the initrd loaded, and as a whole? See the server's lines",
    ),
    # Initrd: its network.
    Fault(
        r"Waiting up to \d+ secs for device with address (?P<mac>\S+) to become available \.\.\. (?!done)",
        "the initrd finds no network card {mac}, which the machine booted from: it has no driver for it",
        "put the driver's module into the initrd (`initramfs: {{include: [MODULE]}}`), or take a fuller kernel package",
        Reached.NETWORK,
    ),
    Fault(
        r"ipconfig: no devices to configure|No network devices? (?:found|to use)",
        "the initrd finds no network card: it has no driver for it",
        "put the driver's module into the initrd (`initramfs: {{include: [MODULE]}}`), or take a fuller kernel package",
        Reached.NETWORK,
    ),
    Fault(
        r"IP-Config: no response after \d+ secs - giving up(?![\s\S]*IP-Config: \S+ complete)",
        "no DHCP server answered the initrd",
        "it asks again after the firmware did: is the DHCP server still up, and the lease free?",
        Reached.NETWORK,
    ),
    # Initrd: NFS.
    Fault(
        r"^\[nfs\] mount of (?P<path>\S+) refused: .*Export entry / .* client (?:::ffff:)?(?P<client>\S+)",
        "NFS: {path} lies in nothing that the server exports to {client}",
        "compare `nfsroot=` with the server's exports; ask it with `showmount -e`",
        Reached.ROOT,
    ),
    Fault(
        r"^\[nfs\] mount of (?P<path>\S+) refused: .*entry (?P<export>\S+) .* client (?:::ffff:)?(?P<client>\S+)",
        "NFS: the server refused {path} to {client}: the export {export} is not for that address",
        "is the machine in the target's `network`?",
        Reached.ROOT,
    ),
    Fault(
        r"^\[nfs\] mount of (?P<path>\S+) refused: (?P<error>.*?) *FAILED",
        "NFS: the server refused {path}: {error}",
        "compare `nfsroot=` and the machine's address with the server's exports",
        Reached.ROOT,
    ),
    Fault(
        r"^\[nfs\] asked to mount (?P<path>\S+)(?![\s\S]*^\[nfs\] mounted)",
        "NFS: {path} is not there on the server",
        "compare `nfsroot=` with the server's folders: is the release still published?",
        Reached.ROOT,
    ),
    Fault(
        r"mount call failed - server replied: (?P<error>[^.\n]*)",
        "NFS: the server refused {nfsroot}: {error}",
        "is that path there on the server, and exported to this machine?",
        Reached.ROOT,
    ),
    Fault(
        r"NFS over TCP not available from|^(?:connect|read): Connection (?:refused|timed out)|RPC: Unable to receive",
        "NFS: no NFS server with version 3 answers at {nfsserver}, which is to mount {nfsroot}",
        "is it up, with rpcbind and mountd, and are its ports open?",
        Reached.ROOT,
    ),
    # Initrd: what is over HTTP.
    Fault(
        r"^\[http\] GET (?P<file>\S+\.squashfs): (?P<error>.*?) *FAILED",
        "HTTP: the server has no {file}, which is the root ({error})",
        _FILES,
        Reached.ROOT,
    ),
    Fault(
        r"Unable to find a live file system on the network",
        "the root was not found at {fetch}",
        "is that file there, and does its server answer?",
        Reached.SYSTEM,
    ),
    # Initrd: what it says itself.
    Fault(
        r"netboot: this kernel \((?P<version>[^)]*)\) has no overlay",
        "the initrd cannot load the module overlay of kernel {version}, which a root that is written to in RAM needs",
        "is it in the initrd, and of that kernel? `lsinitramfs` shows it",
        Reached.SYSTEM,
    ),
    Fault(
        r"netboot\.persist: cannot mount (?P<path>\S+) after",
        "NFS: {path}, where this machine's files persist, cannot be mounted",
        "is it exported to this machine, for writing?",
        Reached.SYSTEM,
    ),
    Fault(
        r"netboot: /rootfs\.squashfs of the initrd cannot be mounted",
        "the root in the initrd cannot be mounted: it is not whole, as when this machine has too little memory",
        _MORE,
        Reached.SYSTEM,
    ),
    Fault(
        r"(?P<name>netboot(?:\.persist)?): (?P<error>.*[^.\s])",
        "{name}: {error}",
        "the message says what it wants",
        Reached.SYSTEM,
    ),
    Fault(
        r"No init found\. Try passing init=",
        "the root has no init that runs: {root} has neither /sbin/init nor /bin/sh",
        "does the recipe install an init (systemd-sysv), and is this the right folder?",
        Reached.SYSTEM,
    ),
    Fault(
        r"run-init: (?P<file>\S+): (?P<error>.*)",
        "init of the root cannot be run: {file}: {error}",
        "is the root of the kernel's architecture?",
        Reached.SYSTEM,
    ),
    # The root.
    Fault(
        r"(?:Failed to mount|Dependency failed for|Failed to start) (?P<unit>.*[^.\s])[\s\S]*You are in emergency mode",
        "systemd is in emergency mode: {unit} failed",
        "see its lines above; `systemd.log_level=debug` on the command line tells more",
        Reached.LOGIN,
    ),
    Fault(
        r"You are in emergency mode|Cannot open access to console",
        "systemd is in emergency mode",
        "see the failed units above; `systemd.log_level=debug` on the command line tells more",
        Reached.LOGIN,
    ),
    Fault(
        r"nfs: server (?P<server>\S+) not responding(?![\s\S]*nfs: server \S+ OK)",
        "NFS: {server} answers no more",
        "is the server, and the network to it, still up?",
    ),
    Fault(
        r"Kernel panic - not syncing: (?P<error>.*)",
        "the kernel panicked: {error}",
        "the lines before it say why",
    ),
)

_FACTS = {
    "server": r"Server IP address is (\S+)|^Next server: (\S+)",
    "loaded": r"^(?:http://|tftp://)?(\S*vmlinuz)\.\.\. ok",
    "nfsroot": r"Command line: .*?\bnfsroot=([^\s,]+)",
    "nfsserver": r"Command line: .*?\bnfsroot=([^\s:,]+):",
    "fetch": r"Command line: .*?\bfetch=(\S+)",
    "root": r"Command line: .*?\b(?:nfsroot|fetch)=([^\s,]+)",
}
"""What causes name although their sign does not, by what tells it; the last place counts."""

_NOISE = re.compile(
    r"^\W*$|BusyBox v|Enter 'help'|^\(initramfs\)|^Begin: .*done\.$|^done\.$|^Begin: Retrying \w+ mount \.\.\. *$"
    r"|Press any key|BdsDxe: loading|Press Ctrl-B|Press ESC|^ (?:gateway|host|rootserver|filename) *:"
    r"|^ *GNU GRUB|Minimal BASH|lists possible|device or file completions|pager=1|Use the \^ and v|Press enter to boot"
    r"|before booting or|^ *\ufffd|^grub>|BOOT FAILED!|Live System image|file a bug|mailing list|exact version"
    r"|/boot\.log|debug command-line|extremely useful|will now start a shell"
)
"""Lines that tell nobody anything."""

_USUAL = re.compile(r"/(?:command|fs|crypto|terminal)\.lst: ")
"""What GRUB asks for and never needs."""

_LINES = 8
_WIDTH = 250


def explain(console: str, events: Iterable[Step], *, waited: str, went: str, firmware: str) -> Diagnosis:
    """Explain a boot that did not come to what was `waited` for."""
    shown = unwrapped(console)
    seen = [f"[{event.server}] {event.what}{'' if event.ok else ' FAILED'}" for event in events]
    text = "\n".join([shown, *seen])
    stage, found = _last(text)
    step = _filled(stage.step, found.groupdict())
    facts = {name: _fact(sign, shown) for name, sign in _FACTS.items()}
    for fault in FAULTS:
        match = re.search(fault.sign, text, re.MULTILINE) if not fault.before or stage.reached < fault.before else None
        if match:
            said = (facts, match.groupdict(), {"line": match[0]})
            where = match.end() if match.start() < len(shown) else None
            cause, hint = _filled(fault.cause, *said), _filled(fault.hint, *said)
            return Diagnosis(step, cause, hint, _evidence(shown, seen, where))
    cause, hint = _unknown(stage.reached, waited, went, firmware)
    return Diagnosis(step, cause, hint, _evidence(shown, seen, None))


def unwrapped(console: str) -> str:
    """A console's text as it was said: without what was taken back, and with the lines whole that firmware broke at
    the screen's edge."""
    text = re.sub(r"[^\n]*\x08", "", console)
    kernel = text.find("Linux version ")
    before, after = (text, "") if kernel < 0 else (text[:kernel], text[kernel:])
    return re.sub(r"^([^\n]{80})\n+(?=\S)", r"\1", before, flags=re.MULTILINE) + after


def _filled(text: str, *said: Mapping[str, str | None]) -> str:
    """A row's text with what is in braces; what nobody said is empty."""
    known = {name: value for facts in said for name, value in facts.items() if value}
    return text.format_map(defaultdict(str, known))


def _fact(sign: str, text: str) -> str:
    found = list(re.finditer(sign, text, re.MULTILINE))
    return next((group for group in found[-1].groups() if group), "?") if found else "?"


def _last(text: str) -> tuple[Stage, re.Match[str]]:
    """The furthest stage whose sign is there; of equal ones the later in the table."""
    for stage in reversed(STAGES):
        found = list(re.finditer(stage.sign, text, re.MULTILINE))
        if found:
            return stage, found[-1]
    raise AssertionError("power-on has no sign")


def _unknown(reached: Reached, waited: str, went: str, firmware: str) -> tuple[str, str]:
    if reached is Reached.LOGIN:
        return f"it booted to a login prompt, but what was waited for did not come: {waited}", "is `expect` right?"
    if reached is Reached.POWER:
        return f"the machine's firmware ({firmware}) said nothing: waited for {waited}", "does QEMU run here at all?"
    if went == "ended":
        return f"the machine went off, or restarted, before {waited}", "see the console's last lines"
    if went == "late":
        return (
            f"nothing more happened until the time limit: waited for {waited}",
            "see the console's last lines; if it still went on, raise `boot: {timeout: SECONDS}`",
        )
    return f"it stopped before {waited}", "see the console's last lines"


def _evidence(shown: str, seen: Sequence[str], where: int | None) -> tuple[str, ...]:
    """The console's last lines up to a bit behind what told the fault, and what servers refused."""
    refused = _once([line for line in seen if line.endswith("FAILED") and not _USUAL.search(line)])[-3:]
    servers = refused or seen[-1:]
    room = _LINES - len(servers)
    if where is not None:
        # The rest of its line, and one more.
        end = re.compile(r"\n[^\n]*\S[^\n]*(?=\n|\Z)").search(shown, where)
        shown = shown[: end.end()] if end else shown
    lines = _once([line.rstrip() for line in shown.splitlines() if not _NOISE.search(line)])
    return tuple(line[:_WIDTH] for line in [*lines[-room:], *servers])


def _once(lines: Sequence[str]) -> list[str]:
    """Each line at its last place."""
    return list(reversed(dict.fromkeys(reversed(lines))))
