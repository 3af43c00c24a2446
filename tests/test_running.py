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

from buildlib import command, lab, listing, pruning, reach, serverside, tree
from buildlib.boot import LOGIN
from buildlib.house import House
from buildlib.machine import Hardware, Machine
from buildlib.place import Place, live
from buildlib.release import CHECKSUMS, LISTING, MANIFEST, PROOF, SIGNATURE, Release, digest_of, latest, tree_digest
from buildlib.sandbox import Sandbox, remove
from buildlib.serve import Event, Servers
from buildlib.site import Dhcp, Http, Loaders, Nfs, Target
from buildlib.store import describe
from tests import pushlab
from tests.checkout import Checkout, share
from tests.pushlab import Made
from tests.stage_helper import wait_until

pytestmark = pytest.mark.integration

ADDRESS, NETWORK = lab.ADDRESSES["bridge"]
MAC = "52:54:00:00:01:1d"
NAME = "small-volatile"
UNKNOWN = "is connected to the NFS server, which does not tell what it has mounted"

LIVE = "keep is live"
BACK = "keep to go back to (1 of 1)"
GONE = "remove more than 1 to go back to, or never live"

CONTENT = "find usr/bin -type f | sort | xargs sha256sum | sha256sum"
"""The digest of many files that no boot has read yet, below the root that is the current folder."""

OWN = (CHECKSUMS, LISTING, MANIFEST, PROOF, SIGNATURE)
"""What is of one release alone."""

PATIENCE = {"keepalive_time": 3, "keepalive_intvl": 1, "keepalive_probes": 3, "retries2": 4}
"""The server's with a machine that is off and has not said so: some seconds. Where nobody sets it, that is up to two
hours, or a quarter of one if an answer was on its way to the machine."""


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
    for word, value in PATIENCE.items():
        Path(f"/proc/sys/net/ipv4/tcp_{word}").write_text(str(value))
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
    # Kernel and initrd are the same files.
    shutil.copytree(made.release.folder, out, copy_function=share, ignore=shutil.ignore_patterns(*OWN))
    merged = listing.merge([layer.parent / LISTING for layer in layers])
    (out / LISTING).write_bytes(listing.text(merged).encode(errors="surrogateescape"))
    (out / MANIFEST).write_text(json.dumps(manifest))
    names = sorted(path.name for path in out.iterdir())
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


def bytes_sent() -> int:
    """To the machine, so far; /sys is of another network."""
    found = re.search(r"^ *tap0:(.*)", Path("/proc/net/dev").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1].split()[8])


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
            sent = bytes_sent()
            said["read"] = console.run(f"cd / && {CONTENT}")
            said["sent"] = bytes_sent() - sent
            said["changed"] = console.run("cat /etc/changed")
            said["boots"] = machine.text.count("Linux version")
        said["expected"] = subprocess.run(
            ["sh", "-c", CONTENT], cwd=own, capture_output=True, check=True
        ).stdout.decode()
        said["size"] = sum(path.stat().st_size for path in (own / "usr/bin").iterdir() if not path.is_symlink())
        said["plug pulled"] = decisions(pushlab.prune(where), name, made)
        before = time.monotonic()
        said["gone"] = wait_until(lambda: not connected(where), 90)
        said["noticed"] = time.monotonic() - before
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
    assert machine["during"] == [why, why, BACK, LIVE]
    assert machine["trees during"] == [machine["ids"]] * 2


def test_a_machine_goes_on_with_its_own_release(machine: dict[str, Any]) -> None:
    assert machine["read"] == machine["expected"].strip()
    # Over the network, and not out of what it had read before.
    assert machine["sent"] > machine["size"] * 0.7
    assert "No such file" in machine["changed"]
    assert machine["boots"] == 1


def test_its_release_goes_when_the_machine_is_gone(machine: dict[str, Any]) -> None:
    assert machine["plug pulled"] == machine["during"], "a server that has heard nothing knows nothing"
    assert machine["gone"]
    assert machine["after"] == [GONE, GONE, BACK, LIVE]
    assert machine["trees after"] == [machine["ids"][2:]] * 2


# Without a machine


def nfs(tool: str, path: str) -> str:
    """What libnfs' `nfs-ls` or `nfs-cat` prints."""
    line = [tool, f"nfs://{ADDRESS}{path}?version=3"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout if done.returncode == 0 else "refused"


def _in_connection(folder: Path) -> dict[str, Any]:
    made = [pushlab.make(folder, "one", number) for number in range(1, 5)]
    where = target(folder)
    assert where.nfs is not None
    trees = f"{where.nfs.path}/one"
    for line in ("address add 10.77.0.2/24 dev br0", f"address add {lab.PREFIX}2/64 dev br0 nodad"):
        subprocess.run(["ip", *line.split()], check=True)
    pushlab.publish(folder, where, made[0])
    said: dict[str, Any] = {}
    with served(where, folder, "ganesha"):
        # Now the server knows what that folder holds.
        said["before"] = made[0].id in nfs("nfs-ls", trees)
        for each in made[1:]:
            pushlab.publish(folder, where, each)
            said[f"new {each.id}"] = nfs("nfs-cat", f"{trees}/{each.id}/etc/release")
        for family, server, client in (("v4", ADDRESS, "10.77.0.2"), ("v6", f"{lab.PREFIX}1", f"{lab.PREFIX}2")):
            with socket.create_connection((server, 2049), source_address=(client, 0)):
                said[family] = decisions(pushlab.prune(where), "one", made)
                said[f"{family} ignored"] = planned(where, made)
                said[f"{family} trees"] = there(where, "one")
        said["old"] = nfs("nfs-cat", f"{trees}/{made[0].id}/usr/lower/0").splitlines()[0]
        said["gone"] = wait_until(lambda: not connected(where), 60)
        said["after"] = decisions(pushlab.prune(where), "one", made)
        said["after trees"] = there(where, "one")
        # Files that nobody has read yet: the server has others open still.
        said["read"] = [nfs("nfs-cat", f"{trees}/{each.id}/usr/upper/0").partition("\n")[0] for each in made]
    return {**said, "ids": [each.id for each in made]}


def planned(where: Target, made: list[Made]) -> list[str]:
    """What `prune --ignore-clients --dry-run` says."""
    with reach.reach("lab", where, {}, lock=True) as reached:
        return decisions(list(pruning.plan(reached, ignore_clients=True).lines), "one", made)


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a connection that says nothing does."""
    said: dict[str, Any] = inside(_in_connection, tmp_path_factory.mktemp("connection"))
    return said


@pytest.mark.parametrize(("family", "client"), [("v4", "10.77.0.2"), ("v6", f"{lab.PREFIX}2")])
def test_a_connection_keeps_all(family: str, client: str, connection: dict[str, Any]) -> None:
    why = f"keep {client} {UNKNOWN}"
    assert connection[family] == [why, why, BACK, LIVE]
    assert connection[f"{family} trees"] == [connection["ids"]] * 2
    assert connection[f"{family} ignored"] == [GONE, GONE, BACK, LIVE]


def test_a_new_tree_is_served_at_once_and_an_old_one_until_it_goes(connection: dict[str, Any]) -> None:
    assert connection["before"]
    assert [connection[f"new {each}"] for each in connection["ids"][1:]] == ["upper 2", "upper 3", "upper 4"]
    assert connection["old"] == "lower 0 1"
    assert connection["gone"]
    assert connection["after"] == [GONE, GONE, BACK, LIVE]
    assert connection["after trees"] == [connection["ids"][2:]] * 2
    assert connection["read"] == ["refused", "refused", "upper 0 3", "upper 0 4"]
