"""What changes a key, and what doesn't: each word of a recipe, its files, the code, and what is around them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from buildlib import distros, identity, plan, recipe, user
from buildlib.distros import debian
from buildlib.house import House

GOLDEN = Path(__file__).with_name("golden") / "keys.json"
"""Documents of the recipe below. After a change that is meant to change keys:
`UPDATE_GOLDEN=1 pytest tests/test_keys.py`, then read the diff: each line of it is a rebuild for every user."""

RECIPE = r"""
arch: amd64
description: a table top
root: {kind: ram, size: 50%}
clients: volatile
persist: [/var/lib/kubelet]
cmdline: console=ttyS0
hostname: node
locale: C.UTF-8
timezone: Etc/UTC
users:
  - name: ops
    uid: 1000
    groups: [adm]
    sudo: 'no'
    password-env: NETBOOT_TEST_HASH
    shell: /bin/bash
    authorized-keys: [keys/ops.pub]
services:
  enable: [a.service]
  disable: [b.service]
  mask: [c.service]
overlay: [overlay]
owners:
  - {path: /etc/motd, owner: 'root:adm', mode: '0640'}
hooks:
  - {run: hooks/one, network: false}
debian:
  suite: bookworm
  engine: mmdebstrap
  variant: minbase
  mirror: http://apt.lab/debian
  security-mirror: http://apt.lab/debian-security
  components: [main]
  packages: [less, vim-tiny]
  recommends: false
  kernel: linux-image-amd64
  initramfs:
    modules: netboot
    include: [mlx5_core]
    compression: zstd
"""

FILES = {
    "overlay/etc/motd": "hello\n",
    "more/etc/issue": "more\n",
    "keys/ops.pub": "ssh-ed25519 AAAA ops\n",
    "keys/other.pub": "ssh-ed25519 BBBB other\n",
    "keys/archive.gpg": "a keyring\n",
    "hooks/one": "#!/bin/sh\n",
    "hooks/two": "#!/bin/sh\n",
}

CHAIN = (
    *("index", "bootstrap", "packages", "initramfs", "squashfs-base"),
    *("system", "customise", "squashfs", "initrd", "release"),
)

TYPES = {
    "": recipe.Common,
    "root": recipe.Root,
    "users.0": user.User,
    "services": recipe.Services,
    "owners.0": recipe.Owner,
    "hooks.0": recipe.Hook,
    "debian": debian.Options,
    "debian.initramfs": debian.options.Initramfs,
}
"""The types whose fields are a recipe's words, by the place where one of them stands above."""

NFS: dict[str, object] = {"root": "nfs", "persist": None}
SQUASHFS: dict[str, object] = {"root": {"kind": "squashfs"}}


class Case(NamedTuple):
    """A field by its place, a new value, and the first stage that this runs again; `before` is set on both sides."""

    field: str
    value: object
    first: str
    before: Mapping[str, object] = {}


