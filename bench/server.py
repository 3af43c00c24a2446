"""Bytes that go over a link to another machine when what was built is published."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.ours import RECIPE, Ours
from bench.rivals import Peer
from tests import sshlab


@dataclass(frozen=True)
class Server:
    """A machine in a network namespace, with an SSH server and rsync."""

    box: sshlab.Box

    def publish(self, peer: Peer) -> int:
        """Publish what a tool has made: this project by `push`, a folder by rsync onto the one before, files by scp."""
        counter = Path(f"/sys/class/net/{self.box.name}/statistics/tx_bytes")
        before = int(counter.read_text())
        if isinstance(peer, Ours):
            peer.doit(f"push:server/{RECIPE}")
        else:
            place = self.box.folder / peer.name.replace(" ", "")
            place.mkdir(exist_ok=True)
            ssh = f"ssh -F {self.box.config}"
            for path in peer.outcome():
                line = (
                    ["rsync", "-aHAX", "--numeric-ids", "--delete", "-e", ssh, f"{path}/", f"{self.box.name}:{place}"]
                    if path.is_dir()
                    else ["scp", "-q", "-F", str(self.box.config), str(path), f"{self.box.name}:{place}"]
                )
                subprocess.run(line, check=True, capture_output=True)
        return int(counter.read_text()) - before

    def take(self, ours: Ours) -> None:
        """Be the target `server` of a checkout."""
        folder, address = self.box.folder, self.box.address
        for name in ("boot", "nfs"):
            (folder / name).mkdir(exist_ok=True)
        network = str(ipaddress.ip_interface(f"{address}/30").network)
        target = {
            "ssh": self.box.name,
            "address": address,
            "network": network,
            "tftp": f"{folder}/boot",
            "http": f"{folder}/boot",
            "nfs": f"{folder}/nfs",
        }
        site = {"ssh-config": str(self.box.config), "targets": {"server": target}}
        (ours.folder / "site.yaml").write_text(json.dumps(site))


@contextlib.contextmanager
def server() -> Iterator[Server]:
    with sshlab.box("openssh") as box:
        yield Server(box)
