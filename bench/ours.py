"""This project at the same image: a checkout with one recipe, driven by `./doit`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.image import KERNEL, SUITE, Image
from bench.measure import Cost
from bench.rivals import Peer
from buildlib import tree
from buildlib.house import House
from buildlib.store import LISTING, RECEIPT, TREE, Output, describe

PROJECT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT)}
RECIPE = "image"


class Ours(Peer):
    """A root over NFS; `root` may be another kind."""

    name = "this project"

    def __init__(self, folder: Path, root: str = "nfs") -> None:
        super().__init__(folder)
        self.root = root
        (folder / "recipes").mkdir()
        for name in ("dodo.py", "doit", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
            shutil.copy(PROJECT / name, folder)
        for name in ("buildlib", ".venv"):
            (folder / name).symlink_to(PROJECT / name)

    def version(self) -> str:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=PROJECT, check=True, capture_output=True, text=True
        ).stdout.strip()

    def write(self, image: Image, name: str = RECIPE) -> None:
        home = self.folder / "recipes" / name
        (home / "overlay/etc").mkdir(parents=True, exist_ok=True)
        (home / "overlay/etc/motd").write_text(image.motd)
        (home / "admin.pub").write_text(image.key)
        recipe = {
            "description": "The same image as everybody's",
            "arch": "x86_64",
            "root": self.root,
            "cmdline": image.cmdline,
            "users": [{"name": "root", "authorized-keys": ["admin.pub"]}],
            "overlay": ["overlay"],
            "debian": {
                "suite": SUITE,
                "kernel": KERNEL,
                "packages": list(image.packages),
                "package-groups": {"tools": list(image.group)} if image.group else {},
                "initramfs": {"include": list(image.modules)},
            },
        }
        (home / "recipe.yaml").write_text(json.dumps(recipe))

    def forget(self) -> None:
        self.drop()
        self.remove("out")

    def drop(self) -> None:
        self.remove("out/store", "out/kept", "out/images", "out/state", f"recipes/{RECIPE}/recipe.lock")

    def build(self, row: str) -> Cost:
        return self.doit(f"build:{RECIPE}")

    def doit(self, *arguments: str) -> Cost:
        return self.run(self.folder / "doit", *arguments, env=ENVIRONMENT)

    def outcome(self) -> Sequence[Path]:
        return [(self.folder / "out/images" / RECIPE / "latest").resolve()]

    def twin(self, folder: Path) -> Ours:
        """Another checkout with all that this one has, its files shared."""
        made = Ours(folder, self.root)
        subprocess.run(["cp", "-al", self.folder / "out", folder], check=True)
        shutil.copytree(self.folder / "recipes" / RECIPE, folder / "recipes" / RECIPE)
        return made

    def grow(self, size: int) -> None:
        """Let the packages' layer have so many bytes more, in files as large as Debian's are on average, and with the
        content of some of these; what was packed of it goes, as by its key it is of a layer that has not grown."""
        house = House(self.folder)
        keys = house.keys(RECIPE)
        key = keys["packages"].key
        receipt = house.store.get(key)
        content, each = _sample(house.store.path(key, TREE) / "usr"), 30_000
        for number in range(size // each):
            path = house.store.path(key, TREE) / f"usr/share/bulk/{number // 1000}/{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            start = number * each % (len(content) - each)
            path.write_bytes(content[start : start + each - 8] + number.to_bytes(8, "big"))
        place = house.store.path(key, LISTING)
        place.unlink()
        told = tree.write_listing(
            {"tree": str(house.store.path(key, TREE)), "listing": str(place), "epoch": house.epoch(RECIPE)}
        )
        grown = replace(
            receipt,
            layer=Output(told["digest"], told["size"]),
            outputs={**receipt.outputs, LISTING: describe(place)},
        )
        said = house.store.path(key, RECEIPT)
        said.unlink()
        said.write_text(json.dumps(grown, default=vars))
        if "squashfs-base" in keys:
            self.remove(f"out/store/{house.store.path(keys['squashfs-base'].key).name}")
        self.remove("out/state")


def _sample(folder: Path) -> bytes:
    """Content of each tenth file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return b"".join(path.read_bytes() for path in files[::10])
