"""One YAML file to nodes that know their line and column, and several of them merged to one tree."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from buildlib.errors import BuildError


@dataclass(frozen=True, order=True)
class Finding:
    """One mistake in a file; line and column count from 1."""

    path: Path
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{shown(self.path)}:{self.line}:{self.column}: {self.message}"


class SchemaError(BuildError):
    """All that is wrong with a file and with those that it extends, sorted by file and position."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(sorted(findings))
        super().__init__("\n".join(map(str, self.findings)))

    def __reduce__(self) -> tuple[type[SchemaError], tuple[tuple[Finding, ...]]]:
        return SchemaError, (self.findings,)


FAILED: Final = object()
_TAG: Final = "tag:yaml.org,2002:"
_UNPRINTABLE: Final = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Spot(NamedTuple):
    path: Path
    line: int
    column: int


class Scalar(NamedTuple):
    spot: Spot
    text: str
    plain: bool

    @property
    def null(self) -> bool:
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(slots=True)
class Items:
    spot: Spot
    items: list[Node]
    replace: bool = False


@dataclass(slots=True)
class Table:
    spot: Spot
    entries: dict[str, tuple[Scalar, Node]]
    replace: bool = False


Node: TypeAlias = Scalar | Items | Table


class UnreadableError(Exception):
    """Nothing of a file can be used; its arguments are those of `Report.fail`."""


@dataclass
class Report:
    """What one load found; `whole` is False once something couldn't be merged, so that absence proves nothing."""

    root: Path
    findings: set[Finding] = field(default_factory=set)
    whole: bool = True
    top: Node | None = None

    def fail(self, spot: Spot, message: str) -> object:
        self.findings.add(Finding(*spot, message))
        return FAILED

    def settle(self) -> None:
        if self.findings:
            raise SchemaError(self.findings)


def plain(data: bytes) -> Any:
    """What YAML of somebody else says, as plain data. Raises ValueError."""
    import yaml

    try:
        return yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None


def shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def found(node: Node, *, typed: bool = False) -> str:
    if not isinstance(node, Scalar):
        return "a list" if isinstance(node, Items) else "a map"
    if node.null:
        return "nothing"
    text = repr(node.text if len(node.text) <= 60 else node.text[:57] + "...")
    return f"the quoted text {text}" if typed and not node.plain else text


