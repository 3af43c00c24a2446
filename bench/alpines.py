"""Alpine's stages beside the same by hand: `python -m bench.alpines [ROUNDS]`. Medians, and ratios within one run.

A mirror on this machine; packages are 300 of 200 kB; the modloop is of 120 MB of modules.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import apklab
from tests.test_apk import MAIN, MKINITFS, RELEASE, Lab, kernel, modules

NAMES = [f"package-{number}" for number in range(300)]


FETCH = """
import json, pathlib, sys, time
import requests
from buildlib.distros.alpine import resolving
lock, mirror, folder, *names = sys.argv[1:]
said = json.loads(pathlib.Path(lock).read_bytes())["packages"]
where = resolving.Where((mirror,), "v3.22", (), "x86_64", {}, pathlib.Path(folder))
begun = time.monotonic()
resolving.fetched(where, {name: said[name] for name in names}, lambda done, total: None)
print(time.monotonic() - begun)
"""


def ours(lab: Lab) -> dict[str, float]:
    """Seconds by stage of a build, and of `all`."""
    env = {name: value for name, value in lab.checkout.environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.monotonic()
    folder = lab.checkout.folder
    done = subprocess.run(lab.checkout.command("build:one"), cwd=folder, env=env, check=True, capture_output=True)
    found = {"all": time.monotonic() - begun}
    for line in done.stdout.decode().splitlines():
        words = line.split()
        if len(words) > 4 and words[2] == "built":
            found[words[1]] = float(words[3])
    return found


def by_curl(lab: Lab, folder: Path) -> float:
    """All packages, eight at a time, unverified."""
    urls = [lab.mirror.url(f"{MAIN}/{name}-1.0-r0.apk") for name in NAMES]
    begun = time.monotonic()
    line = ["curl", "-sS", "--no-progress-meter", "--parallel", "--parallel-max", "8", "--remote-name-all", *urls]
    subprocess.run(line, check=True, cwd=folder)
    return time.monotonic() - begun


def fetched(lab: Lab, folder: Path) -> float:
    """The same by what the stage does it with, verified and on the disk; in a process of its own, as curl is."""
    lock = lab.checkout.folder / "recipes/one/recipe.lock"
    line = [sys.executable, "-c", FETCH, str(lock), lab.mirror.url("")[:-1], str(folder), *NAMES]
    return float(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def by_mksquashfs(tree: Path, out: Path) -> float:
    begun = time.monotonic()
    line = ["mksquashfs", str(tree), str(out), "-noappend", "-no-progress", "-comp", "xz", "-all-root"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        tree = modules(folder)
        for number in range(600):
            half = os.urandom(100_000)
            (tree / f"kernel/drivers/net/{number}.ko").write_bytes(half + half)
        known = apklab.base(tree, kernel(folder), "#!/bin/busybox sh\n")
        known |= {name: apklab.Package(files={f"usr/{name}": os.urandom(200_000)}) for name in NAMES}
        lab = Lab(folder, known)
        times: dict[str, list[float]] = {}
        more = f"{MKINITFS}{RELEASE}  packages: [{', '.join(NAMES)}]\n"
        head = "overlay: [overlay]\n"
        (lab.recipe(more, head) / "overlay").mkdir()
        note = lab.checkout.folder / "recipes/one/overlay/note"
        for number in range(rounds):
            note.write_text("begin\n")
            for path in ("out/store", "out/cache/downloads", "out/images"):
                shutil.rmtree(lab.checkout.folder / path, ignore_errors=True)
            for stage, seconds in ours(lab).items():
                times.setdefault(stage, []).append(seconds)
            note.write_text(f"{number}\n")
            changed = ours(lab)
            assert set(changed) == {"all", "apkovl", "release"}, changed
            times.setdefault("changed", []).append(changed["all"])
            for delay, what in ((0.0, "near"), (0.02, "far")):
                lab.mirror.delay = delay
                for word, way in (("curl", by_curl), ("fetched", fetched)):
                    target = folder / word
                    target.mkdir()
                    times.setdefault(f"{word} {what}", []).append(way(lab, target))
                    shutil.rmtree(target)
            lab.mirror.delay = 0
            whole = folder / "whole/modules"
            shutil.copytree(tree, whole / tree.name)
            times.setdefault("mksquashfs", []).append(by_mksquashfs(folder / "whole", folder / "modloop"))
            shutil.rmtree(folder / "whole")
        lab.close()
    middle = {name: statistics.median(found) for name, found in times.items()}
    print(f"{rounds} rounds; medians, seconds")
    ratio = middle["modloop"] / middle["mksquashfs"]
    print(
        f"modloop / mksquashfs   {middle['modloop']:6.2f} / {middle['mksquashfs']:6.2f} = {ratio:5.2f}  (at most 1.1)"
    )
    for what, words in (("near", "this machine"), ("far", "20 ms away")):
        hand, own = middle[f"curl {what}"], middle[f"fetched {what}"]
        print(f"curl / packages        {hand:6.2f} / {own:6.2f} = {hand / own:5.2f}  (at least 1; a mirror {words})")
    print(f"apkovl changed         {middle['changed']:6.2f}                  (at most 1)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
