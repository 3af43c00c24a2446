"""Who may import whom: the folder listing is the architecture, and this keeps it true."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "buildlib"

ALLOWED = {
    "errors": "",
    "yamltree": "errors",
    "shape": "",
    "schema": "shape yamltree",
    "jsonschema": "shape",
    "builder": "schema",
    "secret": "",
    "user": "schema secret",
    "recipe": "bootmenu builder schema user",
    "target": "bootmenu schema",
    "site": "builder errors schema target yamltree",
    "bootmenu": "",
    "bootloaders": "bootmenu",
    "bootloaders.*": "bootmenu bootloaders",
    "rebuild": "build command listing plan release report sandbox store tree",
    "rebuild_tasks": "*",
    "scaffold": "errors recipe",
    "services": "site",
    "services.*": "bootmenu services site",
    "loaders": "work bootmenu command files distros.* errors host plan sandbox store",
    "atomic": "",
    "fetch": "errors parts web workers",
    "parts": "atomic",
    "workers": "",
    "web": "",
    "finding": "",
    "kernel": "",
    "lint": "bootmenu errors finding initrd.* kernel listing plan recipe release report site",
    "lint_tasks": "*",
    "members": "errors",
    "merge": "",
    "faults": "",
    "diagnose": "faults",
    "serve": "command errors",
    "machine": "command errors",
    "lab": "command diagnose errors machine serve",
    "files": "atomic",
    "place": "bootmenu errors files plan release site",
    "publish": "bootloaders bootmenu errors loaders merge place plan release sandbox site store",
    "serverside": "atomic bootloaders.* bootmenu command errors files host place services services.*",
    "shell": "command errors",
    "route": "command errors",
    "login": "command errors route",
    "transport": "",
    "ssh": "command errors login route shell transport",
    "listing": "errors",
    "compare": "errors listing plan report",
    "signature": "atomic command errors",
    "verify": "errors listing release shell together",
    "way": "command errors listing shell",
    "transfer": "errors listing release shell store transfer_little transfer_tar verify way",
    "transfer_little": "listing shell transfer_tar verify way",
    "transfer_tar": "command errors listing shell verify way",
    "survey": "bootmenu errors files place transfer",
    "server": "errors files route shell ssh survey transfer",
    "together": "errors",
    "reach": "errors loaders place publish server site survey together",
    "history": "place",
    "switching": "errors files history place plan publish reach serverside",
    "push": "errors listing merge place publish reach release sandbox server switching together transfer yamltree",
    "back": "errors history place reach switching yamltree",
    "pruning": "bootmenu history place reach server survey",
    "inspection": "compare errors history listing place plan reach release server shell signature verify",
    "serving": "command errors place serve serverside site",
    "boot": "atomic bootmenu errors host lab machine place plan publish recipe release sandbox serverside site",
    "command": "errors",
    "inside": "",
    "plan": "",
    "sandbox": "command errors inside plan",
    "space": "errors report",
    "identity": "atomic plan",
    "tree": "",
    "store": "atomic errors plan sandbox",
    "work": "plan sandbox",
    "build": "errors plan sandbox space store tree work",
    "pack": "atomic command errors listing relist sandbox squashfs.* store work",
    "squashfs": "",
    "squashfs.*": "command errors listing squashfs.*",
    "initrd": "",
    "initrd.*": "command errors initrd.* listing",
    "rootfs": "errors",
    "sbom": "atomic spdx",
    "spdx": "",
    "relist": "atomic listing",
    "release": "atomic errors initrd.* plan relist sbom store",
    "report": "errors",
    "host": "command errors",
    "distros": "plan recipe site",
    "distros.*": "command distros distros.* errors host inside listing pack plan recipe rootfs sandbox schema site "
    "store tree user work",
    "distros.alpine.*": "command distros.alpine.* errors fetch initrd.* kernel members plan recipe sandbox schema "
    "secret work yamltree",
    "distros.alpine": "distros distros.alpine.* errors plan recipe sandbox site",
    "distros.archlinux": "distros distros.archlinux.* errors plan recipe sandbox site",
    "distros.archlinux.*": "command distros.archlinux.* errors fetch initrd.* members plan recipe rootfs sandbox "
    "schema work",
    "distros.nixos.*": "builder command distros.nixos.* errors plan recipe route schema ssh together work",
    "house": "atomic errors distros host loaders identity plan recipe release schema site store",
    "why": "house plan report",
    "reference": "jsonschema shape",
    "schemas": "distros jsonschema plan recipe reference site",
    "tasks": "*",
    "boot_tasks": "*",
    "doctor": "boot distros distros.nixos.builders errors finding host reach recipe report serve site together",
    "doctor_tasks": "*",
    "gc": "errors release relist store",
    "gc_tasks": "*",
    "initrd_tasks": "*",
    "lock_tasks": "*",
    "page": "",
    "page.*": "listing page.* plan release report store",
    "nightly": "atomic command compare plan release report",
    "nightly_tasks": "*",
    "push_tasks": "*",
    "commands": "*",
}
"""What of this package a module may import, in functions and for types too; the most exact name counts."""

LINES = {"tasks": 420, "push_tasks": 400, "faults": 360}
"""Most lines of a module; 330 where nothing is said. A longer one is asking to be two; `faults` is a table."""

INSTALLED = {
    "yamltree": "yaml",
    "report": "tqdm",
    "tasks": "doit",
    "commands": "doit",
    "ssh": "paramiko",
    "transport": "paramiko",
    "login": "paramiko",
    "web": "requests urllib3",
    "distros.alpine.signing": "cryptography",
    "sbom": "cyclonedx packageurl",
    "spdx": "cyclonedx",
}
"""Who uses which installed package."""

HEAVY = (
    "buildlib.sandbox",
    "buildlib.build",
    "buildlib.pack",
    "ctypes",
    "tqdm",
    "jsonschema",
    "pytest",
    "requests",
    "paramiko",
    "cryptography",
    "cyclonedx",
)
"""What `doit list` must not wait for."""


def name_of(path: Path) -> str:
    """`distros.debian.archive`: a module's name within the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "guest"}
