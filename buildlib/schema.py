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

import dataclasses
import os
import re
import stat
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast

from buildlib.shape import Dir, Doc, File, Range, Repeats, Shape, Text, keys, shape, short_key, shorthand
from buildlib.yamltree import (
    FAILED,
    Builder,
    Finding,
    Items,
    Node,
    Report,
    Scalar,
    SchemaError,
    Spot,
    Table,
    UnreadableError,
    found,
    listed,
    meant,
    merge,
    shown,
)

__all__ = ["Dir", "Doc", "File", "Finding", "Range", "Repeats", "SchemaError", "Text", "load", "shorthand", "sources"]

T = TypeVar("T")


def load(path: Path, kind: type[T], *, root: Path | None = None) -> T:
    """Reads a YAML file and all that it extends into a dataclass.

    root -- the folder that no path in it may leave; the parent of the file's own folder unless given

    Raises SchemaError with everything that is wrong.
    """
    layers, report = _gather(path, root)
    value: object = FAILED
    if layers:
        report.top = reduce(merge, list[Node](layers.values()))
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


_WHOLE_NUMBER: Final = re.compile("[-+]?(?:0|[1-9](?:_?[0-9]){0,17})")
_TRUTH: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _gather(path: Path, root: Path | None) -> tuple[dict[Path, Table], Report]:
    path = Path(os.path.normpath(path.absolute()))
    report = Report(Path(os.path.normpath((root or path.parent.parent).absolute())))
    layers: dict[Path, Table] = {}
    _add_layer(path, (), layers, report)
    return layers, report


def _add_layer(path: Path, heirs: tuple[Path, ...], layers: dict[Path, Table], report: Report) -> None:
    try:
        table = Builder(path, report).document()
    except UnreadableError as error:
        report.fail(*error.args)
        report.whole = False
        return
    heirs = (*heirs, path)
    for spot, base in _extended(table, report):
        if base in heirs:
            chain = (*heirs[heirs.index(base) :], base)
            report.fail(spot, f"'extends' goes in a circle: {' -> '.join(map(shown, chain))}")
            report.whole = False
        elif base not in layers:
            _add_layer(base, heirs, layers, report)
    layers[path] = table


def _extended(table: Table, report: Report) -> Iterator[tuple[Spot, Path]]:
    if "extends" not in table.entries:
        return
    _, node = table.entries.pop("extends")
    for item in node.items if isinstance(node, Items) else [node]:
        base = _convert(item, shape(Annotated[Path, File()]), report)
        if isinstance(base, Path):
            yield item.spot, base
        else:
            report.whole = False


def _convert(node: Node, wanted: Shape, report: Report) -> object:
    if wanted.optional and isinstance(node, Scalar) and node.null:
        return None
    if wanted.nested:
        return _object(node, wanted.nested, report)
    return _choice(node, wanted, report) if wanted.choices else _READERS[wanted.base](node, wanted, report)


def _choice(node: Node, wanted: Shape, report: Report) -> object:
    if not isinstance(node, Scalar) or node.null:
        return report.fail(node.spot, f"expects one of {listed(wanted.choices)}, found {found(node)}")
    if node.text not in wanted.choices:
        guess = meant(node.text, wanted.choices)
        return report.fail(node.spot, f"expects one of {listed(wanted.choices)}, found {node.text!r}{guess}")
    return wanted.choices[node.text]


def _text(node: Node, wanted: Shape, report: Report) -> object:
    note = wanted.note(Text) or Text()
    if not isinstance(node, Scalar) or node.null or not re.fullmatch(note.pattern or "(?s:.*)", node.text):
        like = f" like {note.example!r}" if note.example else ""
        seen = "something else" if note.secret else found(node)
        return report.fail(node.spot, f"expects {note.what}{like}, found {seen}")
    try:
        return note.normal(node.text) if note.normal else node.text
    except ValueError as error:
        return report.fail(node.spot, str(error))


def _bool(node: Node, _wanted: Shape, report: Report) -> object:
    if isinstance(node, Scalar) and node.plain and node.text.lower() in _TRUTH:
        return _TRUTH[node.text.lower()]
    return report.fail(node.spot, f"expects yes or no, found {found(node, typed=True)}")


def _int(node: Node, wanted: Shape, report: Report) -> object:
    low, high = dataclasses.astuple(wanted.note(Range) or Range())
    if isinstance(node, Scalar) and node.plain and _WHOLE_NUMBER.fullmatch(node.text):
        number = int(node.text)
        if (low is None or number >= low) and (high is None or number <= high):
            return number
    bounds = "".join(f" {word} {bound}" for word, bound in (("from", low), ("up to", high)) if bound is not None)
    return report.fail(node.spot, f"expects a whole number{bounds}, found {found(node, typed=True)}")


