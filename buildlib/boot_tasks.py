"""The doit shell over what comes right after a build: boot loaders, proofs, serving.

boot:NAME, console:NAME <- build:NAME, _bootloaders
serve
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from buildlib import report
from buildlib.errors import BuildError
from buildlib.release import Release
from buildlib.site import LOCAL, Target, local
from buildlib.tasks import Task, group, house, layers, load_errors, log_path, user_errors

if TYPE_CHECKING:
    from buildlib import boot as booting

FIRMWARE = {
    "name": "firmware",
    "short": "f",
    "long": "firmware",
    "default": "",
    "help": "bios-pxelinux, bios-ipxe or uefi-grub; several by commas. What the recipe says without",
}
NETWORK = {
    "name": "network",
    "long": "network",
    "default": "",
    "help": "bridge: with the rendered DHCP; user: QEMU's own. bridge without, where it can be made",
}


@load_errors
def task__bootloaders() -> Iterator[Task]:
    """boot loaders"""
    yield {
        "name": "lock",
        "actions": [(lock_loaders, [False])],
        "uptodate": [(loaders_locked, [])],
        "io": {"capture": False},
    }
    yield {
        "name": "files",
        "actions": [(make_loaders, [])],
        "uptodate": [(loaders_made, [])],
        "task_dep": ["_bootloaders:lock"],
        "meta": {"recipe": "bootloaders", "stage": "bootloaders", "quiet": True},
        "io": {"capture": False},
    }


@load_errors
def task_bootloaders() -> Iterator[Task]:
    """take the boot loaders from Debian's packages; `bootloaders:lock` takes newer ones"""
    yield {
        "name": "files",
        "actions": [(say_loaders, [])],
        "task_dep": ["_bootloaders:files"],
        "io": {"capture": False},
    }
    yield {"name": "lock", "actions": [(lock_loaders, [True])], "io": {"capture": False}}


@load_errors
def task_boot() -> Iterator[Task]:
    """boot a release in QEMU over a network, as proof"""
    yield group("boot a release in QEMU over a real network, as proof")
    yield from _of_recipes(boot)


@load_errors
def task_console() -> Iterator[Task]:
    """boot a release in QEMU with its console here"""
    yield group("boot a release in QEMU, with its console on this terminal")
    yield from _of_recipes(console)


def task_serve() -> Task:
    """serve out/srv/ to machines on an interface, until Ctrl-C"""
    return {
        "actions": [(serve, [])],
        "params": [
            {"name": "interface", "short": "i", "long": "interface", "default": "", "help": "where the machines are"},
            {
                "name": "dhcp",
                "long": "dhcp",
                "default": "proxy",
                "help": "proxy: beside the DHCP server that is there; full: give addresses out; none: TFTP only",
            },
        ],
        "io": {"capture": False},
    }


def _of_recipes(action: Callable[..., object]) -> Iterator[Task]:
    """A task a recipe that boots its release."""
    for name in house().recipes:
        yield {
            "name": name,
            "actions": [(action, [name])],
            "params": [FIRMWARE, NETWORK],
            "task_dep": [f"build:{name}", "_bootloaders:files"],
            "io": {"capture": False},
        }


def loaders_locked() -> bool:
    return house().loaders_lock.exists()


def loaders_made() -> bool:
    keyed = house().loaders_key()
    return keyed is not None and house().store.has(keyed.key)


@user_errors
def lock_loaders(again: bool) -> None:
    """Write down which versions of the boot loaders' packages are taken."""
    from buildlib import atomic, host, loaders, sandbox
    from buildlib.plan import differences

    host.install(host.missing(["apt-get", "dpkg-deb"]))
    path = house().loaders_lock
    old = json.loads(path.read_bytes()) if path.exists() else {}
    if old and not again:
        return
    mark = "lock-bootloaders"
    with house().store.lock(mark):
        scratch = house().store.begin(mark)
        with sandbox.guard(scratch):
            new = loaders.take_lock(
                house().site.mirror_urls().get("debian", {}), scratch, log_path("bootloaders", "lock")
            )
            house().store.abandon(scratch)
    atomic.write(path, json.dumps(new, indent=1, sort_keys=True) + "\n")
    changes = list(differences({"facts": old}, {"facts": new})) if old else []
    if not old:
        print(report.line("bootloaders", "lock", "written", report.shown(path)))
    for change in changes:
        print(report.line("bootloaders", "lock", "changed", change.removeprefix("lock: ")))
    if old and not changes:
        print(report.line("bootloaders", "lock", "same", report.shown(path)))


@user_errors
def make_loaders() -> None:
    """Unpack the boot loaders into the store."""
    from buildlib import build, host

    host.install(host.missing(["apt-get", "dpkg-deb"]))
    keyed = house().loaders_key()
    assert keyed is not None
    build.run(
        keyed,
        {},
        house().store,
        cache=house().cache,
        log=log_path("bootloaders", "files"),
        epoch=0,
        progress=lambda _fraction, _text: None,
        mirrors=house().site.mirror_urls(),
    )
    house().identity.save()


