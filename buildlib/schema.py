"""YAML files to typed dataclasses, with every mistake found at once and placed at its line and column.

The dataclass is the schema; what a type alone can't say is annotated:

    @shorthand("name")
    @dataclass(frozen=True)
    class User:
        name: Annotated[str, Text(r"[a-z][a-z0-9-]*", what="a user name", example="ada"), Doc("The login name.")]
        uid: Annotated[int, Range(1000, 60000)] | None = None
        authorized_keys: tuple[Annotated[Path, File()], ...] = ()  # `authorized-keys` in YAML

Understood are str, bool, int, Path (with `File` or `Dir`), StrEnum, Literal of texts, dataclasses, `T | None`,
`tuple[T, ...]` and `Mapping[K, T]`; anything else is a TypeError. For what spans its fields a dataclass may have a
method `check(self) -> Iterable[tuple[str, str]]`: the dotted YAML path, such as `users.0.name`, and the message of each
mistake.

Types come from the dataclass, never from YAML's guesses: `release: 3.20` is the text `3.20`, `suite: no` the text `no`.
A file may name others under `extends` at its top level. Each file counts once, and before those that extend it: maps
merge key by key, lists are appended to, anything else is overridden; `!replace` discards the inherited map or list.
"""

from __future__ import annotations

import codecs
import dataclasses
import os
import re
import stat
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, reduce
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

from buildlib.errors import BuildError

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Finding:
    """One mistake in a file; line and column count from 1."""

    path: Path
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{_shown(self.path)}:{self.line}:{self.column}: {self.message}"


class SchemaError(BuildError):
    """All that is wrong with a file and with those that it extends, sorted by file and position."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(sorted(findings))
        super().__init__("\n".join(map(str, self.findings)))

    def __reduce__(self) -> tuple[type[SchemaError], tuple[tuple[Finding, ...]]]:
        return SchemaError, (self.findings,)


@dataclass(frozen=True)
class Text:
    """A str: what `pattern` matches in full, then as `normal` spells it (a ValueError of it becomes the finding)."""

    pattern: str | None = None
    what: str = "text"
    example: str | None = None
    normal: Callable[[str], str] | None = None


@dataclass(frozen=True)
class Range:
    """Bounds of an int, both included."""

    minimum: int | None = None
    maximum: int | None = None


@dataclass(frozen=True)
class File:
    """A Path to an existing file, written relative to the file that it stands in; absolute once loaded."""


@dataclass(frozen=True)
class Dir:
    """A Path to an existing folder, written relative to the file that it stands in; absolute once loaded."""


@dataclass(frozen=True)
class Repeats:
    """A tuple whose elements may repeat."""


@dataclass(frozen=True)
class Doc:
    """What an editor shows about a key."""

    text: str


_SHORT: dict[type, str] = {}


def shorthand(attribute: str) -> Callable[[type[T]], type[T]]:
    """Lets a scalar stand for a dataclass that has only this field: `overlay` for `{path: overlay}`."""

    def register(kind: type[T]) -> type[T]:
        if attribute not in {f.name for f in dataclasses.fields(cast("Any", kind))}:
            raise TypeError(f"{kind.__qualname__} has no field {attribute!r}")
        _SHORT[kind] = attribute
        return kind

    return register


@dataclass(frozen=True, eq=False)
class Shape:
    """An annotation taken apart.

    base    -- str, bool, int, Path, StrEnum, Literal, tuple, dict or a dataclass
    inner   -- of a tuple: its element; of a dict: key and value
    choices -- of a StrEnum or Literal: text to value
    """

    base: Any
    inner: tuple[Shape, ...]
    choices: Mapping[str, str]
    notes: tuple[object, ...]
    optional: bool

    @property
    def nested(self) -> type | None:
        """The dataclass, where it is one."""
        return self.base if isinstance(self.base, type) and dataclasses.is_dataclass(self.base) else None

    def note(self, kind: type[T]) -> T | None:
        """The outermost annotation of that kind."""
        return next((note for note in self.notes if isinstance(note, kind)), None)


class Key(NamedTuple):
    """One key of a dataclass in YAML."""

    attribute: str
    shape: Shape
    field: dataclasses.Field[Any]

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING


@cache
def keys(kind: type) -> Mapping[str, Key]:
    """The keys of a dataclass as they are spelled in YAML, in the order of its fields."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = (f for f in dataclasses.fields(kind) if f.init)
    return {f.name.replace("_", "-"): Key(f.name, shape(hints[f.name]), f) for f in fields}


