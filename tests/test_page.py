"""The report's page: what it shows, that it needs nothing else, and that its pictures are right."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from buildlib.page import charts, data, html
from buildlib.page.charts import Box
from buildlib.page.data import Boot, Recipe, Stage
from tests import alpinelab
from tests.checkout import Checkout
from tests.test_alpine import RECIPE, mirror_of

VOID = {"meta", "link", "br", "img", "rect"}

WHOLE = Recipe(
    "lab",
    "a <rack> & more",
    "debian amd64, nfs root",
    "20261127T020000Z-aaaaaaaaaaaa",
    [("20261126T020000Z-bbbbbbbbbbbb", 100_000_000), ("20261127T020000Z-aaaaaaaaaaaa", 120_000_000)],
    [Boot("uefi-grub", 31.4, "tcg", "2026-11-27T02:10:00Z", "lab login: <b>")],
    [Stage("packages", 12.3, 90_000_000)],
    [("libc6", 9_000_000), ("<odd>", 1000)],
    ["+ less 590"],
    {"rack": "20261127T020000Z-aaaaaaaaaaaa", "attic": "20261126T020000Z-bbbbbbbbbbbb"},
)

NIGHT = {
    "started": "2026-11-27T02:00:00Z",
    "steps": [
        {"verb": "build", "name": "lab", "state": "ok", "seconds": 12.0, "said": ""},
        {"verb": "boot", "name": "<lab>", "state": "failed", "seconds": 300.0, "said": "no login & no cry"},
    ],
    "releases": {},
}


class Reader(HTMLParser):
    """Sees to it that all that begins ends, and collects what is asked of elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.asked: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_is_whole_and_asks_for_nothing() -> None:
    text = html.page([WHOLE, Recipe("new", "", "alpine amd64, ram root", None)], [NIGHT], "now")
    read = Reader(text)
    assert read.open == []
    assert read.asked == ["#lab", "#new"]
    assert "http" not in text
    said = " ".join(read.words)
    for words in ("a <rack> & more", "lab login: <b>", "+ less 590", "no login & no cry", "<odd>", "rack: newest"):
        assert words in said
    assert "attic: 20261126T020000Z-bbbbbbbbbbbb" in said
    assert said.count("not built") == 1


def test_what_is_here_is_gathered(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path / "checkout")
    shutil.rmtree(checkout.folder / "recipes/_parts")
    mirror = mirror_of(tmp_path / "mirror", alpinelab.bundle(tmp_path / "files"))
    target = f"{{address: 192.0.2.1, network: 192.0.2.0/24, http: {tmp_path}/www}}"
    (checkout.folder / "site.yaml").write_text(f"targets:\n  lab: {target}\n")
    checkout.recipe("one", f"description: of the lab\n{RECIPE}  mirrors: ['{mirror.url('')[:-1]}']\n")
    assert "out/report/index.html" in checkout.doit("report")
    page = checkout.folder / "out/report/index.html"
    assert "not built" in page.read_text()
    said = checkout.doit("nightly", "--no-boot")
    assert "out/report/index.html" in said
    read = Reader(page.read_text())
    words = " ".join(read.words)
    for expected in ("of the lab", checkout.release("one").name, "lab: newest", "modloop-virt", "netboot", "apkovl"):
        assert expected in words
    mirror.shutdown()
    mirror.server_close()


def test_broken_nights_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "nights").mkdir()
    (tmp_path / "nights/1.json").write_text("{")
    (tmp_path / "nights/2.json").write_text(json.dumps({"steps": [], "releases": {}, "started": "x"}))
    assert len(data.nights(tmp_path)) == 1
    assert data.nights(tmp_path / "none") == []


@settings(deadline=None)
@given(some.lists(some.integers(1, 10**9), min_size=1, max_size=60).map(lambda found: sorted(found, reverse=True)))
def test_rectangles_have_their_areas_and_fill_the_box(values: list[int]) -> None:
    box = Box(0, 0, 960, 420)
    made = charts.squarified(values, box)
    scale = box.width * box.height / sum(values)
    for value, one in zip(values, made, strict=True):
        assert one.width * one.height == pytest.approx(value * scale, rel=1e-6, abs=1e-6)
        assert one.x >= -1e-6
        assert one.y >= -1e-6
        assert one.x + one.width <= box.width + 1e-6
        assert one.y + one.height <= box.height + 1e-6
    assert sum(one.width * one.height for one in made) == pytest.approx(box.width * box.height)


def test_small_things_are_one() -> None:
    blocks = [(f"p{number}", 1000 - number) for number in range(100)]
    wide, narrow = "".join(charts.treemaps(blocks, "x")).split("</svg>")[:2]
    for text, most in ((wide, charts.WIDE[2]), (narrow, charts.NARROW[2])):
        assert text.count("<rect") == most + 1
        assert f"{100 - most} more" in text


def test_builds_of_nights_are_times() -> None:
    def night(day: int, before: str | None, after: str | None, state: str) -> dict[str, object]:
        step = {"verb": "build", "name": "lab", "state": state, "seconds": 10.0 * day, "said": ""}
        return {
            "started": f"2026-11-0{day}T02:00:00Z",
            "steps": [step],
            "releases": {"lab": {"before": before, "after": after}},
        }

    nights = [
        night(1, None, "a", "ok"),
        night(2, "a", "a", "ok"),
        night(3, "a", "a", "failed"),
        night(4, "a", "b", "ok"),
    ]
    assert list(data._times(nights, "lab")) == [("2026-11-01", 10.0), ("2026-11-04", 40.0)]