@user_errors
def say_loaders() -> None:
    folder = loaders_folder()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "receipt.json":
            print(f"{path.name:<18} {report.size(path.stat().st_size)}")
    print(report.shown(folder))


@user_errors
def boot(name: str, firmware: str, network: str) -> None:
    """Boot the release with each firmware; write down in it that it booted."""
    from buildlib import boot as booting

    release = current(name)
    for each in _firmware(name, firmware):
        _prepare_host(name, each)
        bench = _bench(name, each)
        wanted = house().recipes[name].common.boot
        where = booting.network_here(network or None)
        spec = booting.prepare(release, layers(name), bench, wanted, firmware=each, network=where, mac=_mac(name))
        print(report.line(name, "boot", "running", each, where, spec["accel"]), flush=True)
        said = booting.prove(spec, bench, lambda line: print(f"  {line}", flush=True))
        booting.clear(bench)
        if not said["ok"]:
            raise booting.failure(release, spec, said)
        with house().store.lock(f"release-{name}"):
            booting.record(release, spec, said)
        print(
            report.line(name, "boot", "booted", f"{said['seconds']:6.1f} s", each, report.shown(Path(said["console"])))
        )


@user_errors
def console(name: str, firmware: str, network: str) -> None:
    """Boot and leave the machine to the user."""
    from buildlib import boot as booting

    each = _firmware(name, firmware)[0]
    _prepare_host(name, each)
    bench = _bench(name, f"console-{each}")
    where = booting.network_here(network or None)
    wanted = house().recipes[name].common.boot
    spec = booting.prepare(current(name), layers(name), bench, wanted, firmware=each, network=where, mac=_mac(name))
    booting.attach(spec, bench)
    booting.clear(bench)


@user_errors
def serve(interface: str, dhcp: str) -> None:
    """Serve out/srv/ on an interface until Ctrl-C, telling each client's steps."""
    from buildlib import host, reach, serving, switching
    from buildlib.place import Place, live

    host.install(host.missing(serving.PROGRAMS, serving.FILES))
    address, network = serving.address_of(interface)
    target = serving.target(house().out / "srv", address, network, interface, dhcp)
    hosts = house().site.hosts_of(LOCAL)
    with reach.reach(LOCAL, target, hosts, lock=True) as reached:
        _remember(address, network)
        switching.switch(reached, {}, "serve", loaders_folder())
    place = Place(LOCAL, target, hosts)
    there = live(place)
    if not any("release" in facts for facts in there.values()):
        raise BuildError("out/srv/ holds no release", hint="./doit push:local/NAME first")
    print(f"serving {', '.join(there)} at {address} on {interface} (DHCP: {dhcp}); Ctrl-C ends it", flush=True)
    serving.run(place, house().out / "serve", lambda text: print(text, flush=True))


def booted_firmware(name: str) -> tuple[str, ...]:
    """The firmware that a recipe's proof wants."""
    from buildlib import boot as booting

    common = house().recipes[name].common
    return common.boot.firmware or booting.default_firmware(common.arch, house().site.hosts, name)


def _firmware(name: str, said: str) -> tuple[str, ...]:
    from buildlib.machine import FIRMWARE as KNOWN

    wanted = tuple(said.split(",")) if said else booted_firmware(name)
    unknown = [word for word in wanted if word not in KNOWN]
    if unknown:
        raise BuildError(f"unknown firmware {', '.join(unknown)}", hint=f"known are {', '.join(KNOWN)}")
    return wanted


def _prepare_host(name: str, firmware: str) -> None:
    from buildlib import boot as booting
    from buildlib import host, serve

    common = house().recipes[name].common
    programs, files = booting.packages(common.arch, firmware)
    programs += ["nbd-server"] if common.root.over == "nbd" else []
    host.install(host.missing([*programs, *serve.PROGRAMS], [*files, *serve.FILES]))


def _mac(name: str) -> str | None:
    """Of the first host of site.yaml that has this recipe: an image may have something for each of them alone."""
    return next(iter(house().recipes[name].hosts), None)


def _bench(name: str, firmware: str) -> booting.Bench:
    from buildlib import boot as booting

    out = house().out
    return booting.Bench(out / "boot" / name / firmware, out / "srv", loaders_folder(), out / "state" / "kvm.json")


def loaders_folder() -> Path:
    keyed = house().loaders_key()
    if keyed is None or not house().store.has(keyed.key):
        raise BuildError("the boot loaders are not there yet", hint="./doit bootloaders")
    return house().store.path(keyed.key)


def current(name: str) -> Release:
    release = house().current(name)
    assert release is not None
    return release


def local_target() -> Target:
    """`out/srv/` at the address where it was served last."""
    return local(house().out / "srv", *_remembered())


def _remember(address: str, network: str) -> None:
    from buildlib import atomic

    atomic.write(house().out / "state" / "serve.json", json.dumps([address, network]))


def _remembered() -> tuple[str, str]:
    """Where out/srv/ was served last; `serve` renders all again for where it serves."""
    try:
        address, network = json.loads((house().out / "state" / "serve.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return "127.0.0.1", "127.0.0.0/8"
    return address, network
