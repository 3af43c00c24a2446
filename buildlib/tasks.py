"""The doit shell: one task a stage, in the order of the plan, and the verbs around it.

    build:NAME <- _stage:NAME/customise <- ... <- _stage:NAME/index <- _lock:NAME <- _check:NAME
    shell:NAME, tar:NAME <- build:NAME
    why:NAME

What is current is asked of the store, never of doit's database, which is in memory. Actions are functions of this
module with plain data, so that doit's processes can take them.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec

from doit.exceptions import InvalidDodoFile, TaskFailed

from buildlib import distros, report, space
from buildlib.errors import BuildError
from buildlib.house import House

AS_JSON = {"name": "as_json", "long": "json", "type": bool, "default": False, "help": "for programs"}

Task = dict[str, Any]
P = ParamSpec("P")

_house = House(Path.cwd())


def house() -> House:
    """The checkout that this process works in."""
    return _house


def configure(folder: Path) -> dict[str, Any]:
    """Take `folder` as the checkout; give doit's configuration. To be called by dodo.py before anything else."""
    global _house
    _house = House(folder)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _interrupted)
    return {
        "backend": "sqlite3",
        "dep_file": ":memory:",
        "default_tasks": ["build"],
        "reporter": StageReporter,
        "par_type": "process",
        "verbosity": 2,
    }


def _interrupted(number: int, _frame: object) -> None:
    """Raise once: what is being cleaned up then must not be interrupted by a second Ctrl-C."""
    signal.signal(number, signal.SIG_IGN)
    sys.stderr.write(f"\n{signal.Signals(number).name}: stopped; the next run goes on from the last finished stage\n")
    raise SystemExit(128 + number)


class StageReporter(report.Reporter):
    """Knows the size of what the store holds."""

    def details(self, recipe: str, stage: str) -> list[str]:
        if stage == "release":
            release = house().current(recipe)
            return [f"{report.size(release.size)}  {report.shown(release.folder)}"] if release else []
        keyed = house().keys(recipe).get(stage)
        try:
            return [_size(keyed.key)] if keyed else []
        except KeyError:
            return []


@functools.cache
def _size(key: str) -> str:
    """Of an entry of the store; recipes share many."""
    return report.size(house().store.get(key).size)


def user_errors(action: Callable[P, bool | None]) -> Callable[P, Any]:
    """An action whose BuildErrors are reported without a traceback; any other exception is a bug and keeps it."""

    @functools.wraps(action)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return action(*args, **kwargs)
        except BuildError as error:
            return TaskFailed(report.failure(error))
        except OSError as error:
            if error.errno not in space.FULL:
                raise
            return TaskFailed(report.failure(space.said(error)))

    return checked


def load_errors(tasks: Callable[[], Iterator[Task]]) -> Callable[[], Iterator[Task]]:
    """A task function whose BuildErrors end doit with a message and no traceback."""

    @functools.wraps(tasks)
    def checked() -> Iterator[Task]:
        try:
            yield from tasks()
        except BuildError as error:
            raise InvalidDodoFile(f"\n{error}") from None

    return checked


def group(doc: str) -> Task:
    return {"name": None, "doc": doc}


@load_errors
def task_build() -> Iterator[Task]:
    """build a recipe's release"""
    yield group("build a recipe's release into out/images/NAME/ID/")
    for name, recipe in house().recipes.items():
        yield {
            "name": name,
            "doc": recipe.common.description,
            "actions": [(assemble, [name])],
            "uptodate": [(is_current, [name])],
            "task_dep": [f"_stage:{name}/{stage.name}" for stage in house().plan(name).stages],
            "meta": {"recipe": name, "stage": "release"},
            "io": {"capture": False},
        }


