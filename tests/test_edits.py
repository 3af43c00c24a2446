"""Thousands of random edits of recipes of all four distributions, and of the files that they name: does what has to run
again run again, and nothing else? What has to is `edits`' to say.

`EDITS=50000 pytest tests/test_edits.py` makes so many, other ones each time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from buildlib import shape
from buildlib.errors import BuildError
from buildlib.host import PACKAGES
from buildlib.house import House
from buildlib.identity import HostIdentity
from buildlib.members import Member, packed
from buildlib.recipe import Common, Recipe
from buildlib.schema import File, Range, SchemaError, Text
from buildlib.shape import Shape
from tests import apklab
from tests.edits import BASE_WORLD, MODELS, Model, places

WALK = 80
"""Edits of one checkout, one after the other: about one of each field, in a random order."""

TOTAL = int(os.environ.get("EDITS", "0"))

COUNTS: Counter[str] = Counter()
CHANGED: set[str] = set()
"""Places at which an edit changed what a stage sees."""

OFFICIAL = {"arch": "amd64", "root": "squashfs", "overlay": ["one"]}
DISKLESS = {
    "arch": "amd64",
    "root": "ram",
    "overlay": ["one"],
    "users": [{"name": "root", "authorized-keys": ["a.pub"]}],
}
OWN = {
    "arch": "amd64",
    "root": "ram",
    "users": [{"name": "ops", "authorized-keys": ["a.pub"]}],
    "overlay": ["one"],
    "hooks": ["hook"],
}
START: dict[str, list[dict[str, Any]]] = {
    "debian": [
        {**OWN, "debian": {"suite": "bookworm", "packages": ["less"]}},
        {**OWN, "root": "nfs", "debian": {"suite": "trixie", "package-groups": {"tools": ["nano"], "app": ["sudo"]}}},
        {**OWN, "root": "squashfs", "debian": {"suite": "bookworm", "keyring": "keys/archive.gpg"}},
    ],
    "alpine": [
        {**DISKLESS, "alpine": {"branch": "3.22", "flavor": "virt", "signing-key": {"env": "EDITS_ONE"}}},
        {
            **DISKLESS,
            "alpine": {
                "branch": "edge",
                "source": "mkinitfs",
                "repository": "release",
                "signing-key": {"env": "EDITS_ONE"},
                "base": "base.apkovl.tar.gz",
            },
        },
    ],
    "archlinux": [
        {**OFFICIAL, "archlinux": {"release": "latest", "host-scripts": {"node-1": "hook"}}},
        {**OFFICIAL, "archlinux": {"iso": "a.pub", "signature": "b.pub", "keyring": "keys/archive.gpg"}},
        {**OFFICIAL, "archlinux": {"iso-url": "http://one.lab/x.iso"}, "hostname": "node-1"},
        {**OWN, "root": "squashfs", "archlinux": {"pacstrap": {"packages": ["vim"]}}},
    ],
    "nixos": [
        {"arch": "arm64", "root": "ram", "nixos": {"flake": "one", "configuration": "test"}},
        {"arch": "amd64", "root": "ram", "nixos": {"reference": "github:lab/images", "netboot": "packages.x"}},
    ],
}

FILES = ("a.pub", "b.pub", "hook", "other-hook", "lab.rsa.pub", "more.rsa.pub", "keys/archive.gpg")
FOLDERS = ("one", "two")

CHOICES: dict[str, tuple[str, ...]] = {
    "debian.suite": ("bookworm", "trixie", "sid", "noble"),
    "debian.mirror": ("http://apt.lab/debian", "http://other.lab/debian"),
    "debian.security-mirror": ("http://apt.lab/security", "http://other.lab/security"),
    "debian.packages": ("less", "vim-tiny", "busybox", "sudo", "locales", "tzdata", "zstd", "linux-image-amd64"),
    "debian.kernel": ("linux-image-amd64", "linux-image-cloud-amd64", "linux-image-generic", "linux-image-arm64"),
    "debian.components": ("main", "contrib", "non-free-firmware"),
    "alpine.branch": ("3.21", "3.22", "v3.22", "edge", "latest-stable"),
    "alpine.base": ("base.apkovl.tar.gz",),
    "alpine.keys": ("lab.rsa.pub", "more.rsa.pub"),
    "alpine.packages": ("less", "openssl", "openssh", "tzdata", "alpine-base", "chrony"),
    "alpine.signing-key.env": ("EDITS_ONE", "EDITS_ONE_TOO", "EDITS_TWO"),
    "alpine.encryption.password-env": ("EDITS_ONE", "EDITS_ONE_TOO", "EDITS_TWO"),
    "alpine.mkinitfs.packages": ("mkinitfs", "strace", "linux-virt"),
    "alpine.mkinitfs.firmware": ("linux-firmware-none", "linux-firmware-bnx2"),
    "alpine.mirrors": ("http://one.lab/alpine", "http://one.lab/alpine/", "http://two.lab"),
    "archlinux.release": ("latest", "2026.11.01", "2026.10.01"),
    "archlinux.iso-url": ("http://one.lab/x.iso", "http://two.lab/x.iso"),
    "archlinux.pacstrap.packages": ("base", "vim", "linux", "linux-lts"),
    "archlinux.pacstrap.kernel": ("linux", "linux-lts"),
    "archlinux.host-scripts": ("node-1", "node-2", "node-3"),
    "arch": ("amd64", "x86_64", "arm64"),
    "cmdline": ("quiet", "console=ttyS0", "console=ttyS0  quiet"),
    "locale": ("C.UTF-8", "C", "POSIX", "de_DE.UTF-8", "en_GB.UTF-8"),
    "timezone": ("Etc/UTC", "Europe/Berlin", "America/New_York"),
    "hostname": ("node-1", "node-2"),
    "users.name": ("root", "ops", "dev"),
    "users.password-env": ("EDITS_HASH", "EDITS_HASH_TOO", "EDITS_ONE"),
    "debian.package-groups": ("tools", "app", "more"),
    "users.groups": ("adm", "video", "audio"),
    "persist": ("/srv", "/var/lib/kubelet", "/home"),
    "hooks.run": ("hook", "other-hook"),
    "nixos.store": ("b0",),
    "nixos.reference": ("github:lab/images", "github:lab/others"),
}
"""Texts that meet each other again; others are made of their patterns."""

MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03")


@dataclass
class Place:
    """A checkout with one recipe, which is edited."""

    folder: Path
    model: Model
    told: dict[str, Any]
    draw: Callable[[st.SearchStrategy[Any]], Any]
    dice: random.Random
    todo: list[tuple[str, str]] = field(default_factory=list)
    hosts: dict[str, dict[str, str]] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "recipes/one"

    def start(self) -> None:
        for name in FILES:
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(apklab.public() if name.endswith("rsa.pub") else f"{name}\n")
            path.chmod(0o755 if "hook" in name else 0o644)
        (self.home / "base.apkovl.tar.gz").write_bytes(packed({"etc/apk/world": Member("f", BASE_WORLD.encode())}, 1))
        for name in FOLDERS:
            (self.home / name / "etc/apk").mkdir(parents=True)
            (self.home / name / "etc/apk/world").write_text("chrony\n")
            (self.home / name / "flake.nix").write_text(f"{{ }} # {name}\n")
            (self.home / name / "README").write_text(name)
        self.hosts = {MACS[0]: {"name": "node-1", "recipe": "one"}, MACS[1]: {"name": "node-2"}}
        self.write()

    def write(self) -> None:
        """JSON is YAML, and written faster."""
        (self.home / "recipe.yaml").write_text(json.dumps(self.told))
        site = {"hosts": self.hosts, "builders": {"b0": {"ssh": "spark", "systems": ["aarch64-linux"]}}, **self.said}
        (self.folder / "site.yaml").write_text(json.dumps(site))

    # Edits of the recipe: of a field, of any, to what its type allows

    def edit_recipe(self) -> str:
        kinds = {"": Common, self.model.distro: self.model.options}
        if not self.todo:
            self.todo = [(above, place) for above, kind in kinds.items() for place in places(kind)]
            self.dice.shuffle(self.todo)
        above, place = self.todo.pop()
        path = f"{above}.{place}".removeprefix(".")
        self.told = json.loads(json.dumps(self.told))
        if above:
            self._edit(self.told.setdefault(above, {}), kinds[above], place, above)
        else:
            self._edit(self.told, Common, place, "")
        return path

    def _edit(self, node: dict[str, Any], kind: type, place: str, above: str) -> None:
        """Give a field another value, or none. What is in a list may be any of it, a new one, or one less."""
        first, _, rest = place.partition(".")
        key = shape.keys(kind)[first]
        where = f"{above}.{first}".removeprefix(".")
        nested = key.shape.nested or (key.shape.inner[0].nested if key.shape.inner else None)
        if not rest:
            before = node.get(first)
            if before is not None and not key.required and self.dice.random() < 0.2:
                del node[first]
                return
            for _ in range(4):
                node[first] = self.value(key.shape, where, before)
                if node[first] != before:
                    break
        elif rest.startswith("*."):
            assert nested is not None
            items = node.setdefault(first, [])
            items[:] = [item if isinstance(item, dict) else {shape.short_key(nested): item} for item in items]
            if not items or self.dice.random() < 0.2:
                items.append(self.value(key.shape.inner[0], where, None))
            elif self.dice.random() < 0.15:
                items.pop(self.dice.randrange(len(items)))
            elif self.dice.random() < 0.1:
                self.dice.shuffle(items)
            else:
                self._edit(self.dice.choice(items), nested, rest[2:], where)
        else:
            assert nested is not None
            inner = node.setdefault(first, {})
            if not isinstance(inner, dict):
                inner = node[first] = {shape.short_key(nested): inner}
            if key.shape.optional and self.dice.random() < 0.2:
                del node[first]
            else:
                self._edit(inner, nested, rest, where)

    def value(self, wanted: Shape, where: str, old: Any) -> Any:
        """Something that the type allows."""
        made: Any
        if wanted.nested:
            made = {}
            for name, key in shape.keys(wanted.nested).items():
                if key.required or self.dice.random() < 0.3:
                    made[name] = self.value(key.shape, f"{where}.{name}", None)
        elif wanted.base is tuple:
            made = self.items(wanted.inner[0], where, old)
        elif wanted.base is dict:
            names = self.dice.sample(CHOICES[where], self.dice.randint(0, 2))
            made = {name: self.value(wanted.inner[1], "", None) for name in names}
        elif wanted.choices:
            made = self.dice.choice([*wanted.choices])
        elif where in CHOICES:
            made = self.dice.choice(CHOICES[where])
        elif wanted.base is bool:
            made = self.dice.random() < 0.5
        elif wanted.base is int:
            low = (wanted.note(Range) or Range()).minimum or 0
            made = self.dice.randint(low, low + 9)
        elif wanted.base is Path:
            made = self.dice.choice(FILES if wanted.note(File) else FOLDERS)
        else:
            pattern = (wanted.note(Text) or Text()).pattern or "[a-z ]{0,9}"
            made = self.draw(st.from_regex(f"(?a:{pattern})", fullmatch=True))
        return made

    def items(self, element: Shape, where: str, old: Any) -> list[Any]:
        """Another list: one more, one less, in another order, or new."""
        found = [*old] if isinstance(old, list) else []
        how = self.dice.random()
        if found and how < 0.3:
            found.pop(self.dice.randrange(len(found)))
        elif len(found) > 1 and how < 0.5:
            self.dice.shuffle(found)
        else:
            found.append(self.value(element, where, None))
        return list({json.dumps(one): one for one in found}.values())

    # Edits of files

    def edit_file(self) -> str:
        files = sorted(path for path in self.home.rglob("*") if path.is_file() and "recipe." not in path.name)
        path = self.dice.choice(files)
        folder = self.home / self.dice.choice(FOLDERS)
        name = f"new-{self.dice.randrange(4)}"
        how = self.dice.choice(["content", "content", "x", "mode", "time", "same", "new", "folder", "link", "name"])
        if how == "content" and not path.name.endswith((".rsa.pub", ".gz")):
            path.write_text(f"{path.name} {self.dice.randrange(9)}\n")
        elif how == "x":
            path.chmod(path.stat().st_mode ^ 0o111)
        elif how == "mode":
            path.chmod(path.stat().st_mode ^ 0o044)
        elif how == "time":
            os.utime(path, (1, self.dice.randrange(10**9)))
        elif how == "same":
            new = path.with_name("copy")
            shutil.copy2(path, new)
            new.replace(path)
        elif how == "new" and not (folder / name).exists():
            (folder / name).write_text("new\n")
        elif how == "folder" and not (folder / name).exists():
            (folder / name).mkdir()
        elif how == "link" and not (folder / "link").exists():
            (folder / "link").unlink(missing_ok=True)
            (folder / "link").symlink_to(self.dice.choice(["/etc/motd", "/etc/issue"]))
        elif how == "name" and path.name == "README":
            path.rename(path.with_name("README.old"))
        return f"file: {how}"

    # Edits of what is around

    def edit_site(self) -> str:
        how = self.dice.choice(["host", "host", "mirrors", "other recipe", "comment", "order"])
        mac = self.dice.choice(MACS)
        if how == "host" and mac in self.hosts and self.dice.random() < 0.3:
            del self.hosts[mac]
        elif how == "host":
            free = [f"node-{n}" for n in (1, 2, 3) if f"node-{n}" not in {one["name"] for one in self.hosts.values()}]
            name = self.dice.choice(free) if free else self.hosts[mac]["name"]
            self.hosts[mac] = {"name": name, **({"recipe": "one"} if self.dice.random() < 0.7 else {})}
        elif how == "mirrors":
            self.said = {"mirrors": {"debian": {"archive": f"http://{self.dice.choice('abc')}.lab"}}}
        elif how == "other recipe":
            other = self.folder / "recipes/two"
            other.mkdir(exist_ok=True)
            (other / "recipe.yaml").write_text(
                f"arch: amd64\ndescription: x{self.dice.randrange(9)}\ndebian: {{suite: bookworm}}\n"
            )
        elif how == "order":
            self.told = dict(reversed(self.told.items()))
        return f"site: {how}"

    # What comes of it

    def look(self, identity: HostIdentity, before: House | None = None) -> House:
        """A house as a new process has it; of `before`, only the lock is another one."""
        house = House(self.folder)
        house.__dict__["identity"] = identity
        if before is not None:
            house.__dict__["recipes"] = before.recipes
        return house


@dataclass(frozen=True)
class Seen:
    """A recipe, what its stages see by the table, and their keys; `asked`: whether upstream had to be asked anew."""

    recipe: Recipe
    sees: dict[str, dict[str, Any]]
    keys: dict[str, str]
    asked: bool


def seen(place: Place, identity: HostIdentity) -> Seen:
    """Raises SchemaError."""
    house = place.look(identity)
    recipe = house.recipes["one"]
    sees = place.model.sees(recipe)
    asked = any(stage.facts is None for stage in house.plan("one").stages)
    lock = json.dumps(place.model.lock(recipe))
    if asked or not recipe.lock.exists() or recipe.lock.read_text() != lock:
        # A lock that is current is written again as well: nothing of it may matter that no stage reads.
        recipe.lock.write_text(lock)
        house = place.look(identity, house)
    found = house.keys("one")
    assert set(found) == set(place.model.stages(recipe))
    keys = {name: keyed.key for name, keyed in found.items()}
    return Seen(recipe, sees, {**keys, "release": house.release_key("one", found)}, asked)


def differing(old: Seen, new: Seen) -> set[str]:
    return {name for name in {**old.keys, **new.keys} if old.keys.get(name) != new.keys.get(name)}


@pytest.mark.parametrize("distro", MODELS)
def test_the_table_knows_each_field(distro: str) -> None:
    """As the types have them: a new one has to be thought of."""
    model = MODELS[distro]
    wanted = {*places(Common), *(f"{distro}.{place}" for place in places(model.options))}
    assert set(model.table) == wanted


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> HostIdentity:
    return HostIdentity(tmp_path_factory.mktemp("memory") / "digests.json", PACKAGES)


SECRETS = {
    "EDITS_ONE": "one",
    "EDITS_ONE_TOO": "one",
    "EDITS_TWO": "two",
    "EDITS_HASH": "$6$salt$hash",
    "EDITS_HASH_TOO": "$6$salt$hash",
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in SECRETS.items():
        monkeypatch.setenv(name, text)


@pytest.mark.parametrize(
    ("distro", "start"), [(distro, start) for distro in MODELS for start in range(len(START[distro]))]
)
def test_what_edits_rebuild(
    distro: str,
    start: int,
    tmp_path_factory: pytest.TempPathFactory,
    identity: HostIdentity,
    capsys: pytest.CaptureFixture[str],
) -> None:
    COUNTS.clear()
    CHANGED.clear()

    @settings(
        max_examples=max(2, TOTAL // sum(map(len, START.values())) // WALK),
        deadline=None,
        derandomize=not TOTAL,
        database=None,
        # An edit that fails says all there is to say: a shorter walk to it says no more.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def walk(data: st.DataObject) -> None:
        folder = tmp_path_factory.mktemp("edits")
        dice = random.Random(data.draw(st.integers(0, 1 << 32)))
        place = Place(folder, MODELS[distro], START[distro][start], data.draw, dice)
        try:
            _walk(place, identity)
        finally:
            shutil.rmtree(folder)

    walk()
    with capsys.disabled():
        print(f"\n{distro}: {dict(COUNTS)}; {len(CHANGED)} fields and kinds of edits changed something")
    assert not COUNTS["stale"]
    assert not COUNTS["needless"]
    # Of NixOS most words are refused: its flake says them.
    assert COUNTS["changing"]
    assert COUNTS["edits"] > COUNTS["refused"] / 2


def _walk(place: Place, identity: HostIdentity) -> None:
    place.start()
    old = seen(place, identity)
    for _ in range(WALK):
        before = place.told, dict(place.hosts), dict(place.said)
        how = place.dice.choices([place.edit_recipe, place.edit_file, place.edit_site], [6, 2, 1])[0]
        what = how()
        place.write()
        try:
            new = seen(place, identity)
        except (SchemaError, BuildError):
            # Not a recipe: nothing is built of it. A file's edit stays; what it was before is in the recipe again.
            COUNTS["refused"] += 1
            place.told, place.hosts, place.said = before
            place.write()
            place.home.joinpath("hook").chmod(0o755)
            place.home.joinpath("other-hook").chmod(0o755)
            old = seen(place, identity)
            continue
        COUNTS["edits"] += 1
        if old.sees != new.sees:
            CHANGED.add(what)
        should = place.model.changes(old.recipe, new.recipe, old.sees, new.sees)
        does = differing(old, new)
        asks = old.sees["lock"] != new.sees["lock"]
        COUNTS["changing"] += bool(should)
        COUNTS["stale"] += len(should - does) + (asks and not new.asked)
        COUNTS["needless"] += len(does - should) + (new.asked and not asks)
        assert (does, new.asked) == (should, asks), (what, place.told, sorted(should), sorted(does))
        old = new
