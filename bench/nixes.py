"""`doit build` of a NixOS image on a builder, beside `nix build` by hand: `python -m bench.nixes [ROUNDS]`. As root.

Medians, and ratios within one run; they take turns, each with stores that have nothing. The build itself waits SECONDS,
which is little beside what a kernel takes.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import nixlab, sshlab
from tests.test_nixos import RECIPE, site

SECONDS = 15


def emptied(box: sshlab.Box, nix: nixlab.Nix) -> None:
    """Both machines as if nothing was ever built."""
    for folder in (box.folder / "nix", nix.store):
        for entry in folder.iterdir():
            if entry.name != "conf":
                subprocess.run(["rm", "-rf", entry], check=True)
    for path in ("out/store", "out/images", "out/state", "out/cache/nix-roots", "recipes/one/recipe.lock"):
        subprocess.run(["rm", "-rf", nix.folder / path], check=True)


def by_hand(box: sshlab.Box, nix: nixlab.Nix) -> float:
    flake = f"path:{nix.folder}/recipes/one/flake#nixosConfigurations.test.config.system.build"
    wanted = [f"{flake}.{part}" for part in ("kernel", "netbootRamdisk", "toplevel")]
    line = ["nix", "build", "--no-link", *wanted, "--builders", f"ssh-ng://{box.name} aarch64-linux - 2 1 big-parallel"]
    begun = time.monotonic()
    env = {**nix.environment, "NIX_SSHOPTS": f"-F {box.config}"}
    subprocess.run([*nix.within, *line], env=env, check=True, capture_output=True)
    return time.monotonic() - begun


def ours(nix: nixlab.Nix) -> float:
    begun = time.monotonic()
    # Tests keep Python from remembering its compiled modules.
    env = {name: value for name, value in nix.environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(nix.command("build:one"), cwd=nix.folder, env=env, check=True, capture_output=True)
    return time.monotonic() - begun


def main(rounds: int) -> None:
    text = nixlab.FLAKE.replace("cd t\n", f"${{busybox}} sleep {SECONDS}; cd t\n")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, nixlab.builder() as box:
        nix = nixlab.checkout(Path(folder))
        home = nix.recipe("one", RECIPE.format(what="configuration: test"))
        (nixlab.flake(home / "flake") / "flake.nix").write_text(text)
        (nix.folder / "site.yaml").write_text(site(box))
        ours(nix)
        times: dict[str, list[float]] = {"hand": [], "ours": [], "same": []}
        for _ in range(rounds):
            emptied(box, nix)
            times["hand"].append(by_hand(box, nix))
            emptied(box, nix)
            times["ours"].append(ours(nix))
            time.sleep(3)
            times["same"].append(ours(nix))
        shutil.rmtree(nix.store)
    hand, own, same = (statistics.median(times[name]) for name in ("hand", "ours", "same"))
    print(f"{rounds} rounds; medians")
    print(f"build: doit / nix, seconds   {own:6.2f} / {hand:6.2f} = {own / hand:5.2f}  (wanted: at most 1.1)")
    print(f"build: doit - nix, seconds   {own - hand:6.2f}                  (wanted: at most 1)")
    print(f"nothing changed, seconds     {same:6.2f}                  (wanted: under 0.5)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
