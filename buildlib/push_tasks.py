"""The doit shell over publishing: what goes to targets, what they have, and the way back.

push, push:TARGET, push:TARGET/NAME             <- build:NAME, _bootloaders
rollback:, promote:, diff:, verify:TARGET/NAME
status, status:TARGET, prune:TARGET
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from buildlib import rebuild_tasks, report
from buildlib.boot_tasks import booted_firmware, current, loaders_folder, local_target
from buildlib.errors import BuildError
from buildlib.site import LOCAL, Target
from buildlib.tasks import Task, group, house, layers, load_errors, user_errors

if TYPE_CHECKING:
    from buildlib import push as pushing
    from buildlib.reach import Reached

HOST = {"name": "host", "long": "host", "default": "", "help": "a canary: only this host boots it, others stay"}
DRY = {
    "name": "dry",
    "long": "dry-run",
    "type": bool,
    "default": False,
    "help": "say what would be done; touch nothing",
}
TO = {"name": "to", "long": "release", "default": "", "help": "the release to go back to; the one before without"}
CLIENTS = {
    "name": "anyway",
    "long": "ignore-clients",
    "type": bool,
    "default": False,
    "help": "remove also what NFS clients that are connected may have mounted",
}


_UNCAPTURED: Task = {"io": {"capture": False}}


@load_errors
def task_push() -> Iterator[Task]:
    """publish releases on targets; `push:TARGET` and `push` all that they offer"""
    for target in (LOCAL, *house().site.targets):
        for name in _offered(target):
            yield _push(f"push:{target}/{name}", [(target, name)])
        yield _push(f"push:{target}", [(target, name) for name in _offered(target)])
    far = [(target, name) for target in house().site.targets for name in _offered(target)]
    yield {**_push("push", far), "doc": "publish releases on targets: one, all of a target, or all of all"}


@load_errors
def task_rollback() -> Iterator[Task]:
    """make the release live again that was live before, or another one that is still there"""
    yield group("make the release live again that was live before, or another one")
    yield from _each_recipe(rollback, [TO, DRY])


@load_errors
def task_promote() -> Iterator[Task]:
    """give all hosts what a canary boots"""
    yield group("give all hosts the release that a canary (push --host) boots")
    yield from _each_recipe(promote, [DRY])


@load_errors
def task_diff() -> Iterator[Task]:
    """compare what is live with what is built"""
    yield group("compare what is live on a target with what is built")
    for task in _each_recipe(diff, []):
        yield {**task, "task_dep": [f"build:{task['name'].partition('/')[2]}"]}


@load_errors
def task_verify() -> Iterator[Task]:
    """read all of a recipe's releases on a target again; `verify:NAME` builds it a second time"""
    yield group("read releases on a target again: bit rot, tampering; verify:NAME builds a second time and compares")
    yield from _each_recipe(verify, [])
    yield from rebuild_tasks.tasks()


@load_errors
def task_prune() -> Iterator[Task]:
    """remove old releases from a target"""
    yield group("remove old releases from a target that nobody needs")
    for target in (LOCAL, *house().site.targets):
        yield {
            "name": target,
            "actions": [(prune, [target])],
            "params": [DRY, CLIENTS],
            "io": {"capture": False},
        }


@load_errors
def task_services() -> Iterator[Task]:
    """show a target's server side"""
    yield group("render and check the server side of a target: dnsmasq, nginx, exports, ...")
    for target in (LOCAL, *house().site.targets):
        yield {"name": target, "actions": [(show_services, [target])], **_UNCAPTURED}


@load_errors
def task_status() -> Iterator[Task]:
    """show what is live on targets, what is newer here, and what can be gone back to"""
    doc = "show what is live on targets, what is newer here, and what can be gone back to"
    yield {"basename": "status", "actions": [(status, [[LOCAL, *house().site.targets]])], "doc": doc, **_UNCAPTURED}
    for target in (LOCAL, *house().site.targets):
        yield {"basename": f"status:{target}", "actions": [(status, [[target]])], **_UNCAPTURED}


