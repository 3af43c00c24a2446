"""The way back to an older release, and a canary's way to all hosts."""

from __future__ import annotations

from buildlib import history, switching
from buildlib.errors import BuildError
from buildlib.place import canary_of, live
from buildlib.reach import Reached
from buildlib.yamltree import meant


def rollback(reached: Reached, name: str, to: str | None, *, dry: bool = False) -> tuple[str, str, switching.Done]:
    """Make live what was live before, or `to`; gives what was live, what is, and what changed.

    `to` may be the beginning of an ID. Raises BuildError when there is nothing to go back to.
    """
    place = reached.place
    facts = live(place).get(name, {})
    if "release" not in facts:
        raise BuildError(f"{place.name}/{name}: nothing was published yet", hint=f"./doit push:{place.name}/{name}")
    now: str = facts["release"]
    there = reached.releases(name)
    trail = history.trail(place, name, now, there)
    if to is None:
        if len(trail) < 2:
            others = [release for release in there if release != now]
            raise BuildError(
                f"{place.name}/{name}: no release that was live before {now} is still there",
                hint=f"--release {others[-1]} is there, but never was live" if others else "none but that one is there",
            )
        chosen = trail[-2]
    else:
        fitting = [release for release in there if release.startswith(to)]
        if len(fitting) != 1:
            raise BuildError(
                f"{place.name}/{name}: {'no' if not fitting else 'more than one'} release {to} is there"
                + (meant(to, there) if not fitting else ""),
                hint=f"there are {', '.join(there) or 'none'}",
            )
        chosen = fitting[0]
    return now, chosen, switching.switch(reached, {name: (chosen, {})}, "rollback", dry=dry)


def promote(reached: Reached, name: str, *, dry: bool = False) -> tuple[str, list[str], switching.Done]:
    """Give all hosts what a canary boots; gives that release, the hosts that had it, and what changed."""
    place = reached.place
    canary = canary_of(live(place).get(name, {}))
    releases = sorted(set(canary.values()))
    if not releases:
        raise BuildError(
            f"{place.name}/{name}: no host boots a release of its own",
            hint=f"./doit push:{place.name}/{name} --host HOST",
        )
    if len(releases) > 1:
        said = ", ".join(f"{host} boots {release}" for host, release in sorted(canary.items()))
        raise BuildError(
            f"{place.name}/{name}: hosts boot different releases: {said}",
            hint=f"./doit rollback:{place.name}/{name} --release ID makes one of them everybody's",
        )
    return releases[0], sorted(canary), switching.switch(reached, {name: (releases[0], {})}, "push", dry=dry)
