"""A virtual machine that boots as a real one does: firmware, network card, boot loader; and its serial console.

Standard library only: it runs in the namespaces that `lab` makes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from buildlib import command
from buildlib.errors import BuildError

FIRMWARE = ("bios-pxelinux", "bios-ipxe", "uefi-grub")
"""What a machine boots with: its firmware, and the boot loader that it is given."""

HOPELESS = (
    r"Kernel panic - not syncing|\(initramfs\) |You are in emergency mode|Cannot open access to console"
    r"|Booting from Hard Disk|No bootable device|No more network devices|BdsDxe: No bootable option"
    r"|Exiting PXE ROM|Rebooting in \d+ seconds|Shell> |^boot: *\Z|grub> |Boot failed: press a key to retry"
    r"|BdsDxe: failed to load Boot\d+ \"UEFI PXEv4|^error: you need to load the kernel first|^Could not boot: .*\("
    r"|mount call failed - server replied: |^read: Connection refused|Failed to execute /init"
)
"""What nobody has to wait for a time limit after."""

PROGRAMS = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}
SERIAL = {"amd64": "ttyS0,115200n8", "arm64": "ttyAMA0"}
"""The console that the machine's log is taken from."""

_IMAGES = {
    "amd64": (
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ),
    "arm64": (("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),),
}
"""UEFI firmware and its empty variables."""


@dataclass(frozen=True)
class Hardware:
    """A machine to be.

    firmware -- one of FIRMWARE
    memory   -- MiB
    netdev   -- QEMU's `-netdev`, by the id n0
    accel    -- kvm or tcg
    folder   -- for its firmware's variables
    """

    arch: str
    firmware: str
    mac: str
    memory: int
    netdev: str
    accel: str
    folder: Path

    def argv(self, serial: str) -> list[str]:
        """QEMU's command line. `serial`: its `-serial` and what belongs to it."""
        line = [PROGRAMS[self.arch], "-nodefaults", "-display", "none", "-no-reboot", "-m", str(self.memory)]
        # One processor under emulation: with two, the kernel's patching of its own code now and then ends in
        # "Oops: int3" (1 of 35 boots, kernel 6.12 in QEMU 7.2).
        line += ["-accel", "kvm" if self.accel == "kvm" else "tcg,thread=multi", "-smp", "1"]
        line += serial.split(" ")
        line += ["-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"]
        line += ["-netdev", self.netdev]
        card = f"virtio-net-pci,netdev=n0,mac={self.mac},bootindex=0"
        if self.arch == "arm64":
            # Newer firmware has no network without a processor's random numbers, which `max` has; emulating its pointer
            # authentication as it is specified would cost seconds.
            line += ["-machine", "virt", "-cpu", "host" if self.accel == "kvm" else "max,pauth-impdef=on"]
        else:
            # Emulation is slow at `rep movsb`, with which the kernel copies where erms is set. With fsrm alone, which
            # newer versions of QEMU have, Linux 6.1 hangs early.
            line += ["-cpu", "host" if self.accel == "kvm" else "max,erms=off,fsrm=off"]
            line += ["-machine", "q35" if self.firmware.startswith("uefi") else "pc,graphics=off"]
        if self.firmware.startswith("uefi"):
            code, variables = firmware_images(self.arch)
            own = self.folder / "uefi-vars.fd"
            shutil.copyfile(variables, own)
            line += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"]
            line += ["-drive", f"if=pflash,format=raw,unit=1,file={_option(own)}"]
            # The firmware brings a driver; the card's own ROM would only be slower.
            card += ",romfile="
        line += ["-device", card, "-boot", "menu=on,splash-time=0"]
        return line


def firmware_images(arch: str) -> tuple[str, str]:
    """UEFI firmware and its variables on this machine."""
    for pair in _IMAGES[arch]:
        if all(Path(path).exists() for path in pair):
            return pair
    package = {"amd64": "ovmf", "arm64": "qemu-efi-aarch64"}[arch]
    raise BuildError(f"no UEFI firmware for {arch} on this machine", hint=f"apt-get install {package}")


class Machine:
    """A running one. A context manager: at its end the plug is pulled.

    log     -- file that the console is copied to, each line with the seconds since power-on
    started -- `time.monotonic()` of power-on
    """

    def __init__(self, hardware: Hardware, log: Path) -> None:
        self.log = log
        self._text = ""
        self._raw = bytearray()
        self._news = threading.Condition()
        self.started = time.monotonic()
        self._process = command.converse(hardware.argv("-chardev stdio,id=console,signal=off -serial chardev:console"))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def text(self) -> str:
        """All that the console has shown so far."""
        with self._news:
            return self._text

    @property
    def raw(self) -> bytes:
        """The same as it came, cursor movements included."""
        with self._news:
            return bytes(self._raw)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def clock(self) -> float:
        """`time.monotonic()`, less the seconds that the machine waited for a processor while others had it.

        What a time limit is held against: a build beside it makes a boot slower, not wrong.
        """
        return time.monotonic() - starved(self._process.pid)

    def wait(self, done: Callable[[str], bool], seconds: float, *, hopeless: str = HOPELESS) -> str:
        """Wait until `done` of the console's text; tell how it went: done, hopeless, ended or late (by `clock`)."""
        deadline = self.clock() + seconds
        pattern = re.compile(hopeless, re.MULTILINE)
        while True:
            with self._news:
                text = self._text
                if done(text):
                    return "done"
                if not self._reader.is_alive():
                    return "ended"
                if pattern.search(text):
                    return "hopeless"
                left = deadline - time.monotonic()
                if left <= 0:
                    # The machine's clock is never ahead of that one, and takes longer to read.
                    left = deadline - self.clock()
                if left <= 0:
                    return "late"
                self._news.wait(min(left, 0.5))

    def send(self, text: str) -> None:
        """Type on the console."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()

    def kill(self) -> None:
        """Pull the plug."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._reader.join(5)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        fresh = True
        held = b""
        with self.log.open("w", encoding="utf-8") as log:
            # The timestamp of a line is that of its first character.
            while data := os.read(stream.fileno(), 4096):
                whole, held = complete(held + data)
                text = clean(whole.decode(errors="replace"))
                with self._news:
                    self._raw += data
                    self._text += text
                    self._news.notify_all()
                fresh = self._copy(log, text, fresh)

    def _copy(self, log: IO[str], text: str, fresh: bool) -> bool:
        """Write to the log, with the time at the beginning of each line; tell whether a line is to begin."""
        for part in re.split(r"(?<=\n)", text):
            if part:
                log.write(f"[{time.monotonic() - self.started:7.2f}] {part}" if fresh else part)
                fresh = part.endswith("\n")
        log.flush()
        return fresh


def starved(process: int) -> float:
    """Seconds that the thread of a process that waited longest for a processor was ready to run and could not.

    From `/proc/PID/task/*/schedstat` (Documentation/scheduler/sched-stats.rst); 0 for a process that is gone, or
    where the kernel doesn't count them.
    """
    waited = 0
    for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):
            waited = max(waited, int(path.read_text(encoding="ascii").split()[1]))
    return waited / 1e9


def complete(data: bytes) -> tuple[bytes, bytes]:
    """Console output up to an escape sequence or character that has not come whole yet, and the rest."""
    found = re.search(
        rb"(?:\x1b(?:\[[0-9;?=]*|[()])?|[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z", data
    )
    return (data[: found.start()], data[found.start() :]) if found else (data, b"")


def clean(text: str) -> str:
    """A console's text without the sequences that move a cursor or set colours; a moved cursor begins a line."""
    text = re.sub(r"\x1b\[\d+;\d+[Hf]", "\n", text)
    text = re.sub(r"\x1b(?:\[[0-9;?=]*[A-Za-z]|[()][A-Z0-9]|[=>78cM])", "", text)
    return text.replace("\r", "").replace("\x00", "")


def works_with_kvm(arch: str, kernel: Path, seconds: float = 15) -> bool:
    """Whether KVM really runs a kernel here: on some machines it starts the firmware and hangs then."""
    host = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)
    if host != arch or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    machine = ["-machine", "virt"] if arch == "arm64" else ["-machine", "pc"]
    console = SERIAL[arch].partition(",")[0]
    line = [PROGRAMS[arch], *machine, "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-display", "none"]
    line += ["-no-reboot", "-serial", "stdio", "-kernel", str(kernel), "-append", f"console={console} panic=-1"]
    said = command.within(line, seconds)
    # It has no root to mount: a kernel that came so far runs.
    return said is not None and "Kernel panic" in said


def _option(path: Path) -> str:
    """A path within one of QEMU's options."""
    return str(path).replace(",", ",,")
