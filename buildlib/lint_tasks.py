"""The doit shell over what is wrong and knowable before a boot: `lint`, `lint:NAME`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from buildlib.errors import BuildError
from buildlib.tasks import AS_JSON, Task, house, load_errors, user_errors


@load_errors
def task_lint() -> Iterator[Task]:
    """find what boots wrong, or is unwise, and can be known before"""
    names = list(house().recipes)
    doc = "find what boots wrong, or is unwise, and can be known before"
    for name in names:
        yield {
            "basename": f"lint:{name}",
            "doc": doc,
            "actions": [(lint, [[name]])],
            "params": [AS_JSON],
            "io": {"capture": False},
        }
    yield {"basename": "lint", "doc": doc, "actions": [(lint, [names])], "params": [AS_JSON], "io": {"capture": False}}


@user_errors
def lint(names: list[str], as_json: bool) -> None:
    """Of recipes, of the newest release of each, and of the site file. Fails if something would boot wrong."""
    from buildlib import finding, release
    from buildlib import lint as linting

    place = house()
    found = list(linting.site(place.site))
    for name in names:
        newest = release.latest(place.images, name)
        built = linting.Built.of(newest) if newest is not None else None
        own = list(linting.recipe(place.recipes[name], built, place.site))
        said = "nothing is wrong" if built else "nothing is wrong, as far as can be told before it is built"
        found += own or [finding.Finding("ok", name, said)]
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=1))
    else:
        print("\n".join(finding.lines(found)))
    wrong = sum(each.level == "error" for each in found)
    if wrong:
        raise BuildError(f"{wrong} things are wrong; see above")