def meant(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    spelled = {name.lower().replace("_", "-"): name for name in known}
    near = get_close_matches(word.lower().replace("_", "-"), spelled, 1)
    return f" (did you mean {spelled[near[0]]!r}?)" if near else ""


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _after(path: Path, text: str) -> Spot:
    return Spot(path, text.count("\n") + 1, len(text) - text.rfind("\n"))


def _events(path: Path) -> Iterator[Any]:
    import yaml

    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UnreadableError(_after(path, ""), f"can't be read: {error.strerror}") from None
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(_after(path, raw[: error.start].decode()), "not UTF-8 text") from None
    if bad := _UNPRINTABLE.search(text):
        raise UnreadableError(_after(path, text[: bad.start()]), f"control character {bad[0]!r}")
    try:
        yield from yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        spot = Spot(path, mark.line + 1, mark.column + 1) if mark else _after(path, "")
        start = f" {error.context} from line {error.context_mark.line + 1}:" if error.context_mark else ""
        raise UnreadableError(spot, f"not YAML:{start} {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the pure Python scanner passes "\U99999999" to chr()
        raise UnreadableError(_after(path, ""), f"not YAML: {error}") from None


class Builder:
    """Nodes from parser events. Not from yaml.compose: some 10,000 nested brackets overflow its C stack."""

    DEPTH: Final = 50
    SIZE: Final = 50_000

    def __init__(self, path: Path, report: Report) -> None:
        self.path = path
        self.report = report
        self.events = _events(path)
        self.size = 0
        self.anchors: dict[str, tuple[Node | None, int]] = {}

    def document(self) -> Table:
        import yaml

        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            raise UnreadableError(_after(self.path, ""), "the file is empty")
        node = self._node(next(self.events), 0)
        next(self.events)
        if not isinstance(event := next(self.events), yaml.StreamEndEvent):
            raise UnreadableError(self._spot(event), "a second document; expects one")
        if not isinstance(node, Table):
            raise UnreadableError(node.spot, f"expects a map at the top level, found {found(node)}")
        return node

    def _spot(self, event: Any) -> Spot:
        return Spot(self.path, event.start_mark.line + 1, event.start_mark.column + 1)

    def _grow(self, spot: Spot, size: int) -> None:
        self.size += size
        if self.size > self.SIZE:
            raise UnreadableError(spot, f"more than {self.SIZE} values, aliases included")

    def _node(self, event: Any, depth: int) -> Node:
        import yaml

        spot = self._spot(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, spot)
        self._grow(spot, 1)
        if depth > self.DEPTH:
            raise UnreadableError(spot, f"more than {self.DEPTH} levels deep")
        before = self.size
        if event.anchor:
            self.anchors[event.anchor] = (None, 0)
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            known = (None, "!", _TAG + "str")
            node = Scalar(spot, event.value, not event.style and event.tag not in known[1:])
        elif isinstance(event, yaml.SequenceStartEvent):
            known = (None, "!replace", _TAG + "seq")
            node = self._items(spot, event.tag == "!replace", depth + 1)
        else:
            known = (None, "!replace", _TAG + "map")
            node = self._table(spot, event.tag == "!replace", depth + 1)
        if event.tag == "!replace" and event.tag not in known:
            self.report.fail(spot, "'!replace' is for a list or a map; anything else replaces what it inherits anyway")
        elif event.tag not in known:
            self.report.fail(spot, f"unknown tag {event.tag.replace(_TAG, '!!')!r}")
        if event.anchor:
            self.anchors[event.anchor] = (node, self.size - before + 1)
        return node

    def _alias(self, event: Any, spot: Spot) -> Node:
        if event.anchor not in self.anchors:
            raise UnreadableError(spot, f"unknown alias '*{event.anchor}'{meant(event.anchor, self.anchors)}")
        node, size = self.anchors[event.anchor]
        if node is None:
            raise UnreadableError(spot, f"alias '*{event.anchor}' is recursive: it stands inside what it repeats")
        self._grow(spot, size)
        return node._replace(spot=spot) if isinstance(node, Scalar) else node

    def _items(self, spot: Spot, replace: bool, depth: int) -> Items:
        import yaml

        items = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth))
        return Items(spot, items, replace)

    def _table(self, spot: Spot, replace: bool, depth: int) -> Table:
        import yaml

        entries: dict[str, tuple[Scalar, Node]] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self._node(event, depth)
            value = self._node(next(self.events), depth)
            if not isinstance(key, Scalar) or key.null:
                self.report.fail(key.spot, f"expects text as a key, found {found(key)}")
            elif key.plain and key.text == "<<":
                self.report.fail(key.spot, "merge keys ('<<') are not read; 'extends' at the top level merges files")
                self.report.whole = False
            elif key.text in entries:
                first = entries[key.text][0].spot
                self.report.fail(key.spot, f"duplicate key {key.text!r}, first in line {first.line}")
            else:
                entries[key.text] = (key, value)
        return Table(spot, entries, replace)


def merge(base: Node, own: Node) -> Node:
    if isinstance(base, Table) and isinstance(own, Table) and not own.replace:
        entries = dict(base.entries)
        for name, (key, value) in own.entries.items():
            entries[name] = (key, merge(entries[name][1], value) if name in entries else value)
        return Table(own.spot, entries)
    if isinstance(base, Items) and isinstance(own, Items) and not own.replace:
        return Items(own.spot, [*base.items, *own.items])
    return own
