"""A night's work: lock, build, boot what is new, publish what passed, prune, and say how it went.

Each step is a command line of doit of its own, with a log of its own: what fails stops nothing but what needs it.
"""

from __future__ import annotations

import json
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from buildlib import atomic, command, compare
from buildlib.plan import Json
from buildlib.release import PACKAGES, Release, latest
from buildlib.report import line, shown, size

CODES = {"build": 11, "boot": 12, "push": 13, "prune": 13, "lock": 10}
"""Exit codes by what failed; the first in this order."""

FORMAT = 1
_TAIL = 15
"""Lines of a log that a report has."""


@dataclass(frozen=True)
class Step:
    """What was done.

    verb    -- lock, build, boot, push, prune
    name    -- of the recipe, TARGET/RECIPE, or the target
    state   -- ok, failed, skipped
    log     -- path, relative to the checkout
    said    -- of a failure the end of its log; why it was skipped
    """

    verb: str
    name: str
    state: str
    seconds: float = 0.0
    log: str = ""
    said: str = ""


@dataclass
class Night:
    """All of it. changes -- by recipe whose release is another one: lines as `doit diff` has them."""

    started: str
    seconds: float = 0.0
    steps: list[Step] = field(default_factory=list)
    releases: dict[str, dict[str, Json]] = field(default_factory=dict)

    def failed(self, verb: str, name: str) -> bool:
        return any((step.verb, step.name) == (verb, name) and step.state != "ok" for step in self.steps)

    @property
    def code(self) -> int:
        """The exit code: 0 if nothing failed."""
        wrong = {step.verb for step in self.steps if step.state == "failed"}
        return next((code for verb, code in CODES.items() if verb in wrong), 0)


@dataclass(frozen=True)
class Wanted:
    """What a night is of.

    recipes -- names
    targets -- recipes that each offers, by target
    """

    folder: Path
    images: Path
    logs: Path
    recipes: Sequence[str]
    targets: Mapping[str, Sequence[str]]
    lock: bool = True
    boot: bool = True
    publish: bool = True


