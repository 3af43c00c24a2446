"""What is removed is what nobody needs: not less, and never more."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from buildlib import gc, release
from buildlib.errors import BuildError
from buildlib.gc import carry_out
from buildlib.store import RECEIPT
from tests.checkout import Checkout
from tests.test_release import ABOUT, BASE, PACK, TOP, Place

KEYS = {stage.name: stage.name.ljust(64, "0") for stage in (BASE, TOP, PACK)}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Five releases, each of a `base` of its own; the fourth is the latest again. By number: `keys`."""
    made = Place(tmp_path)
    made.store.remove(KEYS["base"])
    for number in range(1, 6):
        made.make(BASE, key(number), vmlinuz=f"kernel {number}")
        one = made.assemble(about={**ABOUT, "description": f"{number}"})
        # Their names are of the second in which they were made.
        identity = f"2026010{number}T000000Z-{one.id.partition('-')[2]}"
        one.folder.rename(one.folder.with_name(identity))
        os.utime(made.store.path(key(number), RECEIPT), (number, number))
    (made.images / "one/latest").unlink()
    (made.images / "one/latest").symlink_to(ids(made)[3])
    return made


def key(number: int) -> str:
    return f"{number}" * 64


def ids(place: Place) -> list[str]:
    return sorted(path.name for path in (place.images / "one").glob("2*"))


def plan(place: Place, needed: dict[str, str] | None = None, **more: Any) -> gc.Plan:
    return gc.plan(place.store, place.images, needed or {}, **{"keep": 1, **more})


def stages(decided: gc.Plan) -> list[str]:
    return [item.id for item in decided.stages]


def test_what_newer_releases_are_made_of_stays(place: Place) -> None:
    decided = plan(place)
    assert [item.id for item in decided.releases] == ids(place)[:3]
    # Layers of the newest, and of what is `latest`; the third stage of all has no layer.
    assert sorted(stages(decided)) == sorted([key(1), key(2), key(3), KEYS["pack"]])
    assert {item.id for item in decided.kept} == {*ids(place)[3:], key(4), key(5), KEYS["top"]}


def test_what_is_removed_is_gone_and_nothing_else(place: Place) -> None:
    before = ids(place)
    decided = plan(place, {key(2): "still built"}, keep=2)
    gone = carry_out(place.store, place.images, decided)
    assert {item.id for item in gone} == {*before[:3], key(1), key(3), KEYS["pack"]}
    assert set(place.store.keys()) == {key(2), key(4), key(5), KEYS["top"]}
    assert ids(place) == before[3:]
    assert release.latest(place.images, "one") is not None
    for identity in before[3:]:
        line = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
        subprocess.run(line, cwd=place.images / "one" / identity, check=True)
    assert carry_out(place.store, place.images, plan(place, {key(2): "still built"}, keep=2)) == []


def test_only_what_takes_too_much_goes_the_oldest_first(place: Place) -> None:
    whole = sum(place.store.get(each).size for each in sorted(place.store.keys()))
    each = place.store.get(key(1)).size
    assert stages(plan(place, limit=whole)) == []
    assert stages(plan(place, limit=whole - 1)) == [key(1)]
    assert stages(plan(place, limit=whole - each - 1)) == [key(1), key(2)]
    assert sorted(stages(plan(place, limit=0))) == sorted(stages(plan(place)))


def test_a_receipt_that_cannot_be_read_goes(place: Place) -> None:
    place.store.path(key(3), RECEIPT).write_text("{}")
    os.utime(place.store.path(key(3), RECEIPT), (0, 0))
    (first, *_) = plan(place).stages
    assert (first.id, first.why) == (key(3), "damaged: its receipt can't be read, or is of another version")


def test_a_manifest_that_cannot_be_read_stops_it(place: Place) -> None:
    manifest = place.images / "one" / ids(place)[-1] / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{}")
    with pytest.raises(BuildError, match=r"nobody knows what it needs; nothing was removed"):
        plan(place)


def test_what_somebody_works_on_stays(place: Place) -> None:
    decided = plan(place)
    script = """
import sys
from pathlib import Path
from buildlib.store import Store
with Store(Path(sys.argv[1])).lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
    line = [sys.executable, "-c", script, str(place.folder / "out"), key(1)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdin
        assert holder.stdout.readline() == "held\n"
        gone = carry_out(place.store, place.images, decided)
        holder.stdin.close()
    assert key(1) not in {item.id for item in gone}
    assert place.store.has(key(1))


def test_it_waits_for_builds_and_builds_for_it(place: Place) -> None:
    order: list[str] = []
    started = threading.Event()

    def collect() -> None:
        started.set()
        with place.store.alone():
            order.append("collected")

    with place.store.used(), place.store.used():
        thread = threading.Thread(target=collect)
        thread.start()
        started.wait()
        thread.join(0.3)
        order.append("built")
    thread.join()
    assert order == ["built", "collected"]


def test_half_of_a_release_never_counts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    decided = plan(place)

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            carry_out(place.store, place.images, decided)
    left = decided.releases[0].id
    assert [item.why for item in plan(place).releases if item.id == left] == [
        "half of a release, whose removal was ended"
    ]
    carry_out(place.store, place.images, plan(place))
    assert left not in ids(place)


@pytest.mark.integration
def test_by_the_command_line(small: Checkout, tmp_path: Path) -> None:
    """Of what other checkouts have in the same store, nothing is removed here: it is only told."""
    small.doit("build:small-volatile")
    said = small.doit("gc", "--dry-run", "--keep", "1").splitlines()
    assert said[-1] == "nothing was removed (--dry-run)"
    assert re.fullmatch(r"\d+ releases and \d+ stages would go, [\d.]+ .?B; [\d.]+ [MG]B of stages stay", said[-2])
    keys = {path.name[:12] for path in (small.folder / "out/store").iterdir()}
    named = {word for line in said for word in line.split() if word in keys}
    built = json.loads((small.folder / "out/state/small-volatile.json").read_text())["stages"].values()
    assert not named & {each[:12] for each in built}
    assert "no size" in small.doit("gc", "--max-size", "much", status=1)
    assert "at least the newest" in small.doit("gc", "--keep", "0", status=1)
