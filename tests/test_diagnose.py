"""Are the boots that failed explained? By records of consoles and servers, without booting."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from buildlib.diagnose import STAGES, Diagnosis, crashed, explain, unwrapped
from buildlib.faults import FAULTS as KNOWN
from buildlib.serve import Event
from tests.test_faults import FAULTS, Fault

RECORDS = Path(__file__).parent / "golden" / "consoles"
"""Of the boots of `test_faults`: the console, less what the kernel says of devices; then the servers' steps."""

ADDRESS = "net0: 10.77.0.50/255.255.255.0\n"
KERNEL = ADDRESS + "[    0.000000] Linux version 6.1.0 (debian)\n"
ROOT = KERNEL + "[    1.000000] Freeing initrd memory: 1K\nLoading, please wait...\n"
SYSTEM = ROOT + "[    9.000000] systemd[1]: systemd 252 running in system mode\n"


def told(console: str, events: Sequence[Event] = (), *, went: str = "late") -> Diagnosis:
    return explain(console, events, waited="'login: ' on the console", went=went, firmware="bios-ipxe")


def event(line: str) -> Event:
    server, state, what = line.split(" ", 2)
    return Event(0.0, server, "-", what, state == "ok")


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in FAULTS])
def test_record_of_a_fault_is_explained(fault: Fault) -> None:
    console, _, servers = (RECORDS / f"{fault.name}.txt").read_text().partition("\n=== servers\n")
    waited = "'a line that never comes' on the console"
    found = explain(console, map(event, servers.splitlines()), waited=waited, went="late", firmware=fault.firmware)
    fault.check(found.step, found.cause)
    assert found.hint
    assert 0 < len(found.evidence) <= 8
    assert all(line.strip() for line in found.evidence)


@pytest.mark.parametrize(
    ("console", "step", "cause"),
    [
        ("", "power-on", "said nothing"),
        ("SeaBIOS (version 1.16)\n", "firmware", "nothing more happened"),
        (">>Start PXE over IPv4.\n  PXE-E16: No valid offer received.\n", "firmware", "no DHCP server"),
        (
            ADDRESS + "Nothing to boot: No such file or directory (http://ipxe.org/2d03e13b)\n",
            "DHCP",
            "no file to boot",
        ),
        (
            ADDRESS + "http://10.77.0.1/images/a/vmlinuz... Connection timed out (http://x)\n",
            "DHCP",
            "images/a/vmlinuz",
        ),
        (KERNEL + "Initramfs unpacking failed: write error\n", "kernel", "memory"),
        (
            KERNEL + "Initramfs unpacking failed: invalid magic at start of compressed archive\n",
            "kernel",
            "invalid magic",
        ),
        (KERNEL + "Failed to execute /init (error -2)\n", "kernel", "interpreter"),
        (KERNEL + "Failed to execute /init (error -13)\n", "kernel", "not executable"),
        (KERNEL + "Failed to execute /init (error -26)\n", "kernel", "not whole"),
        (KERNEL + "Failed to execute /init (error -40)\n", "kernel", "error -40"),
        (KERNEL + "VFS: Unable to mount root fs on unknown-block(0,0)\n", "kernel", "no /init"),
        (ROOT + "IP-Config: no response after 2 secs - giving up\n", "initrd", "no DHCP server answered the initrd"),
        (ROOT + "netboot.persist: cannot mount 10.0.0.1:/p/x after 60 s (netb\n", "initrd", "10.0.0.1:/p/x"),
        (ROOT + "netboot.persist: the image has no path in /usr/lib/netboot/persist\n", "initrd", "has no path in"),
        (ROOT + "netboot: /rootfs.squashfs of the initrd cannot be mounted; if dmesg\n", "initrd", "memory"),
        (ROOT + "run-init: /sbin/init: Exec format error\n", "initrd", "/sbin/init: Exec format error"),
        (
            SYSTEM + "[FAILED] Failed to mount data.mount - /data.\nYou are in emergency mode.\n",
            "init of",
            "data.mount",
        ),
        (SYSTEM + "nfs: server 10.77.0.1 not responding, still trying\n", "init of", "10.77.0.1 answers no more"),
        (
            SYSTEM + "Kernel panic - not syncing: Attempted to kill init! exitcode=0x7f\n",
            "init of",
            "Attempted to kill",
        ),
        (SYSTEM + "proof login: ", "login", "'login: ' on the console"),
    ],
)
def test_console_tells(console: str, step: str, cause: str) -> None:
    found = told(console)
    assert step in found.step
    assert cause in found.cause
    assert "{" not in found.cause + found.step