@load_errors
def task__stage() -> Iterator[Task]:
    """a recipe's stages"""
    for name in house().recipes:
        for stage in house().plan(name).stages:
            yield {
                "name": f"{name}/{stage.name}",
                "actions": [(run_stage, [name, stage.name])],
                "uptodate": [(is_built, [name, stage.name])],
                "task_dep": [f"_lock:{name}", *(f"_stage:{name}/{parent.name}" for parent in stage.inputs)],
                "meta": {"recipe": name, "stage": stage.name},
                "io": {"capture": False},
            }


@load_errors
def task__check() -> Iterator[Task]:
    """what this machine needs for a recipe"""
    for name in house().recipes:
        yield {
            "name": name,
            "actions": [(check, [name])],
            "uptodate": [(is_complete, [name])],
            "meta": {"recipe": name, "stage": "check", "quiet": True},
            "io": {"capture": False},
        }


@load_errors
def task_why() -> Iterator[Task]:
    """say what a build would run, and because of what"""
    yield group("say what a build would run, and because of which change")
    for name in house().recipes:
        yield {"name": name, "actions": [(why, [name])], "params": [AS_JSON], "io": {"capture": False}}


@load_errors
def task_shell() -> Iterator[Task]:
    """open a shell in the built root"""
    yield group("open a shell in the built root; changes are thrown away")
    for name in house().recipes:
        yield {"name": name, "actions": [(shell, [name])], "task_dep": [f"build:{name}"], "io": {"capture": False}}


@load_errors
def task_tar() -> Iterator[Task]:
    """write the built root as a tar"""
    yield group("write the built root as a tar, for an NFS server of your own")
    for name in house().recipes:
        yield {"name": name, "actions": [(tar, [name])], "task_dep": [f"build:{name}"], "io": {"capture": False}}


def task_schema() -> Task:
    """write the JSON Schemas and the reference of recipe and site files"""
    return {"actions": [(write_schemas, [])], "io": {"capture": False}}


def task_test() -> Task:
    """run all tests, and print the slowest"""
    return {
        "actions": [(run_tests, [])],
        "params": [
            {"name": "only", "short": "k", "default": "", "help": "pytest expression: just these tests"},
            {"name": "every", "long": "all", "type": bool, "default": False, "help": "also those that take long"},
        ],
        "io": {"capture": False},
    }


def is_current(name: str) -> bool:
    return house().current(name) is not None


def is_built(name: str, stage: str) -> bool:
    """Whether the store has the stage's outcome, or nobody needs it any more."""
    keyed = house().keys(name).get(stage)
    return keyed is not None and (house().current(name) is not None or house().store.has(keyed.key))


def is_complete(name: str) -> bool:
    """Nothing will run: what this machine has does not matter then."""
    return house().current(name) is not None


@user_errors
def check(name: str) -> None:
    """Find out all that would stop the build, before it starts; install missing packages."""
    from buildlib import host

    house().store.sweep()
    recipe = house().recipes[name]
    distro = distros.get(recipe.distro)
    host.install(host.missing(*distros.needs(recipe)))
    found = [*recipe.problems(), *distro.problems(recipe)]
    if found:
        raise BuildError("\n".join(f"{wrong}\n  {todo}" for wrong, todo in found))


@user_errors
def run_stage(name: str, stage: str) -> None:
    """Run a stage into the store."""
    from buildlib import build

    keys = house().keys(name)
    bar = report.Bar(name, stage)
    try:
        build.run(
            keys[stage],
            {other: keyed.key for other, keyed in keys.items()},
            house().store,
            cache=house().cache,
            log=log_path(name, stage),
            epoch=house().epoch(name),
            progress=bar,
            mirrors=house().site.mirror_urls(),
            what=f"{name}/{stage}",
            waiting=lambda whom: waits(name, stage, whom),
        )
    finally:
        bar.close()
    house().identity.save()
    stages = {**house().remembered(name).get("stages", {}), stage: keys[stage].key}
    house().remember(name, stages=stages)


def waits(name: str, what: str, whom: str) -> None:
    """Say for whom one has to wait."""
    print(report.line(name, what, "waiting", f"for {whom}"), flush=True)


