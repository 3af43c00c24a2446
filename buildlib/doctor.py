"""What of this machine, the targets and the builders would stop something, found before it does."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from buildlib import boot, distros, host, reach, serve, together
from buildlib.errors import BuildError
from buildlib.finding import Finding
from buildlib.recipe import Recipe
from buildlib.report import size
from buildlib.site import Site, Target

ROOM = 10 << 30
"""Bytes that should be free where images are built."""

LOW = 2 << 30
"""Bytes that should be free where they are published."""

STALE = 30 * 24 * 3600
"""Seconds after which a lock should be looked at again."""

PORTS = (("UDP", 67, "DHCP"), ("UDP", 69, "TFTP"), ("UDP", 4011, "DHCP beside another server"), ("TCP", 80, "HTTP"))
"""What `doit serve` listens on."""


def machine(out: Path) -> Iterator[Finding]:
    """This machine itself."""
    near = next(path for path in (out, *out.parents) if path.exists())
    free = shutil.disk_usage(near).free
    if free < ROOM:
        yield Finding("warning", "disk", f"{size(free)} are free for {out}", "./doit gc, or a bigger disk")
    else:
        yield Finding("ok", "disk", f"{size(free)} are free")
    newest = max((path.stat().st_mtime for path in out.parent.glob("*")), default=0.0)
    if newest > time.time() + 60:
        yield Finding("error", "clock", "is behind the newest file here", "timedatectl set-ntp true")
    else:
        yield Finding("ok", "clock", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        yield Finding("ok", "kvm", "is there: boots are fast, if the kernel boots with it")
    else:
        there = Path("/dev/kvm").exists()
        todo = "usermod --append --groups kvm USER" if there else "turn virtualisation on in the firmware"
        yield Finding("warning", "kvm", "may not be used" if there else "is not there: boots take longer", todo)
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        yield Finding("warning", "network", "no bridge can be made: proofs go without DHCP and NFS", "run as root")


def ports() -> Iterator[Finding]:
    """What `serve` listens on: who has it already."""
    for kind, port, what in PORTS:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "UDP" else socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except PermissionError:
                yield Finding("warning", "serve", f"{kind} port {port} ({what}) is for root alone", "run as root")
            except OSError:
                yield Finding(
                    "warning",
                    "serve",
                    f"{kind} port {port} ({what}) is taken: `doit serve` can't have it",
                    f"ss --{kind.lower()} --listening --processes 'sport = {port}'",
                )
            else:
                yield Finding("ok", "serve", f"{kind} port {port} ({what}) is free")


def recipe(one: Recipe, firmware: Iterable[str]) -> Iterator[Finding]:
    """What a recipe needs of this machine and its builders, and its lock."""
    distro = distros.get(one.distro)
    programs, files = distros.needs(one)
    missing = host.missing(programs, files)
    for kind in firmware:
        more, others = boot.packages(one.common.arch, kind)
        missing += host.missing([*more, *serve.PROGRAMS], [*others, *serve.FILES])
    wrong = False
    if missing:
        wrong = True
        line = ["apt-get", "install", "--yes", "--no-install-recommends", *sorted(set(missing))]
        yield Finding("warning", one.name, f"lacks {', '.join(sorted(set(missing)))}", shlex.join(line))
    for said, todo in (*one.problems(), *distro.problems(one)):
        wrong = True
        yield Finding("error", one.name, said, todo)
    try:
        age = time.time() - one.lock.stat().st_mtime
    except FileNotFoundError:
        yield Finding("warning", one.name, "is not locked yet", f"./doit lock:{one.name}")
        return
    if age > STALE:
        days = int(age / 86400)
        yield Finding("warning", one.name, f"was locked {days} days ago", f"./doit lock:{one.name} --check")
    elif not wrong:
        yield Finding("ok", one.name, "can be built here, and is locked")


def targets(site: Site, config: Path | None, only: Mapping[str, Target]) -> Iterator[Finding]:
    """All targets, asked at the same time."""

    def look(name: str) -> list[Finding]:
        with reach.reach(name, only[name], site.hosts_of(name), config=config, tell=lambda _text: None) as at:
            return list(_reached(name, at))

    names = list(only)
    for name, found in zip(names, together.each(names, look), strict=True):
        if isinstance(found, BuildError):
            yield Finding("error", name, found.message, found.hint or "")
        elif isinstance(found, BaseException):
            raise found
        else:
            yield from found


def _reached(name: str, at: reach.Reached) -> Iterator[Finding]:
    for server in at.servers:
        low = False
        for path, root in server.facts.roots.items():
            if not root.writable:
                low = True
                todo = "log in as somebody who may, or say `sudo: yes`"
                yield Finding("error", name, f"{path} on {server.shell.where} may not be written to", todo)
            elif root.space < LOW:
                low = True
                todo = f"./doit prune:{name}, or a bigger disk"
                yield Finding("warning", name, f"{size(root.space)} are free in {path} on {server.shell.where}", todo)
        if not low:
            yield Finding("ok", name, f"{server.shell.where} can be reached and written to")


def builders(site: Site, config: Path | None) -> Iterator[Finding]:
    """All builders, asked at the same time."""
    from buildlib.distros.nixos.builders import problems

    names = list(site.builders)
    found = together.every(
        names, lambda name: problems({name: site.builders[name]}, site.builders[name].systems[0], config)
    )
    for name, wrong in zip(names, found, strict=True):
        if not wrong:
            yield Finding("ok", name, f"builds for {', '.join(site.builders[name].systems)}")
        for said, todo in wrong:
            yield Finding("error", name, said.removeprefix(f"builder {name}: "), todo)
