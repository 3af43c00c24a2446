"""What no other tool is at: many recipes, roots of several sizes, a squashfs beside `mksquashfs` alone."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.image import CHANGES, Image
from bench.measure import Cost, run
from bench.ours import ENVIRONMENT, RECIPE, Ours

GB = 1_000_000_000
SIZES = {"0.3 GB": 0, "1 GB": 700_000_000, "4 GB": 3_700_000_000}
"""Roots by name, and how much more than the image's own they have."""

RECIPES = 50


@dataclass(frozen=True)
class Figure:
    """What is to be reached: `value` at most `wanted`."""

    what: str
    value: float
    wanted: float
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.wanted


def median(costs: list[Cost], *, cpu: bool = False) -> float:
    return statistics.median(cost.cpu if cpu else cost.seconds for cost in costs)


def many(ours: Ours, image: Image, rounds: int) -> Iterator[Figure]:
    """Nothing changed in fifty recipes of six stages each."""
    lock = ours.folder / "recipes" / RECIPE / "recipe.lock"
    names = [f"image-{number}" for number in range(1, RECIPES)]
    for number, name in enumerate(names):
        ours.write(replace(image, motd=f"{number}\n"), name)
        shutil.copy(lock, ours.folder / "recipes" / name)
    ours.doit("build")
    costs = [ours.doit("build") for _ in range(max(rounds, 5))]
    for name in names:
        shutil.rmtree(ours.folder / "recipes" / name)
    yield Figure(f"nothing changed, {RECIPES} recipes, {6 * RECIPES} stages", median(costs), 0.6, " s")
    yield Figure("the same, processor time", median(costs, cpu=True), 0.6, " s")
    yield Figure("the same, memory", max(cost.memory for cost in costs) / 1e6, 100, " MB")


def sizes(ours: Ours, folder: Path, image: Image, rounds: int) -> Iterator[Figure]:
    """One overlay file or key changed, in roots of several sizes that take turns."""
    made: dict[str, Ours] = {}
    for name, more in SIZES.items():
        made[name] = ours.twin(folder / name.replace(" ", ""))
        if more:
            made[name].grow(more)
        made[name].build("nothing")
    costs: dict[tuple[str, str], list[Cost]] = {}
    for number in range(1, rounds + 1):
        for row in ("file", "key"):
            for name, twin in made.items():
                twin.write(CHANGES[row](image, 1000 + number))
                costs.setdefault((row, name), []).append(twin.build(row))
    first = next(iter(SIZES))
    for twin in made.values():
        twin.remove("out")
    for row, what in (("file", "one overlay file"), ("key", "one SSH key")):
        base = median(costs[row, first])
        for name in SIZES:
            now, cpu = median(costs[row, name]), median(costs[row, name], cpu=True)
            seconds = f"{now:.2f} s, {cpu:.2f} s of processors, {first} {base:.2f} s"
            yield Figure(f"{what}, root of {name}: over that of {first} ({seconds})", now / base, 1.25)


def squashfs(folder: Path, debs: Path, image: Image, rounds: int) -> Iterator[Figure]:
    """One overlay file changed in a recipe whose root is a squashfs, beside mksquashfs of the same tree."""
    ours = Ours(folder / "squashfs", "squashfs")
    (ours.folder / "out/cache").mkdir(parents=True)
    shutil.copytree(debs, ours.folder / "out/cache/debs", copy_function=_link)
    ours.write(image)
    ours.build("cold")
    yield from _squashfs(ours, folder, image, range(rounds), "0.3 GB")
    # Changes that are new: by its key, a layer that has grown is the one that it was.
    ours.grow(SIZES["1 GB"])
    ours.write(CHANGES["file"](image, rounds))
    ours.build("file")
    yield from _squashfs(ours, folder, image, range(rounds + 1, 2 * rounds + 1), "1 GB")


def _squashfs(ours: Ours, folder: Path, image: Image, numbers: range, size: str) -> Iterator[Figure]:
    plain = folder / "plain"
    for path in (plain, ours.folder / "out/tar"):
        shutil.rmtree(path, ignore_errors=True)
    ours.doit(f"tar:{RECIPE}")
    (archive,) = (ours.folder / "out/tar").iterdir()
    plain.mkdir()
    ours.run("tar", "-x", "--numeric-owner", "--xattrs", "-C", plain, "-f", archive, env=ENVIRONMENT)
    own, alone = [], []
    options = ["-noappend", "-no-progress", "-comp", "zstd", "-Xcompression-level", "8", "-wildcards", "-e", "boot/*"]
    for number in numbers:
        line = ["mksquashfs", str(plain), str(folder / "alone.squashfs"), *options]
        alone.append(run(line, folder, folder / "log"))
        ours.write(CHANGES["file"](image, number))
        own.append(ours.build("file"))
    a, b = median(own), median(alone)
    yield Figure(f"one overlay file, squashfs of {size}: {a:.2f} s, over mksquashfs alone, {b:.2f} s", a / b, 1.1)
    a, b = median(own, cpu=True), median(alone, cpu=True)
    yield Figure(f"the same, processor time: {a:.2f} s over {b:.2f} s", a / b, 1.1)


def _link(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target
