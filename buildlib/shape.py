"""What a dataclass says about the YAML that it is read from: its annotations, taken apart and cached."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """A str: what `pattern` matches in full, then as `normal` spells it (a ValueError of it becomes the finding).

    secret -- a finding never says what it found
    """

    pattern: str | None = None
    what: str = "text"
    example: str | None = None
    normal: Callable[[str], str] | None = None
    secret: bool = False


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
