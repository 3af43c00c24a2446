"""Pictures as SVG: rectangles by size, and bars over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from buildlib.report import size

WIDE = (960, 420, 60)
NARROW = (330, 440, 24)
"""Width and height of a map whose letters can be read on a desk and on a phone, and how many things it has room for."""

_BARS = 960.0


class Box(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float


def squarified(values: Sequence[float], box: Box) -> list[Box]:
    """Rectangles that fill `box`, as square as can be, their areas as the values, which descend.

    Source: Bruls, Huizing, van Wijk, Squarified Treemaps (2000).
    """
    scale = box.width * box.height / (sum(values) or 1)
    areas = [value * scale for value in values]
    made: list[Box] = []
    rest = box
    at = 0
    while at < len(areas):
        side = min(rest.width, rest.height)
        end = at + 1
        while end < len(areas) and _worst(areas[at : end + 1], side) <= _worst(areas[at:end], side):
            end += 1
        row, rest = _row(areas[at:end], rest)
        made += row
        at = end
    return made


def _worst(row: Sequence[float], side: float) -> float:
    """How far from a square the longest rectangle of a row is."""
    total = sum(row)
    if not total or not side:
        return float("inf")
    return max(side**2 * max(row) / total**2, total**2 / (side**2 * (min(row) or 1e-9)))


def _row(areas: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    """A row along the shorter side, and what is left of the box."""
    total = sum(areas)
    made = []
    if box.width >= box.height:
        width = total / box.height if box.height else 0.0
        y = box.y
        for area in areas:
            height = area / width if width else 0.0
            made.append(Box(box.x, y, width, height))
            y += height
        return made, Box(box.x + width, box.y, max(box.width - width, 0.0), box.height)
    height = total / box.width if box.width else 0.0
    x = box.x
    for area in areas:
        width = area / height if height else 0.0
        made.append(Box(x, box.y, width, height))
        x += width
    return made, Box(box.x, box.y + height, box.width, max(box.height - height, 0.0))


def treemaps(blocks: Sequence[tuple[str, int]], title: str) -> Iterator[str]:
    """What takes how much room, as two pictures: the style sheet shows the one that fits."""
    for word, (width, height, most) in {"wide": WIDE, "narrow": NARROW}.items():
        yield f'<svg class="map {word}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        yield from _treemap(blocks, width, height, most)
        yield "</svg>"


def _treemap(blocks: Sequence[tuple[str, int]], width: int, height: int, most: int) -> Iterator[str]:
    """Small things as one."""
    shown = [*blocks[:most]]
    rest = sum(value for _, value in blocks[most:])
    if rest:
        shown.append((f"{len(blocks) - most} more", rest))
        shown.sort(key=lambda item: -item[1])
    total = sum(value for _, value in shown) or 1
    boxes = squarified([value for _, value in shown], Box(0, 0, width, height))
    for (name, value), box in zip(shown, boxes, strict=True):
        told = f"{name}: {size(value)} ({100 * value / total:.0f} %)"
        yield f"<g><title>{escape(told)}</title>"
        yield (
            f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{max(box.width - 1.5, 0):.1f}" '
            f'height="{max(box.height - 1.5, 0):.1f}" rx="2"/>'
        )
        room = int((box.width - 8) / 7)
        if room >= 4 and box.height > 18:
            yield f'<text x="{box.x + 5:.1f}" y="{box.y + 14:.1f}">{escape(_cut(name, room))}</text>'
            if box.height > 34:
                yield f'<text class="dim" x="{box.x + 5:.1f}" y="{box.y + 29:.1f}">{size(value)}</text>'
        yield "</g>"


def bars(values: Sequence[tuple[str, float]], title: str, said: Callable[[float], str]) -> Iterator[str]:
    """A bar a release, the last ones, with what they are in words. said -- a value for people"""
    shown = values[-40:]
    top = max((value for _, value in shown), default=0) or 1
    width = min(_BARS / max(len(shown), 1), 48.0)
    least, most = (said(choose(value for _, value in shown)) for choose in (min, max))
    between = least if least == most else f"{least} to {most}"
    yield f"<h3>{escape(title)}</h3>"
    yield f'<p class="dim">{escape(shown[0][0])} to {escape(shown[-1][0])}: {between}, now {said(shown[-1][1])}</p>'
    yield f'<svg class="bars" viewBox="0 0 {_BARS:.0f} 120" role="img" aria-label="{escape(title)}">'
    for number, (name, value) in enumerate(shown):
        height = max(110 * value / top, 1)
        yield f"<g><title>{escape(name)}: {said(value)}</title>"
        place = f'x="{number * width:.1f}" y="{118 - height:.1f}"'
        kind = ' class="last"' if number == len(shown) - 1 else ""
        yield f'<rect{kind} {place} width="{width - 3:.1f}" height="{height:.1f}" rx="2"/></g>'
    yield "</svg>"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