def _push(name: str, pairs: Sequence[tuple[str, str]]) -> Task:
    builds = dict.fromkeys(f"build:{recipe}" for _, recipe in pairs)
    return {
        "basename": name,
        "actions": [(push, [[list(pair) for pair in pairs]])],
        "params": [HOST, DRY],
        "task_dep": [*builds, "_bootloaders:files"],
        **_UNCAPTURED,
    }


def _each_recipe(action: Callable[..., object], params: list[Task]) -> Iterator[Task]:
    for target in (LOCAL, *house().site.targets):
        for name in _offered(target):
            yield {
                "name": f"{target}/{name}",
                "actions": [(action, [target, name])],
                "params": params,
                **_UNCAPTURED,
            }


def _offered(target: str) -> tuple[str, ...]:
    """The recipes that may be published on a target."""
    wanted = house().site.targets[target].recipes if target != LOCAL else ()
    return wanted or tuple(house().recipes)


@user_errors
def push(pairs: list[list[str]], host: str, dry: bool) -> None:
    """Publish current releases: all is checked, all is sent and verified, then all is switched."""
    from buildlib import push as pushing
    from buildlib.together import every

    if not pairs:
        raise BuildError("site.yaml names no target", hint="see docs/targets.md; or ./doit push:local/NAME")
    wanted: dict[str, list[pushing.Job]] = {}
    for target, name in pairs:
        release = current(name)
        if not dry:
            _sign(release)
        job = pushing.Job(release, layers(name), booted_firmware(name), host or None)
        wanted.setdefault(target, []).append(job)
    bench = pushing.Bench(house().out / "trees" / str(os.getpid()), house().images, loaders_folder())
    started = time.monotonic()
    with _reached(list(wanted), lock=not dry) as reached:
        every(reached, lambda at: pushing.check(at, wanted[at.place.name]))
        if dry:
            for at in reached:
                _show_dry(pushing.plan(at, wanted[at.place.name], bench))
            return
        try:
            sent = dict(zip(wanted, every(reached, lambda at: _send(at, wanted[at.place.name], bench)), strict=True))
        finally:
            pushing.clear(bench)
        # Only here: every target of every recipe has all of it, verified.
        done = every(reached, lambda at: pushing.publish_all(at, wanted[at.place.name], bench.loaders))
    seconds = time.monotonic() - started
    for at, changed in zip(reached, done, strict=True):
        for job in wanted[at.place.name]:
            name = job.release.name
            state = "published" if sent[at.place.name].get(name) or name in changed.switched else "same"
            only = [f"on {job.host} alone"] if job.host else []
            size = [report.size(sent[at.place.name][name])] if sent[at.place.name].get(name) else []
            print(report.line(name, at.place.name, state, f"{seconds:6.1f} s", job.release.id, *size, *only))
        _show_services(at.place.name, changed.services)


def _send(at: Reached, jobs: Sequence[pushing.Job], bench: pushing.Bench) -> dict[str, int]:
    from buildlib import push as pushing

    sent = {}
    for job in jobs:
        bar = report.Sending(job.release.name, at.place.name)
        try:
            sent[job.release.name] = pushing.send(at, job, bench, bar)
        finally:
            bar.close()
    return sent


@user_errors
def rollback(target: str, name: str, to: str, dry: bool) -> None:
    from buildlib import back

    with _reached([target], lock=not dry) as (at,):
        was, now, done = back.rollback(at, name, to or None, dry=dry)
        if dry:
            _show_dry(str(step) for server in at.servers for step in server.files.steps)
            return
    print(report.line(name, target, "back", f"{now}  (was {was})" if was != now else f"{now}  (no change)"))
    _show_services(target, done.services)


@user_errors
def promote(target: str, name: str, dry: bool) -> None:
    from buildlib import back

    with _reached([target], lock=not dry) as (at,):
        now, hosts, done = back.promote(at, name, dry=dry)
        if dry:
            _show_dry(str(step) for server in at.servers for step in server.files.steps)
            return
    print(report.line(name, target, "promoted", now, f"was on {', '.join(hosts)} alone"))
    _show_services(target, done.services)


@user_errors
def diff(target: str, name: str) -> None:
    from buildlib import compare, inspection

    with _reached([target]) as (at,):
        live = inspection.side(at, name, house().images)
    for line in compare.lines(live, inspection.own(current(name))):
        print(line)


