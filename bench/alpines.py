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

from buildlib.distros.alpine import resolving
from tests import apklab
from tests.test_apk import MAIN, MKINITFS, RELEASE, Lab, kernel, modules

NAMES = [f"package-{number}" for number in range(300)]


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
    """All packages, eight at a time."""
    urls = "\n".join(lab.mirror.url(f"{MAIN}/{name}-1.0-r0.apk") for name in NAMES)
    begun = time.monotonic()
    line = ["xargs", "-P", "8", "-n", "20", "curl", "-sS", "--remote-name-all"]
    subprocess.run(line, input=urls, text=True, check=True, cwd=folder)
    return time.monotonic() - begun


def fetched(lab: Lab, folder: Path) -> float:
    """The same by what the stage does it with, verified."""
    said = lab.lock()["packages"]
    wanted = {name: said[name] for name in NAMES}  # type: ignore[index]
    where = resolving.Where((lab.mirror.url("")[:-1],), "v3.22", (), "x86_64", {}, folder)
    begun = time.monotonic()
    resolving.fetched(where, wanted, lambda _done, _total: None)
    return time.monotonic() - begun


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
            target = folder / "curl"
            target.mkdir()
            times.setdefault("curl", []).append(by_curl(lab, target))
            times.setdefault("fetched", []).append(fetched(lab, target))
            shutil.rmtree(target)
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
    ratio = middle["curl"] / middle["fetched"]
    print(f"curl / packages        {middle['curl']:6.2f} / {middle['fetched']:6.2f} = {ratio:5.2f}  (at least 1)")
    print(f"apkovl changed         {middle['changed']:6.2f}                  (at most 1)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
