"""Why a build would run what it would run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from buildlib import report
from buildlib.house import House
from buildlib.plan import Json, Keyed, differences


def explain(house: House, name: str) -> Iterator[str]:
    """What a build would run and because of what, a line a stage."""
    release = house.current(name)
    if release is not None:
        yield report.line(name, "release", "current", f"nothing would run; {report.shown(release.folder)}")
        return
    keys = house.keys(name)
    before = house.remembered(name).get("stages", {})
    for stage in house.plan(name).stages:
        keyed = keys.get(stage.name)
        if keyed is None:
            reason = "nothing is locked yet" if stage.facts is None else "what runs before it is not locked yet"
            yield report.line(name, stage.name, "will run", reason)
        elif house.store.has(keyed.key):
            yield report.line(name, stage.name, "cached")
        else:
            yield report.line(name, stage.name, "will run", "; ".join(_reasons(house, keyed, before.get(stage.name))))
    yield report.line(name, "release", "will run")


def _reasons(house: House, keyed: Keyed, before: str | None) -> Sequence[str]:
    if before is None:
        return ["it never ran"]
    if before == keyed.key:
        return ["the store has lost its outcome"]
    try:
        old: Json = house.store.get(before).document
    except KeyError:
        return ["it changed, and the store no longer has what it was"]
    # As JSON knows it: a tuple that was written is a list when it is read again.
    new: Json = json.loads(json.dumps(keyed.document))
    return list(differences(old, new)) or ["its key changed"]
