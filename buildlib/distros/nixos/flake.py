"""Flakes: what one evaluates to, what its lock names, and whether either has changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from buildlib import command
from buildlib.distros.nixos import nix
from buildlib.distros.nixos.options import SYSTEMS, Options
from buildlib.errors import BuildError
from buildlib.plan import Json
from buildlib.recipe import Recipe

LOCK = "flake.lock"
WANTED = ("kernel", "netbootRamdisk", "toplevel")
"""What is built of a NixOS configuration."""


@dataclass(frozen=True)
class Flake:
    """Where a flake is, and which of its attributes are built.

    reference  -- for nix
    attribute  -- whose `parts` are built; that itself without parts
    """

    reference: str
    attribute: str
    parts: tuple[str, ...]
    system: str

    @classmethod
    def of(cls, recipe: Recipe, reference: str) -> Flake:
        options: Options = recipe.options
        system = SYSTEMS[recipe.common.arch]
        if options.netboot is not None:
            return cls(reference, options.netboot, (), system)
        whole = f"nixosConfigurations.{options.configuration}.config.system.build"
        return cls(reference, whole, WANTED, system)


def local(folder: Path) -> str:
    """The reference of a folder: all of its files, in git or not."""
    return f"path:{folder}"


def state(recipe: Recipe, reference: str | None, folder: Path | None) -> str:
    """Changes when what is built could: SHA-256 over the flake's files, or its reference, and what is taken of it."""
    options: Options = recipe.options
    digest = hashlib.sha256(f"{options.configuration} {options.netboot} {recipe.common.arch}\n".encode())
    if folder is None:
        digest.update(f"{reference}\n".encode())
    else:
        for path in _walk(folder):
            name = str(path.relative_to(folder))
            if path.is_symlink():
                digest.update(f"{name} -> {os.readlink(path)}\n".encode())
            else:
                said = path.stat()
                mode = "x" if said.st_mode & 0o100 else "f"
                content = _content(path, (said.st_mtime_ns, said.st_ctime_ns, said.st_size, said.st_ino))
                digest.update(f"{name} {mode} {content}\n".encode())
    return digest.hexdigest()


@cache
def _content(path: Path, _stamp: tuple[int, ...]) -> str:
    """SHA-256 of a file, once a process as long as stat(2) says the same of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)


def pinned(reference: str, name: str, log: Path) -> tuple[str, int]:
    """The reference with its revision and hash in it, and when that was made, seconds since 1970."""
    # --refresh: nix takes an hour-old answer of a branch for the newest.
    line = ["nix", *nix.FEATURES, "flake", "metadata", "--refresh", "--json", "--no-write-lock-file", reference]
    said = json.loads(nix.read(line, name=name, log=log))
    url, locked = str(said["url"]), said["locked"]
    # In a reference to git, newer versions of nix take the hash for a part of the repository's address; its revision
    # says as much.
    if "narHash" in locked and "narHash=" not in url and "rev" in locked and locked.get("type") != "git":
        url += f"{'&' if '?' in url else '?'}narHash={locked['narHash'].replace('+', '%2B').replace('=', '%3D')}"
    return url, int(locked.get("lastModified", 0))


def inputs(folder: Path) -> tuple[dict[str, str], int]:
    """What a flake's lock names: its inputs with their revisions, and the time of the newest."""
    try:
        said = json.loads((folder / LOCK).read_bytes())
        nodes: Mapping[str, Json] = said["nodes"]
        found = {}
        newest = 0
        for name, node in nodes.items():
            if "locked" in node:
                locked = node["locked"]
                where = locked.get("url") or locked.get("path") or f"{locked.get('owner')}/{locked.get('repo')}"
                found[name] = f"{locked['type']}:{where} {locked.get('rev') or locked.get('narHash', '')}".strip()
                newest = max(newest, int(locked.get("lastModified", 0)))
    except FileNotFoundError:
        return {}, 0
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BuildError(f"{folder / LOCK}: can't be read: {error}", hint="./doit lock:NAME writes it anew") from None
    return found, newest


def updated(folder: Path, scratch: Path, name: str, log: Path) -> Path:
    """A copy of the flake whose lock names what is newest."""
    copy = scratch / "flake"
    shutil.copytree(folder, copy, symlinks=True)
    which = ["--flake"] if nix.version() >= (2, 19) else []
    line = ["nix", *nix.FEATURES, "flake", "update", "--refresh", *which, local(copy)]
    nix.run(line, name=name, log=log)
    return copy


def check_lock(folder: Path, name: str) -> None:
    """Raise BuildError for a flake with inputs and no lock: nix would fetch what is newest before it says so."""
    wants = re.search(r"^\s*inputs(\.|\s*=)", (folder / "flake.nix").read_text(), re.M)
    if wants and not (folder / LOCK).exists():
        raise BuildError(
            f"{folder.name}/flake.lock: flake.lock does not fit flake.nix: it is not there yet",
            hint=f"./doit lock:{name} writes it; a build never does",
        )


def evaluated(flake: Flake, name: str, log: Path) -> dict[str, str]:
    """The derivations that are built, by part; `netboot` for a whole. Raises BuildError."""
    line = ["nix", *nix.FEATURES, "eval", "--json", "--no-update-lock-file"]
    take = "d: { inherit (d) drvPath system; }"
    if flake.parts:
        some = " ".join(flake.parts)
        take = f"b: builtins.mapAttrs (n: {take}) {{ inherit (b) {some}; }}"
    said: Json = json.loads(
        nix.read([*line, f"{flake.reference}#{flake.attribute}", "--apply", take], name=name, log=log)
    )
    parts = said if flake.parts else {"netboot": said}
    for part, one in parts.items():
        if one["system"] != flake.system:
            raise BuildError(
                f"{flake.attribute}: its {part} is for {one['system']}, but the recipe's arch is {flake.system}",
                hint=f'nixpkgs.hostPlatform = "{flake.system}"; in the configuration, or another `arch`',
            )
    return {part: str(one["drvPath"]) for part, one in sorted(parts.items())}


def are_there(paths: Iterable[str]) -> bool:
    """Whether this machine's store has all of the derivations."""
    try:
        command.output(["nix-store", "--query", "--hash", *paths])
    except command.CommandError:
        return False
    return True
