"""Everything of one checkout in its places: recipes, site, store, releases, and what was built last."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from buildlib import atomic, distros, plan, recipe, schema, site
from buildlib.errors import BuildError
from buildlib.identity import DPKG_STATUS, HostIdentity
from buildlib.plan import Json, Keyed, Plan
from buildlib.recipe import Recipe
from buildlib.release import Release, latest
from buildlib.store import Store

_NO_LOCK = "take it from git again; or remove it, and a build takes what upstream offers now"


@dataclass(frozen=True)
class House:
    """A checkout: `recipes/` with the recipes, `out/` with all that is made."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def images(self) -> Path:
        return self.out / "images"

    @property
    def cache(self) -> Path:
        return self.out / "cache"

    @cached_property
    def store(self) -> Store:
        return Store(self.out)

    @cached_property
    def site(self) -> site.Site:
        return site.load(self.folder)

    def own(self, path: str) -> Path:
        """A path that the site file names: `~` is the user's home, and a relative one begins at the checkout."""
        return self.folder / Path(path).expanduser()

    @cached_property
    def identity(self) -> HostIdentity:
        from buildlib.host import PACKAGES

        return HostIdentity(self.cache / "digests.json", PACKAGES)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """All recipes by name. Raises SchemaError with what is wrong in any of them, and in the site file."""
        found: dict[str, Recipe] = {}
        wrong: list[schema.Finding] = []
        sections = distros.sections()
        for folder in recipe.find(self.folder / "recipes"):
            try:
                found[folder.name] = recipe.load(folder, sections)
            except schema.SchemaError as error:
                wrong += error.findings
        try:
            _ = self.site
        except schema.SchemaError as error:
            wrong += error.findings
        if wrong:
            raise schema.SchemaError(set(wrong))
        lost = list(self.site.unknown(found))
        if lost:
            raise BuildError("\n".join(f"{site.FILE}: {text}" for text in lost))
        return {name: self._of_site(one) for name, one in found.items()}

    def _of_site(self, one: Recipe) -> Recipe:
        """The recipe with what the site file says for it."""
        return dataclasses.replace(
            one,
            builders=self.site.builders,
            ssh_config=self._ssh_config(),
            hosts={mac: host.name for mac, host in self.site.hosts.items() if host.recipe == one.name},
            cache=self.cache,
        )

    def _ssh_config(self) -> Path | None:
        return self.own(self.site.ssh_config) if self.site.ssh_config else None

    def plan(self, name: str) -> Plan:
        return self._planned(name)[0]

    def lock(self, name: str) -> dict[str, Json]:
        """What the recipe's lock says; nothing without one."""
        return _locked(self.recipes[name].lock) or {}

    def keys(self, name: str) -> dict[str, Keyed]:
        """Stages with their keys; fewer than all as long as nothing is locked."""
        return self._planned(name)[1]

    def _planned(self, name: str) -> tuple[Plan, dict[str, Keyed]]:
        """Plan and keys, computed anew only when a lock was written or packages were installed meanwhile: perhaps by
        another of doit's processes."""
        stamp = (_stamp(self.recipes[name].lock), _stamp(DPKG_STATUS))
        known = self._plans.get(name)
        if known is None or known[0] != stamp:
            if known is not None:
                self.__dict__.pop("identity", None)
            found = self.recipes[name]
            made = self._made(found, self.lock(name))
            known = self._plans[name] = (stamp, (made, plan.keyed(made.stages, self.identity)))
        return known[1]

    def _made(self, found: Recipe, lock: Mapping[str, Json]) -> Plan:
        try:
            return distros.get(found.distro).plan(found, lock)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if not lock:
                raise
            raise BuildError(f"{found.lock}: is not what this version writes ({error!r})", hint=_NO_LOCK) from error

    @cached_property
    def _plans(self) -> dict[str, tuple[object, tuple[Plan, dict[str, Keyed]]]]:
        return {}

    @property
    def loaders_lock(self) -> Path:
        return self.folder / "recipes" / "bootloaders.lock"

    def loaders_key(self) -> Keyed | None:
        """The stage of the boot loaders; None as long as nothing is locked."""
        from buildlib import loaders

        said = _locked(self.loaders_lock)
        if said is None:
            return None
        stage = loaders.stage(said)
        return plan.keyed((stage,), self.identity).get(stage.name)

    def epoch(self, name: str) -> int:
        return distros.get(self.recipes[name].distro).epoch(self.lock(name))

    def about(self, name: str) -> dict[str, Json]:
        """What a manifest says of the recipe itself."""
        common = self.recipes[name].common
        return {
            "distro": self.recipes[name].distro,
            "arch": common.arch,
            "description": common.description,
            "root": {"kind": common.root.kind.value, "over": common.root.over},
            "clients": common.clients.value,
            "persist": list(common.persist),
        }

    def release_key(self, name: str, keys: Mapping[str, Keyed]) -> str:
        """Changes whenever the release could."""
        made = self.plan(name)
        document = {
            "keys": {stage: keyed.key for stage, keyed in keys.items()},
            "about": self.about(name),
            "cmdline": made.cmdline,
            "code": self.identity.code("buildlib.release:assemble"),
        }
        return plan.key(document)

    def remembered(self, name: str) -> dict[str, Json]:
        """What was built last: `{"release": key, "id": ID, "stages": {name: key}, "sizes": {file: bytes}}`; nothing
        before the first time, or when it can't be read."""
        try:
            said: Json = json.loads(self._memory(name).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return said if isinstance(said, dict) and isinstance(said.get("stages", {}), dict) else {}

    def remember(self, name: str, **facts: Json) -> None:
        atomic.write(self._memory(name), json.dumps({**self.remembered(name), **facts}))

    def current(self, name: str) -> Release | None:
        """The release that the recipe stands for now, if it is built and its layers are all there."""
        keys = self.keys(name)
        stamp = _stamp(self._memory(name))
        known = self._current.get(name)
        if known is not None and known[0] is keys and known[1] == stamp:
            return known[2]
        said = self.remembered(name)
        if not keys or said.get("release") != self.release_key(name, keys):
            return None
        release = latest(self.images, name)
        if release is None or release.id != said.get("id") or not _has(release.folder, said.get("sizes", {})):
            return None
        root = {stage.name for stage in self.plan(name).root}
        whole = all(self.store.has(keyed.key) for stage, keyed in keys.items() if stage in root)
        if not whole:
            return None
        self._current[name] = (keys, stamp, release)
        return release

    @cached_property
    def _current(self) -> dict[str, tuple[object, object, Release]]:
        """What was found whole, until keys change or something of the recipe is built or removed."""
        return {}

    def _memory(self, name: str) -> Path:
        return self.out / "state" / f"{name}.json"


def _locked(path: Path) -> dict[str, Json] | None:
    """What a lock says; None without one. Raises BuildError for one that can't be read: never guess what it said."""
    try:
        said: Json = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise BuildError(f"{path}:{error.lineno}:{error.colno}: can't be read: {error.msg}", hint=_NO_LOCK) from None
    except UnicodeDecodeError as error:
        raise BuildError(f"{path}: can't be read: {error}", hint=_NO_LOCK) from None
    if not isinstance(said, dict):
        raise BuildError(f"{path}:1:1: expects a map", hint=_NO_LOCK)
    return said


def _has(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Whether a release's files are there, with their sizes."""
    with suppress(OSError):
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    return False


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return facts.st_mtime_ns, facts.st_size
