"""What was found wrong, or well, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """level -- ok, warning, error; what -- what it is about; said -- what there is to say; todo -- what mends it"""

    level: str
    what: str
    said: str
    todo: str = ""


def lines(found: Iterable[Finding]) -> Iterator[str]:
    """For people: a line each, and what mends it."""
    for finding in found:
        first, *rest = finding.said.splitlines()
        yield f"{finding.level.upper() if finding.level != 'ok' else 'ok':<8} {finding.what:<20} {first}"
        yield from (f"{'':29} {text}" for text in rest)
        if finding.todo:
            yield f"{'':29} -> {finding.todo}"
