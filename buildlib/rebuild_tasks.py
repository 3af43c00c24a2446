"""The doit shell over a second build: `verify:NAME`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from buildlib import report
from buildlib.errors import BuildError
from buildlib.tasks import Task, house, log_path, user_errors

if TYPE_CHECKING:
    from buildlib.release import Release


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
        _check(name, release)
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


def _check(name: str, release: Release) -> None:
    """Read what is here of a recipe. What somebody has changed is named and forgotten, so that a build makes it anew.
    Raises BuildError then."""
    from buildlib import rebuild
    from buildlib.release import damage

    place = house()
    log = log_path(name, "verify")
    log.parent.mkdir(parents=True, exist_ok=True)
    found = [f"{release.id}: {file}: is not what its checksums say" for file in damage(release)]
    for keyed in place.keys(name).values():
        wrong = rebuild.damage(keyed, place.store, epoch=place.epoch(name), log=log)
        if wrong:
            found += wrong
            with place.store.lock(keyed.key, what=f"verify:{name}"):
                place.store.remove(keyed.key)
    if not found:
        return
    # So that the release is made of what the store has then.
    place.remember(name, release="")
    for text in found:
        print(f"  {text}")
    raise BuildError(
        f"{len(found)} files are not what was built: somebody has changed them, or the disk has",
        hint=f"it is forgotten: ./doit build:{name} makes it anew",
    )