def _path(node: Node, wanted: Shape, report: Report) -> object:
    what, is_kind = ("a folder", stat.S_ISDIR) if wanted.note(Dir) else ("a file", stat.S_ISREG)
    if not isinstance(node, Scalar) or node.null or not node.text:
        return report.fail(node.spot, f"expects the path of {what}, found {found(node)}")
    spot, text = node.spot, node.text
    if Path(text).is_absolute():
        return report.fail(spot, f"expects a path relative to this file, found {text!r}")
    path = Path(os.path.normpath(spot.path.parent / text))
    try:
        real, root = Path(os.path.realpath(path)), Path(os.path.realpath(report.root))
        mode = path.stat().st_mode if real.is_relative_to(root) and path.is_relative_to(report.root) else None
    except FileNotFoundError:
        return report.fail(spot, f"expects {what}, but there is no {shown(path)!r}")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return report.fail(spot, f"expects {what}, but {text!r} can't be used: {getattr(error, 'strerror', error)}")
    if mode is None:
        return report.fail(spot, f"{text!r} leads out of {shown(report.root)!r}")
    return path if is_kind(mode) else report.fail(spot, f"expects {what}, but {shown(path)!r} is none")


def _list(node: Node, wanted: Shape, report: Report) -> object:
    if not isinstance(node, Items):
        return report.fail(node.spot, f"expects a list, found {found(node)}")
    (element,) = wanted.inner
    scalars = element.base not in (tuple, dict) and not element.nested
    once = scalars and not wanted.note(Repeats)
    values: list[object] = []
    items: list[Node] = []
    failed = False
    seen: dict[object, dict[Path, int]] = {}
    for item in node.items:
        value = _convert(item, element, report)
        if value is FAILED:
            failed = True
            continue
        if once:
            lines = seen.setdefault(value, {})
            inherited = bool(lines)
            if item.spot.path in lines:
                report.fail(item.spot, f"{found(item)} is in the list twice, first in line {lines[item.spot.path]}")
                failed = True
            lines.setdefault(item.spot.path, item.spot.line)
            if inherited:
                continue
        values.append(value)
        items.append(item)
    node.items = items  # a path that `check` names counts the elements that it saw
    return FAILED if failed else tuple(values)


def _map(node: Node, wanted: Shape, report: Report) -> object:
    if not isinstance(node, Table):
        return report.fail(node.spot, f"expects a map, found {found(node)}")
    values: dict[object, object] = {}
    entries: dict[str, tuple[Scalar, Node]] = {}
    failed = False
    for key, item in node.entries.values():
        name, value = _convert(key, wanted.inner[0], report), _convert(item, wanted.inner[1], report)
        if name in values:
            first = entries[str(name)][0]
            report.fail(key.spot, f"key {key.text!r} means the same as {first.text!r} in line {first.spot.line}")
        if name is FAILED or value is FAILED or name in values:
            failed = True
        else:
            values[name] = value
            entries[str(name)] = (key, item)
    if not failed:
        node.entries = entries  # a path that `check` names has the keys that it saw
    return FAILED if failed else values


_READERS: Final = {str: _text, bool: _bool, int: _int, Path: _path, tuple: _list, dict: _map}


def _object(node: Node, kind: type, report: Report) -> object:
    known, short = keys(kind), short_key(kind)
    table = node
    if short and isinstance(node, Scalar) and not node.null:
        table = Table(node.spot, {short: (node, node)})
    if not isinstance(table, Table):
        return report.fail(
            node.spot, f"expects a map{f' or its {short!r} alone' if short else ''}, found {found(node)}"
        )
    values: dict[str, object] = {}
    failed = False
    for name, (key, item) in table.entries.items():
        if name in known:
            values[known[name].attribute] = _convert(item, known[name].shape, report)
        else:
            names = [*known, "extends"] if node is report.top else list(known)
            report.fail(key.spot, f"unknown key {name!r}{meant(name, names) or f'; known are {listed(names)}'}")
            failed = True
    for name in (name for name, key in known.items() if key.required and name not in table.entries):
        failed = True
        if report.whole:
            report.fail(table.spot, f"missing key {name!r}")
    if failed or any(value is FAILED for value in values.values()):
        return FAILED
    value = kind(**values)
    check = getattr(value, "check", None)
    mistakes = list(check()) if report.whole and callable(check) else []
    for where, message in mistakes:
        report.fail(_at(table, where).spot, message)
    return FAILED if mistakes else value


def _at(node: Node, where: str) -> Node:
    """The node at a dotted path or its nearest ancestor; the longest key that fits, since keys may have dots."""
    if isinstance(node, Table):
        fitting = [name for name in node.entries if f"{where}.".startswith(f"{name}.")]
        if fitting:
            name = max(fitting, key=len)
            return _at(node.entries[name][1], where[len(name) + 1 :])
    elif isinstance(node, Items):
        index, _, rest = where.partition(".")
        if index.isdecimal() and int(index) < len(node.items):
            return _at(node.items[int(index)], rest)
    return node
