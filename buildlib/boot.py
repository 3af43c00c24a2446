"""A real network boot of a release in QEMU, as proof: the rendered server side, menus and boot loaders, a firmware.

The release is published into a folder of this boot alone by the same code that publishes to targets, so what boots
here is what machines will boot. Everything runs in a sandbox with a network of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from buildlib import atomic, lab, machine, publish, sandbox, serverside
from buildlib.bootmenu import FIRST_STAGE
from buildlib.errors import BuildError
from buildlib.host import PXE_ROM
from buildlib.place import Place
from buildlib.plan import Json
from buildlib.recipe import Boot, Expect
from buildlib.release import PROOF, Release
from buildlib.site import Dhcp, Host, Http, Loaders, Nfs, Target

LOGIN = r"(?:^|\n)[^\n]*\blogin: "
"""A login prompt, which is what success is when the recipe says nothing else."""

_LOADERS = {
    "bios-pxelinux": Loaders(bios="lpxelinux"),
    "bios-ipxe": Loaders(bios="ipxe"),
    "uefi-grub": Loaders(uefi="grub"),
}


@dataclass(frozen=True)
class Bench:
    """Where a boot is prepared.

    folder  -- of this boot alone, made anew
    srv     -- the folder of trees that boots and `doit serve` share
    loaders -- the folder of boot loaders
    state   -- where it is remembered whether KVM works
    """

    folder: Path
    srv: Path
    loaders: Path
    state: Path


def default_firmware(arch: str, hosts: Mapping[str, Host], name: str) -> tuple[str, ...]:
    """What a recipe boots with: what its hosts have, else both of a PC."""
    if arch == "arm64":
        return ("uefi-grub",)
    found = {host.firmware for host in hosts.values() if host.recipe == name and host.firmware}
    return tuple(f for f in ("bios-pxelinux", "uefi-grub") if not found or f.partition("-")[0] in found)


def packages(arch: str, firmware: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Programs that a boot runs, and files with the packages that bring them."""
    files = []
    if firmware.startswith("uefi"):
        arm = ("/usr/share/AAVMF/AAVMF_CODE.fd", "qemu-efi-aarch64")
        files.append(arm if arch == "arm64" else ("/usr/share/OVMF/OVMF_CODE*.fd", "ovmf"))
    else:
        files.append((PXE_ROM, "ipxe-qemu"))
    return [machine.PROGRAMS[arch], "ip"], files


def network_here(name: str | None) -> str:
    """The network to boot over: a bridge where a tap can be made, unless `name` says which."""
    may = os.access("/dev/net/tun", os.R_OK | os.W_OK)
    if name == "bridge" and not may:
        raise BuildError(
            "no bridge can be made here: /dev/net/tun may not be opened", hint="--network user, or as root"
        )
    return name or ("bridge" if may else "user")


def prepare(
    release: Release,
    layers: tuple[Path, ...],
    bench: Bench,
    wanted: Boot,
    *,
    firmware: str,
    network: str,
    mac: str | None = None,
) -> dict[str, Json]:
    """Publish the release into the bench's folder, and give what `lab` is to do. Raises BuildError.

    mac -- the machine's: of one that the release knows, if it knows any; one that nobody has without
    """
    content = release.manifest["content"]
    arch = content["arch"]
    _check(content, firmware)
    sandbox.remove(bench.folder)
    bench.folder.mkdir(parents=True)
    address, subnet = lab.ADDRESSES[network]
    digits = hashlib.sha256(f"{release.name} {firmware}".encode()).hexdigest()
    mac = mac or f"52:54:00:{digits[0:2]}:{digits[2:4]}:{digits[4:6]}"
    # Through no link: nfs-ganesha knows an export by its real path.
    folder, srv = bench.folder.resolve(), bench.srv.resolve()
    boot_root = folder / "boot"
    # What a client owns it changes: its proof gets a tree of its own.
    trees = srv / "nfs" if content["clients"] != "rw" else folder / "nfs"
    target = Target(
        address=address,
        # What QEMU's network asks for comes from the loopback.
        network=subnet if network == "bridge" else "0.0.0.0/0",
        tftp=str(boot_root),
        http=Http(str(boot_root)),
        nfs=Nfs(str(trees), str(folder / "persist")),
        interface=lab.BRIDGE,
        dhcp=Dhcp("full", first=address[:-1] + "50", last=address[:-1] + "99"),
        loaders=_LOADERS[firmware],
        timeout=0,
    )
    serial = machine.SERIAL[arch]
    host = Host("proof", recipe=release.name, console=None if _shows(content["cmdline"], serial) else serial)
    place = Place("boot", target, {mac: host})
    publish.install_loaders(place, bench.loaders)
    publish.upload(place, release, layers)
    publish.switch(place, release.name, release.id)
    publish.refresh(place)
    rendered = serverside.rendered(place)
    if network == "bridge":
        # The ROM's iPXE waits 13 s for a router of IPv6.
        rendered["dnsmasq"] += f"enable-ra\ndhcp-range={lab.PREFIX},ra-stateless\n"
    used = ["nginx"]
    if "${nfs_" in content["cmdline"]:
        used.append("ganesha")
        for path in (trees, folder / "persist"):
            path.mkdir(parents=True, exist_ok=True)
    if "${nbd_" in content["cmdline"]:
        used.append("nbd")
    if network == "bridge":
        used.append("dnsmasq")
    kind, loader = firmware.split("-")
    first = FIRST_STAGE[arch, kind, "lpxelinux" if loader == "pxelinux" else loader]
    if firmware == "bios-ipxe":
        # The card's ROM is iPXE already.
        first = f"http://{address}/boot.ipxe"
    return {
        "arch": arch,
        "firmware": firmware,
        "mac": mac,
        "memory": wanted.memory or (1024 if content["root"]["kind"] == "nfs" else 2048),
        "network": network,
        "timeout": wanted.timeout,
        "folder": str(folder),
        "boot_root": str(boot_root),
        "first_stage": first,
        "configs": {name: rendered[name] for name in used},
        "expect": [_expected(expect) for expect in wanted.expect] or [{"console": LOGIN}],
        "accel": _accelerator(arch, release.folder / "vmlinuz", bench.state),
    }


