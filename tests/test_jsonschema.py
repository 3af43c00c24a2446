"""The JSON Schema admits what `schema.load` admits, seen through the eyes of an editor that reads YAML 1.2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from buildlib import jsonschema, schema, shape
from buildlib.schema import Dir, Doc, File, Range, Repeats, Text, shorthand

Name = Annotated[str, Text(r"[a-z]+|[0-9.]+", what="a name", example="ada"), Doc("A name.")]


class Level(StrEnum):
    NO = "no"
    TRUE = "true"
    TWELVE = "12"
    HEX = "0x1f"
    RELEASE = "3.20"


@shorthand("name")
@dataclass(frozen=True)
class User:
    name: Name
    uid: Annotated[int, Range(0, 65535)] | None = None


@dataclass(frozen=True)
class Net:
    address: str
    via: User | None = None


@dataclass(frozen=True)
class Tree:
    root: Annotated[Path, Dir()]
    below: Tree | None = None


@dataclass(frozen=True)
class Recipe:
    suite: Annotated[str, Doc("The release to install.")]
    net: Net
    level: Level = Level.NO
    mode: Literal["copy", "link"] | None = None
    debug: bool = False
    keep: Annotated[int, Range(minimum=1)] = 3
    packages: Annotated[tuple[str, ...], Doc("What to install.")] = ("base",)
    arguments: Annotated[tuple[str, ...], Repeats()] = ()
    users: tuple[User, ...] = (User("ada"),)
    hosts: Mapping[Name, Net] = field(default_factory=dict)
    levels: Mapping[Level, bool] = field(default_factory=dict)
    tree: Tree | None = None
    hook: Annotated[Path, File()] | None = None


SCHEMA = jsonschema.schema(Recipe, title="Recipe")
VALIDATOR = Draft202012Validator(SCHEMA)


class Yaml12(yaml.SafeLoader):
    """YAML 1.2's core schema; keys as they are written, as editors take them."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


def _replaced(loader: Yaml12, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node)
    return [loader.construct_object(item, deep=True) for item in node.value]


for _tag, _pattern in (
    ("null", r"null|Null|NULL|~|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
):
    Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None)
Yaml12.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value, 0 if node.value[1:2] in "ox" else 10))
Yaml12.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(re.sub(r"\.(?=[in])", "", node.value.lower())))
Yaml12.add_constructor("!replace", _replaced)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes" / "12"
    (folder / "1.5").mkdir(parents=True)
    (folder / "12").touch()
    (folder / "base.yaml").write_text("net: {address: x}\nhosts: {a: {address: b}}")
    (folder / "whole.yaml").write_text("suite: x\nnet: {address: x}\nhosts: {a: {address: b}}\ntree: {root: 1.5}")
    return folder


def accepted(home: Path, text: str) -> tuple[bool, bool]:
    """Whether `load` accepts it, and whether the JSON Schema does."""
    path = home / "recipe.yaml"
    path.write_text(text)
    try:
        schema.load(path, Recipe)
        loads = True
    except schema.SchemaError:
        loads = False
    return loads, VALIDATOR.is_valid(yaml.load(text, Yaml12))


