"""The doit shell over nights: `nightly`, `report`."""

from __future__ import annotations

import time
from pathlib import Path

from buildlib import report
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


def task_report() -> Task:
    """make out/report/index.html of what is here, and of the nights"""
    return {"actions": [report_page], "io": {"capture": False}}


@user_errors
def report_page() -> None:
    print(report.shown(_page()))


def _page() -> Path:
    """The report as one page; its path."""
    from buildlib import atomic
    from buildlib.page import data, html

    place = house()
    folder = place.out / "report"
    nights = data.nights(folder)
    live = data.published(nights)
    found = []
    for name, one in place.recipes.items():
        kind = f"{one.distro} {one.common.arch}, {one.common.root.kind.value} root"
        found.append(
            data.recipe(name, one.common.description, kind, place.out, place.store, nights, live.get(name, {}))
        )
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    atomic.write(folder / "index.html", html.page(found, nights, made))
    return folder / "index.html"


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
        written = [*nightly.write(made, place.out / "report"), _page()]
    for text in nightly.summary(made):
        print(text)
    print(f"{time.monotonic() - begun:.0f} s  {nightly.paths(written)}", flush=True)
    if made.code:
        raise SystemExit(made.code)
