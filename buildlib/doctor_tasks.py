"""The doit shell over what would stop something: `doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from buildlib.boot_tasks import booted_firmware
from buildlib.errors import BuildError
from buildlib.tasks import AS_JSON, Task, house, user_errors

if TYPE_CHECKING:
    from buildlib.finding import Finding


def task_doctor() -> Task:
    """find what would stop a build, a boot or a push, and say what mends it"""
    return {"actions": [examine], "params": [AS_JSON], "io": {"capture": False}}


@user_errors
def examine(as_json: bool) -> None:
    """All findings; fails if one is an error."""
    from buildlib import finding as findings

    found: list[Finding] = []
    for finding in _findings():
        found.append(finding)
        if not as_json:
            print("\n".join(findings.lines([finding])), flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    errors = [finding for finding in found if finding.level == "error"]
    if errors:
        raise BuildError(f"{len(errors)} things would fail; see above")


def _findings() -> Iterator[Finding]:
    from buildlib import doctor

    place = house()
    config = place.own(place.site.ssh_config) if place.site.ssh_config else None
    yield from doctor.machine(place.out)
    yield from doctor.ports()
    for name, recipe in place.recipes.items():
        yield from doctor.recipe(recipe, booted_firmware(name))
    yield from doctor.targets(place.site, config, place.site.targets)
    yield from doctor.builders(place.site, config)