@user_errors
def verify(target: str, name: str) -> None:
    from buildlib import inspection

    with _reached([target]) as (at,):
        signers = house().site.signing
        allowed = house().own(signers.allowed_signers) if signers else None
        wrong = 0
        for release, lines in inspection.verify(at, name, allowed):
            bad = [line for line in lines if line.startswith("!")]
            print(report.line(name, target, "WRONG" if bad else "whole", release, *(lines if not bad else [])))
            for line in bad:
                print(f"  {line.removeprefix('! ')}")
            wrong += bool(bad)
    if wrong:
        raise BuildError(
            f"{target}/{name}: {wrong} release{'s' if wrong > 1 else ''} not as published",
            hint=f"remove that folder there and ./doit push:{target}/{name}; find out who or what changed it",
        )


@user_errors
def prune(target: str, dry: bool, anyway: bool) -> None:
    from buildlib import pruning

    with _reached([target], lock=not dry) as (at,):
        plan = pruning.plan(at, ignore_clients=anyway)
        for line in plan.lines:
            print(line)
        if dry:
            print("nothing was removed (--dry-run)")
            return
        pruning.carry_out(at, plan)


@user_errors
def status(targets: list[str]) -> None:
    """Each target on its own: one that cannot be reached hides no other."""
    from buildlib import inspection, together

    def look(target: str) -> list[str]:
        with _reached([target]) as (at,):
            return list(inspection.status(at, _offered(target), house().current, house().images))

    found = together.each(targets, look)
    for target, lines in zip(targets, found, strict=True):
        print(f"{target}:")
        if isinstance(lines, BuildError):
            print("\n".join(f"  {line}" for line in str(lines).splitlines()))
        elif not isinstance(lines, BaseException):
            print("\n".join(f"  {line}" for line in lines))
    together.raise_all(
        [error for error in found if isinstance(error, BaseException) and not isinstance(error, BuildError)]
    )
    if any(isinstance(error, BuildError) for error in found):
        raise BuildError("not all targets could be asked; see above")


@user_errors
def show_services(target: str) -> None:
    """Write the server side to out/services/TARGET/ and show it, checked by each service's own tool."""
    from buildlib import serverside

    folder = house().out / "services" / target
    with _reached([target]) as (at,):
        for path, text, checked in serverside.render_services(at.place, folder):
            print(f"=== {report.shown(path)}  ({checked})")
            print(text)


def _show_dry(lines: Iterator[str] | Sequence[str]) -> None:
    for line in lines:
        print(f"would {line}")
    print("nothing was changed (--dry-run)")


def _show_services(target: str, services: Sequence[tuple[str, str]]) -> None:
    from buildlib import serverside

    for service, path in services:
        print(report.line(target, service, "written", path, serverside.told(service)))


def _sign(release: object) -> None:
    """Sign a release that nobody has signed whose signature counts: the key may be another one by now."""
    from buildlib import signature
    from buildlib.release import CHECKSUMS, SIGNATURE, Release

    signing = house().site.signing
    assert isinstance(release, Release)
    if signing is None:
        return
    file, allowed = release.folder / CHECKSUMS, house().own(signing.allowed_signers)
    try:
        signature.check(file, release.folder / SIGNATURE, allowed)
    except BuildError:
        signature.sign(file, house().own(signing.key))
        signature.check(file, release.folder / SIGNATURE, allowed)


@contextlib.contextmanager
def _reached(targets: Sequence[str], *, lock: bool = False) -> Iterator[list[Reached]]:
    """Targets at hand, all connected at the same time."""
    from buildlib import host, reach

    site = house().site
    if any(_target(name).is_far for name in targets):
        host.install(host.missing(["ssh"]))
    config = house().own(site.ssh_config) if site.ssh_config else None

    def opener(name: str) -> contextlib.AbstractContextManager[Reached]:
        return reach.reach(name, _target(name), site.hosts_of(name), config=config, lock=lock, tell=_tell)

    with contextlib.ExitStack() as stack:
        yield reach.enter(stack, [functools.partial(opener, name) for name in targets])


def _target(name: str) -> Target:
    return local_target() if name == LOCAL else house().site.targets[name]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
