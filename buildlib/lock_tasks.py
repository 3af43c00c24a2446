"""The doit shell over locks: what upstream offers, as first seen, or as it is now.

lock:NAME, _lock:NAME <- _check:NAME
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from buildlib import distros, report
from buildlib.errors import BuildError
from buildlib.plan import differences
from buildlib.tasks import Task, group, house, load_errors, log_path, user_errors

CHECK = {
    "name": "check",
    "long": "check",
    "type": bool,
    "default": False,
    "help": "only say what has moved upstream; fail if something has",
}


@load_errors
def task__lock() -> Iterator[Task]:
    """what upstream offers, as first seen"""
    for name in house().recipes:
        yield {
            "name": name,
            "actions": [(lock, [name, False])],
            "uptodate": [(is_locked, [name])],
            "task_dep": [f"_check:{name}"],
            "meta": {"recipe": name, "stage": "lock", "quiet": True},
            "io": {"capture": False},
        }


@load_errors
def task_lock() -> Iterator[Task]:
    """take what upstream offers now"""
    yield group("take what upstream offers now into the recipe's recipe.lock")
    for name in house().recipes:
        yield {
            "name": name,
            "actions": [(lock, [name, True])],
            "params": [CHECK],
            "task_dep": [f"_check:{name}"],
            "io": {"capture": False},
        }


def is_locked(name: str) -> bool:
    return all(stage.facts is not None for stage in house().plan(name).stages)


@user_errors
def lock(name: str, again: bool, check: bool = False) -> None:
    """Write the recipe's lock: what it lacks, or all of it `again`. With `check`, only tell, and fail if it moved."""
    from buildlib import atomic, build, sandbox

    recipe = house().recipes[name]
    distro = distros.get(recipe.distro)
    old = house().lock(name)
    log = log_path(name, "lock")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    mark = f"lock-{name}"
    with house().store.lock(mark):
        scratch = house().store.begin(mark)
        with sandbox.guard(scratch):
            known = {} if again else old
            taken = distro.take_lock(recipe, house().site, known, scratch, log, move=again)
            new = taken.facts
            changes = [text.removeprefix("lock: ") for text in differences({"facts": old}, {"facts": new})]
            if old and changes:
                changes += taken.moved(old)
            for change in changes if old else []:
                print(report.line(name, "lock", "moved" if check else "changed", change))
            if not check:
                for file, data in taken.files.items():
                    atomic.write_bytes(file, data)
                atomic.write(recipe.lock, json.dumps(new, indent=1, sort_keys=True) + "\n")
                keys = house().keys(name)
                for stage, folder in taken.made.items():
                    build.adopt(keys[stage], folder, house().store)
            house().store.abandon(scratch)
    path = report.shown(recipe.lock)
    if not changes:
        print(report.line(name, "lock", "same", path))
    elif not old and not check:
        print(report.line(name, "lock", "written", path))
    elif check:
        raise BuildError("upstream has moved" if old else "is not locked yet", hint=f"./doit lock:{name} takes it")
