"""The switch on a target, for whatever reason: a push, a rollback, a promotion."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from buildlib import history, publish, serverside
from buildlib.errors import BuildError
from buildlib.files import Files
from buildlib.place import canary_of, live
from buildlib.plan import Json
from buildlib.reach import Reached

Wanted = Mapping[str, tuple[str, Mapping[str, str]]]
"""By recipe: the release that all boot, and those that single hosts do, by host name."""


@dataclass
class Done:
    """What a switch changed: releases by recipe, and services with their configuration's path."""

    switched: dict[str, str] = field(default_factory=dict)
    services: list[tuple[str, str]] = field(default_factory=list)


def switch(reached: Reached, wanted: Wanted, verb: str, loaders: Path | None = None, *, dry: bool = False) -> Done:
    """Make releases live. All of it is rendered before anything is changed, and each recipe's switch is one rename.

    verb    -- what the log calls it
    loaders -- the folder of boot loaders, which are installed first
    dry     -- stop before anything is changed; `reached` then knows all steps
    """
    place, boot = reached.place, reached.boot
    if boot is None:
        raise BuildError(f"target {place.name}: has neither `tftp` nor `http` for kernels and menus")
    before = live(place)
    done = Done()
    if loaders is not None:
        publish.install_loaders(place, loaders)
    first = boot.files.taken()
    for name, (release, canary) in wanted.items():
        if publish.switch(place, name, release, canary):
            done.switched[name] = release
        for identity, host in _news(before.get(name, {}), release, canary):
            history.add(place, name, "canary" if host else verb, identity, host)
    publish.refresh(place)
    menus = boot.files.taken()
    done.services = serverside.install_services(place, lambda service: _files(reached, service))
    boot.files.steps[:0] = first
    if not dry:
        for server in reached.servers:
            server.apply()
        _reload(reached, done.services)
    boot.files.steps.extend(menus)
    if not dry:
        boot.apply()
    return done


def _news(before: Mapping[str, Json], release: str, canary: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What of a switch is new: release, and host or nothing."""
    if before.get("release") != release:
        yield release, ""
    old = canary_of(before)
    for host, identity in canary.items():
        if old.get(host) != identity:
            yield identity, host


def _files(reached: Reached, service: str) -> Files | None:
    server = reached.machine(service)
    return server.files if server is not None else None


def _reload(reached: Reached, services: Iterable[tuple[str, str]]) -> None:
    """Let services take their new configuration, where that disturbs nobody."""
    for service, path in services:
        server = reached.machine(service)
        assert server is not None
        line = serverside.reload(service)
        if line is None:
            continue
        kept = shlex.quote(str(reached.place.target.persist))
        # exportfs refuses folders that are not there.
        answer = server.shell.run(f"mkdir -p {kept}\n{line}" if service == "exports" else line)
        if answer.status != 0:
            said = (answer.err.strip() or answer.out.decode(errors="replace").strip()).splitlines()
            raise BuildError(
                f"{server.name}: {server.shell.where}: {service} does not take its new configuration {path}; nothing "
                f"was switched: {said[-1] if said else f'status {answer.status}'}",
                hint="mend it there, or leave it out of `services:` and look after it yourself",
            )