CASES = [
    Case("arch", "arm64", "index"),
    Case("description", "a rack", "release"),
    Case("root", "nfs", "squashfs"),
    Case("root.kind", "squashfs", "packages"),
    Case("root.over", "nfs", "release", SQUASHFS),
    Case("root.size", "80%", "release"),
    Case("clients", "rw", "system", NFS),
    Case("persist", ["/srv"], "system"),
    Case("cmdline", "quiet", "release"),
    Case("hostname", "other", "system"),
    Case("locale", "POSIX", "system"),
    Case("locale", "en_GB.UTF-8", "packages"),
    Case("timezone", "Europe/Berlin", "system"),
    Case("users", [], "system"),
    Case("users.0.name", "dev", "system"),
    Case("users.0.uid", 1001, "system"),
    Case("users.0.groups", ["adm", "video"], "system"),
    Case("users.0.sudo", "yes", "packages"),
    Case("users.0.sudo", "nopasswd", "system", {"users.0.sudo": "yes"}),
    Case("users.0.password-env", "OTHER_HASH", "system"),
    Case("users.0.password-env", None, "system"),
    Case("users.0.password-file", "~/.secrets/hash", "system", {"users.0.password-env": None}),
    Case("users.0.shell", "/bin/sh", "system"),
    Case("users.0.authorized-keys", ["keys/other.pub"], "system"),
    Case("services", {}, "system"),
    Case("services.enable", ["z.service"], "system"),
    Case("services.disable", ["z.service"], "system"),
    Case("services.mask", ["z.service"], "system"),
    Case("overlay", ["overlay", "more"], "customise"),
    Case("overlay", ["more", "overlay"], "customise", {"overlay": ["overlay", "more"]}),
    Case("owners", [], "customise"),
    Case("owners.0.path", "/etc/issue", "customise"),
    Case("owners.0.owner", "root", "customise"),
    Case("owners.0.mode", "0600", "customise"),
    Case("hooks", [], "customise"),
    Case("hooks", ["hooks/two", "hooks/one"], "customise", {"hooks": ["hooks/one", "hooks/two"]}),
    Case("hooks.0.run", "hooks/two", "customise"),
    Case("hooks.0.network", True, "customise"),
    Case("debian.suite", "trixie", "index"),
    Case("debian.engine", "debootstrap", "bootstrap"),
    Case("debian.variant", "important", "bootstrap"),
    # Where packages come from is no part of what they are; but the image's own sources.list names it.
    Case("debian.mirror", "http://other.lab/debian", "system"),
    Case("debian.security-mirror", "http://other.lab/debian-security", "system"),
    Case("debian.snapshot", "20261101T000000Z", "system"),
    Case("debian.components", ["main", "non-free-firmware"], "index"),
    Case("debian.keyring", "keys/archive.gpg", "index"),
    Case("debian.packages", ["less"], "packages"),
    Case("debian.package-groups", {"tools": ["nano"]}, "system"),
    Case("debian.recommends", True, "packages"),
    Case("debian.kernel", "linux-image-cloud-amd64", "packages"),
    Case("debian.initramfs", {}, "initramfs"),
    Case("debian.initramfs.modules", "most", "initramfs"),
    Case("debian.initramfs.include", [], "initramfs"),
    Case("debian.initramfs.compression", "lz4", "packages"),
    Case("debian.initramfs.compression", "lzma", "initramfs", {"debian.initramfs.compression": "xz"}),
]

SAME = [
    Case("arch", "x86_64", ""),
    Case("root", "ram", "", {"root.size": None}),
    Case("debian.packages", ["vim-tiny", "less"], ""),
    Case("debian.packages", ["less", "vim-tiny", "busybox"], ""),
    Case("debian.kernel", None, ""),
    Case("debian.variant", None, ""),
    Case("hooks", ["hooks/one"], ""),
    Case("boot", {"memory": 2048, "firmware": ["uefi-grub"]}, ""),
]
"""Other words for the same thing, and words that are not of the image."""


def changed(text: str, changes: Mapping[str, object]) -> str:
    """The recipe with other values at dotted places; None takes a key away."""
    told = copy.deepcopy(yaml.safe_load(text))
    for place, value in changes.items():
        *above, last = place.split(".")
        where: Any = told
        for name in above:
            where = where[int(name)] if isinstance(where, list) else where[name]
        if value is None:
            where.pop(last, None)
        else:
            where[last] = value
    return yaml.safe_dump(told, sort_keys=False)


@functools.cache
def learned() -> bytes:
    """Digests of the code, as an earlier run leaves them: parsing it all for each of the checkouts takes long."""
    with tempfile.TemporaryDirectory() as folder:
        house = House(write(Path(folder), warm=False))
        house.release_key("one", house.keys("one"))
        house.identity.save()
        memory = house.cache / "digests.json"
        return memory.read_bytes() if memory.exists() else b"{}"


def write(folder: Path, text: str = RECIPE, name: str = "one", *, warm: bool = True) -> Path:
    """A checkout with the recipe, its files, and a lock as the recipe asks for it."""
    home = folder / "recipes" / name
    if warm:
        (folder / "out/cache").mkdir(parents=True, exist_ok=True)
        (folder / "out/cache/digests.json").write_bytes(learned())
    for path, content in FILES.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(content)
        (home / path).chmod(0o755 if path.startswith("hooks/") else 0o644)
    (home / "recipe.yaml").write_text(text)
    suites = [f"{suite}{more}" for suite in ("bookworm", "trixie") for more in ("", "-updates", "-security")]
    snapshot = yaml.safe_load(text)["debian"].get("snapshot")
    facts = {suite: {"inrelease": f"{n:064}", "date": n, "snapshot": snapshot} for n, suite in enumerate(suites)}
    (home / "recipe.lock").write_text(json.dumps({"suites": facts}))
    return folder


def keys(folder: Path, name: str = "one") -> dict[str, str]:
    """Keys by stage as a fresh process computes them, and the release's."""
    house = House(folder)
    found = house.keys(name)
    return {**{stage: keyed.key for stage, keyed in found.items()}, "release": house.release_key(name, found)}


