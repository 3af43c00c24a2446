"""The doit shell over nights: `nightly`."""

from __future__ import annotations

import time

from buildlib.errors import BuildError
from buildlib.tasks import Task, house, user_errors

_SWITCHES = {
    "lock": ("no-lock", "build what is locked"),
    "boot": ("no-boot", "boot nothing"),
    "publish": ("no-publish", "publish and prune nothing"),
    "wait": ("wait", "when another nightly is at it: wait until it has ended"),
}


def task_nightly() -> Task:
    """lock, build, boot, publish and prune everything, and report"""
    params = [
        {"name": name, "long": long, "type": bool, "default": False, "help": help_}
        for name, (long, help_) in _SWITCHES.items()
    ]
    only = {"name": "only", "long": "recipes", "default": "", "help": "just these recipes, by commas"}
    return {"actions": [night], "params": [*params, only], "io": {"capture": False}}


@user_errors
def night(lock: bool, boot: bool, publish: bool, wait: bool, only: str) -> None:
    """All of a night; the exit code says what failed: 10 lock, 11 build, 12 boot, 13 publish."""
    from buildlib import nightly

    place = house()
    names = list(place.recipes)
    chosen = only.split(",") if only else names
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise BuildError(f"--recipes: there is no recipe {', '.join(unknown)}", hint=f"there are: {', '.join(names)}")
    targets = {
        target: [name for name in (said.recipes or names) if name in chosen]
        for target, said in place.site.targets.items()
    }
    with place.store.lock("nightly", wait=wait) as free:
        if not free:
            raise BuildError("another nightly is at it", hint="--wait waits until it has ended")
        begun = time.monotonic()
        made = nightly.run(
            nightly.Wanted(
                folder=place.folder,
                images=place.images,
                logs=place.out / "log" / "nightly",
                recipes=chosen,
                targets=targets,
                lock=not lock,
                boot=not boot,
                publish=not publish,
            )
        )
        written = nightly.write(made, place.out / "report")
    for text in nightly.summary(made):
        print(text)
    print(f"{time.monotonic() - begun:.0f} s  {nightly.paths(written)}", flush=True)
    if made.code:
        raise SystemExit(made.code)