@user_errors
def assemble(name: str) -> None:
    """Make the release of what the store holds."""
    from buildlib import release

    keys = house().keys(name)
    tell = functools.partial(waits, name, "release")
    store = house().store
    with store.used(tell), store.lock(f"release-{name}", what=f"{name}/release", waiting=tell):
        made = release.assemble(house().plan(name), keys, house().store, house().images, house().about(name))
    house().remember(
        name,
        release=house().release_key(name, keys),
        id=made.id,
        sizes={file: output.size for file, output in made.files().items()},
        stages={stage: keyed.key for stage, keyed in keys.items()},
    )


@user_errors
def why(name: str, as_json: bool = False) -> None:
    """For people; or an object a line: `{"recipe", "stages": [{"stage", "state", "reasons"}]}`."""
    from buildlib.why import explain, verdicts

    if as_json:
        print(json.dumps({"recipe": name, "stages": [asdict(verdict) for verdict in verdicts(house(), name)]}))
        return
    for text in explain(house(), name):
        print(text)


@user_errors
def shell(name: str) -> None:
    """A shell in the root, over a scratch layer."""
    from buildlib.sandbox import Sandbox

    if not sys.stdin.isatty():
        print("no terminal: reading commands from standard input")
    print(
        f"{name}: a shell in the built root. Whatever you change is thrown away when you leave it (exit).", flush=True
    )
    arch = house().recipes[name].common.arch
    mark = f"shell-{os.getpid()}"
    with house().store.lock(mark):
        work = house().store.begin(mark)
        try:
            sandbox = Sandbox(work=work, layers=layers(name), arch=arch, hostname=name, env={"PS1": f"{name}:\\w# "})
            sandbox.run(
                ["/bin/sh", "-c", "cd /root; exec /bin/bash -i || exec /bin/sh -i"], terminal=True, accept=range(256)
            )
        finally:
            house().store.abandon(work)


@user_errors
def tar(name: str) -> None:
    """The root as `out/tar/NAME-ID.tar`."""
    from buildlib import pack, sandbox

    release = house().current(name)
    assert release is not None
    out = house().out / "tar" / f"{name}-{release.id}.tar"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        mark = f"tar-{name}"
        with house().store.lock(mark):
            scratch = house().store.begin(mark)
            with sandbox.guard(scratch):
                made = scratch / "root.tar"
                log = log_path(name, "tar")
                pack.tar(layers(name), made, epoch=house().epoch(name), scratch=scratch / "s", log=log)
                made.rename(out)
                house().store.abandon(scratch)
    print(f"{report.shown(out)}  {report.size(out.stat().st_size)}")


def write_schemas() -> None:
    from buildlib import schemas

    for path in schemas.write(house().folder):
        print(report.shown(path))


@user_errors
def run_tests(only: str, every: bool) -> None:
    """pytest over everything, after what the tests run was installed."""
    from buildlib import command, host

    if os.geteuid() != 0:
        raise BuildError("the tests start servers and machines in namespaces of their own", hint="run them as root")
    host.install(host.missing(host.TEST_TOOLS, host.TEST_FILES))
    if importlib.util.find_spec("pytest") is None:
        raise BuildError("the packages of requirements-dev.txt are not installed", hint="run ./doit test")
    # A file's tests one after the other: machines boot beside builds, but not three of them on two cores.
    line = [sys.executable, "-m", "pytest", "--durations=15", "--numprocesses=2", "--dist=loadfile"]
    chosen = [*(["-k", only] if only else []), *([] if every else ["-m", "not nightly"])]
    if command.run([*line, *chosen], terminal=True, accept=range(256)):
        raise BuildError("not all tests passed; see above")


def layers(name: str) -> tuple[Path, ...]:
    """The trees of the recipe's root, lowest first."""
    keys = house().keys(name)
    paths = (house().store.path(keys[stage.name].key, "tree") for stage in house().plan(name).root)
    return tuple(path for path in paths if path.exists())


def log_path(name: str, stage: str) -> Path:
    return house().out / "log" / name / f"{stage}.log"
