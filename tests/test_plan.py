"""Keys and the documents that they are of; and what is said of two that differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildlib import plan
from buildlib.plan import Plan, Stage, differences


class FakeIdentity:
    """Names for answers."""

    def path(self, path: Path) -> dict[str, str]:
        return {".": f"content of {path}"}

    def code(self, run: str) -> str:
        return f"code of {run}"

    def tool(self, name: str) -> str:
        return f"version of {name}"


def stage(name: str, *inputs: Stage, **changes: Any) -> Stage:
    return Stage(name, f"some.module:{name}", inputs=inputs, **changes)


# Keys

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


QUICK = settings(max_examples=50, deadline=None)


def test_a_key_does_not_change() -> None:
    """All that is built anywhere hangs on this number."""
    assert plan.key({"b": [1, None, "ü"], "a": {"z": True, "y": ""}}) == (
        hashlib.sha256(b'{"a":{"y":"","z":true},"b":[1,null,"\\u00fc"]}').hexdigest()
    )


@QUICK
@given(st.dictionaries(st.text(), JSON))
def test_a_key_is_the_same_in_any_order(document: dict[str, Any]) -> None:
    assert plan.key(dict(reversed(document.items()))) == plan.key(document)


@QUICK
@given(st.dictionaries(st.text(), JSON))
def test_a_key_survives_the_receipt(document: dict[str, Any]) -> None:
    assert plan.key(json.loads(json.dumps(document))) == plan.key(document)


def keyed(*stages: Stage) -> dict[str, plan.Keyed]:
    return plan.keyed(stages, FakeIdentity())


def test_every_stage_that_can_be_keyed_is() -> None:
    first = stage("first")
    assert list(keyed(first, stage("second", first))) == ["first", "second"]


def test_a_stage_has_no_key_before_its_facts_are_known() -> None:
    assert keyed(stage("first", facts=None)) == {}


def test_what_follows_an_unlocked_stage_has_no_key() -> None:
    first = stage("first", facts=None)
    second = stage("second", first)
    assert keyed(first, second, stage("third", second)) == {}


def test_what_does_not_follow_an_unlocked_stage_has_one() -> None:
    assert list(keyed(stage("first", facts=None), stage("other"))) == ["other"]


def test_an_inputs_key_is_in_the_document() -> None:
    first = stage("first")
    found = keyed(first, stage("second", first))
    assert found["second"].document["inputs"] == {"first": found["first"].key}


def test_a_key_is_that_of_its_document() -> None:
    found = keyed(stage("first"))["first"]
    assert found.key == plan.key(found.document)


def test_a_secret_is_known_by_its_digest() -> None:
    document = keyed(stage("first", secrets={"password": "$6$x"}))["first"].document
    assert document["secrets"] == {"password": hashlib.sha256(b"$6$x").hexdigest()}


def test_a_secret_is_in_no_representation() -> None:
    assert "$6$x" not in repr(stage("first", secrets={"password": "$6$x"}))


MUTATIONS: dict[str, tuple[Any, bool]] = {
    "name": ("other", True),
    "run": ("some.module:other", True),
    "options": ({"a": 2}, True),
    "inputs": ((stage("before"),), True),
    "files": ({"motd": Path("/other")}, True),
    "tools": (("cpio",), True),
    "secrets": ({"password": "other"}, True),
    "facts": ({"suite": "other"}, True),
    "arch": ("arm64", True),
    "routes": ({"mirror": "http://apt.lab"}, False),
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Stage)])
def test_each_part_of_a_stage_is_in_its_key_or_known_not_to_be(field: str) -> None:
    value, counts = MUTATIONS[field]
    old, new = stage("first"), dataclasses.replace(stage("first"), **{field: value})
    before = stage("before")
    if field == "inputs":
        new = dataclasses.replace(new, inputs=(before,))
    keys = [keyed(before, one)[one.name].key for one in (old, new)]
    assert (keys[0] != keys[1]) == counts


def test_a_stage_of_a_plan_by_name() -> None:
    first = stage("first")
    made = Plan("one", (first,), {}, (), "", (first, "packages.tsv"), {})
    assert made.stage("first") is first


def test_a_plan_without_a_stage_of_that_name() -> None:
    first = stage("first")
    with pytest.raises(KeyError):
        Plan("one", (first,), {}, (), "", (first, "packages.tsv"), {}).stage("second")


# Differences

DIGEST, OTHER = "f " + "a" * 64, "f " + "b" * 64

SAID: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], list[str]]] = {
    "nothing": ({"options": {"a": 1}}, {"options": {"a": 1}}, []),
    "a file of a tree": (
        {"files": {"overlay": {"etc/motd": DIGEST}}},
        {"files": {"overlay": {"etc/motd": OTHER}}},
        ["overlay/etc/motd changed"],
    ),
    "a new file": ({"files": {"overlay": {}}}, {"files": {"overlay": {"etc": OTHER}}}, ["overlay/etc added"]),
    "a new link": (
        {"files": {"overlay": {}}},
        {"files": {"overlay": {"etc": "-> to"}}},
        ["overlay/etc added: -> to"],
    ),
    "a removed file": ({"files": {"overlay": {"etc": OTHER}}}, {"files": {"overlay": {}}}, ["overlay/etc removed"]),
    "a single file": (
        {"files": {"hooks/one": {".": DIGEST}}},
        {"files": {"hooks/one": {".": OTHER}}},
        ["hooks/one changed"],
    ),
    "a new tree": ({"files": {}}, {"files": {"overlay": {"etc": OTHER}}}, ["overlay added"]),
    "a removed tree": ({"files": {"overlay": {"etc": OTHER}}}, {"files": {}}, ["overlay removed"]),
    "an option": (
        {"options": {"variant": "minbase"}},
        {"options": {"variant": "important"}},
        ["option variant: minbase -> important"],
    ),
    "an option without a value": (
        {"options": {"hostname": None}},
        {"options": {"hostname": "node"}},
        ["option hostname: null -> node"],
    ),
    "an empty option": ({"options": {"size": ""}}, {"options": {"size": "1G"}}, ['option size: "" -> 1G']),
    "a new option": ({"options": {}}, {"options": {"size": "1G"}}, ["option size added: 1G"]),
    "a long option": (
        {"options": {"size": "x" * 41}},
        {"options": {"size": "y" * 40}},
        [f"option size: {'x' * 37}... -> {'y' * 40}"],
    ),
    "a list": (
        {"options": {"packages": ["less", "nano"]}},
        {"options": {"packages": ["less", "vim"]}},
        ["option packages: -nano, +vim"],
    ),
    "a list's order": (
        {"options": {"overlays": ["a", "b"]}},
        {"options": {"overlays": ["b", "a"]}},
        ["option overlays: order changed"],
    ),
    "a nested option": (
        {"options": {"services": {"enable": []}}},
        {"options": {"services": {"enable": ["ssh"]}}},
        ["option services/enable: +ssh"],
    ),
    "the lock": ({"facts": {"bookworm": "00"}}, {"facts": {"bookworm": "11"}}, ["lock: bookworm: 00 -> 11"]),
    "a tool": ({"tools": {"cpio": "2.13"}}, {"tools": {"cpio": "2.14"}}, ["tool cpio: 2.13 -> 2.14"]),
    "a secret": (
        {"secrets": {"password of ops": "00"}},
        {"secrets": {"password of ops": "11"}},
        ["password of ops changed"],
    ),
    "a new secret": ({"secrets": {}}, {"secrets": {"password of ops": "11"}}, ["password of ops changed"]),
    "code": ({"code": "00"}, {"code": "11"}, ["the code that runs it changed"]),
    "an input": ({"inputs": {"index": "00"}}, {"inputs": {"index": "11"}}, ["index changed before it"]),
    "a new input": ({"inputs": {}}, {"inputs": {"index": "11"}}, ["index is new before it"]),
    "a lost input": ({"inputs": {"index": "00"}}, {"inputs": {}}, ["index is gone before it"]),
    "the most telling first": (
        {
            "inputs": {"index": "0"},
            "code": "0",
            "tools": {"cpio": "0"},
            "options": {"a": 0},
            "files": {"f": {".": "0"}},
        },
        {
            "inputs": {"index": "1"},
            "code": "1",
            "tools": {"cpio": "1"},
            "options": {"a": 1},
            "files": {"f": {".": "1"}},
        },
        [
            "f changed",
            "option a: 0 -> 1",
            "tool cpio: 0 -> 1",
            "the code that runs it changed",
            "index changed before it",
        ],
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_said_of_a_difference(case: str) -> None:
    old, new, said = SAID[case]
    assert list(differences(old, new)) == said


@pytest.mark.parametrize("part", sorted(set(plan.document(stage("first"), {}, FakeIdentity())) - {"stage"}))
def test_no_difference_goes_unsaid(part: str) -> None:
    """Two documents of one stage."""
    old = plan.document(stage("first", options={"a": 1}), {"before": "0"}, FakeIdentity())
    value = {"a": 2, "before": "1"} if isinstance(old[part], dict) else "other"
    assert list(differences(old, {**old, part: value}))


def test_no_difference_says_a_password() -> None:
    """Not even its digest."""
    old, new = ({"secrets": {"password of ops": "a" * 64}}, {"secrets": {"password of ops": "b" * 64}})
    assert not [said for said in differences(old, new) if "aaaa" in said or "bbbb" in said]
