"""How far a boot came, and what usually keeps it from going on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Step(Protocol):
    """What a server saw; `serve.Event` is one."""

    @property
    def server(self) -> str: ...

    @property
    def what(self) -> str: ...

    @property
    def ok(self) -> bool: ...


@dataclass(frozen=True)
class Diagnosis:
    """step -- the last that happened; cause -- of the stop; evidence -- lines of the console and the servers."""

    step: str
    cause: str
    hint: str
    evidence: tuple[str, ...]


def explain(console: str, events: Iterable[Step], *, waited: str, went: str, firmware: str) -> Diagnosis:
    """Explain a boot that did not come to what was `waited` for."""
    return Diagnosis("?", went, waited, ())
