"""What was live on a target, and when: a log beside a recipe's menus, from which a rollback knows where to go.

A line a switch: UTC time, what was done (`push`, `rollback`, `canary`), the release, and for a canary the host.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from buildlib.place import MENUS, Place

LOG = "log"
_KEPT = 200
"""Lines that stay."""


def entries(place: Place, name: str) -> list[list[str]]:
    """The log's lines, oldest first: time, what was done, release, perhaps a host."""
    data = place.boot_files.read(_path(place, name)) or b""
    lines = (line.split() for line in data.decode(errors="replace").splitlines())
    return [words for words in lines if len(words) >= 3]


def add(place: Place, name: str, verb: str, release: str, host: str = "") -> None:
    """Write down a switch."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lines = [" ".join(words) for words in entries(place, name)]
    lines.append(f"{now} {verb} {release} {host}".rstrip())
    place.boot_files.write(_path(place, name), ("\n".join(lines[-_KEPT:]) + "\n").encode())


def since(place: Place, name: str, release: str) -> str | None:
    """When what is live became that."""
    found = [words[0] for words in entries(place, name) if words[1] != "canary" and words[2] == release]
    return found[-1] if found else None


def trail(place: Place, name: str, live: str | None, there: Iterable[str]) -> list[str]:
    """The releases that were live, oldest first, what is live now being the last: the way back, step by step.

    Going back forgets what was left. Of releases that are there but never were live, nothing is said.
    """
    found: list[str] = []
    for _time, verb, release, *_ in entries(place, name):
        if verb == "canary":
            continue
        if release in found:
            del found[found.index(release) + (0 if verb == "push" else 1) :]
        if release not in found:
            found.append(release)
    if live is not None:
        # A push that was killed between the switch and the log.
        found = [*found[: found.index(live)], live] if live in found else [*found, live]
    kept = set(there)
    return [release for release in found if release in kept or release == live]


def _path(place: Place, name: str) -> str:
    return f"{place.boot}/{MENUS}/{name}/{LOG}"
