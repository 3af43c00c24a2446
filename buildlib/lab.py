"""One machine and its servers, in namespaces of their own: what `boot` runs within its sandbox.

Standard library only, as all that a sandbox calls. Two networks:

    bridge -- a bridge with a tap: the servers' own DHCP, as on a real network
    user   -- QEMU's, where nobody may make a tap: QEMU itself answers DHCP and TFTP
"""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import termios
import time
import tty
from pathlib import Path
from typing import Any

from buildlib import command, diagnose
from buildlib.errors import BuildError
from buildlib.machine import Hardware, Machine
from buildlib.serve import Event, Servers

BRIDGE = "br0"
ADDRESSES = {"bridge": ("10.77.0.1", "10.77.0.0/24"), "user": ("10.0.2.2", "10.0.2.0/24")}
"""The server's address as the machine sees it, and the machine's network."""

PREFIX = "fd77::"
"""The bridge's IPv6 network, of 64 bits."""

GUEST_PORTS = 40000
"""With QEMU's network, port N of the machine is port GUEST_PORTS + its place among the ports that are asked."""

RESTARTS = 2
"""How often a machine is powered on again after a crash of its boot loader, which real machines restart after by
themselves."""

_SSH = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes")
_SSH_MORE = ("-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes")


def boot(spec: dict[str, Any]) -> dict[str, Any]:
    """Boot once, and tell how it went.

    spec: arch, firmware, mac, memory, accel, network, timeout, folder, boot_root, first_stage, configs (by service),
    expect (a list of `{"console": pattern}`, `{"port": N}`, `{"ssh": {"user", "key", "command"}}`)
    Returns ok, seconds, restarts, accel, console (path), events, and on a failure: step, cause, hint and evidence.
    """
    folder = Path(spec["folder"])
    events: list[Event] = []
    isolate()
    started = time.monotonic()

    def tell(event: Event) -> None:
        events.append(event)
        print(f"{event.time - started:7.2f}  {event}", flush=True)

    _network(spec)
    with Servers(spec["configs"], folder / "servers", tell) as servers:
        hardware = _hardware(spec)
        for restarts in range(RESTARTS + 1):
            with Machine(hardware, folder / "console.log") as machine:
                started = machine.started
                went, waited = _expect(spec, machine, servers)
                seconds = time.monotonic() - started
                crashed = went == "hopeless" and diagnose.crashed(machine.text)
            if not crashed or restarts == RESTARTS:
                break
            machine.log.rename(folder / f"console-crashed-{restarts + 1}.log")
            print(
                f"{seconds:7.2f}  lpxelinux crashed; a real machine restarts after 5 minutes: power on again",
                flush=True,
            )
        said = {
            "ok": went == "done",
            "seconds": round(seconds, 2),
            "restarts": restarts,
            "accel": spec["accel"],
            "console": str(machine.log),
            "events": [[round(event.time - started, 2), str(event)] for event in events],
        }
        if went != "done":
            gone = servers.ended()
            found = diagnose.explain(machine.text, events, waited=waited, went=went, firmware=spec["firmware"])
            said |= {
                "step": found.step,
                "cause": f"{gone} has ended" if gone else found.cause,
                "hint": found.hint,
                "evidence": list(found.evidence),
            }
        return said


def console(spec: dict[str, Any]) -> None:
    """Boot, and leave the machine to whoever sits at the terminal, until it is off or Ctrl-] is typed."""
    folder = Path(spec["folder"])
    isolate()
    _network(spec)
    with (
        (folder / "steps.log").open("w") as log,
        Servers(spec["configs"], folder / "servers", lambda event: print(event, file=log, flush=True)),
    ):
        print(f"{spec['accel']}; Ctrl-] ends the machine; its clients' steps are in {folder / 'steps.log'}", flush=True)
        hardware = _hardware(spec)
        with Machine(hardware, folder / "console.log") as machine:
            _attach(machine)


def _attach(machine: Machine) -> None:
    """The terminal is the machine's: raw, so that it gets every key."""
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys) if os.isatty(keys) else None
    shown = 0
    try:
        if before is not None:
            tty.setraw(keys)
        while machine.running:
            if select.select([keys], [], [], 0.05)[0]:
                data = os.read(keys, 1024)
                if not data or b"\x1d" in data:
                    break
                machine.send(data.decode(errors="replace"))
            text = machine.raw
            os.write(1, text[shown:])
            shown = len(text)
    finally:
        if before is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, before)
        print()


