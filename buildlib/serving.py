"""`doit serve`: out/srv/ on one of this machine's interfaces."""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from buildlib import command, serve, serverside
from buildlib.errors import BuildError
from buildlib.place import Place
from buildlib.serve import FILES, PROGRAMS
from buildlib.site import Dhcp, Target, local

__all__ = ["FILES", "PROGRAMS", "address_of", "run", "target"]


def address_of(interface: str) -> tuple[str, str]:
    """IPv4 address and network of an interface. Raises BuildError that lists the interfaces when none is meant."""
    found = {}
    for link in json.loads(command.output(["ip", "-json", "-4", "address", "show", "up"])):
        for info in link.get("addr_info", []):
            if info.get("scope") != "host" and link["ifname"] not in found:
                found[link["ifname"]] = (info["local"], info["prefixlen"])
    if interface not in found:
        known = "; ".join(f"{name} has {address}/{length}" for name, (address, length) in found.items())
        wrong = f"interface {interface} has no IPv4 address" if interface else "on which interface are the machines?"
        raise BuildError(wrong, hint=f"--interface NAME; {known or 'none has an address'}")
    address, length = found[interface]
    return address, str(ipaddress.IPv4Network(f"{address}/{length}", strict=False))


def target(srv: Path, address: str, network: str, interface: str, dhcp: str) -> Target:
    """The local target as it is served there."""
    modes = {"proxy": Dhcp("proxy"), "none": Dhcp("none"), "full": Dhcp("full")}
    if dhcp not in modes:
        raise BuildError(f"unknown --dhcp {dhcp}", hint="proxy, full or none")
    chosen = modes[dhcp]
    if dhcp == "full":
        # The upper half of the network: the server and what is set by hand are mostly in the lower one.
        net = ipaddress.IPv4Network(network)
        if net.num_addresses < 8:
            raise BuildError(f"{network} is too small to give addresses out")
        middle = int(net.network_address) + net.num_addresses // 2
        last = min(middle + 253, int(net.broadcast_address) - 1)
        chosen = Dhcp("full", str(ipaddress.IPv4Address(middle)), str(ipaddress.IPv4Address(last)))
    return replace(local(srv, address, network), interface=interface, dhcp=chosen)


def run(place: Place, folder: Path, tell: Callable[[str], None]) -> None:
    """Serve until interrupted. Raises BuildError when a server does not start or ends."""
    if os.geteuid() != 0:
        raise BuildError("serving needs root: DHCP, TFTP and NFS have ports below 1024", hint="run as root")
    wiring = serverside.wiring(place)
    rendered = serverside.rendered(place)
    configs = {name: text for name, text in rendered.items() if name in ("dnsmasq", "nginx", "ganesha", "nbd")}
    for export in wiring.exports:
        Path(export.path).mkdir(parents=True, exist_ok=True)

    def on_event(event: serve.Event) -> None:
        tell(f"{time.strftime('%H:%M:%S')}  {event}")

    with serve.Servers(configs, folder, on_event) as servers:
        while (gone := servers.ended()) is None:
            time.sleep(0.5)
    raise BuildError(f"{gone} has ended", log=folder / f"{gone.partition('.')[0]}.log")
