"""Boots, side by side in one run: what `doit boot` adds to the machine's own time, and big files by TFTP and by HTTP.

    python -m bench.boots [RUNS]

Needs root and what `./doit test` installs. Prints medians and ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from buildlib import lab, publish, serverside, services
from buildlib.place import Place
from buildlib.sandbox import Sandbox
from buildlib.site import Dhcp, Http, Target
from tests import marker, netlab
from tests.checkout import SHARED, Checkout

RECIPE, FIRMWARE = "small-ram", "bios-pxelinux"
MAC = "52:54:00:00:02:0a"
PADDING = 96
"""MB of an initrd that stands for a root in RAM."""


def overhead(checkout: Checkout) -> tuple[float, float]:
    """Seconds of a whole `doit boot`, and those from power-on to login in it."""
    started = time.monotonic()
    checkout.doit(f"boot:{RECIPE}", "-f", FIRMWARE)
    whole = time.monotonic() - started
    proof = json.loads((checkout.release(RECIPE) / "proof.json").read_bytes())
    return whole, next(boot["seconds"] for boot in proof["boots"] if boot["firmware"] == FIRMWARE)


def fetched(loaders: Path, firmware: str, *, http: bool) -> float:
    """Seconds from power-on until the initrd runs."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        boot = str(folder / "boot")
        address, network = lab.ADDRESSES["bridge"]
        target = Target(address, network, tftp=boot, interface=lab.BRIDGE, timeout=0)
        target = replace(target, dhcp=Dhcp("full", "10.77.0.50", "10.77.0.99"), http=Http(boot) if http else None)
        place = Place("bench", target)
        release = marker.make(folder / "m", "one", "amd64", "bench", padding=PADDING)
        publish.install_loaders(place, loaders)
        publish.upload(place, release, ())
        publish.switch(place, release.name, release.id)
        publish.refresh(place)
        configs = {**services.render_all(serverside.wiring(place))}
        configs["dnsmasq"] += f"enable-ra\ndhcp-range={lab.PREFIX},ra-stateless\n"
        spec = {
            "folder": scratch,
            "configs": {name: configs[name] for name in ("dnsmasq", "nginx") if name in configs},
            "dhcp": None,
            "machines": [{"arch": "amd64", "firmware": firmware, "mac": MAC, "expect": r"MARKER \S+"}],
            "seconds": 600,
        }
        said = Sandbox(work=folder / "sandbox", chroot=False, user=False).call(netlab.boot, spec)
        console = said["consoles"][MAC]
        assert console["went"] == "done", console["text"][-1000:]
        seconds: float = console["seconds"]
        return seconds


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    checkout = Checkout.make(SHARED, RECIPE)
    checkout.doit(f"build:{RECIPE}")
    loaders = checkout.folder / checkout.doit("bootloaders").splitlines()[-1]
    pairs = [overhead(checkout) for _ in range(runs)]
    added = statistics.median(whole - own for whole, own in pairs)
    own = statistics.median(own for _, own in pairs)
    print(f"doit boot:{RECIPE} ({FIRMWARE}): power-on to login {own:.1f} s, the whole command {added:.1f} s more")
    for firmware in ("uefi-grub", "bios-pxelinux"):
        times = [(fetched(loaders, firmware, http=False), fetched(loaders, firmware, http=True)) for _ in range(runs)]
        tftp, http = (statistics.median(each) for each in zip(*times, strict=True))
        print(f"{firmware}, {PADDING} MB initrd: TFTP {tftp:.1f} s, HTTP {http:.1f} s, ratio {tftp / http:.2f}")


if __name__ == "__main__":
    main()
