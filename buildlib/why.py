"""Why a build would run what it would run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from buildlib import report
from buildlib.house import House
from buildlib.plan import Json, Keyed, differences


@dataclass(frozen=True)
class Verdict:
    """What a build would do with a stage: `cached`, `will run`; of a whole release that is there, `current`.

    reasons -- what changed, the most telling first
    """

    stage: str
    state: str
    reasons: tuple[str, ...] = ()


def verdicts(house: House, name: str) -> Iterator[Verdict]:
    """What a build would run and because of what, a verdict a stage."""
    release = house.current(name)
    if release is not None:
        yield Verdict("release", "current", (f"nothing would run; {report.shown(release.folder)}",))
        return
    keys = house.keys(name)
    before = house.remembered(name).get("stages", {})
    for stage in house.plan(name).stages:
        keyed = keys.get(stage.name)
        if keyed is None:
            reason = "nothing is locked yet" if stage.facts is None else "what runs before it is not locked yet"
            yield Verdict(stage.name, "will run", (reason,))
        elif house.store.has(keyed.key):
            yield Verdict(stage.name, "cached")
        else:
            yield Verdict(stage.name, "will run", tuple(_reasons(house, keyed, before.get(stage.name))))
    yield Verdict("release", "will run")


def explain(house: House, name: str) -> Iterator[str]:
    """The same for people, a line a stage."""
    for verdict in verdicts(house, name):
        yield report.line(name, verdict.stage, verdict.state, "; ".join(verdict.reasons))


def _reasons(house: House, keyed: Keyed, before: str | None) -> Sequence[str]:
    if before is None:
        return ["it never ran"]
    if keyed.key in house.store.entries():
        return [f"the store's outcome is damaged: {house.store.damage(keyed.key)}"]
    if before == keyed.key:
        return ["the store has lost its outcome"]
    try:
        old: Json = house.store.get(before).document
    except KeyError:
        return ["it changed, and the store no longer has what it was"]
    # As JSON knows it: a tuple that was written is a list when it is read again.
    new: Json = json.loads(json.dumps(keyed.document))
    return list(differences(old, new)) or ["its key changed"]
