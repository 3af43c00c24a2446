"""docs/troubleshooting.md tells what the program tells: of boots by the table of faults, else by its own words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from markdown_it.token import Token

from buildlib.faults import FAULTS, Fault
from tests import documents
from tests.documents import PROJECT

DOCUMENT = PROJECT / "docs/troubleshooting.md"
ROWS = list(documents.rows(DOCUMENT))

BOOTS = (
    "Firmware",
    "PXELINUX",
    "iPXE, also as a network card's ROM",
    "GRUB",
    "Kernel and initrd",
    "Network of the initrd",
    "NFS and HTTP of the initrd",
    "Scripts of the initrd",
    "The root, and later",
)
OWN = ("A build", "A push")


def code(cell: Token) -> list[str]:
    return [child.content for child in cell.children or () if child.type == "code_inline"]


def told(shown: str) -> Fault:
    """The fault that is found first in what a console shows."""
    return next(fault for fault in FAULTS if re.search(fault.sign, shown, re.MULTILINE))


class Facts(dict[str, str]):
    """What of a cause is not in its sign."""

    def __missing__(self, _name: str) -> str:
        return "…"


def row(fault: Fault, shown: str) -> tuple[str, str]:
    """Cause and hint as the document has them."""
    found = re.search(fault.sign, shown, re.MULTILINE)
    assert found is not None
    facts = Facts((name, value) for name, value in found.groupdict().items() if value)
    return fault.cause.format_map(facts), fault.hint.format_map(facts)


@pytest.mark.parametrize(
    "cells", [cells for heading, cells in ROWS if heading in BOOTS], ids=lambda cells: code(cells[0])[0]
)
def test_a_boots_symptom_is_explained_as_a_diagnosis_does(cells: list[Token]) -> None:
    shown = code(cells[0])
    fault = told(shown[0])
    assert [told(text) for text in shown] == [fault] * len(shown)
    assert (cells[1].content, cells[2].content) == row(fault, shown[0])


def test_every_fault_is_in_the_document_in_the_same_order() -> None:
    found = [told(code(cells[0])[0]) for heading, cells in ROWS if heading in BOOTS]
    assert found == list(FAULTS)
    assert {heading for heading, _ in ROWS} >= {*BOOTS, *OWN}


@cache
def words() -> str:
    """All texts of the program, a line each, with `…` for what they are filled with."""
    found = []
    for path in [*sorted((PROJECT / "buildlib").rglob("*.py"))]:
        found += [text for node in ast.walk(ast.parse(path.read_bytes())) if (text := _text(node))]
    found.append(re.sub(r"\$[*@\w]+", "…", (PROJECT / "doit").read_text()))
    return "\n".join(found)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{\w+\}", "…", node.value)
    return ""


def messages() -> Iterator[str]:
    for heading, cells in ROWS:
        if heading in OWN:
            yield from code(cells[0])


@pytest.mark.parametrize("message", list(messages()))
def test_a_message_is_one_of_the_programs(message: str) -> None:
    assert message in words()
