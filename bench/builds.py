"""What a build costs beside what cannot be avoided. `python -m bench.builds [ROUNDS]`, as root; ratios of medians.

cold   -- a whole build, its downloads being there, over a bare mmdebstrap of the same packages with the same downloads
change -- a build after one overlay file changed, over the cold one
list, group -- a build with one package more, in `packages` or in a group of its own, over the cold one
noop   -- `./doit build` of ten recipes when nothing changed, over a bare doit with as many tasks that do nothing
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PROJECT = Path(__file__).parents[1]
WORK = PROJECT / "out" / "bench"
PYTHON = PROJECT / ".venv/bin/python"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT)}
RECIPE = "debian-nfs"
MORE = {
    "list": "{packages: [tcpdump]}",
    "group-before": "{package-groups: {tools: [htop]}}",
    "group": "{package-groups: {tools: [htop, tcpdump]}}",
}
"""Recipes by name: what each has beside `RECIPE`. `group` has one package more than `group-before`."""


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    home = WORK / "checkout"
    shutil.rmtree(WORK, ignore_errors=True)
    checkout(home, [RECIPE])
    doit(home, f"build:{RECIPE}")
    lock = home / "recipes" / RECIPE / "recipe.lock"
    shutil.copy(lock, WORK / "recipe.lock")
    for name, more in MORE.items():
        (home / "recipes" / name).mkdir()
        (home / "recipes" / name / "recipe.yaml").write_text(f"extends: ../{RECIPE}/recipe.yaml\ndebian: {more}\n")
        shutil.copy(lock, home / "recipes" / name)
        doit(home, f"build:{name}")
    cold, bare, change, listed, grouped = [], [], [], [], []
    for _ in range(rounds):
        bare.append(seconds(lambda: bare_mmdebstrap(home)))
        shutil.rmtree(home / "out/store")
        shutil.rmtree(home / "out/images")
        shutil.rmtree(home / "out/state")
        cold.append(seconds(lambda: doit(home, f"build:{RECIPE}")))
        motd = home / "recipes" / RECIPE / "overlay/etc/motd"
        motd.write_text(f"{time.time()}\n")
        change.append(seconds(lambda: doit(home, f"build:{RECIPE}")))
        listed.append(seconds(lambda: doit(home, "build:list")))
        doit(home, "build:group-before")
        grouped.append(seconds(lambda: doit(home, "build:group")))
    for name in MORE:
        shutil.rmtree(home / "recipes" / name)
    tell("cold", cold, "mmdebstrap", bare)
    tell("change", change, "cold", cold)
    tell("list", listed, "cold", cold)
    tell("group", grouped, "cold", cold)
    noop(home, max(rounds, 9))


def noop(home: Path, rounds: int) -> None:
    names = [f"copy-{number}" for number in range(9)]
    for name in names:
        shutil.copytree(home / "recipes" / RECIPE, home / "recipes" / name)
    doit(home)
    listed = subprocess.run(
        [PYTHON, "-m", "doit", "list", "--all", "--private", "--quiet"],
        cwd=home,
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    count = len(listed.stdout.splitlines())
    empty = WORK / "empty"
    empty.mkdir()
    (empty / "dodo.py").write_text(
        "DOIT_CONFIG = {'backend': 'sqlite3', 'dep_file': ':memory:'}\n"
        "def task_empty():\n"
        f"    for number in range({count}):\n"
        "        yield {'name': str(number), 'actions': [(int, [])], 'uptodate': [True]}\n"
    )
    ours, bare = [], []
    for _ in range(rounds):
        bare.append(seconds(lambda: run([str(PYTHON), "-m", "doit"], empty)))
        ours.append(seconds(lambda: run([str(home / "doit")], home)))
    tell(f"noop ({count} tasks)", ours, "bare doit", bare)


def checkout(folder: Path, recipes: Sequence[str]) -> None:
    """A checkout with the project's wrapper and environment, and recipes of its own."""
    (folder / "recipes").mkdir(parents=True)
    for name in ("dodo.py", "doit", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(PROJECT / name, folder)
    for name in ("buildlib", ".venv"):
        (folder / name).symlink_to(PROJECT / name)
    for name in ("_debian", *recipes):
        shutil.copytree(PROJECT / "recipes" / name, folder / "recipes" / name)


def bare_mmdebstrap(home: Path) -> None:
    """The same packages by one mmdebstrap, whose downloads lie there as hard links."""
    sys.path.insert(0, str(PROJECT))
    from buildlib.distros.debian import archive, wanted_packages
    from buildlib.house import House

    house = House(home)
    stage = house.plan(RECIPE).stage("packages")
    options = {**stage.options, **stage.routes}
    sources = archive.sources(options, archive.build_mirrors(options, {}))
    recipe = house.recipes[RECIPE]
    target = WORK / "bare"
    archives = f'mkdir -p "$1/var/cache/apt/archives" && cp -l {home}/out/cache/debs/*.deb "$1/var/cache/apt/archives/"'
    run(
        [
            "mmdebstrap",
            "--mode=root",
            "--format=directory",
            "--variant=minbase",
            f"--include={','.join(['usr-is-merged', *wanted_packages(recipe)])}",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            "--skip=download/empty,essential/unlink",
            f"--setup-hook={archives}",
            options["suites"][0],
            str(target),
            *(source.line(recipe.options.signed_by) for source in sources),
        ],
        home,
    )
    shutil.rmtree(target)


def doit(folder: Path, *arguments: str) -> None:
    run([str(folder / "doit"), *arguments], folder)


def run(argv: Sequence[str], folder: Path) -> None:
    done = subprocess.run(argv, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def seconds(action: Callable[[], None]) -> float:
    os.sync()
    started = time.monotonic()
    action()
    return time.monotonic() - started


def tell(name: str, ours: Sequence[float], other: str, theirs: Sequence[float]) -> None:
    a, b = statistics.median(ours), statistics.median(theirs)
    pairs = sorted(x / y for x, y in zip(ours, theirs, strict=True))
    print(
        f"{name}: {a:.2f} s over {other} {b:.2f} s: {a / b:.3f} (pairs {pairs[0]:.3f} to {pairs[-1]:.3f})", flush=True
    )


if __name__ == "__main__":
    main()