def prove(spec: dict[str, Json], bench: Bench, on_line: Callable[[str], None]) -> dict[str, Json]:
    """Boot what was prepared; how it went, as `lab.boot` tells it."""
    said: dict[str, Json] = _sandbox(bench).call(lab.boot, spec, on_line=on_line, log=bench.folder / "boot.log")
    return said


def attach(spec: dict[str, Json], bench: Bench) -> None:
    """Boot what was prepared, with its console on this terminal."""
    _sandbox(bench).call(lab.console, spec, terminal=True)


def record(release: Release, spec: Mapping[str, Json], said: Mapping[str, Json]) -> None:
    """Write down in the release that it booted: what with, and what exactly."""
    old = release.proven()
    boots = [boot for boot in old["boots"] if boot["firmware"] != spec["firmware"]] if old else []
    boot = {
        "firmware": spec["firmware"],
        "network": spec["network"],
        "accel": said["accel"],
        "seconds": said["seconds"],
        "restarts": said["restarts"],
        # A key's path is of this machine, and none of the release's business.
        "expect": [
            {**expect, "ssh": {"user": expect["ssh"]["user"], "command": expect["ssh"]["command"]}}
            if "ssh" in expect
            else expect
            for expect in spec["expect"]
        ],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    proof = {"release": release.id, "digest": release.digest, "boots": [*boots, boot]}
    atomic.write(release.folder / PROOF, json.dumps(proof, indent=1, sort_keys=True) + "\n")


def failure(release: Release, spec: Mapping[str, Json], said: Mapping[str, Json]) -> BuildError:
    """A boot that failed, explained."""
    lines = [f"{release.name}: {release.id} did not boot ({spec['firmware']}, {said['accel']}): {said['cause']}"]
    lines.append(f"last that happened, after {said['seconds']:.0f} s: {said['step']}")
    lines += [f"  | {line}" for line in said["evidence"]]
    lines.append(f"console: {said['console']}")
    return BuildError("\n".join(lines), hint=said["hint"])


def _sandbox(bench: Bench) -> sandbox.Sandbox:
    # nfs-ganesha opens files by handle, which no user namespace lets it do; root needs none.
    return sandbox.Sandbox(work=bench.folder / "sandbox", chroot=False, user=os.geteuid() != 0)


def _check(content: Mapping[str, Json], firmware: str) -> None:
    if content["arch"] == "arm64" and firmware != "uefi-grub":
        raise BuildError(f"{content['name']}: {firmware} is of PCs; arm64 machines boot by uefi-grub")
    if "${nfs_" in content["cmdline"] and os.geteuid() != 0:
        raise BuildError(
            f"{content['name']}: its root comes over NFS, and nfs-ganesha needs root to open files by handle",
            hint="run as root; recipes with `root: squashfs` (over http) or `root: ram` boot as any user",
        )


def _shows(cmdline: str, serial: str) -> bool:
    """Whether the last console is the serial one that the proof reads."""
    consoles = [word for word in cmdline.split() if word.startswith("console=")]
    return bool(consoles) and consoles[-1].partition("=")[2].partition(",")[0] == serial.partition(",")[0]


def _expected(expect: Expect) -> dict[str, Json]:
    if expect.console is not None:
        return {"console": re.escape(expect.console)}
    if expect.ssh is not None:
        ssh = expect.ssh
        return {"ssh": {"user": ssh.user, "key": str(ssh.key), "command": ssh.command}, "port": expect.port}
    return {"port": expect.port}


def _accelerator(arch: str, kernel: Path, state: Path) -> str:
    """kvm where it really works, found out once for each start of this machine; else tcg."""
    start = f"{os.uname().release} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()} "
    here = start + arch
    try:
        known: dict[str, str] = json.loads(state.read_bytes())
    except (FileNotFoundError, ValueError):
        known = {}
    if here not in known:
        known = {name: accel for name, accel in known.items() if name.startswith(start)}
        known[here] = "kvm" if machine.works_with_kvm(arch, kernel) else "tcg"
        atomic.write(state, json.dumps(known))
    return known[here]


def clear(bench: Bench) -> None:
    """Remove all of a boot but its logs."""
    for path in bench.folder.iterdir():
        if path.name in ("boot", "nfs", "persist", "sandbox"):
            sandbox.remove(path)
        elif path.name == "uefi-vars.fd":
            path.unlink()