MODULES.pop("__init__")


def imports(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def named(path: Path) -> Iterator[str]:
    """Full names of all that a module imports; of `from a import b`, `a.b` where that is a module."""
    for node in imports(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole.removeprefix("buildlib.") in MODULES else node.module


def allowed(module: str) -> list[str]:
    fitting = [pattern for pattern in ALLOWED if fnmatch(module, pattern)]
    return ALLOWED[max(fitting, key=len)].split() if fitting else []


@pytest.mark.parametrize("module", MODULES)
def test_the_table_knows_every_module(module: str) -> None:
    assert any(fnmatch(module, pattern) for pattern in ALLOWED)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_it_may(module: str) -> None:
    used = {name.removeprefix("buildlib.") for name in named(MODULES[module]) if name.startswith("buildlib.")}
    patterns = allowed(module)
    assert not {name for name in used if not any(fnmatch(name, pattern) for pattern in patterns)}


@pytest.mark.parametrize("module", MODULES)
def test_an_installed_package_has_one_door(module: str) -> None:
    used = {name.partition(".")[0] for name in named(MODULES[module])} - sys.stdlib_module_names - {"buildlib"}
    assert used <= set(INSTALLED.get(module, "").split())


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name.startswith("distros.") or name in ("rootfs", "squashfs.making", "tree")]
)
def test_what_a_sandbox_calls_needs_the_standard_library_alone(module: str) -> None:
    """As `inside` starts: no site-packages. What a function imports later is found by the test above."""
    code = "import importlib, sys; sys.path.insert(0, sys.argv[1]); importlib.import_module(sys.argv[2])"
    line = [sys.executable, "-I", "-S", "-c", code, str(PACKAGE.parent), f"buildlib.{module}"]
    assert subprocess.run(line, check=False).returncode == 0


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"command", "inside"}))
def test_subprocesses_have_one_door(module: str) -> None:
    """Inside the sandbox there is no log to keep and no group to end; only there subprocess is used as it is."""
    used = {"subprocess", "pty"} & {name.partition(".")[0] for name in named(MODULES[module])}
    assert not used or module in ("rootfs", "sandbox", "squashfs.making") or module.startswith("distros.")


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_such_that_keys_see_them(module: str) -> None:
    """The digest of a stage's code follows `import` and `from ... import` by full names, and nothing else."""
    assert not [node for node in imports(MODULES[module]) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_read_in_one_sitting(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LINES.get(module, 330)


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Modules that `dodo.py` loads before doit knows what it is asked for."""
    code = "import json, sys, buildlib.tasks; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, stdout=subprocess.PIPE, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", HEAVY)
def test_the_shell_loads_nothing_that_a_list_does_not_need(module: str, loaded: set[str]) -> None:
    assert module not in loaded


@pytest.mark.parametrize("pattern", ALLOWED)
def test_the_table_names_no_module_that_is_gone(pattern: str) -> None:
    assert any(fnmatch(module, pattern) for module in MODULES)
