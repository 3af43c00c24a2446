"""What a move of the suites comes to for a recipe: packages old -> new, as apt decides it, without installing any."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from buildlib import command
from buildlib.distros.debian import archive
from buildlib.distros.debian.archive import Source
from buildlib.distros.debian.index import Lists
from buildlib.errors import BuildError
from buildlib.plan import Json, differences

_BASE = {
    "minbase": ("?essential", "?priority(required)", "apt"),
    "important": ("?essential", "?priority(required)", "?priority(important)", "apt"),
}
"""What a variant's bootstrap installs, as apt's patterns."""


@dataclass(frozen=True)
class Wish:
    """What a recipe wants of its suites."""

    sources: Sequence[Source]
    arch: str
    keyring: Path
    variant: str
    packages: Sequence[str]
    recommends: bool


def moved(
    wish: Wish, lists: Lists, old: Mapping[str, str], new: Mapping[str, str], scratch: Path, log: Path
) -> list[str]:
    """Lines of what is another kernel or package now. old, new -- digests by suite"""
    sides = []
    for name, digests in (("old", old), ("new", new)):
        found = [lists.find(source, wish.arch, digests.get(source.suite)) for source in wish.sources]
        here = [source for source in found if source]
        if len(here) < len(found):
            return [f"packages: what they were is not known, as the cache has not the {name} package lists"]
        try:
            sides.append(_described(_resolved(wish, here, scratch / name, log)))
        except BuildError as error:
            return [f"packages: the {name} package lists and the recipe don't go together: {error.message}"]
    return [line.removeprefix("lock: ") for line in differences({"facts": sides[0]}, {"facts": sides[1]})]


def _described(packages: Mapping[str, str]) -> dict[str, Json]:
    kernels = [name.removeprefix("linux-image-") for name in packages if re.match(r"linux-image-\d", name)]
    return {"kernel": ", ".join(sorted(kernels)), "packages": dict(packages)}


def _resolved(wish: Wish, sources: Sequence[Source], scratch: Path, log: Path) -> dict[str, str]:
    """Versions by name. Raises BuildError with apt's words."""
    lists = scratch / "lists"
    archive.update(lists, sources, wish.arch, wish.keyring, scratch / "apt", log)
    env = {**os.environ, "APT_CONFIG": str(scratch / "apt/apt.conf"), "LC_ALL": "C.UTF-8"}
    base = _BASE[wish.variant]
    if not wish.recommends:
        return _simulated([*base, *wish.packages], "false", env)
    # The bootstrap takes no recommendations, so those of its packages don't come.
    first = _simulated(base, "false", env)
    said = command.output(["apt-cache", "show", *(f"{name}={version}" for name, version in first.items())], env=env)
    status = re.sub(r"^(Package: .*)$", r"\1\nStatus: install ok installed", said, flags=re.MULTILINE)
    (scratch / "apt/status").write_text(status)
    return {**first, **_simulated(wish.packages, "true", env)}


def _simulated(words: Sequence[str], recommends: str, env: Mapping[str, str]) -> dict[str, str]:
    line = ["apt-get", "--simulate", "-o", f"APT::Install-Recommends={recommends}", "install", "--", *words]
    try:
        said = command.output(line, env=env)
    except command.CommandError as error:
        wrong = [text for text in (error.hint or "").splitlines() if text.startswith("E:")]
        raise BuildError(wrong[0] if wrong else error.message) from None
    return dict(_installed(said))


def _installed(said: str) -> Iterator[tuple[str, str]]:
    for name, version in re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", said, re.MULTILINE):
        yield name.partition(":")[0], version
