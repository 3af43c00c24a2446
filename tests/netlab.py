"""Several machines at once on one bridge: what the tests of dispatch run within a sandbox. Standard library only."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

from buildlib import lab
from buildlib.machine import Hardware, Machine
from buildlib.serve import Event, Servers


def boot(spec: dict[str, Any]) -> dict[str, Any]:
    """Power all machines on and wait until each has shown its pattern.

    spec -- folder, configs, machines (a list of {arch, firmware, mac, expect}), seconds,
            dhcp (None, or a dnsmasq configuration of the site's own server, in a network namespace of its own)
    Returns the events' texts, and by MAC the console and the seconds.
    """
    folder = Path(spec["folder"])
    lab.isolate()
    machines = spec["machines"]
    lab.make_bridge(lab.ADDRESSES["bridge"][0], tuple(f"tap{index}" for index in range(len(machines))))
    if spec["dhcp"]:
        _site_server(folder, spec["dhcp"])
    events: list[Event] = []
    with Servers(spec["configs"], folder / "servers", events.append):
        running = []
        for index, wanted in enumerate(machines):
            own = folder / str(index)
            own.mkdir()
            netdev = f"tap,id=n0,ifname=tap{index},script=no,downscript=no"
            hardware = Hardware(wanted["arch"], wanted["firmware"], wanted["mac"], 512, netdev, "tcg", own)
            running.append((wanted, hardware, Machine(hardware, own / "console.log")))
        consoles = {}
        for wanted, hardware, first in running:
            machine, went = _booted(first, hardware, wanted["expect"], spec["seconds"])
            consoles[wanted["mac"]] = {
                "went": went,
                "text": machine.text,
                "seconds": time.monotonic() - machine.started,
            }
            machine.kill()
    return {"events": [str(event) for event in events], "consoles": consoles}


def _booted(machine: Machine, hardware: Hardware, expect: str, seconds: float) -> tuple[Machine, str]:
    """Wait for what a machine is to show; it, or the one that it was restarted as, and how it went."""
    pattern = re.compile(expect)
    went = machine.wait(lambda text: bool(pattern.search(text)), seconds - (time.monotonic() - machine.started))
    if went == "done" or "lwIP" not in machine.text or "Linux version" in machine.text:
        return machine, went
    # lpxelinux now and then crashes, or stops in the midst of a file: people restart the machine.
    machine.kill()
    machine.log.rename(machine.log.with_name("console-before.log"))
    again = Machine(hardware, machine.log)
    return again, again.wait(lambda text: bool(pattern.search(text)), seconds)


def _site_server(folder: Path, config: str) -> None:
    """The DHCP server that is there already, on the bridge, but in a network namespace of its own."""
    (folder / "site.conf").write_text(config)
    for line in (
        "ip netns add site",
        "ip link add veth0 type veth peer name eth0 netns site",
        f"ip link set veth0 master {lab.BRIDGE} up",
        "ip -n site address add 10.77.0.2/24 dev eth0",
        "ip -n site link set eth0 up",
        "ip -n site link set lo up",
    ):
        subprocess.run(line.split(), check=True)
    line = (
        f"ip netns exec site dnsmasq --conf-file={folder / 'site.conf'} --log-dhcp --log-facility={folder / 'site.log'}"
    )
    subprocess.run([*line.split(), "--pid-file", "--user=root", "--dhcp-leasefile=/run/site.leases"], check=True)
