"""A virtual machine on its serial console."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from .namespace import Namespace

DEFAULT_MAC = "52:54:00:12:34:56"

# What nobody has to wait for a time limit after.
HOPELESS = r"Kernel panic - not syncing|\(initramfs\) |You are in emergency mode|Cannot open access to console"

# erms=off: software emulation is slow at `rep movsb`, which the kernel copies with where the flag is set;
# a login takes half as long without. One processor: with two, the kernel's patching of its own code
# under emulation now and then ends in "Oops: int3" (seen once in 35 boots, kernel 6.12 in QEMU 7.2).
_QEMU = [
    *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,erms=off,fsrm=off"),
    *("-smp", "1", "-nodefaults", "-display", "none", "-no-reboot"),
    *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
    *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
]


class MachineError(Exception):
    """What was expected of a machine did not happen. Names the serial log and shows its end."""


class Machine:
    """Boots at once; a context manager that kills what still runs at its end.

    `append` gets `console=ttyS0`, unless it names a console itself; `hostname` is what DHCP tells the
    machine; `memory` is in MiB. `started` is the `time.monotonic()` of power-on.
    """

    def __init__(
        self,
        namespace: Namespace,
        log: Path,
        *,
        kernel: Path,
        initrd: Path,
        append: str,
        mac: str = DEFAULT_MAC,
        memory: int = 1024,
        hostname: str | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        if not shutil.which(_QEMU[0]):
            raise MachineError(f"{_QEMU[0]} is missing; apt-get install qemu-system-x86")
        if "console=" not in append:
            append += " console=ttyS0"
        network = "user,id=n0" + (f",hostname={hostname}" if hostname else "")
        boot = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", append]
        nic = ["-netdev", network, "-device", f"virtio-net-pci,netdev=n0,mac={mac},romfile="]
        self.log_path = log
        self.started = time.monotonic()
        self._text = ""
        self._position = 0
        self._news = threading.Condition()
        self._process = namespace.popen(
            [*_QEMU, "-m", str(memory), *nic, *boot, *extra], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def log(self) -> str:
        """All that the machine has written so far."""
        with self._news:
            return self._text

    def wait_for(self, pattern: str, timeout: float = 90, *, hopeless: str = HOPELESS) -> re.Match[str]:
        """Waits until the console has written something that matches, after what earlier waits have found.

        Raises `MachineError` after `timeout` seconds, when the machine ends, or when it writes something
        that matches `hopeless`.
        """
        found = self._find(pattern, timeout, hopeless)
        if not found:
            raise self._error(f"no '{pattern}' within {timeout:.0f} s")
        return found

    def _find(self, pattern: str, timeout: float, hopeless: str) -> re.Match[str] | None:
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                found = re.compile(pattern).search(self._text, self._position)
                if found:
                    self._position = found.end()
                    return found
                lost = re.compile(hopeless).search(self._text, self._position) if hopeless else None
                if lost:
                    raise self._error(f"'{lost.group()}' instead of '{pattern}'")
                if not self._reader.is_alive():
                    raise self._error(f"the machine ended (status {self._process.poll()}) before '{pattern}'")
                if time.monotonic() >= deadline:
                    return None
                # Short steps: nobody notifies when the reader has ended.
                self._news.wait(0.5)

    def send(self, line: str) -> None:
        """Types a line on the console."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._error(f"the machine has ended and can't be sent '{line}'") from error

    def login(self, user: str = "root", password: str | None = None, timeout: float = 900) -> float:
        """Logs in, prepares the shell for `run`, and returns the seconds from power-on to the login prompt."""
        # With the newline: the boot's messages can speak of a login as well.
        self.wait_for(r"\n\S* ?login: ", timeout)
        seconds = time.monotonic() - self.started
        self.send(user)
        if password is not None:
            self.wait_for(r"Password: ", timeout)
            self.send(password)
        # login(1) throws away what is typed before the shell asks. The plain shell that takes its place edits no
        # lines, so it writes no escape sequences. The marker is computed, so that its echo is not its output.
        self.wait_for(r"\w@\S+:\S*[#$] ", timeout)
        self.send("exec env PS1= PS2= sh -c 'stty -echo; dmesg -n 1; echo ready-$((3 * 14))-yes; exec sh'")
        self.wait_for("ready-42-yes", timeout)
        return seconds

    def run(self, command: str, timeout: float = 240, *, check: bool = True) -> str:
        """Runs shell code after `login`; returns its output and errors without the newlines at the end.

        Raises `MachineError` for a status other than 0, unless `check` is false.
        """
        self.send(f"output=$( ( {command}\n) 2>&1 </dev/null ); status=$?")
        # Encoded, counted and asked for again: a message of the kernel or of systemd can come in between.
        for _ in range(3):
            # In two halves, so that the echo of this line is not taken for its output.
            mark = secrets.token_hex(4)
            self.send(
                f'm=@{mark[:4]}; printf %s "$output" | base64 | sed "s/^/${{m}}{mark[4:]} /;s/$/ ./"; '
                f'echo "${{m}}{mark[4:]}" end $status ${{#output}}.'
            )
            end = self.wait_for(rf"@{mark} end (\d+) (\d+)\.", timeout)
            lines = re.findall(rf"@{mark} (\S+) \.", self.log)
            try:
                output = base64.b64decode("".join(lines), validate=True).decode(errors="replace")
            except binascii.Error:
                continue
            if int(end[2]) not in (len(output), len(output.encode())):
                continue
            if check and end[1] != "0":
                raise self._error(f"status {end[1]} of '{command}', which wrote:\n{output}\n")
            return output
        raise self._error(f"the output of '{command}' came through garbled three times")

    def settle(self, timeout: float = 600) -> str:
        """Waits until the boot has ended, services included; returns systemd's word for how it went."""
        return self.run("systemctl is-system-running --wait", timeout, check=False).strip()

    def off(self, timeout: float = 300) -> None:
        """Shuts the logged-in machine down in order; raises when it hangs."""
        self.send("systemctl poweroff || poweroff")
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._error(f"not off after {timeout:.0f} s") from None
        self._reader.join(5)

    def kill(self) -> None:
        """Pulls the plug."""
        self._process.kill()
        self._process.wait()
        self._reader.join(5)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self.log_path.open("wb") as log:
            while data := self._process.stdout.read1(4096):  # type: ignore[attr-defined]
                with self._news:
                    self._text += data.decode(errors="replace")
                    self._news.notify_all()
                # After that: a busy disk can hold this up for longer than somebody waits.
                log.write(data)
                log.flush()

    def _error(self, what: str) -> MachineError:
        tail = "".join(f"  | {line}\n" for line in self._text.splitlines()[-25:])
        return MachineError(f"{what}\nthe serial log {self.log_path} ends with:\n{tail}")