def differing(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return [stage for stage in CHAIN if old.get(stage) != new.get(stage)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write(tmp_path / "checkout")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return keys(write(tmp_path_factory.mktemp("baseline")))


def test_the_recipe_has_every_stage(baseline: dict[str, str]) -> None:
    assert set(baseline) == set(CHAIN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.field}={case.value}")
def test_a_field_reruns_its_stage_and_all_after_it(case: Case, tmp_path: Path, baseline: dict[str, str]) -> None:
    text = changed(RECIPE, case.before)
    old = keys(write(tmp_path / "old", text)) if case.before else baseline
    new = keys(write(tmp_path / "new", changed(text, {case.field: case.value})))
    # With those before it that only one of the two has.
    expected = {*CHAIN[CHAIN.index(case.first) :]} & (old.keys() | new.keys()) | (old.keys() ^ new.keys())
    assert differing(old, new) == [stage for stage in CHAIN if stage in expected]


@pytest.mark.parametrize(
    "place",
    [
        f"{where}.{field.name.replace('_', '-')}".removeprefix(".")
        for where, kind in TYPES.items()
        for field in dataclasses.fields(kind)
    ],
)
def test_every_field_is_in_the_table(place: str) -> None:
    assert place in {case.field for case in (*CASES, *SAME)}


@pytest.mark.parametrize("case", SAME, ids=lambda case: f"{case.field}={case.value}")
def test_other_words_for_the_same_rerun_nothing(case: Case, tmp_path: Path) -> None:
    text = changed(RECIPE, case.before)
    old = keys(write(tmp_path / "old", text))
    assert keys(write(tmp_path / "new", changed(text, {case.field: case.value}))) == old


def _append(path: str, text: str) -> Callable[[Path], object]:
    def change(home: Path) -> None:
        with (home / path).open("a") as file:
            file.write(text)

    return change


def _link(points_to: str) -> Callable[[Path], object]:
    def change(home: Path) -> None:
        (home / "overlay/link").unlink(missing_ok=True)
        (home / "overlay/link").symlink_to(points_to)

    return change


def _lock(home: Path) -> None:
    lock = json.loads((home / "recipe.lock").read_text())
    lock["suites"]["bookworm-security"]["inrelease"] = "f" * 64
    (home / "recipe.lock").write_text(json.dumps(lock))


def test_a_key_may_be_called_as_what_is_not_the_recipes(tmp_path: Path) -> None:
    """Else the one would hide the other, and a change of it."""
    own = ["guest", "keyring", "archive"]
    text = changed(RECIPE, {"users.0.authorized-keys": own, "debian.keyring": "keys/archive.gpg"})
    folder = write(tmp_path, text)
    for name in own:
        (folder / "recipes/one" / name).write_text(f"ssh-ed25519 {name}\n")
    files = House(folder).keys("one")["system"].document["files"]
    assert {"guest/", "keyring/", *own} <= files.keys()
    assert len({str(files[name]) for name in ("guest/", "keyring/", *own)}) == 5


GROUPS = {"tools": ["nano", "htop"], "app": ["nginx"]}

GROUP_CASES: dict[str, tuple[Mapping[str, list[str]], list[str]]] = {
    "one more in the last": (
        {**GROUPS, "app": ["nginx", "curl"]},
        ["packages-app", "initramfs-final", "squashfs-packages-app", *CHAIN[5:]],
    ),
    "one more in the first": (
        {**GROUPS, "tools": ["nano", "htop", "curl"]},
        [
            *("packages-tools", "packages-app", "initramfs-final"),
            *("squashfs-packages-tools", "squashfs-packages-app"),
            *CHAIN[5:],
        ],
    ),
    "another order within one": ({**GROUPS, "tools": ["htop", "nano"]}, []),
}
"""What becomes of groups, and the stages that this runs again."""


@pytest.mark.parametrize("case", GROUP_CASES)
def test_a_group_reruns_its_layer_and_what_is_after_it(case: str, tmp_path: Path) -> None:
    groups, expected = GROUP_CASES[case]
    old = keys(write(tmp_path / "old", changed(RECIPE, {"debian.package-groups": GROUPS})))
    new = keys(write(tmp_path / "new", changed(RECIPE, {"debian.package-groups": groups})))
    assert [stage for stage in new if old[stage] != new[stage]] == expected


def test_groups_are_layers_in_the_recipes_order(tmp_path: Path, baseline: dict[str, str]) -> None:
    below = ["bootstrap", "packages", "initramfs"]
    for groups in (GROUPS, dict(reversed(GROUPS.items()))):
        house = House(write(tmp_path / "-".join(groups), changed(RECIPE, {"debian.package-groups": groups})))
        root = [stage.name for stage in house.plan("one").root]
        assert root == [*below, *(f"packages-{name}" for name in groups), "system", "customise"]
        assert {name: house.keys("one")[name].key for name in below} == {name: baseline[name] for name in below}


FILE_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "overlay content": (_append("overlay/etc/motd", "more"), "customise"),
    "overlay x bit": (lambda home: (home / "overlay/etc/motd").chmod(0o755), "customise"),
    "overlay new file": (lambda home: (home / "overlay/new").touch(), "customise"),
    "overlay new folder": (lambda home: (home / "overlay/new").mkdir(), "customise"),
    "overlay renamed file": (lambda home: (home / "overlay/etc/motd").rename(home / "overlay/etc/m"), "customise"),
    "overlay link": (_link("/etc/motd"), "customise"),
    "hook content": (_append("hooks/one", "true\n"), "customise"),
    "authorized key content": (_append("keys/ops.pub", "ssh-ed25519 CCCC new\n"), "system"),
    "lock": (_lock, "index"),
}


@pytest.mark.parametrize("case", FILE_CASES)
def test_a_file_of_the_recipe_reruns_its_stage(case: str, checkout: Path, baseline: dict[str, str]) -> None:
    change, first = FILE_CASES[case]
    change(checkout / "recipes/one")
    assert differing(baseline, keys(checkout)) == list(CHAIN[CHAIN.index(first) :])


def test_a_link_is_told_by_where_it_points(checkout: Path) -> None:
    _link("/etc/motd")(checkout / "recipes/one")
    old = keys(checkout)
    _link("/etc/issue")(checkout / "recipes/one")
    assert differing(old, keys(checkout)) == list(CHAIN[CHAIN.index("customise") :])


def _other_recipe(folder: Path) -> None:
    write(folder, changed(RECIPE, {"debian.packages": ["nano"]}), "two")


def _reordered(folder: Path) -> None:
    told = yaml.safe_load(RECIPE)
    told["debian"] = dict(reversed(told["debian"].items()))
    text = yaml.safe_dump(dict(reversed(told.items())), sort_keys=False)
    (folder / "recipes/one/recipe.yaml").write_text(text)


def _touched(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))