def run(wanted: Wanted, tell: Callable[[str], None] = print) -> Night:
    """Do it all; what failed is in the outcome."""
    night = Night(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    begun = time.monotonic()
    before = {name: latest(wanted.images, name) for name in wanted.recipes}
    for step in _steps(wanted, night):
        night.steps.append(step)
        verb = "done" if step.state == "ok" else step.state.upper()
        tell(line(step.name, step.verb, verb, f"{step.seconds:6.1f} s", step.said if step.state == "skipped" else ""))
    for name in wanted.recipes:
        night.releases[name] = _told(before[name], latest(wanted.images, name))
    night.seconds = round(time.monotonic() - begun, 1)
    return night


def _steps(wanted: Wanted, night: Night) -> Iterator[Step]:
    for name in wanted.recipes:
        if wanted.lock:
            # An upstream that is down tonight keeps nobody from building what is locked.
            yield _do(wanted, "lock", name)
        yield _do(wanted, "build", name)
        if not wanted.boot:
            continue
        release = latest(wanted.images, name)
        if night.failed("build", name) or release is None:
            yield Step("boot", name, "skipped", said="it was not built")
        elif release.proven() is None:
            yield _do(wanted, "boot", name)
    for target, recipes in wanted.targets.items() if wanted.publish else ():
        for name in recipes:
            reason = next((verb for verb in ("build", "boot") if night.failed(verb, name)), None)
            if reason:
                yield Step("push", f"{target}/{name}", "skipped", said=f"it did not {reason}")
            else:
                yield _do(wanted, "push", f"{target}/{name}")
        if not any(
            step.verb == "push" and step.name.startswith(f"{target}/") and step.state == "failed"
            for step in night.steps
        ):
            yield _do(wanted, "prune", target)


def _do(wanted: Wanted, verb: str, name: str) -> Step:
    """One step, by a process of its own."""
    log = wanted.logs / f"{verb}-{name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    begun = time.monotonic()
    status = command.run(
        [sys.executable, "-m", "doit", f"{verb}:{name}"], log=log, cwd=wanted.folder, accept=range(-64, 256)
    )
    seconds = round(time.monotonic() - begun, 1)
    where = str(log.relative_to(wanted.folder))
    if status == 0:
        return Step(verb, name, "ok", seconds, where)
    text = log.read_text(errors="replace").splitlines()[1:]
    return Step(verb, name, "failed", seconds, where, "\n".join(text[-_TAIL:]))


def _told(old: Release | None, new: Release | None) -> dict[str, Json]:
    """A recipe's release before and after, and what became another."""
    if new is None:
        return {"before": None, "after": None, "size": 0, "proven": False, "changes": []}
    changes: list[str] = []
    if old is not None and old.id != new.id and old.folder.exists():
        changes = list(compare.lines(_side(old), _side(new)))
    return {
        "before": old.id if old else None,
        "after": new.id,
        "size": new.size,
        "proven": new.proven() is not None,
        "changes": changes,
    }


def _side(release: Release) -> compare.Side:
    path = release.folder / PACKAGES
    return compare.Side(release.manifest, path.read_text() if path.exists() else None, None)


def write(night: Night, folder: Path) -> list[Path]:
    """The reports: `nightly.json`, `nightly.xml` (JUnit), `nightly.txt`, and each night's own in `nights/`."""
    data = {"format": FORMAT, "code": night.code, **asdict(night)}
    text = json.dumps(data, indent=1) + "\n"
    own = folder / "nights" / f"{night.started.replace(':', '').replace('-', '')}.json"
    files = {
        folder / "nightly.json": text,
        own: text,
        folder / "nightly.xml": junit(night),
        folder / "nightly.txt": "".join(f"{entry}\n" for entry in summary(night)),
    }
    for path, content in files.items():
        atomic.write(path, content)
    return [folder / name for name in ("nightly.json", "nightly.xml", "nightly.txt")]


def summary(night: Night) -> Iterator[str]:
    """How it went, for people."""
    counts = {state: sum(step.state == state for step in night.steps) for state in ("ok", "failed", "skipped")}
    yield f"night of {night.started}: {counts['ok']} steps done, {counts['failed']} failed, {counts['skipped']} skipped"
    for name, said in night.releases.items():
        if said["after"] is None:
            yield f"  {name}: no release"
            continue
        proof = "booted" if said["proven"] else "not booted"
        state = "as before" if said["before"] == said["after"] else "new"
        yield f"  {name}: {said['after']}  {size(said['size'])}  {state}, {proof}"
        yield from (f"    {entry}" for entry in said["changes"][1:])
    for step in night.steps:
        if step.state == "failed":
            yield f"FAILED {step.verb}:{step.name}  {step.log}"
            yield from (f"  | {entry}" for entry in step.said.splitlines())


def junit(night: Night) -> str:
    """As CI systems read it: a suite a verb, a case a step."""
    root = ET.Element("testsuites", name="nightly", time=str(night.seconds))
    for verb in dict.fromkeys(step.verb for step in night.steps):
        steps = [step for step in night.steps if step.verb == verb]
        suite = ET.SubElement(root, "testsuite", name=verb, tests=str(len(steps)), timestamp=night.started)
        for state, word in (("failed", "failures"), ("skipped", "skipped")):
            suite.set(word, str(sum(step.state == state for step in steps)))
        for step in steps:
            case = ET.SubElement(suite, "testcase", classname=verb, name=step.name, time=str(step.seconds))
            if step.state == "failed":
                said = ET.SubElement(case, "failure", message=f"{verb}:{step.name} failed")
                said.text = _printable(step.said)
            elif step.state == "skipped":
                ET.SubElement(case, "skipped", message=step.said)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _printable(text: str) -> str:
    """Without what XML can't hold: consoles write all kinds of things."""
    return "".join(sign if sign in "\n\t" or sign >= " " else "?" for sign in text)


def paths(written: Sequence[Path]) -> str:
    return "  ".join(shown(path) for path in written)
