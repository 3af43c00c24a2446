"""The report's page in a real browser: on a desk and on a phone, in light and dark, by keyboard, without a network."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildlib.page import html
from buildlib.page.data import Boot, Recipe
from tests import browser
from tests.browser import DESK, PHONE, Tab
from tests.test_page import NIGHT, WHOLE

LOOKS = [(size, scheme) for size in (DESK, PHONE) for scheme in ("light", "dark")]

DIM = """(() => {
    const channel = value => value <= 10.31 ? value / 3294.6 : ((value / 255 + .055) / 1.055) ** 2.4;
    const light = color => {
        const [red, green, blue] = color.match(/[\\d.]+/g).map(Number).map(channel);
        return .2126 * red + .7152 * green + .0722 * blue;
    };
    const behind = element => {
        if (element.tagName === 'text') return getComputedStyle(element.parentNode.querySelector('rect')).fill;
        for (let one = element; one; one = one.parentElement) {
            const color = getComputedStyle(one).backgroundColor;
            if (color !== 'rgba(0, 0, 0, 0)') return color;
        }
    };
    const found = [];
    let count = 0;
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some(one => one.nodeType === 3 && one.data.trim());
        if (!own || element.tagName === 'title' || !element.getClientRects().length) continue;
        const style = getComputedStyle(element);
        const [one, two] = [element.tagName === 'text' ? style.fill : style.color, behind(element)].map(light);
        const ratio = (Math.max(one, two) + .05) / (Math.min(one, two) + .05);
        count++;
        if (ratio < 4.5) found.push(`${element.tagName} ${element.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
    }
    return [count, found];
})()"""
"""How many elements have words, and those whose contrast is less than WCAG 2.2 asks for (1.4.3, level AA)."""

FOCUS = """(() => {
    const one = document.activeElement, box = one.getBoundingClientRect(), style = getComputedStyle(one);
    return [
        one.tagName.toLowerCase(), one.textContent.trim().split('\\n')[0], parseFloat(style.outlineWidth),
        style.outlineStyle, box.top < innerHeight && box.bottom > 0,
    ];
})()"""
"""What has the focus: tag, text, outline, and whether it is in sight."""


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser.open_() as made:
        yield made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all that pages have, and more of some than fits."""
    chance = random.Random(1)
    blocks = sorted(((f"package-{n}", round(chance.paretovariate(1.1) * 3e5)) for n in range(150)), key=lambda b: -b[1])
    console = "\n".join(f"[{n:10.6f}] systemd[1]: Started {'long-' * 12}{n}.service" for n in range(40))
    big = dataclasses.replace(
        WHOLE,
        name="big",
        blocks=blocks,
        releases=[(f"202611{day:02}T020000Z-{day:012}", 10**8 + day * 10**6) for day in range(1, 29)],
        boots=[Boot("bios-pxelinux", 41.2, "tcg", "2026-11-27T02:10:00Z", console)],
        changes=["+ " + "no-place-to-break-this-line" * 8],
        times=[("2026-11-01", 10.0), ("2026-11-02", 70.0)],
    )
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(html.page([WHOLE, big, Recipe("new", "", "alpine amd64, ram root", None)], [NIGHT], "now"))
    return path


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_it_fits_can_be_read_and_asks_for_nothing(
    size: tuple[int, int], scheme: str, tab: Tab, page: Path, tmp_path: Path
) -> None:
    tab.show(page, size, scheme)
    assert [said["request"]["url"] for said in tab.told("Network.requestWillBeSent")] == [page.as_uri()]
    assert tab.told("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []
    assert tab.value("document.documentElement.scrollWidth") <= size[0]
    back = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (int(back[4:].partition(",")[0]) > 200) == (scheme == "light")
    tab.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    count, dim = tab.value(DIM)
    assert count > 100
    assert dim == []
    assert tab.value("document.documentElement.scrollWidth") <= size[0]
    # One of two pictures is shown, with letters that are letters.
    words = "[...document.querySelectorAll('svg.map text')].map(one => one.getBoundingClientRect().height)"
    heights = [height for height in tab.value(words) if height]
    assert len(heights) > 10
    assert min(heights) > 9
    tab.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"


def test_the_keyboard_reaches_everything(tab: Tab, page: Path) -> None:
    tab.show(page)
    seen: list[list[Any]] = []
    for _ in range(60):
        tab.press("Tab")
        focus = tab.value(FOCUS)
        if focus[0] == "body" or (seen and focus[:2] == seen[0][:2]):
            break
        seen.append(focus)
    reached = [(tag, text) for tag, text, *_ in seen]
    assert [text for tag, text in reached if tag == "a"] == ["lab", "big", "new"]
    assert [text for tag, text in reached if tag == "summary"].count("as a table") == 2
    assert ("pre", "no login & no cry") in reached
    assert ("pre", "+ less 590") in reached
    assert all(width >= 2 and style == "solid" and there for _, _, width, style, there in seen), seen


def test_enter_opens_and_goes_there(tab: Tab, page: Path) -> None:
    tab.show(page)
    tab.value("document.querySelector('#big details summary').focus()")
    assert tab.value("document.querySelector('#big details').open") is False
    tab.press("Enter")
    assert tab.value("document.querySelector('#big details').open") is True
    assert "systemd[1]" in tab.value("document.querySelector('#big details').innerText")
    tab.value("document.querySelector('a[href=\"#big\"]').focus()")
    tab.press("Enter")
    assert tab.value("location.hash") == "#big"
    assert tab.value("document.querySelector('#big').getBoundingClientRect().top") < DESK[1]
