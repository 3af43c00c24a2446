"""Machines before they run: QEMU's command line, and what becomes of a console's bytes."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from buildlib import machine
from buildlib.errors import BuildError
from buildlib.machine import HOPELESS, Hardware, clean, complete

# What a console shows


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("plain\n", "plain\n"),
        ("line\r\n", "line\n"),
        ("\x1b[2J\x1b[01;01HWelcome", "\nWelcome"),
        ("one\x1b[12;1Htwo", "one\ntwo"),
        ("one\x1b[3;4ftwo", "one\ntwo"),
        ("[\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mssh\x1b[0m.", "[  OK  ] Started ssh."),
        ("\x1b[?25l\x1b[=3hmenu\x1b[K", "menu"),
        ("\x1b(Bline\x1b)0", "line"),
        ("\x1bc\x1b7\x1b8\x1b=\x1b>reset", "reset"),
        ("a\x00b", "ab"),
        ("not [1;1H a sequence", "not [1;1H a sequence"),
    ],
)
def test_a_console_without_movements(shown: str, text: str) -> None:
    assert clean(shown) == text


@pytest.mark.parametrize(
    ("data", "held"),
    [
        (b"text", b""),
        (b"text\x1b", b"\x1b"),
        (b"text\x1b[", b"\x1b["),
        (b"text\x1b[0;3", b"\x1b[0;3"),
        (b"text\x1b[0;32m", b""),
        (b"text\x1b(", b"\x1b("),
        (b"text\xe2\x80", b"\xe2\x80"),
        (b"text\xc3", b"\xc3"),
        (b"text\xf0\x9f\x98", b"\xf0\x9f\x98"),
        (b"text\xf0\x9f\x98\x80", b""),
    ],
)
def test_what_has_not_come_whole_is_held(data: bytes, held: bytes) -> None:
    assert complete(data) == (data.removesuffix(held), held)


@pytest.mark.parametrize("sign", ["ü", "…"])
def test_a_character_that_is_whole_is_not_held(sign: str) -> None:
    assert complete(sign.encode()) == (sign.encode(), b"")


SEQUENCES = [b"\x1b", b"\x1b[", b"\x1b[0;32m", b"\x1b[1;1H", b"\x1b(B", b"[", b";", b"1", b"H", b"m"]
CHARACTERS = [b"a", b"\n", b"\r\n", b"\x00", "ü".encode(), "…".encode(), "😀".encode()]
BROKEN = [b"\xc3", b"\xe2\x80", b"\x80", b"\xff"]
PIECES = st.sampled_from([*SEQUENCES, *CHARACTERS, *BROKEN])
STREAMS = st.lists(PIECES, max_size=12).map(b"".join)


def read(*chunks: bytes) -> str:
    """As `Machine` reads: what is held comes before the next chunk."""
    text, held = "", b""
    for chunk in chunks:
        whole, held = complete(held + chunk)
        text += clean(whole.decode(errors="replace"))
    return text + clean(held.decode(errors="replace"))


@given(stream=STREAMS, at=st.lists(st.integers(0, 40), max_size=4))
@example(stream=b"\x1b[12;1H", at=[1, 2, 5])
@example(stream="…".encode(), at=[1, 2])
def test_it_is_the_same_text_wherever_the_stream_is_cut(stream: bytes, at: list[int]) -> None:
    cuts = [0, *sorted(at), len(stream)]
    chunks = [stream[start:end] for start, end in itertools.pairwise(cuts)]
    # A cut beyond the end gives empty chunks, as a read does that a signal ended.
    assert read(*chunks) == read(stream)


# What nobody waits for


@pytest.mark.parametrize(
    "line",
    [
        "[    3.141592] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
        "BusyBox v1.35.0 built-in shell (ash)\n\n(initramfs) ",
        "You are in emergency mode. After logging in, type",
        "Cannot open access to console, the root account is locked.",
        "Booting from Hard Disk...",
        "No bootable device.",
        "No more network devices",
        "BdsDxe: No bootable option or device was found.",
        "Exiting PXE ROM.",
        "Rebooting in 10 seconds..",
        "Shell> ",
        "Loading failed\nboot: ",
        "grub> ",
        "Boot failed: press a key to retry, or wait for reset...",
    ],
)
def test_what_is_hopeless_is_seen(line: str) -> None:
    assert re.search(HOPELESS, f"before\n{line}", re.MULTILINE)


NORMAL = """\
SeaBIOS (version 1.16.2-debian-1.16.2-1)
Press ESC for boot menu.

Booting from ROM...
iPXE (PCI 00:03.0) starting execution...ok
iPXE 1.0.0+git-20190125.36a4c85-5.1 -- Open Source Network Boot Firmware -- http://ipxe.org
Press Ctrl-B for the iPXE command line...
net0: 10.77.0.78/255.255.255.0
Filename: lpxelinux.0
tftp://10.77.0.1/lpxelinux.0... ok
LINUX 6.04 lwIP 20250413 Copyright (C) 1994-2015 H. Peter Anvin et al
Loading http://10.77.0.1/images/one/20261125T064545Z-a520f286e321/vmlinuz... ok
BdsDxe: loading Boot0001 "UEFI PXEv4 (MAC:525400ABFEB4)" from PciRoot(0x0)/Pci(0x2,0x0)/MAC(525400ABFEB4,0x1)
BdsDxe: starting Boot0001 "UEFI PXEv4 (MAC:525400ABFEB4)" from PciRoot(0x0)/Pci(0x2,0x0)/MAC(525400ABFEB4,0x1)
>>Start PXE over IPv4.
[    0.000000] Command line: boot=nfs root=/dev/nfs nfsroot=10.77.0.1:/srv/nfs/one ro panic=10
[    0.000000] Kernel command line: boot=nfs
Begin: Loading essential drivers ... done.
Begin: Running /scripts/init-premount ... done.
[  OK  ] Reached target emergency.target - not.
[  OK  ] Stopped target initrd-root-fs.target.
Debian GNU/Linux 12 proof ttyS0

