"""The page itself: one file, readable on a phone, by keyboard, in dark and light."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from buildlib.page import charts
from buildlib.page.data import Recipe
from buildlib.plan import Json
from buildlib.report import size


def page(recipes: Sequence[Recipe], nights: Sequence[Mapping[str, Json]], made: str) -> str:
    """The whole page. made: when."""
    return "\n".join(_parts(recipes, nights, made)) + "\n"


def _style() -> str:
    return Path(__file__).with_name("style.css").read_text()


def _parts(recipes: Sequence[Recipe], nights: Sequence[Mapping[str, Json]], made: str) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Netboot images</title>\n<style>\n{_style()}</style>\n</head>\n<body>"
    yield f'<h1>Netboot images</h1>\n<p class="dim">as of {escape(made)}</p>'
    yield from _overview(recipes)
    if nights:
        yield from _night(nights[-1])
    for recipe in recipes:
        yield from _recipe(recipe)
    yield "</body>\n</html>"


def _overview(recipes: Sequence[Recipe]) -> Iterator[str]:
    yield '<section aria-label="recipes"><div class="scroll"><table class="cards">'
    yield _row("th", "recipe", "newest", "size", "booted", "live")
    for recipe in recipes:
        name = f'<a href="#{escape(recipe.name)}">{escape(recipe.name)}</a>'
        if recipe.newest is None:
            yield f'<tr><td>{name}</td><td colspan="4" class="dim">not built</td></tr>'
            continue
        boots = ", ".join(boot.firmware for boot in recipe.boots)
        booted = f'<span class="ok">{escape(boots)}</span>' if boots else '<span class="dim">no</span>'
        live = "<br>".join(
            f"{escape(target)}: {'newest' if release == recipe.newest else escape(release)}"
            for target, release in sorted(recipe.live.items())
        )
        cells = {
            "newest": escape(recipe.newest),
            "size": size(recipe.releases[-1][1]),
            "booted": booted,
            "live": live or '<span class="dim">nowhere yet</span>',
        }
        told = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in cells.items())
        yield f"<tr><td>{name}</td>{told}</tr>"
    yield "</table></div></section>"


def _night(night: Mapping[str, Json]) -> Iterator[str]:
    yield f"<section><h2>The night of {escape(_when(night['started']))}</h2>"
    yield '<div class="scroll"><table>' + _row("th", "step", "of", "state", "seconds")
    for step in night["steps"]:
        state = f'<span class="{escape(step["state"])}">{escape(step["state"])}</span>'
        yield _row("td", escape(step["verb"]), escape(step["name"]), state, f"{step['seconds']:.1f}")
    yield "</table></div>"
    for step in night["steps"]:
        if step["state"] == "failed":
            yield f"<details open><summary>{escape(step['verb'])}:{escape(step['name'])} failed</summary>"
            yield f"<pre tabindex=0>{escape(step['said'])}</pre></details>"
    yield "</section>"


def _recipe(recipe: Recipe) -> Iterator[str]:
    yield f'<section id="{escape(recipe.name)}"><h2>{escape(recipe.name)}</h2>'
    yield f'<p class="dim">{escape(recipe.kind)}. {escape(recipe.description)}</p>'
    if recipe.newest is None:
        yield "<p>Not built yet.</p></section>"
        return
    if recipe.changes:
        yield "<h3>What changed</h3>"
        yield f"<pre tabindex=0>{escape(chr(10).join(recipe.changes))}</pre>"
    yield "<h3>Boots</h3>"
    if not recipe.boots:
        yield '<p class="dim">It has not booted yet.</p>'
    for boot in recipe.boots:
        said = f"{boot.firmware}: {boot.seconds:.0f} s with {boot.accel}, {_when(boot.at)}"
        if boot.console:
            yield f"<details><summary>{escape(said)}</summary><pre tabindex=0>{escape(boot.console)}</pre></details>"
        else:
            yield f"<p>{escape(said)}</p>"
    yield "<h3>What takes room</h3>"
    yield from charts.treemaps(recipe.blocks, f"what takes room in {recipe.name}")
    yield "<details><summary>as a table</summary><div class=scroll><table>" + _row("th", "what", "size")
    for name, value in recipe.blocks[:60]:
        yield _row("td", escape(name), size(value))
    yield "</table></div></details>"
    if recipe.stages:
        yield "<h3>Stages</h3><div class=scroll><table>" + _row("th", "stage", "seconds", "size")
        for stage in recipe.stages:
            yield _row("td", escape(stage.name), f"{stage.seconds:.1f}", size(stage.size))
        yield "</table></div>"
    if len(recipe.releases) > 1:
        sizes = [(_day(name), float(value)) for name, value in recipe.releases]
        yield from charts.bars(sizes, "Size of its releases", lambda value: size(round(value)))
    if len(recipe.times) > 1:
        yield from charts.bars(recipe.times, "Seconds that its builds took", lambda value: f"{value:.0f} s")
    yield "</section>"


def _day(release: str) -> str:
    """2026-11-27 of a release's ID."""
    return f"{release[:4]}-{release[4:6]}-{release[6:8]}"


def _when(text: str) -> str:
    """2026-11-27 02:00 UTC of 2026-11-27T02:00:00Z."""
    return f"{text[:10]} {text[11:16]} UTC" if text.endswith("Z") else text


def _row(kind: str, *cells: str) -> str:
    return f"<tr>{''.join(f'<{kind}>{cell}</{kind}>' for cell in cells)}</tr>"
