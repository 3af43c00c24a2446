"""How files, code and tools of this machine are told apart; digests are remembered by what stat(2) says."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from buildlib import atomic
from buildlib.plan import Json

PACKAGE = Path(__file__).parent
DPKG_STATUS = Path("/var/lib/dpkg/status")
_SETTLED = 2.0
"""Seconds after which a file's times tell it from a later version: a write within one clock tick keeps them."""


class HostIdentity:
    """The real `plan.Identity`. `memory` is a file that keeps digests between runs; losing it costs time only.

    packages -- Debian package that brings a tool, where the tool's name isn't the package's
    """

    def __init__(self, memory: Path, packages: Mapping[str, str]) -> None:
        self._memory = memory
        self._packages = packages
        self._seen: dict[str, Json] = {}
        self._changed = False
        self._codes: dict[str, str] = {}
        self._modules: dict[str, tuple[str, list[str]]] = {}
        self._own: dict[Path, dict[str, str]] = {}
        with suppress(OSError, ValueError):
            seen = json.loads(memory.read_bytes())
            self._seen = seen if isinstance(seen, dict) else {}

    def path(self, path: Path) -> dict[str, str]:
        """This package's own files are looked at once, as its code is."""
        if not path.is_relative_to(PACKAGE):
            return self._path(path)
        if path not in self._own:
            self._own[path] = self._path(path)
        return self._own[path]

    def _path(self, path: Path) -> dict[str, str]:
        if not path.is_dir():
            return {".": self._entry(path.resolve())}
        return {str(found.relative_to(path)): self._entry(found) for found in _walk(path)}

    def code(self, run: str) -> str:
        """Looked at once: a process runs the code that it has begun with."""
        if run not in self._codes:
            self._codes[run] = self._code(run)
        return self._codes[run]

    def _code(self, run: str) -> str:
        digest = hashlib.sha256(run.encode())
        for module in sorted(self._reached(run.partition(":")[0])):
            digest.update(f"{module} {self._module(module)[0]}\n".encode())
        return digest.hexdigest()

    def tool(self, name: str) -> str:
        version = self._versions.get(self._packages.get(name, name))
        if version is not None:
            return version
        found = shutil.which(name)
        return self._content(Path(found)) if found else "missing"

    def save(self) -> None:
        """Write what was learned, if anything was."""
        if not self._changed:
            return
        atomic.write(self._memory, json.dumps(self._seen))
        self._changed = False

    def _entry(self, path: Path) -> str:
        """A link by where it points, a file by its content and x bit: of modes, that is all that git keeps."""
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return f"-> {os.readlink(path)}"
        if stat.S_ISDIR(mode):
            return "folder"
        if not stat.S_ISREG(mode):
            return f"special {mode:o}"
        return f"{'x' if mode & 0o100 else 'f'} {self._content(path)}"

    def _content(self, path: Path) -> str:
        found: str = self._remembered(path, "", lambda: _sha256(path))
        return found

    def _module(self, name: str) -> tuple[str, list[str]]:
        """Digest of a module's syntax tree without docstrings, and the modules of this package that it imports."""
        if name in self._modules:
            return self._modules[name]
        path = _module_path(name)

        def read() -> Json:
            tree = ast.parse(path.read_bytes())
            _strip_docstrings(tree)
            return [hashlib.sha256(ast.dump(tree).encode()).hexdigest(), sorted(_imports(tree))]

        digest, imports = self._modules[name] = self._remembered(path, "ast ", read)
        return digest, imports

    def _reached(self, module: str) -> set[str]:
        reached: set[str] = set()
        waiting = [module]
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += self._module(name)[1]
        return reached

    def _remembered(self, path: Path, kind: str, make: Json) -> Json:
        facts = path.stat()
        stamp = [facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino]
        name = f"{kind}{path.absolute()}"
        known = self._seen.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        value = make()
        if time.time() - facts.st_ctime > _SETTLED:
            self._seen[name] = [stamp, value]
            self._changed = True
        return value

    @cached_property
    def _versions(self) -> dict[str, str]:
        """Versions of the tools' packages, from dpkg's own table: asking dpkg-query would cost a process a run."""
        if not DPKG_STATUS.exists():
            return {}
        wanted = sorted({*self._packages.values(), *self._packages})
        found: dict[str, str] = self._remembered(
            DPKG_STATUS, f"{','.join(wanted)} ", lambda: _installed(DPKG_STATUS.read_bytes(), wanted)
        )
        return found


def _installed(status: bytes, wanted: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in wanted:
        start = (b"\n" + status).find(b"\nPackage: " + package.encode() + b"\n")
        if start < 0:
            continue
        fields = status[start : status.find(b"\n\n", start)].split(b"\n")
        values = dict(field.split(b": ", 1) for field in fields if b": " in field and not field.startswith(b" "))
        if values.get(b"Status", b"").endswith(b" installed"):
            found[package] = values[b"Version"].decode()
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))


def _module_path(name: str) -> Path:
    base = PACKAGE.parent.joinpath(*name.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _imports(tree: ast.Module) -> Iterator[str]:
    """Modules of this package that are imported anywhere in `tree`; of a package, the modules that are meant."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _module_path(name).exists() else node.module for name in modules]
        yield from (name for name in names if name.startswith(PACKAGE.name + ".") and _module_path(name).exists())


def _strip_docstrings(tree: ast.Module) -> None:
    """Drop texts that are statements: docstrings of modules, classes and functions, and of constants and fields."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [part for part in node.body if not _is_text(part)]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