START = "suite: x\nnet: {address: y}\n"
ACCEPTED = [
    START,
    "suite: 3.20\nnet: {address: no}",
    "suite: true\nnet: {address: 0x10}",
    "suite: .inf\nnet: {address: 2024-01-01}",
    START + "level: 12",
    START + "level: '12'",
    START + "level: 0x1f",
    START + "level: true",
    START + "level: 3.20",
    START + "level: no",
    START + "mode: ~",
    START + "mode: link",
    START + "debug: on",
    START + "debug: TRUE",
    START + "debug: fAlSe",
    START + "keep: 1_000",
    START + "keep: +5",
    START + "packages: [1, 1.0, a, true]",
    START + "arguments: [a, a]",
    START + "users: [ada, 3.20, {name: ada}, {name: 12, uid: ~}, {name: b, uid: 7}]",
    START + "hosts: {ada: {address: 1}, 12: {address: 2, via: ada}}",
    START + "levels: {no: yes, 12: off, 3.20: true}",
    START + "tree: {root: 1.5, below: {root: 1.5}}",
    START + "hook: 12",
    "extends: whole.yaml",
    "extends: [base.yaml, whole.yaml]\nnet: {via: ada}\nhosts: {a: {via: bob}}\ntree: {below: {root: 1.5}}",
    "extends: base.yaml\nsuite: x\nhosts: {a: {}}\nusers: !replace [ada]",
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_both_accept(home: Path, text: str) -> None:
    assert accepted(home, text) == (True, True)


REFUSED = [
    "{}",
    "suite: x",
    "suite:\nnet: {address: y}",
    "suite: [x]\nnet: {address: y}",
    "suite: x\nnet: {}",
    "suite: x\nnet: y",
    START + "sweet: x",
    START + "level: maybe",
    START + "level: 13",
    START + "level: ~",
    START + "mode: move",
    START + "debug: maybe",
    START + "debug: 1",
    START + "keep: 0",
    START + "keep: 1.5",
    START + "keep: many",
    START + "packages: a",
    START + "packages: ~",
    START + "users: [A-B]",
    START + "users: [{uid: 5}]",
    START + "users: [{name: a, uid: 70000}]",
    START + "users: [{name: a, gid: 7}]",
    START + "hosts: {A-B: {address: x}}",
    START + "hosts: {a: {}}",
    START + "levels: {maybe: yes}",
    START + "tree: {root: 1.5, below: {}}",
    "extends: whole.yaml\nusers: [{uid: 5}]",
    "extends: {}\nsuite: x\nnet: {address: y}",
]


@pytest.mark.parametrize("text", REFUSED)
def test_both_refuse(home: Path, text: str) -> None:
    assert accepted(home, text) == (False, False)


def test_is_a_json_schema_with_documentation_and_defaults() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    properties = SCHEMA["properties"]
    assert SCHEMA["title"] == "Recipe"
    assert SCHEMA["additionalProperties"] is False
    assert list(properties) == ["extends", *shape.keys(Recipe)]
    assert properties["suite"] == {
        "description": "The release to install.",
        "type": ["string", "number", "boolean"],
    }
    assert properties["packages"]["description"] == "What to install."
    assert properties["packages"]["default"] == ["base"]
    assert properties["level"]["default"] == "no"
    assert properties["users"]["default"] == [{"name": "ada", "uid": None}]
    assert properties["hook"]["default"] is None
    assert properties["keep"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    user = SCHEMA["$defs"][f"{__name__}.User"]["properties"]["name"]
    assert user["pattern"] == "^(?:[a-z]+|[0-9.]+)$"
    assert (user["description"], user["examples"]) == ("A name.", ["ada"])


def test_what_is_required_depends_on_extends() -> None:
    assert SCHEMA["if"] == {"not": {"required": ["extends"]}}
    assert SCHEMA["then"]["required"] == ["suite", "net"]
    assert "required" not in SCHEMA["$defs"][f"{__name__}.Net"]


SPELLINGS = """
x ada link copy '' '~' 'yes' << = !!str\t12 base.yaml whole.yaml 2024-01-01
12 '12' 012 +12 -1 70000 1_000 1_ 0x1f 0o17 3.20 3.2 1.5 1e3 .5 .inf .nan
true True tRUE yes No off null ~ [] {} [1,1.0] [ada,'ada']
"""
scalars = st.sampled_from(["", *(word.replace("\t", " ") for word in SPELLINGS.replace("\n", " ").split(" ") if word)])
NESTED = {
    "net": ["address", "via"],
    "tree": ["root", "below"],
    "hosts": ["ada", "12", "3.20", "No"],
    "levels": ["no", "12", "0x1f", "3.20", "true"],
}


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Recipes that are mostly right, in every spelling of a scalar."""
    lines = ["suite: " + draw(scalars), "net: {address: x, via: " + draw(scalars) + "}"]
    lines = draw(st.sampled_from([lines, lines[:1], []]))
    if len(lines) < 2:
        lines.append("extends: " + draw(st.sampled_from(["base.yaml", "whole.yaml", "[base.yaml, whole.yaml]"])))
    others = [name for name in shape.keys(Recipe) if name not in ("suite", "net")]
    for name in draw(st.lists(st.sampled_from(others), unique=True, max_size=3)):
        if name in ("packages", "arguments", "users"):
            lines.append(f"{name}: [{', '.join(draw(st.lists(scalars, max_size=3)))}]")
        elif name in NESTED:
            keys = draw(st.lists(st.sampled_from(NESTED[name]), unique=True, max_size=2))
            inner = "{address: %s}" if name == "hosts" else "%s"
            lines.append(f"{name}: {{{', '.join(f'{key}: {inner % draw(scalars)}' for key in keys)}}}")
        else:
            lines.append(f"{name}: {draw(scalars)}")
    return "\n".join(lines)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=documents())
def test_what_load_accepts_the_json_schema_accepts(home: Path, text: str) -> None:
    (home / "recipe.yaml").write_text(text)
    try:
        schema.load(home / "recipe.yaml", Recipe)
    except schema.SchemaError:
        event("refused")
    else:
        event("accepted")
        assert list(VALIDATOR.iter_errors(yaml.load(text, Yaml12))) == []
