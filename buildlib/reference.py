"""The reference of what users write: every key of a file, as Markdown, from the types that it is loaded as."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from buildlib.jsonschema import plain
from buildlib.shape import Dir, Doc, Key, Range, Shape, Text, keys, short_key

HEAD = """\
<!-- Written by `./doit schema` from the types. Do not edit. -->
# {title}

{text}

"""


def page(kind: type, *, title: str, text: str, extends: str) -> str:
    """A file's keys: a table for itself, and one for each map in it, by the path that leads there.

    extends -- what is said of the key that every file has
    """
    sections: dict[type, str] = {}
    _collect(kind, "", sections)
    whole = HEAD.format(title=title, text=text)
    for of, path in sections.items():
        more = [_row("extends", "path of a file, or a list of them", "none", extends)] if not path else []
        whole += "\n".join([*_section(of, path, more, sections), ""]) + "\n"
    return whole.rstrip("\n") + "\n"


def anchor(heading: str) -> str:
    """What a link to a heading says, as GitHub and its like spell it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _collect(kind: type, path: str, sections: dict[type, str]) -> None:
    """All dataclasses in the order of the keys; one that is met again stays where it was met first."""
    if kind in sections:
        return
    sections[kind] = path
    for name, key in keys(kind).items():
        for nested, suffix in _nested(key.shape):
            _collect(nested, f"{path}.{name}{suffix}".lstrip("."), sections)


def _nested(shape: Shape, suffix: str = "") -> Iterator[tuple[type, str]]:
    if shape.nested:
        yield shape.nested, suffix
    elif shape.base is tuple:
        yield from _nested(shape.inner[0], f"{suffix}[]")
    elif shape.base is dict:
        yield from _nested(shape.inner[1], f"{suffix}.{_placeholder(shape.inner[0])}")


def _placeholder(shape: Shape) -> str:
    note = shape.note(Text)
    return (note.what.rpartition(" ")[2] if note else "name").upper()


def _section(kind: type, path: str, more: list[str], sections: dict[type, str]) -> Iterator[str]:
    if path:
        yield f"## `{path}`"
        yield ""
        yield (kind.__doc__ or "").partition("\n")[0]
        if short := short_key(kind):
            yield f"The value of `{short}` alone may stand for the map."
        yield ""
    yield "| key | value | without it | |"
    yield "|---|---|---|---|"
    yield from more
    for name, key in keys(kind).items():
        doc = key.shape.note(Doc)
        yield _row(name, _value(key.shape, sections), _default(key), doc.text if doc else "")


def _row(name: str, value: str, default: str, text: str) -> str:
    cells = (f"`{name}`", value, default, text)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _value(shape: Shape, sections: dict[type, str]) -> str:
    """What may stand there, in words."""
    if shape.nested:
        short = short_key(shape.nested)
        alone = f"{_value(keys(shape.nested)[short].shape, sections)}; or a " if short else ""
        return f"{alone}[map](#{anchor(sections[shape.nested])})"
    if shape.choices:
        return " | ".join(f"`{choice}`" for choice in shape.choices)
    if shape.inner:
        inner = " → ".join(_value(part, sections) for part in shape.inner)
        return f"{'list' if shape.base is tuple else 'map'}: {inner}"
    return _scalar(shape)


def _scalar(shape: Shape) -> str:
    if shape.base is bool:
        return "`yes` or `no`"
    if shape.base is int:
        return _number(shape.note(Range) or Range())
    path = "path of a folder" if shape.note(Dir) else "path of a file"
    note = shape.note(Text) or Text(what=path if shape.base is Path else "text")
    return note.what + (f", like `{note.example}`" if note.example else "")


def _number(note: Range) -> str:
    bounds = (("from", note.minimum), ("to", note.maximum))
    return "whole number" + "".join(f" {word} {bound}" for word, bound in bounds if bound is not None)


def _default(key: Key) -> str:
    if key.required:
        return "**required**"
    factory = key.field.default_factory
    value = plain(key.field.default if factory is dataclasses.MISSING else factory())
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, bool):
        return "`yes`" if value else "`no`"
    if isinstance(value, list):
        return ", ".join(f"`{each}`" for each in value)
    if isinstance(value, dict):
        short = short_key(key.shape.nested) if key.shape.nested else None
        return f"`{value[short]}`" if short else "see there"
    return f"`{value}`"
