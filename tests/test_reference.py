"""The reference tells every key, and nothing that isn't so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from buildlib import distros, reference
from buildlib.recipe import file_type
from buildlib.shape import Doc, Range, Shape, Text, keys, shorthand
from buildlib.site import Site

KINDS = (file_type(distros.sections()), Site)


@shorthand("name")
@dataclass(frozen=True)
class Thing:
    """A thing."""

    name: Annotated[str, Text(what="a name", example="ada"), Doc("Its name.")]
    size: Annotated[Annotated[int, Range(1, 9)], Doc("Its size, small|large.")] = 3
    parts: Annotated[tuple[Thing, ...], Doc("Its parts.")] = ()


@dataclass(frozen=True)
class Whole:
    """A file."""

    mode: Annotated[Literal["copy", "link"], Doc("How.")]
    things: Annotated[dict[str, Thing], Doc("Things.")] = field(default_factory=dict)
    on: Annotated[bool, Doc("Whether.")] = True
    one: Annotated[Thing, Doc("One.")] = Thing("bob")


PAGE = """\
<!-- Written by `./doit schema` from the types. Do not edit. -->
# Whole

Everything.

| key | value | without it | |
|---|---|---|---|
| `extends` | path of a file, or a list of them | none | Others. |
| `mode` | `copy` \\| `link` | **required** | How. |
| `things` | map: text → a name, like `ada`; or a [map](#thingsname) | none | Things. |
| `on` | `yes` or `no` | `yes` | Whether. |
| `one` | a name, like `ada`; or a [map](#thingsname) | `bob` | One. |

## `things.NAME`

A thing.
The value of `name` alone may stand for the map.

| key | value | without it | |
|---|---|---|---|
| `name` | a name, like `ada` | **required** | Its name. |
| `size` | whole number from 1 to 9 | `3` | Its size, small\\|large. |
| `parts` | list: a name, like `ada`; or a [map](#thingsname) | none | Its parts. |
"""


def test_a_page() -> None:
    assert reference.page(Whole, title="Whole", text="Everything.", extends="Others.") == PAGE


def everything(kind: type, seen: set[type]) -> Iterator[tuple[str, Shape]]:
    """Each key of a dataclass and of those in it, by its path."""
    if kind in seen:
        return
    seen.add(kind)
    for name, key in keys(kind).items():
        yield f"{kind.__name__}.{name}", key.shape
        for shape in parts(key.shape):
            if shape.nested:
                yield from everything(shape.nested, seen)


def parts(shape: Shape) -> Iterator[Shape]:
    yield shape
    for inner in shape.inner:
        yield from parts(inner)


KEYS = {path: shape for kind in KINDS for path, shape in everything(kind, set())}


@pytest.mark.parametrize("path", KEYS)
def test_every_key_is_described_by_an_example_that_it_would_take(path: str) -> None:
    doc = KEYS[path].note(Doc)
    assert doc is not None
    assert re.fullmatch(r"(?s)[A-Za-z0-9/`].*[.)]", doc.text), "a sentence"
    for note in filter(None, (shape.note(Text) for shape in parts(KEYS[path]))):
        if note.example is not None:
            assert re.fullmatch(note.pattern or "(?s:.*)", note.example)
            assert note.normal is None or note.normal(note.example) is not None
