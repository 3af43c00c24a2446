"""JSON Schema (draft 2020-12) of what `schema.load` accepts, for completion and squiggles in editors.

Editors read YAML 1.2: what is text to `schema.load` may be a number or a boolean to them, and `yes` is text. So the
JSON Schema admits whatever `load` admits, and leaves to it what only it can see: files, `check`, equal elements, and
whether what a file lacks is in the files that it extends.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from buildlib.shape import Doc, Key, Range, Shape, Text, keys, short_key

Json = dict[str, Any]

_TEXT = ["string", "number", "boolean"]
_BOOL = "|".join("".join(f"[{c.upper()}{c}]" for c in word) for word in ("true", "false", "yes", "no", "on", "off"))


def schema(kind: type, *, title: str) -> Json:
    """The JSON Schema of files that are loaded as this dataclass.

    A key without a default is required in a file that extends no other.
    """
    defs: Json = {}
    top = _object(kind, defs)
    base = {"type": _TEXT, "description": "A file to start from, relative to this one."}
    extends = {
        "description": "Files to start from. Maps merge, lists are appended to, anything else here overrides.",
        "anyOf": [base, {"type": "array", "items": base}],
    }
    required = _required(kind, defs)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **top,
        "properties": {"extends": extends, **top["properties"]},
        "if": {"not": {"required": ["extends"]}},
        "then": required,
        "$defs": {name: of for name, of in sorted(defs.items()) if of},
    }


def _object(kind: type, defs: Json) -> Json:
    properties = {name: _property(key, defs) for name, key in keys(kind).items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(key: Key, defs: Json) -> Json:
    if key.required:
        return _any(key.shape, defs)
    factory = key.field.default_factory
    default = key.field.default if factory is dataclasses.MISSING else factory()
    return {**_any(key.shape, defs), "default": plain(default)}


def plain(value: object) -> object:
    """A default as YAML would spell it."""
    if isinstance(value, StrEnum | Path):
        return str(value)
    if isinstance(value, tuple):
        return [plain(element) for element in value]
    if isinstance(value, Mapping):
        return {str(name): plain(element) for name, element in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, key.attribute)) for name, key in keys(type(value)).items()}
    return value


def _any(shape: Shape, defs: Json) -> Json:
    doc = shape.note(Doc)
    of = _value(shape, defs)
    if shape.optional:
        of = {"anyOf": [*of["anyOf"], {"type": "null"}] if set(of) == {"anyOf"} else [of, {"type": "null"}]}
    return {"description": doc.text, **of} if doc else of


def _value(shape: Shape, defs: Json) -> Json:
    if shape.nested:
        return _nested(shape.nested, defs)
    if shape.choices:
        return {"enum": list(dict.fromkeys(spelling for text in shape.choices for spelling in _spellings(text)))}
    if shape.base is bool:
        return {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": f"^(?:{_BOOL})$"}]}
    if shape.base is int:
        return _int(shape.note(Range) or Range())
    if shape.inner:
        return _container(shape, defs)
    return {"type": _TEXT, **_text(shape.note(Text) or Text())}


def _container(shape: Shape, defs: Json) -> Json:
    if shape.base is tuple:
        return {"type": "array", "items": _complete(shape.inner[0], defs)}
    return {"type": "object", "additionalProperties": _any(shape.inner[1], defs), **_names(shape.inner[0])}


def _text(note: Text) -> Json:
    of: Json = {} if note.pattern is None else {"pattern": f"^(?:{note.pattern})$"}
    return of if note.example is None else {**of, "examples": [note.example]}


def _int(note: Range) -> Json:
    bounds = {"minimum": note.minimum, "maximum": note.maximum}
    number = {"type": "integer", **{name: bound for name, bound in bounds.items() if bound is not None}}
    return {"anyOf": [number, {"type": "string", "pattern": "^[-+]?[1-9][0-9]*(?:_[0-9]+)+$"}]}


def _names(shape: Shape) -> Json:
    if shape.choices:
        return {"propertyNames": {"enum": list(shape.choices)}}
    pattern = _text(shape.note(Text) or Text())
    return {"propertyNames": pattern} if pattern else {}


def _spellings(text: str) -> list[object]:
    """A text, and what YAML 1.2's core schema takes it for when it stands unquoted."""
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return [text, text.lower() == "true"]
    if re.fullmatch("[-+]?[0-9]+", text):
        return [text, int(text)]
    if re.fullmatch("0o[0-7]+|0x[0-9a-fA-F]+", text):
        return [text, int(text, 0)]
    if re.fullmatch(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", text):
        return [text, float(text)]
    return [text]


def _nested(kind: type, defs: Json) -> Json:
    name = _name(kind)
    if name not in defs:
        defs[name] = {}  # a dataclass that contains itself meets the name, not the recursion
        defs[name] = _object(kind, defs)
    ref = {"$ref": f"#/$defs/{name}"}
    short = short_key(kind)
    return {"anyOf": [_any(keys(kind)[short].shape, defs), ref]} if short else ref


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _complete(shape: Shape, defs: Json) -> Json:
    """An element of a list, which no file that is extended can complete."""
    of, demand = _any(shape, defs), _demand(shape, defs)
    return {"allOf": [of, demand]} if demand else of


def _demand(shape: Shape, defs: Json) -> Json:
    """What a complete value has beyond what `_value` asks for: its required keys. Says nothing about scalars."""
    if shape.base is dict and (demand := _demand(shape.inner[1], defs)):
        return {"additionalProperties": demand}
    if not shape.nested:
        return {}
    name = f"{_name(shape.nested)}.complete"
    ref = {"$ref": f"#/$defs/{name}"}
    if name not in defs:
        defs[name] = ref  # for a dataclass that contains itself, until what it requires is known
        defs[name] = _required(shape.nested, defs)
    return ref if defs[name] else {}


def _required(kind: type, defs: Json) -> Json:
    required = [name for name, key in keys(kind).items() if key.required]
    demands = {name: demand for name, key in keys(kind).items() if (demand := _demand(key.shape, defs))}
    return {**({"required": required} if required else {}), **({"properties": demands} if demands else {})}
