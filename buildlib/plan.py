"""Stages and their keys. Pure: what a stage reads is asked of an `Identity`, nothing is touched here.

A stage's key is the SHA-256 of a document that names all that can change its outcome. The document is kept beside the
outcome, so that two of them explain why a stage runs again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Json = Any
"""What `json` reads and writes: None, bool, int, str, list, dict."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A step with a key.

    name    -- a word, unique in its plan
    run     -- the function that runs it, `module:function`; it takes a `work.Work`
    options -- plain data that it acts on
    inputs  -- stages whose outcome it reads; those that have a layer are its root, lowest first
    files   -- files and trees that it reads, by the name under which the key knows them
    tools   -- programs of the host that it runs
    secrets -- options that no key, log or manifest may hold: the key knows them by their digest
    facts   -- what the recipe's lock says about upstream; None as long as nothing is locked
    arch    -- Debian architecture of the programs that it runs
    routes  -- options that say where to fetch from, not what: no part of the key, the facts tell what came
    """

    name: str
    run: str
    options: Mapping[str, Json] = field(default_factory=dict)
    inputs: tuple[Stage, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    facts: Mapping[str, Json] | None = field(default_factory=dict)
    arch: str = ""
    routes: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to: its stages in order of running, and what of their outcome a release consists of.

    artifacts -- file name in the release -> (stage, file of its outcome)
    root      -- stages whose layers are the root tree, lowest first
    cmdline   -- kernel command line; `${...}` stands for what only a target knows
    packages  -- (stage, file) of the package list: name, version, architecture a line, by tabs
    arguments -- (stage, file) of the command line's first words, where only the outcome tells them
    """

    name: str
    stages: tuple[Stage, ...]
    artifacts: Mapping[str, tuple[Stage, str]]
    root: tuple[Stage, ...]
    cmdline: str
    packages: tuple[Stage, str]
    facts: Mapping[str, Json]
    arguments: tuple[Stage, str] | None = None

    def stage(self, name: str) -> Stage:
        """The stage of that name; KeyError without one."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)


class Identity(Protocol):
    """How the outside is told apart: each method gives a text that changes when the thing does."""

    def path(self, path: Path) -> Mapping[str, str]:
        """Content, mode and link target of a file (by the name `.`), or of each file of a tree."""
        ...

    def code(self, run: str) -> str:
        """The code that `module:function` reaches."""
        ...

    def tool(self, name: str) -> str:
        """A program of the host."""
        ...


def document(stage: Stage, inputs: Mapping[str, str], identity: Identity) -> dict[str, Json]:
    """All that the outcome of `stage` depends on. `inputs`: key by name of each input."""
    return {
        "stage": stage.name,
        "options": dict(stage.options),
        "secrets": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in stage.secrets.items()},
        "code": identity.code(stage.run),
        "files": {name: dict(identity.path(path)) for name, path in sorted(stage.files.items())},
        "tools": {name: identity.tool(name) for name in sorted(stage.tools)},
        "facts": dict(stage.facts or {}),
        "inputs": dict(inputs),
        "arch": stage.arch,
    }


def key(document: Mapping[str, Json]) -> str:
    """64 hex digits over the canonical JSON of a document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Keyed:
    """A stage with its key and the document that the key is of."""

    stage: Stage
    key: str
    document: Mapping[str, Json]


def keyed(stages: Sequence[Stage], identity: Identity) -> dict[str, Keyed]:
    """Keys of `stages` by stage name, as far as they can be known: a stage without facts ends it."""
    found: dict[str, Keyed] = {}
    for stage in stages:
        if stage.facts is None or any(parent.name not in found for parent in stage.inputs):
            continue
        made = document(stage, {parent.name: found[parent.name].key for parent in stage.inputs}, identity)
        found[stage.name] = Keyed(stage, key(made), made)
    return found


def differences(old: Mapping[str, Json], new: Mapping[str, Json]) -> Iterator[str]:
    """What changed between two documents of one stage, in a user's words, the most telling first."""
    for part, word in (("files", ""), ("options", "option "), ("facts", "lock: "), ("tools", "tool ")):
        yield from _changes(old.get(part, {}), new.get(part, {}), word)
    for name in sorted({*old.get("secrets", {}), *new.get("secrets", {})}):
        if old.get("secrets", {}).get(name) != new.get("secrets", {}).get(name):
            yield f"{name} changed"
    if old.get("arch") != new.get("arch"):
        yield f"arch: {old.get('arch')} -> {new.get('arch')}"
    if old.get("code") != new.get("code"):
        yield "the code that runs it changed"
    yield from _first_input(old.get("inputs", {}), new.get("inputs", {}))


def _first_input(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """The earliest input that changed: those after it changed because of it."""
    for name in (*new, *(name for name in old if name not in new)):
        if old.get(name) != new.get(name):
            yield f"{name} {'is gone' if name not in new else 'is new' if name not in old else 'changed'} before it"
            return


def _changes(old: Json, new: Json, path: str) -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            where = path + name if not path or path.endswith((" ", "/", ".")) else f"{path}/{name}"
            where = where.removesuffix("/.")
            if name not in old:
                yield f"{where} added" + _value(new[name])
            elif name not in new:
                yield f"{where} removed"
            else:
                yield from _changes(old[name], new[name], where)
    elif isinstance(old, list) and isinstance(new, list):
        gone = [str(item) for item in old if item not in new]
        come = [str(item) for item in new if item not in old]
        if gone or come:
            yield f"{path}: " + ", ".join([*(f"-{item}" for item in gone), *(f"+{item}" for item in come)])
        else:
            yield f"{path}: order changed"
    elif path.startswith(("option ", "tool ", "lock: ")):
        yield f"{path}: {_short(old)} -> {_short(new)}"
    else:
        yield f"{path} changed"


def _value(value: Json) -> str:
    return "" if isinstance(value, (dict, list)) or len(str(value)) > 60 else f": {value}"


def _short(value: Json) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value or '""'
    return text if len(text) <= 40 else text[:37] + "..."
