"""How far a boot came, and what usually keeps it from going on.

`STAGES` are what a boot goes through, `FAULTS` what is known to stop it; both are looked up in one text.
Standard library only, as all that a sandbox calls.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from buildlib.faults import FAULTS, LPXELINUX, Reached


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


@dataclass(frozen=True)
class Stage:
    """sign -- that it happened; of several places the last one counts; step -- what people read, with its groups."""

    reached: Reached
    sign: str
    step: str


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

_FACTS = {
    "server": r"Server IP address is (\S+)|^Next server: (\S+)",
    "loaded": r"^(?:http://|tftp://)?(\S*vmlinuz)\.\.\. ok",
    "nfsroot": r"Command line: .*?\bnfsroot=([^\s,]+)",
    "nfsserver": r"Command line: .*?\bnfsroot=([^\s:,]+):",
    "fetch": r"Command line: .*?\bfetch=(\S+)",
    "unit": r"(?:Failed to (?:mount|start)|Dependency failed for) (.*[^.\s])",
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
    if "blogin: " in waited:
        waited = "a login prompt"
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


def crashed(console: str) -> bool:
    """Whether it is the boot loader that failed, and not what it was given: a real machine restarts by itself then."""
    return bool(re.search(LPXELINUX, unwrapped(console), re.MULTILINE))


def unwrapped(console: str) -> str:
    """A console's text as it was said: without what was taken back, and with the lines whole that firmware broke at
    the screen's edge."""
    text = re.sub(r"[^\n]*\x08", "", console)
    kernel = text.find("Linux version ")
    before, after = (text, "") if kernel < 0 else (text[:kernel], text[kernel:])
    before = re.sub(r"^([^\n]{80})\n+(?=\S)", r"\1", before, flags=re.MULTILINE)
    rom, loaded, linux = before.partition("[PXE-NBP]\n")
    # It moves the cursor while it writes a line.
    linux = re.sub(r"\n\n(?!Loading|Failed|Boot|boot:|PX|\n)", "", linux)
    return rom + loaded + linux + after


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