def _other_suite(folder: Path) -> None:
    lock = json.loads((folder / "recipes/one/recipe.lock").read_text())
    del lock["suites"]["trixie"]
    (folder / "recipes/one/recipe.lock").write_text(json.dumps(lock, indent=4))


HITS: dict[str, Callable[[Path], object]] = {
    "times": _touched,
    "modes that git does not keep": lambda folder: (folder / "recipes/one/overlay/etc/motd").chmod(0o600),
    "a YAML comment": lambda folder: (folder / "recipes/one/recipe.yaml").write_text(f"# why\n{RECIPE}# so\n"),
    "the order of YAML keys": _reordered,
    "another recipe": _other_recipe,
    "a file that no stage reads": lambda folder: (folder / "recipes/one/README").touch(),
    "a lock's other suites": _other_suite,
    "the site's mirrors": lambda folder: (folder / "site.yaml").write_text(
        "mirrors: {debian: {archive: http://mirror.lab/debian}}\n"
    ),
}


@pytest.mark.parametrize("case", HITS)
def test_reruns_nothing(case: str, checkout: Path, baseline: dict[str, str]) -> None:
    HITS[case](checkout)
    assert keys(checkout) == baseline


@pytest.mark.parametrize("keyring", [None, "keys/archive.gpg"])
def test_a_checkout_elsewhere_has_the_same_keys(keyring: str | None, tmp_path: Path) -> None:
    text = changed(RECIPE, {"debian.keyring": keyring})
    assert keys(write(tmp_path / "here", text)) == keys(write(tmp_path / "elsewhere/deeper", text))


def test_equal_recipes_share_their_stages(checkout: Path, baseline: dict[str, str]) -> None:
    write(checkout, name="two")
    assert keys(checkout, "two") == baseline


