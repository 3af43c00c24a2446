"""One file or folder a distribution: `Options`, `validate`, `stages`. They are found by looking; no list names them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from buildlib.plan import Json, Plan, Stage
    from buildlib.recipe import Common, Recipe, Validate
    from buildlib.site import Site


@dataclass(frozen=True)
class Taken:
    """What upstream offers.

    facts -- for the recipe's lock
    made  -- the outcome of stages that it happened to make, a folder by stage name
    files -- content of files beside the lock that go with it
    moved -- lines of what it comes to beside the facts that were locked before, where facts alone don't say
    """

    facts: dict[str, Json]
    made: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[Path, bytes] = field(default_factory=dict)
    moved: Callable[[Mapping[str, Json]], Iterable[str]] = lambda _old: ()


class Distro(Protocol):
    """What a distribution's module offers."""

    Options: type[Any]
    """The dataclass of what only this distribution understands: the recipe's section of its name."""

    def validate(self, common: Common, options: Any) -> Iterable[tuple[str, str]]:
        """All that can be known wrong before a build: pairs of the key's path in the recipe and what is wrong."""
        ...

    def plan(self, recipe: Recipe, lock: Mapping[str, Json]) -> Plan:
        """The recipe's stages; those without a fact in `lock` say so by `facts=None`."""
        ...

    def problems(self, recipe: Recipe) -> list[tuple[str, str]]:
        """What keeps this machine from building the recipe: pairs of what is wrong and what to do."""
        ...

    def needs(self, recipe: Recipe) -> tuple[list[str], list[tuple[str, str]]]:
        """Programs that the build runs, and files that it reads with the packages that bring them."""
        ...

    def take_lock(
        self, recipe: Recipe, site: Site, old: Mapping[str, Json], scratch: Path, log: Path, *, move: bool
    ) -> Taken:
        """What upstream offers now, in folders of `scratch`; facts in `old` stay as they are.

        move -- a user asks for what is newest; else a build wants what is missing
        """
        ...

    def epoch(self, lock: Mapping[str, Json]) -> int:
        """SOURCE_DATE_EPOCH of what is built from the lock, seconds since 1970."""
        ...


def names() -> list[str]:
    """The distributions that there are."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))


def get(name: str) -> Distro:
    """The module of a distribution, imported when first asked for."""
    return cast(Distro, importlib.import_module(f"{__name__}.{name}"))


def sections() -> tuple[tuple[str, type[Any], Validate], ...]:
    """What a recipe's section may be: each distribution's name, type and validator."""
    return tuple((name, get(name).Options, get(name).validate) for name in names())


READERS = ("lz4", "zstd")
"""Programs that unpack what Python can't: each release's initrd is looked into, whatever it is packed with."""


def needs(recipe: Recipe) -> tuple[list[str], list[tuple[str, str]]]:
    """Programs that a build runs, and files with the packages that bring them."""
    programs, files = get(recipe.distro).needs(recipe)
    return [*programs, *READERS], files


def squashfs(
    lower: tuple[Stage, ...], upper: tuple[Stage, ...], groups: tuple[Stage, ...] = ()
) -> tuple[tuple[Stage, ...], Stage]:
    """A root as a squashfs: stages that compress its lower layers together and each of `groups` by itself, and the one
    that puts these together with what is in the upper ones. So only a part that changed is compressed again."""
    from buildlib.plan import Stage

    parts = {"squashfs-base": lower, **{f"squashfs-{group.name}": (group,) for group in groups}}
    made = tuple(
        Stage(name, "buildlib.pack:squashfs_part", inputs=stages, tools=("mksquashfs",))
        for name, stages in parts.items()
    )
    return made, Stage(
        "squashfs",
        "buildlib.pack:squashfs",
        {"parts": [[name, [stage.name for stage in stages]] for name, stages in parts.items()]},
        inputs=(*lower, *groups, *upper, *made),
        tools=("mksquashfs", "tar", "zstd"),
    )
