"""A branch's newest release, by what its mirror says."""

from __future__ import annotations

from collections.abc import Sequence

from buildlib import fetch
from buildlib.errors import BuildError
from buildlib.plan import Json
from buildlib.yamltree import plain

_FLAVOR = "alpine-netboot"


def folder(branch: str) -> str:
    """A branch's folder on mirrors."""
    return branch if branch in ("latest-stable", "edge") else f"v{branch}"


def repositories(mirror: str, branch: str, names: Sequence[str]) -> list[str]:
    """URLs of a branch's repositories."""
    return [f"{mirror.rstrip('/')}/{branch}/{name}" for name in names]


def look(mirrors: Sequence[str], branch: str, arch: str) -> dict[str, Json]:
    """The newest netboot bundle: `{"branch": "v3.22", "version", "file", "sha256", "size", "date"}`. Raises BuildError.

    arch -- as Alpine calls it
    """
    urls = [f"{mirror.rstrip('/')}/{folder(branch)}/releases/{arch}/latest-releases.yaml" for mirror in mirrors]
    url, data = fetch.read(urls)
    try:
        found = [entry for entry in plain(data) if entry["flavor"] == _FLAVOR]
        entry = found[0]
        said = {name: str(entry[name]) for name in ("branch", "version", "file", "sha256", "date")}
        size = int(entry["size"])
    except IndexError:
        raise BuildError(f"{url}: names no netboot bundle ({_FLAVOR})", hint="another branch or mirror") from None
    except (KeyError, TypeError, ValueError) as error:
        raise BuildError(f"{url}: can't be read: {error}", hint="another mirror") from None
    return {**said, "size": size}


def bundle(mirrors: Sequence[str], lock: dict[str, Json], arch: str) -> tuple[str, ...]:
    """URLs of a locked bundle."""
    return tuple(f"{mirror.rstrip('/')}/{lock['branch']}/releases/{arch}/{lock['file']}" for mirror in mirrors)
