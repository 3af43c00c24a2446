"""What a lock holds of packages: the indexes as they were, and what apk makes of a world with them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from buildlib import fetch
from buildlib.distros.alpine import apk, packages
from buildlib.distros.alpine.packages import Package
from buildlib.errors import BuildError
from buildlib.plan import Json

Packages = Mapping[str, Mapping[str, Json]]
"""A lock's packages by name, each as `described`."""


@dataclass(frozen=True)
class Where:
    """Where packages come from.

    mirrors -- URLs
    branch  -- a branch's folder, such as v3.22
    names   -- repositories of it
    arch    -- as Alpine calls it
    keys    -- public keys (PEM) by file name
    cache   -- the checkout's folder of what stays between builds
    """

    mirrors: tuple[str, ...]
    branch: str
    names: tuple[str, ...]
    arch: str
    keys: Mapping[str, bytes]
    cache: Path

    def urls(self, *path: str) -> tuple[str, ...]:
        return tuple("/".join((mirror.rstrip("/"), self.branch, *path)) for mirror in self.mirrors)

    def download(self, digest: str) -> Path:
        return self.cache / "downloads" / digest


@dataclass(frozen=True)
class Indexes:
    """Verified indexes: digests by repository, and the packages of each."""

    where: Where
    digests: Mapping[str, str]
    packages: Mapping[str, Mapping[tuple[str, str], Package]]

    def find(self, name: str, version: str) -> tuple[str, Package]:
        """A package and its repository. Raises BuildError."""
        for repository, known in self.packages.items():
            if (name, version) in known:
                return repository, known[name, version]
        raise BuildError(f"apk speaks of {name} {version}, which no index has")

    def newest(self, name: str) -> tuple[str, Package]:
        """The last package of that name. Raises BuildError."""
        for repository, known in self.packages.items():
            found = [package for (one, _), package in known.items() if one == name]
            if found:
                return repository, found[-1]
        raise BuildError(
            f"no package {name} in the repositories of {self.where.branch} for {self.where.arch}",
            hint="`repositories` has to name main",
        )

    @property
    def files(self) -> dict[str, bytes]:
        return {name: self.where.download(digest).read_bytes() for name, digest in self.digests.items()}


def indexes(where: Where, known: Mapping[str, str]) -> Indexes:
    """The indexes by their digests, if they are still here; else as the mirror has them now. Raises BuildError."""
    if set(known) == set(where.names) and all(where.download(digest).exists() for digest in known.values()):
        found = {name: where.download(digest).read_bytes() for name, digest in known.items()}
    else:
        found = {name: fetch.read(where.urls(name, where.arch, packages.INDEX))[1] for name in where.names}
    content: dict[str, Mapping[tuple[str, str], Package]] = {}
    digests = {}
    for name, data in found.items():
        try:
            text = packages.verified_index(data, where.keys)
            content[name] = {(one.name, one.version): one for one in packages.parse(text)}
        except ValueError as error:
            url = where.urls(name, where.arch, packages.INDEX)[0]
            hint = "another mirror; or name its public key by `keys`, if you trust it"
            raise BuildError(f"{url}: {error}", hint=hint) from None
        digests[name] = hashlib.sha256(data).hexdigest()
        path = where.download(digests[name])
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".new")
            temporary.write_bytes(data)
            temporary.replace(path)
    return Indexes(where, digests, content)


def described(repository: str, package: Package) -> dict[str, Json]:
    """A package as a lock has it."""
    said = asdict(package)
    del said["name"]
    return {**said, "repository": repository}


def package(name: str, said: Mapping[str, Json]) -> Package:
    """A package of a lock."""
    return Package(name, said["version"], said["checksum"], said["size"])


def jobs(where: Where, wanted: Packages) -> list[fetch.Job]:
    """Downloads of a lock's packages."""
    found = []
    for name, said in wanted.items():
        one = package(name, said)
        urls = where.urls(said["repository"], where.arch, one.file)
        check = _checker(one)
        found.append(fetch.Job(urls, where.download(one.checksum), None, one.size, check))
    return found


def _checker(one: Package) -> fetch.Check:
    return lambda data: packages.check(data, one)


def fetched(where: Where, wanted: Packages, tell: fetch.Tells) -> dict[str, Path]:
    """The files of a lock's packages by name, which one index named. Raises BuildError."""
    try:
        fetch.get_all(jobs(where, wanted), tell)
    except BuildError as error:
        gone = re.search(r"/([^/\s]+\.apk): is not there", error.message)
        hint = "./doit lock:NAME takes what is there now" if gone else error.hint
        what = f"recipe.lock wants {gone[1]}, which the mirror has no more:\n" if gone else ""
        raise BuildError(f"{what}{error.message}", hint=hint) from None
    return {name: where.download(said["checksum"]) for name, said in sorted(wanted.items())}


def resolved(
    found: Indexes, tool: Path, worlds: Mapping[str, Sequence[str]], scratch: Path, log: Path
) -> dict[str, dict[str, Json]]:
    """By world what it comes to: packages by name, as `described`."""
    repositories = apk.repository(scratch / "repositories", found.where.arch, found.files)
    keys = apk.keyring(scratch / "keys", found.where.keys)
    made = {}
    for name, world in worlds.items():
        home = scratch / name
        home.mkdir()
        pairs = apk.resolve(tool, repositories, keys, found.where.arch, world, home, log)
        made[name] = {one: described(*found.find(one, version)) for one, version in pairs}
    return made