def short_key(kind: type) -> str | None:
    """The key that a scalar in place of this dataclass stands for."""
    return _SHORT[kind].replace("_", "-") if kind in _SHORT else None


@cache
def shape(hint: Any) -> Shape:
    """Takes an annotation apart; TypeError for one that no YAML is read as."""
    notes: list[object] = []
    optional = False
    while (origin := typing.get_origin(hint)) in (Annotated, typing.Union, types.UnionType):
        if origin is Annotated:
            notes += reversed(hint.__metadata__)
            hint = hint.__origin__
        else:
            optional = True
            hint, *more = [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
            if more:
                raise TypeError(f"no YAML is read as a union of {[hint, *more]}")
    base, inner, choices = origin or hint, typing.get_args(hint), dict[str, str]()
    if origin is Literal and all(isinstance(choice, str) for choice in inner):
        inner, choices = (), dict(zip(inner, inner, strict=True))
    elif origin is tuple and inner[1:] == (...,):
        inner = inner[:1]
    elif origin in (dict, Mapping):
        base = dict
    elif isinstance(hint, type) and issubclass(hint, StrEnum):
        base, choices = StrEnum, {member.value: member for member in hint}
    elif not (hint in (str, bool, int) or _is_path(hint, notes) or dataclasses.is_dataclass(hint)):
        raise TypeError(f"no YAML is read as {hint}; a Path needs File() or Dir()")
    return Shape(base, tuple(map(shape, inner)), choices, tuple(notes), optional)


def _is_path(hint: object, notes: Iterable[object]) -> bool:
    return hint is Path and any(isinstance(note, File | Dir) for note in notes)


def load(path: Path, kind: type[T], *, root: Path | None = None) -> T:
    """Reads a YAML file and all that it extends into a dataclass.

    root -- the folder that no path in it may leave; the parent of the file's own folder unless given

    Raises SchemaError with everything that is wrong.
    """
    layers, report = _gather(path, root)
    value: object = _FAILED
    if layers:
        report.top = reduce(_merge, list[_Node](layers.values()))
        value = _convert(report.top, shape(cast("Any", kind)), report)
    report.settle()
    assert isinstance(value, kind)
    return value


def sources(path: Path, *, root: Path | None = None) -> tuple[Path, ...]:
    """The absolute paths of the files that `load` reads: the file itself, then those that it extends, nearest first.

    Raises SchemaError when one of them can't be read.
    """
    layers, report = _gather(path, root)
    report.settle()
    return tuple(reversed(layers))


# Above: what callers use. Below: files to nodes, several files to one tree, and the tree to values.


_FAILED: Final = object()
_TAG: Final = "tag:yaml.org,2002:"
_UNPRINTABLE: Final = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WHOLE_NUMBER: Final = re.compile("[-+]?(?:0|[1-9](?:_?[0-9]){0,17})")
_TRUTH: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _Spot(NamedTuple):
    path: Path
    line: int
    column: int


class _Scalar(NamedTuple):
    spot: _Spot
    text: str
    plain: bool

    @property
    def null(self) -> bool:
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(slots=True)
class _Items:
    spot: _Spot
    items: list[_Node]
    replace: bool = False


@dataclass(slots=True)
class _Table:
    spot: _Spot
    entries: dict[str, tuple[_Scalar, _Node]]
    replace: bool = False


_Node: TypeAlias = _Scalar | _Items | _Table


class _UnreadableError(Exception):
    """Nothing of a file can be used; its arguments are those of `_Report.fail`."""


@dataclass
class _Report:
    """What one load found; `whole` is False once something couldn't be merged, so that absence proves nothing."""

    root: Path
    findings: set[Finding] = field(default_factory=set)
    whole: bool = True
    top: _Node | None = None

    def fail(self, spot: _Spot, message: str) -> object:
        self.findings.add(Finding(*spot, message))
        return _FAILED

    def settle(self) -> None:
        if self.findings:
            raise SchemaError(self.findings)


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _found(node: _Node, *, typed: bool = False) -> str:
    if not isinstance(node, _Scalar):
        return "a list" if isinstance(node, _Items) else "a map"
    if node.null:
        return "nothing"
    text = repr(node.text if len(node.text) <= 60 else node.text[:57] + "...")
    return f"the quoted text {text}" if typed and not node.plain else text


def _meant(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    spelled = {name.lower().replace("_", "-"): name for name in known}
    near = get_close_matches(word.lower().replace("_", "-"), spelled, 1)
    return f" (did you mean {spelled[near[0]]!r}?)" if near else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _after(path: Path, text: str) -> _Spot:
    return _Spot(path, text.count("\n") + 1, len(text) - text.rfind("\n"))


def _events(path: Path) -> Iterator[Any]:
    import yaml

    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise _UnreadableError(_after(path, ""), f"can't be read: {error.strerror}") from None
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _UnreadableError(_after(path, raw[: error.start].decode()), "not UTF-8 text") from None
    if bad := _UNPRINTABLE.search(text):
        raise _UnreadableError(_after(path, text[: bad.start()]), f"control character {bad[0]!r}")
    try:
        yield from yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        spot = _Spot(path, mark.line + 1, mark.column + 1) if mark else _after(path, "")
        start = f" {error.context} from line {error.context_mark.line + 1}:" if error.context_mark else ""
        raise _UnreadableError(spot, f"not YAML:{start} {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the pure Python scanner passes "\U99999999" to chr()
        raise _UnreadableError(_after(path, ""), f"not YAML: {error}") from None


class _Builder:
    """Nodes from parser events. Not from yaml.compose: some 10,000 nested brackets overflow its C stack."""

    DEPTH: Final = 50
    SIZE: Final = 50_000

    def __init__(self, path: Path, report: _Report) -> None:
        self.path = path
        self.report = report
        self.events = _events(path)
        self.size = 0
        self.anchors: dict[str, tuple[_Node | None, int]] = {}

    def document(self) -> _Table:
        import yaml

        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            raise _UnreadableError(_after(self.path, ""), "the file is empty")
        node = self._node(next(self.events), 0)
        next(self.events)
        if not isinstance(event := next(self.events), yaml.StreamEndEvent):
            raise _UnreadableError(self._spot(event), "a second document; expects one")
        if not isinstance(node, _Table):
            raise _UnreadableError(node.spot, f"expects a map at the top level, found {_found(node)}")
        return node

    def _spot(self, event: Any) -> _Spot:
        return _Spot(self.path, event.start_mark.line + 1, event.start_mark.column + 1)

    def _grow(self, spot: _Spot, size: int) -> None:
        self.size += size
        if self.size > self.SIZE:
            raise _UnreadableError(spot, f"more than {self.SIZE} values, aliases included")

    def _node(self, event: Any, depth: int) -> _Node:
        import yaml

        spot = self._spot(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, spot)
        self._grow(spot, 1)
        if depth > self.DEPTH:
            raise _UnreadableError(spot, f"more than {self.DEPTH} levels deep")
        before = self.size
        if event.anchor:
            self.anchors[event.anchor] = (None, 0)
        node: _Node
        if isinstance(event, yaml.ScalarEvent):
            known = (None, "!", _TAG + "str")
            node = _Scalar(spot, event.value, not event.style and event.tag not in known[1:])
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

    def _alias(self, event: Any, spot: _Spot) -> _Node:
        if event.anchor not in self.anchors:
            raise _UnreadableError(spot, f"unknown alias '*{event.anchor}'{_meant(event.anchor, self.anchors)}")
        node, size = self.anchors[event.anchor]
        if node is None:
            raise _UnreadableError(spot, f"alias '*{event.anchor}' is recursive: it stands inside what it repeats")
        self._grow(spot, size)
        return node._replace(spot=spot) if isinstance(node, _Scalar) else node

    def _items(self, spot: _Spot, replace: bool, depth: int) -> _Items:
        import yaml

        items = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth))
        return _Items(spot, items, replace)

    def _table(self, spot: _Spot, replace: bool, depth: int) -> _Table:
        import yaml

        entries: dict[str, tuple[_Scalar, _Node]] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self._node(event, depth)
            value = self._node(next(self.events), depth)
            if not isinstance(key, _Scalar) or key.null:
                self.report.fail(key.spot, f"expects text as a key, found {_found(key)}")
            elif key.plain and key.text == "<<":
                self.report.fail(key.spot, "merge keys ('<<') are not read; 'extends' at the top level merges files")
                self.report.whole = False
            elif key.text in entries:
                first = entries[key.text][0].spot
                self.report.fail(key.spot, f"duplicate key {key.text!r}, first in line {first.line}")
            else:
                entries[key.text] = (key, value)
        return _Table(spot, entries, replace)


def _gather(path: Path, root: Path | None) -> tuple[dict[Path, _Table], _Report]:
    path = Path(os.path.normpath(path.absolute()))
    report = _Report(Path(os.path.normpath((root or path.parent.parent).absolute())))
    layers: dict[Path, _Table] = {}
    _add_layer(path, (), layers, report)
    return layers, report


def _add_layer(path: Path, heirs: tuple[Path, ...], layers: dict[Path, _Table], report: _Report) -> None:
    try:
        table = _Builder(path, report).document()
    except _UnreadableError as error:
        report.fail(*error.args)
        report.whole = False
        return
    heirs = (*heirs, path)
    for spot, base in _extended(table, report):
        if base in heirs:
            chain = (*heirs[heirs.index(base) :], base)
            report.fail(spot, f"'extends' goes in a circle: {' -> '.join(map(_shown, chain))}")
            report.whole = False
        elif base not in layers:
            _add_layer(base, heirs, layers, report)
    layers[path] = table


def _extended(table: _Table, report: _Report) -> Iterator[tuple[_Spot, Path]]:
    if "extends" not in table.entries:
        return
    _, node = table.entries.pop("extends")
    for item in node.items if isinstance(node, _Items) else [node]:
        base = _convert(item, shape(Annotated[Path, File()]), report)
        if isinstance(base, Path):
            yield item.spot, base
        else:
            report.whole = False


def _merge(base: _Node, own: _Node) -> _Node:
    if isinstance(base, _Table) and isinstance(own, _Table) and not own.replace:
        entries = dict(base.entries)
        for name, (key, value) in own.entries.items():
            entries[name] = (key, _merge(entries[name][1], value) if name in entries else value)
        return _Table(own.spot, entries)
    if isinstance(base, _Items) and isinstance(own, _Items) and not own.replace:
        return _Items(own.spot, [*base.items, *own.items])
    return own


def _convert(node: _Node, wanted: Shape, report: _Report) -> object:
    if wanted.optional and isinstance(node, _Scalar) and node.null:
        return None
    if wanted.nested:
        return _object(node, wanted.nested, report)
    return _choice(node, wanted, report) if wanted.choices else _READERS[wanted.base](node, wanted, report)


def _choice(node: _Node, wanted: Shape, report: _Report) -> object:
    if not isinstance(node, _Scalar) or node.null:
        return report.fail(node.spot, f"expects one of {_listed(wanted.choices)}, found {_found(node)}")
    if node.text not in wanted.choices:
        meant = _meant(node.text, wanted.choices)
        return report.fail(node.spot, f"expects one of {_listed(wanted.choices)}, found {node.text!r}{meant}")
    return wanted.choices[node.text]


def _text(node: _Node, wanted: Shape, report: _Report) -> object:
    note = wanted.note(Text) or Text()
    if not isinstance(node, _Scalar) or node.null or not re.fullmatch(note.pattern or "(?s:.*)", node.text):
        like = f" like {note.example!r}" if note.example else ""
        return report.fail(node.spot, f"expects {note.what}{like}, found {_found(node)}")
    try:
        return note.normal(node.text) if note.normal else node.text
    except ValueError as error:
        return report.fail(node.spot, str(error))


def _bool(node: _Node, _wanted: Shape, report: _Report) -> object:
    if isinstance(node, _Scalar) and node.plain and node.text.lower() in _TRUTH:
        return _TRUTH[node.text.lower()]
    return report.fail(node.spot, f"expects yes or no, found {_found(node, typed=True)}")


def _int(node: _Node, wanted: Shape, report: _Report) -> object:
    low, high = dataclasses.astuple(wanted.note(Range) or Range())
    if isinstance(node, _Scalar) and node.plain and _WHOLE_NUMBER.fullmatch(node.text):
        number = int(node.text)
        if (low is None or number >= low) and (high is None or number <= high):
            return number
    bounds = "".join(f" {word} {bound}" for word, bound in (("from", low), ("up to", high)) if bound is not None)
    return report.fail(node.spot, f"expects a whole number{bounds}, found {_found(node, typed=True)}")


def _path(node: _Node, wanted: Shape, report: _Report) -> object:
    what, is_kind = ("a folder", stat.S_ISDIR) if wanted.note(Dir) else ("a file", stat.S_ISREG)
    if not isinstance(node, _Scalar) or node.null or not node.text:
        return report.fail(node.spot, f"expects the path of {what}, found {_found(node)}")
    spot, text = node.spot, node.text
    if Path(text).is_absolute():
        return report.fail(spot, f"expects a path relative to this file, found {text!r}")
    path = Path(os.path.normpath(spot.path.parent / text))
    try:
        real, root = Path(os.path.realpath(path)), Path(os.path.realpath(report.root))
        mode = path.stat().st_mode if real.is_relative_to(root) and path.is_relative_to(report.root) else None
    except FileNotFoundError:
        return report.fail(spot, f"expects {what}, but there is no {_shown(path)!r}")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return report.fail(spot, f"expects {what}, but {text!r} can't be used: {getattr(error, 'strerror', error)}")
    if mode is None:
        return report.fail(spot, f"{text!r} leads out of {_shown(report.root)!r}")
    return path if is_kind(mode) else report.fail(spot, f"expects {what}, but {_shown(path)!r} is none")


def _list(node: _Node, wanted: Shape, report: _Report) -> object:
    if not isinstance(node, _Items):
        return report.fail(node.spot, f"expects a list, found {_found(node)}")
    (element,) = wanted.inner
    scalars = element.base not in (tuple, dict) and not element.nested
    once = scalars and not wanted.note(Repeats)
    values: list[object] = []
    items: list[_Node] = []
    failed = False
    seen: dict[object, dict[Path, int]] = {}
    for item in node.items:
        value = _convert(item, element, report)
        if value is _FAILED:
            failed = True
            continue
        if once:
            lines = seen.setdefault(value, {})
            inherited = bool(lines)
            if item.spot.path in lines:
                report.fail(item.spot, f"{_found(item)} is in the list twice, first in line {lines[item.spot.path]}")
                failed = True
            lines.setdefault(item.spot.path, item.spot.line)
            if inherited:
                continue
        values.append(value)
        items.append(item)
    node.items = items  # a path that `check` names counts the elements that it saw
    return _FAILED if failed else tuple(values)


def _map(node: _Node, wanted: Shape, report: _Report) -> object:
    if not isinstance(node, _Table):
        return report.fail(node.spot, f"expects a map, found {_found(node)}")
    values: dict[object, object] = {}
    entries: dict[str, tuple[_Scalar, _Node]] = {}
    failed = False
    for key, item in node.entries.values():
        name, value = _convert(key, wanted.inner[0], report), _convert(item, wanted.inner[1], report)
        if name in values:
            first = entries[str(name)][0]
            report.fail(key.spot, f"key {key.text!r} means the same as {first.text!r} in line {first.spot.line}")
        if name is _FAILED or value is _FAILED or name in values:
            failed = True
        else:
            values[name] = value
            entries[str(name)] = (key, item)
    if not failed:
        node.entries = entries  # a path that `check` names has the keys that it saw
    return _FAILED if failed else values


_READERS: Final = {str: _text, bool: _bool, int: _int, Path: _path, tuple: _list, dict: _map}


def _object(node: _Node, kind: type, report: _Report) -> object:
    known, short = keys(kind), short_key(kind)
    table = node
    if short and isinstance(node, _Scalar) and not node.null:
        table = _Table(node.spot, {short: (node, node)})
    if not isinstance(table, _Table):
        return report.fail(
            node.spot, f"expects a map{f' or its {short!r} alone' if short else ''}, found {_found(node)}"
        )
    values: dict[str, object] = {}
    failed = False
    for name, (key, item) in table.entries.items():
        if name in known:
            values[known[name].attribute] = _convert(item, known[name].shape, report)
        else:
            names = [*known, "extends"] if node is report.top else list(known)
            report.fail(key.spot, f"unknown key {name!r}{_meant(name, names) or f'; known are {_listed(names)}'}")
            failed = True
    for name in (name for name, key in known.items() if key.required and name not in table.entries):
        failed = True
        if report.whole:
            report.fail(table.spot, f"missing key {name!r}")
    if failed or any(value is _FAILED for value in values.values()):
        return _FAILED
    value = kind(**values)
    check = getattr(value, "check", None)
    found = list(check()) if report.whole and callable(check) else []
    for where, message in found:
        report.fail(_at(table, where).spot, message)
    return _FAILED if found else value


def _at(node: _Node, where: str) -> _Node:
    """The node at a dotted path or its nearest ancestor; the longest key that fits, since keys may have dots."""
    if isinstance(node, _Table):
        fitting = [name for name in node.entries if f"{where}.".startswith(f"{name}.")]
        if fitting:
            name = max(fitting, key=len)
            return _at(node.entries[name][1], where[len(name) + 1 :])
    elif isinstance(node, _Items):
        index, _, rest = where.partition(".")
        if index.isdecimal() and int(index) < len(node.items):
            return _at(node.items[int(index)], rest)
    return node
