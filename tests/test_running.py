"""Machines that run while releases come and go: what one has mounted stays, as long as it is connected.

What runs within the namespaces is a function of this module whose name begins with `_in_`; it gives what JSON can say.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from buildlib import command, lab, listing, reach, serverside, tree
from buildlib.boot import LOGIN
from buildlib.house import House
from buildlib.machine import Hardware, Machine
from buildlib.place import Place, live
from buildlib.release import CHECKSUMS, LISTING, MANIFEST, Release, digest_of, latest, tree_digest
from buildlib.sandbox import Sandbox, remove
from buildlib.serve import Event, Servers
from buildlib.site import Dhcp, Http, Loaders, Nfs, Target
from buildlib.store import describe
from tests import pushlab
from tests.checkout import Checkout
from tests.pushlab import Made
from tests.stage_helper import wait_until

pytestmark = pytest.mark.integration

ADDRESS, NETWORK = lab.ADDRESSES["bridge"]
MAC = "52:54:00:00:01:1d"
NAME = "small-volatile"
UNKNOWN = "is connected to the NFS server, which does not tell what it has mounted"

CONTENT = "find usr/bin -type f | sort | xargs sha256sum | sha256sum"
"""The digest of many files that no boot has read yet, below the root that is the current folder."""

KEEPALIVE = {"time": 3, "intvl": 1, "probes": 3}
"""Seconds until a server notices that a machine is off which said nothing; two hours where nobody sets it."""


def inside(function: Callable[..., Any], folder: Path, **arguments: Any) -> Any:
    """Run a function of this module in namespaces with a bridge `br0` and a `tap0`; what it gave."""
    assert function.__name__.startswith("_in_")
    said, log = folder / "said.json", folder / "inside.log"
    code = f"from tests import test_running as it; it._call({function.__name__!r}, {str(folder)!r}, {arguments!r})"
    box = Sandbox(work=folder / "sandbox", chroot=False, user=False, env={"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        box.run([sys.executable, "-c", code], log=log)
    except command.CommandError as error:
        raise AssertionError(log.read_text()) from error
    return json.loads(said.read_text())


def _call(name: str, folder: str, arguments: Mapping[str, Any]) -> None:
    lab.isolate()
    lab.make_bridge(ADDRESS, ("tap0",))
    for word, value in KEEPALIVE.items():
        Path(f"/proc/sys/net/ipv4/tcp_keepalive_{word}").write_text(str(value))
    said = globals()[name](Path(folder), **arguments)
    Path(folder, "said.json").write_text(json.dumps(said))


def target(folder: Path) -> Target:
    """All on this machine, which has no `rmtab`: nobody tells who mounted what."""
    boot = str(folder / "boot")
    return Target(
        ADDRESS,
        NETWORK,
        keep=1,
        tftp=boot,
        http=Http(boot),
        nfs=Nfs(str(folder / "nfs"), str(folder / "persist")),
        interface=lab.BRIDGE,
        dhcp=Dhcp("full", "10.77.0.50", "10.77.0.99"),
        loaders=Loaders(bios="ipxe"),
        timeout=0,
    )


@contextmanager
def served(where: Target, folder: Path, *names: str) -> Iterator[list[str]]:
    """With some of its servers; what clients do."""
    rendered = serverside.rendered(Place("lab", where))
    # The card's iPXE waits 13 s for a router of IPv6.
    rendered["dnsmasq"] += f"enable-ra\ndhcp-range={lab.PREFIX},ra-stateless\n"
    steps: list[str] = []

    def step(event: Event) -> None:
        steps.append(str(event))

    with Servers({name: rendered[name] for name in names}, folder / "servers", step):
        yield steps


def connected(where: Target) -> list[str]:
    """Who is connected to the NFS server, as `push` and `prune` see it."""
    with reach.reach("lab", where, {}) as reached:
        assert reached.nfs is not None
        return sorted(reached.nfs.facts.clients)


def there(where: Target, name: str) -> list[list[str]]:
    """The releases that have a tree, and those that have a kernel."""
    assert where.nfs is not None
    folders = (Path(where.nfs.path, name), Path(str(where.files_root), "images", name))
    return [sorted(path.name for path in folder.iterdir() if path.name != ".lock") for folder in folders]


def decisions(lines: list[str], name: str, made: list[Made]) -> list[str]:
    """What `prune` says of each release, in their order."""
    found = [next(line for line in lines if f"{name}/{each.id} " in line) for each in made]
    return [" ".join(line.replace(f"{name}/{each.id}", "").split()) for line, each in zip(found, made, strict=True)]


# A machine


def changed(made: Made, folder: Path, number: int) -> Made:
    """The same release with a layer more, as one that is built after a small change."""
    top = folder / "layers" / str(number) / "tree"
    (top / "etc").mkdir(parents=True)
    (top / "etc/changed").write_text(f"{number}\n")
    facts = tree.write_listing({"tree": str(top), "listing": str(top.parent / LISTING), "epoch": 1_800_000_000})
    layers = (*made.layers, top)
    manifest = made.release.manifest
    content = manifest["content"]
    said = [*content["root"]["layers"], {"stage": "changed", "digest": facts["digest"], "size": facts["size"]}]
    content["root"] |= {"layers": said, "tree": tree_digest(said)}
    manifest["id"] = f"2027010{number}T000000Z-{digest_of(content)}"
    out = folder / "images" / made.name / manifest["id"]
    # Its files are others' too: hard links, as the store's are.
    shutil.copytree(made.release.folder, out, copy_function=os.link)
    merged = listing.merge([layer.parent / LISTING for layer in layers])
    new = {MANIFEST: json.dumps(manifest), LISTING: listing.text(merged)}
    for name, text in new.items():
        (out / name).unlink()
        (out / name).write_bytes(text.encode(errors="surrogateescape"))
    sums = (out / CHECKSUMS).read_text().splitlines()
    (out / CHECKSUMS).unlink()
    names = [line.partition("  ")[2] for line in sums]
    (out / CHECKSUMS).write_text("".join(f"{describe(out / name).digest}  {name}\n" for name in names))
    return Made(Release(made.name, manifest["id"], out), layers)


class Console:
    """A machine that somebody logs in to and types commands at."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._asked = 0

    def login(self) -> float:
        """Seconds from power-on to the login prompt."""
        self._wait(LOGIN, 180)
        seconds = time.monotonic() - self.machine.started
        self.machine.send("root\n")
        self._wait(r"Password: ", 60)
        self.machine.send("netboot\n")
        self._wait(r"root@\S+# ", 60)
        # The kernel's messages would be among the answers.
        self.machine.send("dmesg -n 1\n")
        return seconds

    def run(self, line: str, seconds: float = 90) -> str:
        """What a command prints, errors too."""
        self._asked += 1
        self.machine.send(f'echo "<{self._asked}:$({line} 2>&1)>"\n')
        # Not the echo of what was typed.
        return self._wait(rf"<{self._asked}:(?!\$\()([^>]*)>", seconds)[1]

    def _wait(self, pattern: str, seconds: float) -> re.Match[str]:
        went = self.machine.wait(lambda text: bool(re.search(pattern, text)), seconds)
        assert went == "done", f"{went} instead of {pattern}:\n{self.machine.text[-2000:]}"
        found = re.search(pattern, self.machine.text)
        assert found is not None
        return found