def test_a_lock_of_another_snapshot_says_nothing(checkout: Path) -> None:
    text = changed(RECIPE, {"debian.snapshot": "20261101T000000Z"})
    (checkout / "recipes/one/recipe.yaml").write_text(text)
    assert House(checkout).keys("one") == {}


def test_no_document_holds_a_password_hash(checkout: Path) -> None:
    found = [keyed.document for keyed in House(checkout).keys("one").values()]
    assert "$6$" not in json.dumps(found)


def test_no_document_holds_the_checkouts_path(tmp_path: Path) -> None:
    folder = write(tmp_path, changed(RECIPE, {"debian.keyring": "keys/archive.gpg"}))
    found = [keyed.document for keyed in House(folder).keys("one").values()]
    assert str(tmp_path) not in json.dumps(found)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that identities look at."""
    copied = tmp_path / "code" / "buildlib"
    shutil.copytree(identity.PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "PACKAGE", copied)
    return copied


def code(run: str, tmp_path: Path) -> str:
    return identity.HostIdentity(tmp_path / "no-memory.json", {}).code(run)


CODE = "buildlib.distros.debian.customise:run"

CODE_HITS = {
    "a comment": ("distros/debian/customise.py", "HOOK = ", "# why\nHOOK = "),
    "a comment at a line's end": ("distros/debian/customise.py", '"/run/netboot/hook"', '"/run/netboot/hook"  # why'),
    "a blank line": ("distros/debian/customise.py", "HOOK = ", "\n\nHOOK = "),
    "a module's docstring": ("distros/debian/customise.py", "The stage `customise`", "The last stage"),
    "a function's docstring": ("distros/debian/customise.py", "clean, prove that it is", "clean, and prove"),
    "a constant's docstring": ("distros/debian/clean.py", "Made by packages when", "Made by them when"),
    "a class' docstring": ("sandbox.py", '"""Where a command runs.', '"""Where one runs.'),
    "a module that isn't reached": ("report.py", "_TAIL = 12", "_TAIL = 13"),
    "another stage's module": ("distros/debian/packages.py", "SETTINGS = ", "OTHER = SETTINGS = "),
    "the plan's own module": ("distros/debian/options.py", "UBUNTU = ", "OTHER = UBUNTU = "),
}

CODE_MISSES = {
    "its own module": ("distros/debian/customise.py", "HOOK = ", "OTHER = HOOK = "),
    "a module that it imports": ("distros/debian/clean.py", "LINKS = ", "OTHER = LINKS = "),
    "a module that those import": ("inside.py", "MNT_DETACH = 2", "MNT_DETACH = 3"),
    "a text that isn't a docstring": ("distros/debian/customise.py", "failed", "did not work"),
}


def edit(package: Path, path: str, old: str, new: str) -> None:
    text = (package / path).read_text()
    assert old in text
    (package / path).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("case", CODE_HITS)
def test_code_that_reruns_nothing(case: str, package: Path, tmp_path: Path) -> None:
    before = code(CODE, tmp_path)
    edit(package, *CODE_HITS[case])
    assert code(CODE, tmp_path) == before


@pytest.mark.parametrize("case", CODE_MISSES)
def test_code_that_reruns_a_stage(case: str, package: Path, tmp_path: Path) -> None:
    before = code(CODE, tmp_path)
    edit(package, *CODE_MISSES[case])
    assert code(CODE, tmp_path) != before


def test_functions_of_one_module_are_told_apart(tmp_path: Path) -> None:
    assert code("buildlib.pack:initrd", tmp_path) != code("buildlib.pack:squashfs", tmp_path)


class FakeIdentity:
    """The same answers on every machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, path: Path) -> dict[str, str]:
        name = path.name if not path.is_relative_to(self.folder) else str(path.relative_to(self.folder))
        return {".": f"content of {name}"}

    def code(self, run: str) -> str:
        return f"code of {run}"

    def tool(self, name: str) -> str:
        return f"version of {name}"


def documents(folder: Path, text: str) -> dict[str, Any]:
    made = House(write(folder, text))
    found = made.recipes["one"]
    stages = distros.get(found.distro).plan(found, made.lock("one")).stages
    return {name: dict(keyed.document) for name, keyed in plan.keyed(stages, FakeIdentity(folder)).items()}


def test_golden_documents(tmp_path: Path) -> None:
    # A keyring of the recipe's own: where the distribution's lies differs from machine to machine.
    made = documents(tmp_path, changed(RECIPE, {"debian.keyring": "keys/archive.gpg"}))
    text = json.dumps(made, indent=1, sort_keys=True) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
