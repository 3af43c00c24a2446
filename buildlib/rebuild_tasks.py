"""The doit shell over a second build: `verify:NAME`."""

from __future__ import annotations

from collections.abc import Iterator

from buildlib import report
from buildlib.errors import BuildError
from buildlib.tasks import Task, house, user_errors


def tasks() -> Iterator[Task]:
    """One a recipe, beside those of targets."""
    for name in house().recipes:
        yield {
            "name": name,
            "doc": "build a recipe a second time, elsewhere, and compare every byte",
            "actions": [(verify, [name])],
            "task_dep": [f"build:{name}"],
            "io": {"capture": False},
        }


@user_errors
def verify(name: str) -> None:
    """Fails if the second build is another one, with what differs."""
    from buildlib import rebuild, sandbox

    place = house()
    release = place.current(name)
    assert release is not None
    keys, plan = place.keys(name), place.plan(name)
    folder = place.out / "verify" / name
    with place.store.used(), place.store.lock(f"verify-{name}"):
        lost = [stage.name for stage in plan.stages if not place.store.has(keys[stage.name].key)]
        if lost:
            raise BuildError(f"the store no longer has {', '.join(lost)}", hint=f"./doit clean:{name} build:{name}")
        sandbox.remove(folder)
        second = rebuild.again(
            plan,
            keys,
            folder,
            place.about(name),
            cache=place.cache,
            epoch=place.epoch(name),
            mirrors=place.site.mirror_urls(),
            tell=lambda stage: print(report.line(name, stage, "again"), flush=True),
        )
        found = list(rebuild.differences(plan, keys, rebuild.Place(place.store, release), second))
        if not found:
            sandbox.remove(folder)
    for text in found:
        print(f"  {text}")
    if found:
        raise BuildError(
            f"{release.id} is another one when it is built again: {len(found)} differences",
            hint=f"the second build is in {report.shown(folder)}",
        )
    print(report.line(name, "verify", "same", f"{release.id}: every byte, built twice"))