CRASH = (
    "tftp://10.77.0.1/lpxelinux.0... ok\nlpxelinux.0 : 74882 bytes [PXE-NBP]\n\n"
    "PXELINUX 6.04 lwIP 20250413 Copyright (C) 1994-2015 H. Peter Anvin et al\n{said}\n"
    "Boot failed: press a key to retry, or wait for reset...\n"
)


def test_a_download_that_ended_is_not_one_that_is_there() -> None:
    loading = "Loading http://10.77.0.1/images/one/vmlinuz... "
    console = CRASH.format(said=loading).replace("Boot failed: press a key to retry, or wait for reset...\n", "")
    got = Event(1.0, "tftp", "10.77.0.5", "sent pxelinux.cfg/default")
    ended = Event(2.0, "http", "10.77.0.5", "GET /images/one/vmlinuz: ended after 75,664 bytes", ok=False)
    found = explain(console, [got, ended], waited="'login: '", went="late", firmware="bios-pxelinux")
    assert found.step == "boot loader: it has read pxelinux.cfg/default"
    assert found.cause == "HTTP: the boot loader stopped after 75,664 bytes of /images/one/vmlinuz"
    # What came to be later is not the fault of one that was repeated.
    again = explain(SYSTEM + "proof login: ", [got, ended], waited="'x'", went="late", firmware="bios-pxelinux")
    assert "75,664" not in again.cause


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Loading http://10.77.0.1/images/one/vmlinuz... ",
        "Loading http://10.77.0.1/images/one/vmlinuz... ok\nLoading http://10.77.0.1/images/one/initrd...",
    ],
)
def test_a_crash_of_the_boot_loader_is_told_from_what_it_cannot_fetch(said: str) -> None:
    console = ADDRESS + CRASH.format(said=said)
    assert crashed(console)
    assert "lpxelinux crashed" in told(console, went="hopeless").cause
    for record in RECORDS.iterdir():
        assert not crashed(record.read_text()), record.name
    assert not crashed(ADDRESS + CRASH.format(said=f"{said}\nFailed to load ldlinux.c32"))


def test_what_is_over_is_no_cause() -> None:
    early = "IP-Config: no response after 2 secs - giving up\nIP-Config: ens3 complete (dhcp from 10.77.0.1):\n"
    server = "nfs: server 10.77.0.1 not responding, still trying\nnfs: server 10.77.0.1 OK\n"
    waiting = "netboot.persist: waiting for 10.77.0.1:/p\n"
    asked = [event("tftp FAILED /srv/grub/x86_64-efi/command.lst: no such file"), event("nfs ok mounted /srv/nfs/a")]
    found = told(ROOT + early + waiting + SYSTEM + server, asked)
    assert "nothing more happened" in found.cause
    assert not any("command.lst" in line for line in found.evidence)


def test_machine_that_went_off_did_not_run_into_the_time_limit() -> None:
    assert "went off" in told(SYSTEM, went="ended").cause
    assert "it stopped" in told(SYSTEM, went="hopeless").cause


def test_lines_that_firmware_broke_are_whole() -> None:
    edge = "tftp://10.77.0.1/lpxelinux.0... No such file or directory (http://ipxe.org/2d126"
    assert len(edge) == 80
    assert unwrapped(f"{edge}\n03b)\nnext\n") == f"{edge}03b)\nnext\n"
    assert unwrapped(f"Linux version 6\n{edge}\nnext\n") == f"Linux version 6\n{edge}\nnext\n"
    assert unwrapped("Press Ctrl-B...\x08 \x08\x08 \x08net0: up\n") == "net0: up\n"


def test_evidence_shows_the_fault_and_what_the_servers_refused() -> None:
    console = (
        ADDRESS + "tftp://10.77.0.1/lpxelinux.0... No such file or directory (http://ipxe.org/1)\n" + "later\n" * 3
    )
    found = told(
        console, [event("dhcp ok has address 10.77.0.50"), event("tftp FAILED /srv/lpxelinux.0: no such file")]
    )
    assert any("lpxelinux.0... No such file" in line for line in found.evidence)
    assert found.evidence[-1] == "[tftp] /srv/lpxelinux.0: no such file FAILED"


def test_long_console_is_explained_at_once() -> None:
    noise = "".join(f"[{n:5}.000000] device {n}: some driver says something of it\n" for n in range(20000))
    before = time.process_time()
    told(SYSTEM + noise)
    assert time.process_time() - before < 5


def test_tables_are_in_order() -> None:
    assert [stage.reached for stage in STAGES] == sorted(stage.reached for stage in STAGES)
    assert all(fault.hint and fault.cause for fault in KNOWN)