proof login: """


def test_a_normal_boot_is_not_hopeless() -> None:
    """At no moment of it."""
    for end in range(len(NORMAL)):
        assert not re.search(HOPELESS, NORMAL[:end], re.MULTILINE), NORMAL[:end]


# QEMU's command line


def argv(arch: str, firmware: str, folder: Path, accel: str = "tcg") -> str:
    hardware = Hardware(arch, firmware, "52:54:00:00:00:0a", 512, "user,id=n0", accel, folder)
    return " ".join(hardware.argv("-serial stdio"))


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Firmware of our own, so that none has to be installed."""
    folder = tmp_path / "firmware"
    folder.mkdir()
    for name in ("CODE.fd", "VARS.fd"):
        (folder / name).write_text(name)
    pair = (str(folder / "CODE.fd"), str(folder / "VARS.fd"))
    monkeypatch.setattr(machine, "_IMAGES", {"amd64": (("/missing", pair[1]), pair), "arm64": (pair,)})
    return folder


COMMON = (
    "-nodefaults -display none -no-reboot -m 512 -accel {accel} -smp 1 -serial stdio "
    "-object rng-random,id=random,filename=/dev/urandom -device virtio-rng-pci,rng=random -netdev user,id=n0"
)
CARD = "-device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:0a,bootindex=0"
FLASH = (
    "-drive if=pflash,format=raw,unit=0,readonly=on,file={images}/CODE.fd "
    "-drive if=pflash,format=raw,unit=1,file={folder}/uefi-vars.fd"
)
END = "-boot menu=on,splash-time=0"
LINES = {
    ("amd64", "bios-pxelinux"): f"qemu-system-x86_64 {COMMON} -cpu {{cpu}} -machine pc,graphics=off {CARD} {END}",
    ("amd64", "bios-ipxe"): f"qemu-system-x86_64 {COMMON} -cpu {{cpu}} -machine pc,graphics=off {CARD} {END}",
    ("amd64", "uefi-grub"): f"qemu-system-x86_64 {COMMON} -cpu {{cpu}} -machine q35 {FLASH} {CARD},romfile= {END}",
    ("arm64", "uefi-grub"): f"qemu-system-aarch64 {COMMON} -machine virt -cpu {{cpu}} {FLASH} {CARD},romfile= {END}",
}
CPU = {"amd64": "max,erms=off,fsrm=off", "arm64": "max,pauth-impdef=on"}


@pytest.mark.parametrize(("arch", "firmware"), LINES)
@pytest.mark.parametrize("accel", ["tcg", "kvm"])
def test_the_command_line_of_a_machine(arch: str, firmware: str, accel: str, tmp_path: Path, images: Path) -> None:
    cpu = "host" if accel == "kvm" else CPU[arch]
    how = "kvm" if accel == "kvm" else "tcg,thread=multi"
    expected = LINES[arch, firmware].format(accel=how, cpu=cpu, images=images, folder=tmp_path)
    assert argv(arch, firmware, tmp_path, accel) == expected


def test_a_machine_has_variables_of_its_own(tmp_path: Path, images: Path) -> None:
    argv("amd64", "uefi-grub", tmp_path)
    (tmp_path / "uefi-vars.fd").write_text("changed by a machine")
    assert (images / "VARS.fd").read_text() == "VARS.fd"
    argv("amd64", "uefi-grub", tmp_path)
    assert (tmp_path / "uefi-vars.fd").read_text() == "VARS.fd"


def test_a_comma_in_a_path_is_no_option(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "a,b"
    folder.mkdir()
    assert f"file={tmp_path}/a,,b/uefi-vars.fd" in argv("amd64", "uefi-grub", folder)


@pytest.mark.parametrize(("arch", "package"), [("amd64", "ovmf"), ("arm64", "qemu-efi-aarch64")])
def test_missing_firmware_names_its_package(arch: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_IMAGES", {arch: (("/missing", "/missing"),)})
    with pytest.raises(BuildError) as caught:
        machine.firmware_images(arch)
    assert caught.value.hint == f"apt-get install {package}"


# Time limits


def test_what_a_process_waits_for_a_processor_is_known() -> None:
    one = str(min(os.sched_getaffinity(0)))
    busy = [subprocess.Popen(["taskset", "-c", one, "sh", "-c", "while :; do :; done"]) for _ in range(4)]
    try:
        began = time.monotonic()
        while (waited := machine.starved(busy[0].pid)) < 0.2 and time.monotonic() - began < 60:
            time.sleep(0.1)
        assert 0.2 <= waited <= time.monotonic() - began + 1
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert machine.starved(busy[0].pid) == 0, "gone"
