"""NixOS: kernel and initrd of a flake, built by nix, here or on builders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from buildlib.distros import Taken
from buildlib.distros.nixos.options import SYSTEMS, Options, validate
from buildlib.plan import Json, Plan, Stage
from buildlib.recipe import Recipe

if TYPE_CHECKING:
    from buildlib.site import Site

__all__ = ["Options", "epoch", "needs", "plan", "problems", "take_lock", "validate"]


def plan(recipe: Recipe, lock: Mapping[str, Json]) -> Plan:
    """One stage: nix has its own. Its key is of the derivations, so that what evaluates to the same is not built."""
    from buildlib.distros.nixos import flake

    options: Options = recipe.options
    known: Mapping[str, Json] = lock.get("flake", {})
    reference = flake.local(options.flake) if options.flake else known.get("reference", options.reference)
    found = flake.Flake.of(recipe, reference)
    fresh = known.get("state") == flake.state(recipe, known.get("reference"), options.flake)
    fresh = fresh and known.get("asked") == options.reference
    build = Stage(
        "build",
        f"{__name__}.realise:run",
        {"system": SYSTEMS[recipe.common.arch], "arch": recipe.common.arch, "parts": list(found.parts)},
        facts={"derivations": lock["derivations"]} if fresh else None,
        routes={
            "recipe": recipe.name,
            "reference": reference,
            "attribute": found.attribute,
            "builders": {name: asdict(builder) for name, builder in recipe.builders.items()},
            "ssh_config": str(recipe.ssh_config) if recipe.ssh_config else None,
            "store": options.store,
        },
    )
    return Plan(
        name=recipe.name,
        stages=(build,),
        artifacts={"vmlinuz": (build, "vmlinuz"), "initrd": (build, "initrd")},
        root=(),
        cmdline=" ".join(recipe.common.cmdline.split()),
        arguments=(build, "cmdline"),
        packages=(build, "packages.tsv"),
        facts=dict(lock),
    )


def problems(recipe: Recipe) -> list[tuple[str, str]]:
    """What keeps this machine and its builders from building the recipe."""
    from buildlib.distros.nixos import builders

    options: Options = recipe.options
    if options.store is not None and options.store not in recipe.builders:
        has = f": {', '.join(recipe.builders)}" if recipe.builders else ""
        return [(f"nixos.store: site.yaml has no builder {options.store}{has}", "add it under `builders`")]
    if not recipe.builders:
        return []
    wanted = {options.store: recipe.builders[options.store]} if options.store else recipe.builders
    return builders.problems(wanted, SYSTEMS[recipe.common.arch], recipe.ssh_config)


def needs(recipe: Recipe) -> tuple[list[str], list[tuple[str, str]]]:
    """Programs that the build runs, and files with the packages that bring them."""
    return ["nix", *(["ssh"] if recipe.builders else []), "git"], []


def take_lock(recipe: Recipe, site: Site, old: Mapping[str, Json], scratch: Path, log: Path, *, move: bool) -> Taken:
    """Evaluate the flake. With `move`, its lock is to name what is newest: a build never does that.

    Shape: `{"flake": {"state": SHA-256, "asked": reference or None, "reference": pinned one or None,
    "inputs": {NAME: where and revision}, "modified": seconds}, "derivations": {PART: path}}`.
    """
    from buildlib.distros.nixos import flake

    options: Options = recipe.options
    before: Mapping[str, Json] = old.get("flake", {})
    files: dict[Path, bytes] = {}
    reference: str | None = None
    folder = options.flake
    if options.reference is not None:
        if not move and before.get("asked") == options.reference and before.get("reference"):
            reference, modified = before["reference"], before["modified"]
        else:
            reference, modified = flake.pinned(options.reference, recipe.name, log)
        named: dict[str, str] = {}
    else:
        assert folder is not None
        if move:
            copy = flake.updated(folder, scratch, recipe.name, log)
            if (copy / flake.LOCK).exists():
                files[folder / flake.LOCK] = (copy / flake.LOCK).read_bytes()
            folder = copy
        else:
            flake.check_lock(folder, recipe.name)
        named, modified = flake.inputs(folder)
    where = reference or flake.local(folder)  # type: ignore[arg-type]
    derivations = flake.evaluated(flake.Flake.of(recipe, where), recipe.name, log)
    said = {
        "state": flake.state(recipe, reference, folder),
        "asked": options.reference,
        "reference": reference,
        "inputs": named,
        "modified": modified,
    }
    return Taken({"flake": said, "derivations": derivations}, files=files)


def epoch(lock: Mapping[str, Json]) -> int:
    """SOURCE_DATE_EPOCH: when the newest of the flake's inputs was made."""
    return int(lock.get("flake", {}).get("modified", 0))
