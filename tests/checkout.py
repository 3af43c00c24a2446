"""A checkout of recipes to build in, driven as a user does it: by doit's command line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from buildlib import sbom
from tests import apklab

PROJECT = Path(__file__).parents[1]
SHARED = PROJECT / "out" / "test"
"""Where tests build what they share; it stays, so that the next run finds it built."""


def share(source: str, target: str) -> None:
    """A link, or a copy where tests' folders are on another file system, as /tmp of Debian 13 is."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target)


@dataclass(frozen=True)
class Checkout:
    """A folder with recipes, whose downloads are shared with all others."""

    folder: Path
    python: str = sys.executable

    @classmethod
    def make(cls, folder: Path, *recipes: str) -> Checkout:
        """A new one with some of the test recipes."""
        (folder / "recipes").mkdir(parents=True, exist_ok=True)
        for name in ("dodo.py", "pyproject.toml"):
            shutil.copy(PROJECT / name, folder)
        for name in ("_parts", *recipes):
            shutil.copytree(PROJECT / "tests" / "recipes" / name, folder / "recipes" / name, dirs_exist_ok=True)
        return cls(folder)

    @classmethod
    def alone(cls, folder: Path, *recipes: str) -> Checkout:
        """A new one that has built nothing."""
        made = cls.make(folder, *recipes)
        for name in ("debs", "lists"):
            if (SHARED / "out/cache" / name).exists():
                shutil.copytree(SHARED / "out/cache" / name, folder / "out/cache" / name, copy_function=share)
        return made

    @classmethod
    def beside(cls, folder: Path, *recipes: str) -> Checkout:
        """A new one that shares what is built, but not its recipes: the shared checkout's must stay whole, because
        other tests load them at any moment. All are locked to the same packages."""
        made = cls.make(folder, *recipes)
        (folder / "out").symlink_to(SHARED / "out")
        for name in recipes:
            made.lock(name)
        return made

    def lock(self, name: str) -> None:
        """Take over what the shared checkout has locked."""
        shutil.copy(SHARED / "recipes" / "small-volatile" / "recipe.lock", self.folder / "recipes" / name)

    def command(self, *arguments: str) -> list[str]:
        return [self.python, "-m", "doit", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": f"{PROJECT}:{self.packages}", "PYTHONDONTWRITEBYTECODE": "1"}

    @property
    def packages(self) -> str:
        """The folder of the Python packages that these tests run with."""
        return next(path for path in sys.path if path.endswith("site-packages"))

    def doit(self, *arguments: str, status: int | None = 0, text: str = "") -> str:
        """Run doit to its end, which must be with `status`, if one is told; give what it printed."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert status is None or done.returncode == status, done.stdout
        return done.stdout

    def recipe(self, name: str, text: str, files: Mapping[str, str] | None = None) -> Path:
        """Write a recipe and its files; give its folder."""
        folder = self.folder / "recipes" / name
        # The key of a mirror of the tests' own goes with whoever trusts it.
        own = {apklab.NAME: apklab.public()} if apklab.NAME in text else {}
        for path, content in {"recipe.yaml": text, **own, **(files or {})}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content)
        return folder

    def release(self, name: str) -> Path:
        return (self.folder / "out" / "images" / name / "latest").resolve()

    def manifest(self, name: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.release(name) / "manifest.json").read_bytes())
        return manifest

    def licenses(self, name: str) -> dict[str, str]:
        """Licenses by package, in the release's bill of materials, which must be one by its format's own validator."""
        text = (self.release(name) / sbom.FILE).read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        found = {}
        for part in json.loads(text).get("components", ()):
            said = [one["expression"] if "expression" in one else one["license"] for one in part.get("licenses", ())]
            words = [one if isinstance(one, str) else one.get("id", f"?{one.get('name')}") for one in said]
            found[part["name"]] = ", ".join(words)
        return found

    def cmdline(self, name: str, **target: str) -> str:
        """The release's kernel command line with what only a target knows filled in."""
        template: str = self.manifest(name)["content"]["cmdline"]
        return string.Template(template).substitute(target)

    def unpack(self, name: str, folder: Path) -> Path:
        """The recipe's root as an NFS server has it: by the product's own tar."""
        printed = self.doit(f"tar:{name}")
        archive = self.folder / printed.splitlines()[-1].split("  ")[0]
        folder.mkdir(parents=True)
        subprocess.run(
            ["tar", "-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(folder), "-f", str(archive)],
            check=True,
        )
        return folder