def isolate() -> None:
    """A /run and an NFS state of our own: rpcbind's socket and everybody's pid files lie there."""
    command.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
    for name in ("lock", "rpcbind", "ganesha"):
        Path("/run", name).mkdir()
    if Path("/var/lib/nfs").is_dir():
        command.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/lib/nfs"])
        Path("/var/lib/nfs/ganesha").mkdir()


def _network(spec: dict[str, Any]) -> None:
    if spec["network"] == "bridge":
        make_bridge(ADDRESSES["bridge"][0], ("tap0",))
    else:
        # What the machine calls 10.0.2.2 is this namespace's loopback.
        command.run(["ip", "address", "add", f"{ADDRESSES['user'][0]}/32", "dev", "lo"])


def make_bridge(address: str, taps: tuple[str, ...]) -> None:
    """A bridge with the server's address, and a tap for each machine."""
    for words in (
        f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0",
        f"address add {address}/24 dev {BRIDGE}",
        f"address add {PREFIX}1/64 dev {BRIDGE} nodad",
        f"link set {BRIDGE} up",
        *(line for tap in taps for line in (f"tuntap add {tap} mode tap", f"link set {tap} master {BRIDGE} up")),
    ):
        command.run(["ip", *words.split()])


def _hardware(spec: dict[str, Any]) -> Hardware:
    netdev = "tap,id=n0,ifname=tap0,script=no,downscript=no"
    if spec["network"] == "user":
        netdev = f"user,id=n0,tftp={spec['boot_root'].replace(',', ',,')},bootfile={spec['first_stage']}"
        for index, port in enumerate(_ports(spec)):
            netdev += f",hostfwd=tcp:127.0.0.1:{GUEST_PORTS + index}-:{port}"
    folder = Path(spec["folder"])
    return Hardware(spec["arch"], spec["firmware"], spec["mac"], spec["memory"], netdev, spec["accel"], folder)


def _ports(spec: dict[str, Any]) -> list[int]:
    return [expected.get("port") or 22 for expected in spec["expect"] if "console" not in expected]


def _expect(spec: dict[str, Any], machine: Machine, servers: Servers) -> tuple[str, str]:
    """Wait for all that the recipe calls success; how it went, and what was waited for."""
    deadline = machine.started + spec["timeout"]
    ports = iter(range(len(_ports(spec))))
    for expected in spec["expect"]:
        left = max(1.0, deadline - machine.clock())
        if "console" in expected:
            pattern = re.compile(expected["console"])
            went = machine.wait(lambda text, pattern=pattern: bool(pattern.search(text)), left)  # type: ignore[misc]
            what = f"{expected['console']!r} on the console"
        else:
            port = expected.get("port") or 22
            where = ("127.0.0.1", GUEST_PORTS + next(ports)) if spec["network"] == "user" else (None, port)
            ssh = expected.get("ssh")
            what = f"port {port}" if ssh is None else f"`{ssh['command']}` by SSH"
            went = _until(spec, machine, servers, where, ssh, deadline)
        if went != "done":
            return went, what
    return "done", ""


def _until(
    spec: dict[str, Any],
    machine: Machine,
    servers: Servers,
    where: tuple[str | None, int],
    ssh: dict[str, Any] | None,
    deadline: float,
) -> str:
    """Try a port, or an SSH command, until it answers."""
    while True:
        address = where[0] or servers.address(spec["mac"])
        if address and (_open(address, where[1]) if ssh is None else _ssh(address, where[1], ssh)):
            return "done"
        went = machine.wait(lambda _text: False, min(1.0, max(0.1, deadline - machine.clock())))
        if went != "late" or machine.clock() >= deadline:
            return went


def _open(address: str, port: int) -> bool:
    """Whether somebody speaks there: QEMU's network takes a connection whether or not anybody listens inside."""
    try:
        with socket.create_connection((address, port), timeout=3) as link:
            link.settimeout(3)
            try:
                return link.recv(1) != b"" or address != "127.0.0.1"
            except TimeoutError:
                # Open, and waiting for the client to begin.
                return True
    except OSError:
        return False


def _ssh(address: str, port: int, ssh: dict[str, Any]) -> bool:
    line = ["ssh", *_SSH, *_SSH_MORE, "-p", str(port), "-i", ssh["key"], f"{ssh['user']}@{address}", ssh["command"]]
    try:
        return command.run(line, accept=range(256)) == 0
    except BuildError:
        return False