def _in_machine(folder: Path, release: list[str], layers: list[str]) -> dict[str, Any]:
    name, identity, kept = release
    first = Made(Release(name, identity, Path(kept)), tuple(map(Path, layers)))
    made = [first, *(changed(first, folder, number) for number in (1, 2, 3))]
    where = target(folder)
    assert where.nfs is not None
    own = Path(where.nfs.path, name, identity)
    pushlab.publish(folder, where, first)
    with served(where, folder, "dnsmasq", "nginx", "ganesha") as steps:
        netdev = "tap,id=n0,ifname=tap0,script=no,downscript=no"
        with Machine(
            Hardware("amd64", "bios-ipxe", MAC, 1024, netdev, "tcg", folder), folder / "console.log"
        ) as machine:
            console = Console(machine)
            said: dict[str, Any] = {"seconds": console.login(), "mounted": f"mounted {own}" in "\n".join(steps)}
            before = time.monotonic()
            for each in made[1:]:
                pushlab.publish(folder, where, each)
            said["pushed"] = time.monotonic() - before
            said["live"] = live(Place("lab", where))[name]["release"] == made[-1].id
            said["clients"] = connected(where)
            said["during"] = decisions(pushlab.prune(where), name, made)
            said["trees during"] = there(where, name)
            sent = int(Path("/sys/class/net/tap0/statistics/tx_bytes").read_text())
            said["read"] = console.run(f"cd / && {CONTENT}")
            said["sent"] = int(Path("/sys/class/net/tap0/statistics/tx_bytes").read_text()) - sent
            said["changed"] = console.run("cat /etc/changed")
            said["boots"] = machine.text.count("Linux version")
        said["expected"] = subprocess.run(["sh", "-c", CONTENT], cwd=own, capture_output=True, text=True).stdout
        said["size"] = sum(path.stat().st_size for path in (own / "usr/bin").iterdir() if not path.is_symlink())
        said["plug pulled"] = decisions(pushlab.prune(where), name, made)
        said["gone"] = wait_until(lambda: not connected(where), 30)
        said["after"] = decisions(pushlab.prune(where), name, made)
        said["trees after"] = there(where, name)
    return {**said, "ids": [each.id for each in made], "steps": steps}


@pytest.fixture(scope="module")
def machine(small: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What became of a machine that was running all the time."""
    small.doit(f"build:{NAME}")
    house = House(small.folder)
    release = latest(house.images, NAME)
    assert release is not None
    keys = house.keys(NAME)
    trees = [house.store.path(keys[stage.name].key, "tree") for stage in house.plan(NAME).root]
    folder = tmp_path_factory.mktemp("machine")
    try:
        yield inside(
            _in_machine,
            folder,
            release=[release.name, release.id, str(release.folder)],
            layers=[str(path) for path in trees if path.exists()],
        )
    finally:
        for word in ("boot", "images", "nfs", "persist", "trees"):
            remove(folder / word)


def test_all_is_kept_while_a_machine_runs_of_which_nobody_tells_what_it_has_mounted(machine: dict[str, Any]) -> None:
    assert machine["mounted"], machine["steps"]
    assert machine["live"]
    (client,) = machine["clients"]
    assert client.startswith("10.77.0.")
    why = f"keep {client} {UNKNOWN}"
    assert machine["during"] == [why, why, "keep to go back to (1 of 1)", "keep is live"]
    assert machine["trees during"] == [machine["ids"]] * 2


def test_a_machine_goes_on_with_its_own_release(machine: dict[str, Any]) -> None:
    assert machine["read"] == machine["expected"].strip()
    # Over the network, and not out of what it had read before.
    assert machine["sent"] > machine["size"] * 0.7
    assert "No such file" in machine["changed"]
    assert machine["boots"] == 1


def test_its_release_goes_when_the_machine_is_gone(machine: dict[str, Any]) -> None:
    why = "remove more than 1 to go back to, or never live"
    assert machine["plug pulled"] == machine["during"], "a server that has heard nothing knows nothing"
    assert machine["gone"]
    assert machine["after"] == [why, why, "keep to go back to (1 of 1)", "keep is live"]
    assert machine["trees after"] == [machine["ids"][2:]] * 2
