"""Alpine from a mirror's netboot bundle with an apkovl, on real servers, up to a machine that has both."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildlib.distros.alpine import Options, apkovl
from buildlib.errors import BuildError
from buildlib.house import House
from buildlib.members import Member, packed
from buildlib.schema import SchemaError
from tests import alpinelab, apklab
from tests.checkout import Checkout
from tests.test_archlinux import Mirror

RECIPE = """\
arch: amd64
root: ram
cmdline: console=ttyS0
alpine:
  branch: '3.22'
  flavor: virt
  keys: [lab.rsa.pub]
"""

SITE = """\
hosts:
  "52:54:00:12:34:56": {name: node-01, recipe: one}
  "52:54:00:12:34:57": {name: node-02, recipe: one}
  "52:54:00:12:34:58": {name: other}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return alpinelab.bundle(tmp_path_factory.mktemp("bundle") / "files")


def mirror_of(home: Path, files: dict[str, Path], **more: Any) -> Mirror:
    alpinelab.mirrored(home, files, **more)
    made = Mirror(home)
    made.refresh()
    latest = home / "latest-stable"
    for path in latest.rglob("*"):
        if path.is_file():
            made.files[str(path.relative_to(home))] = path.read_bytes()
    return made


@pytest.fixture
def mirror(tmp_path: Path, files: dict[str, Path]) -> Iterator[Mirror]:
    made = mirror_of(tmp_path / "mirror", files)
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout.make(tmp_path / "checkout")
    shutil.rmtree(made.folder / "recipes/_parts")
    return made


def recipe(checkout: Checkout, mirror: Mirror, more: str = "", head: str = "") -> Path:
    home = checkout.recipe("one", f"{head}{RECIPE}  mirrors: ['{mirror.url('')[:-1]}']\n{more}")
    (home / apklab.NAME).write_text(apklab.public())
    return home


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return {member.name: member for member in archive}


def content(path: Path, name: str) -> str:
    done = subprocess.run(["tar", "-xzOf", path, name], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


def test_a_bundle_and_an_apkovl_are_a_release(checkout: Checkout, mirror: Mirror, files: dict[str, Path]) -> None:
    recipe(checkout, mirror, "  packages: [chrony]\n  services: {default: [chronyd]}\n", "hostname: box\n")
    checkout.doit("build:one")
    release = checkout.release("one")
    for name, ours in {"vmlinuz-virt": "vmlinuz", "initramfs-virt": "initrd", "modloop-virt": "modloop-virt"}.items():
        assert (release / ours).read_bytes() == files[name].read_bytes()
    url = mirror.url("v3.22")
    assert checkout.cmdline("one", http="http://h/r") == (
        f"ip=dhcp alpine_repo={url}/main,{url}/community modloop=http://h/r/modloop-virt "
        "apkovl=http://h/r/one.apkovl.tar.gz console=ttyS0"
    )
    path = release / "one.apkovl.tar.gz"
    found = members(path)
    assert content(path, "etc/hostname") == "box\n"
    assert content(path, "etc/apk/world") == "alpine-base\nchrony\n"
    assert content(path, "etc/apk/repositories") == f"{url}/main\n{url}/community\n"
    assert found["etc/runlevels/sysinit/modloop"].linkname == "/etc/init.d/modloop"
    assert found["etc/runlevels/default/chronyd"].linkname == "/etc/init.d/chronyd"
    assert "etc/runlevels/default/sshd" not in found
    assert all((member.uid, member.mtime) == (0, 1784073600) for member in found.values())
    assert list(found) == sorted(found, key=lambda name: name.split("/"))
    # Nobody gets in without a password, as they do by Alpine's own file.
    assert content(path, "etc/shadow").startswith("root:*:")
    assert (found["etc/shadow"].mode, found["etc/shadow"].gid) == (0o640, 42)
    asked = len(mirror.asked)
    assert "cached" in checkout.doit("build:one")
    assert len(mirror.asked) == asked


def test_what_the_recipe_says_is_in_it(checkout: Checkout, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT_HASH", "$6$a$b")
    head = (
        "overlay: [overlay]\ntimezone: Europe/Berlin\n"
        "users: [{name: root, password-env: ROOT_HASH, authorized-keys: [one.pub, two.pub]}]\n"
    )
    home = recipe(checkout, mirror, "  interfaces: net\n", head)
    (home / "overlay/etc/local.d").mkdir(parents=True)
    (home / "overlay/etc/local.d/x.start").write_text("echo started\n")
    (home / "overlay/etc/local.d/x.start").chmod(0o700)
    (home / "overlay/etc/motd").write_text("hello\n")
    (home / "overlay/etc/motd").chmod(0o600)
    (home / "one.pub").write_text("ssh-ed25519 AAAA one")
    (home / "two.pub").write_text("ssh-ed25519 BBBB two\n")
    (home / "net").write_text("auto lo\n")
    checkout.doit("build:one")
    path = checkout.release("one") / "one.apkovl.tar.gz"
    found = members(path)
    assert content(path, "root/.ssh/authorized_keys") == "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two\n"
    assert [found[name].mode for name in ("root", "root/.ssh", "root/.ssh/authorized_keys")] == [0o700, 0o700, 0o600]
    assert [found[f"etc/{name}"].mode for name in ("motd", "local.d/x.start")] == [0o644, 0o755]
    assert {"etc/runlevels/default/sshd", "etc/runlevels/default/local"} <= set(found)
    assert content(path, "etc/apk/world") == "alpine-base\nopenssh\ntzdata\n"
    assert found["etc/localtime"].linkname == "/usr/share/zoneinfo/Europe/Berlin"
    assert content(path, "etc/network/interfaces") == "auto lo\n"
    assert content(path, "etc/shadow").startswith("root:$6$a$b:")
    # Of the password only the image knows.
    for written in checkout.folder.rglob("*"):
        if written.is_file() and written.suffix in (".json", ".log", ".lock"):
            assert "$6$a$b" not in written.read_text(errors="replace")


def test_another_configuration_leaves_the_rest(checkout: Checkout, mirror: Mirror) -> None:
    home = recipe(checkout, mirror, "", "overlay: [overlay]\n")
    (home / "overlay").mkdir()
    (home / "overlay/file").write_text("one\n")
    checkout.doit("build:one")
    (home / "overlay/file").write_text("two\n")
    (said,) = [json.loads(line) for line in checkout.doit("why:one", "--json").splitlines()]
    assert said["recipe"] == "one"
    assert [(stage["stage"], stage["state"], stage["reasons"]) for stage in said["stages"]] == [
        ("netboot", "cached", []),
        ("apkovl", "will run", ["overlay/file changed"]),
        ("release", "will run", []),
    ]
    # What it says is what happens.
    told = checkout.doit("build:one")
    assert "one                  netboot     cached" in told
    assert "one                  apkovl      built" in told
    (said,) = [json.loads(line) for line in checkout.doit("why:one", "--json").splitlines()]
    assert [stage["state"] for stage in said["stages"]] == ["current"]
    assert content(checkout.release("one") / "one.apkovl.tar.gz", "file") == "two\n"


def test_what_is_cleaned_is_gone_and_nothing_else(checkout: Checkout, mirror: Mirror) -> None:
    text = (recipe(checkout, mirror) / "recipe.yaml").read_text()
    shutil.copy(checkout.folder / "recipes/one" / apklab.NAME, checkout.recipe("two", text))
    checkout.doit("build:one", "build:two")
    store = checkout.folder / "out/store"
    before = {path.name for path in store.iterdir()}
    said = checkout.doit("clean:one", "--dry-run")
    assert "would go" in said
    assert {path.name for path in store.iterdir()} == before
    checkout.doit("clean:one")
    # The bundle is the other's too.
    assert len(before) == 3
    assert len({path.name for path in store.iterdir()}) == 2
    assert not (checkout.folder / "out/images/one").exists()
    assert (checkout.folder / "recipes/one/recipe.lock").exists()
    assert "nothing would run" in checkout.doit("why:two")
    assert "nothing of it was built" in checkout.doit("clean:one")
    checkout.doit("build:one")


def test_each_host_has_its_own(checkout: Checkout, mirror: Mirror) -> None:
    recipe(checkout, mirror, "  per-host: yes\n")
    said = checkout.doit("build:one", status=1)
    assert "no host of site.yaml has this recipe" in said
    (checkout.folder / "site.yaml").write_text(SITE)
    checkout.doit("build:one")
    found = checkout.release("one") / "ovl"
    assert [path.name[:17] for path in sorted(found.iterdir())] == ["52:54:00:12:34:56", "52:54:00:12:34:57"]
    assert content(found / "52:54:00:12:34:57.apkovl.tar.gz", "etc/hostname") == "node-02\n"
    assert "apkovl=http://h/ovl/{MAC}.apkovl.tar.gz" in checkout.cmdline("one", http="http://h")
    checkout.doit("push:local/one")
    entry = (checkout.folder / "out/srv/boot/entries/one").resolve()
    assert "{MAC}.apkovl.tar.gz" in "".join(path.read_text() for path in entry.iterdir())


def test_an_encrypted_one_is_as_the_initramfs_decrypts_it(checkout: Checkout, mirror: Mirror, tmp_path: Path) -> None:
    recipe(checkout, mirror)
    checkout.doit("build:one")
    plain = (checkout.release("one") / "one.apkovl.tar.gz").read_bytes()
    secret = tmp_path / "secret"
    recipe(checkout, mirror, f"  encryption: {{password-file: {secret}}}\n")
    said = checkout.doit("build:one", status=1)
    assert f"{secret} holds no password" in said
    secret.write_text("correct horse\n")
    checkout.doit("build:one")
    path = checkout.release("one") / "one.apkovl.tar.gz.aes-256-cbc"
    line = ["openssl", "enc", "-d", "-aes-256-cbc", "-in", str(path), "-pass", "pass:correct horse"]
    assert subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout == plain
    assert "apkovl=http://h/one.apkovl.tar.gz.aes-256-cbc" in checkout.cmdline("one", http="http://h")
    first = path.read_bytes()
    shutil.rmtree(checkout.folder / "out/store")
    checkout.doit("build:one")
    assert path.read_bytes() == first
    for written in checkout.folder.rglob("*"):
        if written.is_file() and not written.is_symlink():
            assert b"correct horse" not in written.read_bytes()


def test_it_starts_from_what_lbu_made(checkout: Checkout, mirror: Mirror, tmp_path: Path) -> None:
    home = recipe(checkout, mirror, "  base: old.apkovl.tar.gz\n")
    old = tmp_path / "old"
    for name, text in {"etc/apk/world": "alpine-base\nnginx\n", "etc/motd": "old\n", "etc/hostname": "old\n"}.items():
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(text)
    (old / "etc/network").mkdir()
    (old / "etc/network/interfaces").write_text("auto eth7\n")
    (old / "etc/shadow").write_text("root:!::::::::\n")
    subprocess.run(["tar", "-czf", home / "old.apkovl.tar.gz", "-C", old, "etc"], check=True)
    checkout.doit("build:one")
    path = checkout.release("one") / "one.apkovl.tar.gz"
    assert content(path, "etc/apk/world") == "alpine-base\nnginx\n"
    assert content(path, "etc/motd") == "old\n"
    assert content(path, "etc/hostname") == "alpine\n"
    assert content(path, "etc/network/interfaces") == "auto eth7\n"
    assert content(path, "etc/shadow") == "root:!::::::::\n"


def test_urls_of_the_command_line_are_of_the_release(checkout: Checkout, mirror: Mirror) -> None:
    home = recipe(checkout, mirror)
    text = (home / "recipe.yaml").read_text()
    (home / "recipe.yaml").write_text(text.replace("console=ttyS0", "console=ttyS0 more=${http}/more.gz"))
    said = fails(checkout, "the command line has ${http}/more.gz, but the release has no such file")
    assert "there are: initrd, modloop-virt, one.apkovl.tar.gz, vmlinuz" in said


def fails(checkout: Checkout, text: str) -> str:
    said = checkout.doit("build:one", status=1)
    assert text in said, said
    assert "Traceback" not in said
    assert not (checkout.folder / "out/images/one").exists()
    return said


def test_bundles_that_cannot_be_right(
    checkout: Checkout, mirror: Mirror, files: dict[str, Path], tmp_path: Path
) -> None:
    lock = checkout.folder / "recipes/one/recipe.lock"
    recipe(checkout, mirror)
    name = next(name for name in mirror.files if "alpine-netboot" in name and name.startswith("v3.22"))
    whole = mirror.files[name]
    mirror.files[name] = whole[:-1] + b"x"
    fails(checkout, "is not what it should be: sha256")

    def served(data: bytes) -> None:
        path = mirror.home / name
        path.write_bytes(data)
        alpinelab.listed(path)
        mirror.refresh()
        lock.unlink(missing_ok=True)

    served(whole[: len(whole) // 2])
    fails(checkout, "can't be unpacked")
    served(b"no archive")
    fails(checkout, "can't be unpacked")
    alpinelab.mirrored(mirror.home, {path: files[path] for path in files if "modloop" not in path})
    served((mirror.home / name).read_bytes())
    said = fails(checkout, "has no modloop-virt")
    assert "flavors in it: virt" in said
    other = alpinelab.bundle(tmp_path / "other", modules="6.6.1-0-lts")
    alpinelab.mirrored(mirror.home, other)
    served((mirror.home / name).read_bytes())
    fails(checkout, "modloop-virt: is of kernel 6.6.1-0-lts, but the kernel is 6.12.1-0-virt")
    mirror.files["v3.22/releases/x86_64/latest-releases.yaml"] = b"- {flavor: alpine-standard}\n"
    lock.unlink()
    fails(checkout, "names no netboot bundle")
    mirror.files["v3.22/releases/x86_64/latest-releases.yaml"] = b"- {\n"
    fails(checkout, "can't be read")
    mirror.files = {}
    fails(checkout, "is not there (404)")


def test_the_lock_moves_when_it_is_asked_to(checkout: Checkout, mirror: Mirror, files: dict[str, Path]) -> None:
    recipe(checkout, mirror)
    checkout.doit("build:one")
    alpinelab.mirrored(mirror.home, files, version="3.22.2")
    mirror.refresh()
    assert "nothing would run" in checkout.doit("why:one")
    assert "version: 3.22.1 -> 3.22.2" in checkout.doit("lock:one", "--check", status=1)
    assert "version: 3.22.1 -> 3.22.2" in checkout.doit("lock:one")
    checkout.doit("build:one")


def test_a_stable_branch_is_pinned_by_its_number(checkout: Checkout, mirror: Mirror) -> None:
    home = recipe(checkout, mirror)
    path = home / "recipe.yaml"
    path.write_text(path.read_text().replace("'3.22'", "latest-stable"))
    mirror.files["latest-stable/releases/x86_64/latest-releases.yaml"] = mirror.files[
        "v3.22/releases/x86_64/latest-releases.yaml"
    ]
    checkout.doit("build:one")
    assert "/v3.22/main" in checkout.cmdline("one", http="")


SOME = {"version": "1.0-r0", "checksum": "1" * 40, "size": 1, "repository": "main"}

LOCK = {
    "asked": {
        "branch": "3.22",
        "arch": "amd64",
        "repositories": ["main", "community"],
        "packages": ["alpine-base", "openssl"],
        "buildroot": [],
    },
    "packages": {"alpine-base": SOME},
    "buildroot": {},
    "tool": SOME,
    "indexes": {"main": "2" * 64, "community": "3" * 64},
    "bundle": {
        "branch": "v3.22",
        "version": "3.22.1",
        "file": "f",
        "sha256": "0" * 64,
        "date": "2026-07-15",
        "size": 1,
    },
}

OVL = ("apkovl", "release")

SIGN = "  signing-key: {file: /none}"

WORDS: dict[str, tuple[str, str, Any]] = {
    "branch": ("branch: '3.22'", "branch: edge", None),
    "arch": ("arch: amd64", "arch: arm64", None),
    "flavor": ("flavor: virt", "flavor: lts", ("netboot", "release")),
    "mirrors": ("flavor: virt", "flavor: virt\n  mirrors: [http://other.lab]", OVL),
    "repositories": ("flavor: virt", "flavor: virt\n  repositories: [main]", None),
    "packages": ("flavor: virt", "flavor: virt\n  packages: [less]", None),
    "source": ("flavor: virt", f"flavor: virt\n  source: mkinitfs\n{SIGN}", None),
    "mkinitfs": ("flavor: virt", f"flavor: virt\n  source: mkinitfs\n  mkinitfs: {{files: [/x]}}\n{SIGN}", None),
    "signing_key": ("flavor: virt", f"flavor: virt\n{SIGN}", ()),
    "keys": ("keys: [lab.rsa.pub]", "keys: [lab.rsa.pub, more.rsa.pub]", OVL),
    "services": ("flavor: virt", "flavor: virt\n  services: {boot: [x]}", OVL),
    "interfaces": ("flavor: virt", "flavor: virt\n  interfaces: file", OVL),
    "base": ("flavor: virt", "flavor: virt\n  base: x.apkovl.tar.gz", OVL),
    "encryption": ("flavor: virt", "flavor: virt\n  encryption: {password-env: HOME}", OVL),
    "per_host": ("flavor: virt", "flavor: virt\n  per-host: yes", OVL),
    "hostname": ("arch: amd64", "arch: amd64\nhostname: x", OVL),
    "overlay": ("arch: amd64", "arch: amd64\noverlay: [folder]", OVL),
    "users": ("arch: amd64", "arch: amd64\nusers: [{name: root, password-env: HOME}]", OVL),
    "authorized": ("arch: amd64", "arch: amd64\nusers: [{name: root, authorized-keys: [file]}]", None),
    "timezone": ("arch: amd64", "arch: amd64\ntimezone: Europe/Berlin", None),
    "repository": ("flavor: virt", f"flavor: virt\n  repository: release\n{SIGN}", ("apkovl", "release")),
    "root.size": ("root: ram", "root: {kind: ram, size: 1G}", ("release",)),
    "cmdline": ("console=ttyS0", "quiet", ("release",)),
}
"""Old and new text, and which keys change; None: what is built must be found out anew."""


def keys_of(folder: Path, text: str) -> dict[str, str]:
    home = folder / "recipes/one"
    (home / "folder").mkdir(parents=True, exist_ok=True)
    (home / "recipe.yaml").write_text(text)
    for name in ("file", "x.apkovl.tar.gz"):
        (home / name).write_text("x")
    for name in (apklab.NAME, "more.rsa.pub"):
        (home / name).write_text(apklab.public())
    (home / "recipe.lock").write_text(json.dumps(LOCK))
    house = House(folder)
    made = {stage: keyed.key for stage, keyed in house.keys("one").items()}
    return {**made, "release": house.release_key("one", house.keys("one"))} if made else {}


@pytest.mark.parametrize("word", WORDS)
def test_what_a_word_changes(word: str, tmp_path: Path) -> None:
    old, new, changes = WORDS[word]
    before, after = keys_of(tmp_path, RECIPE), keys_of(tmp_path, RECIPE.replace(old, new))
    assert set(before) == {"netboot", "apkovl", "release"}
    if changes is None:
        assert not after
    else:
        assert tuple(name for name in before if before[name] != after[name]) == changes


def test_every_word_is_in_the_table() -> None:
    assert {field.name for field in dataclasses.fields(Options)} <= set(WORDS)


WRONG = [
    ("'3.22'", "'22'", "5:11: expects a branch like '3.22'"),
    ("root: ram", "root: nfs", "2:7: a diskless Alpine is in RAM"),
    ("flavor: virt", "flavor: grsec", "6:11: "),
    ("flavor: virt", "flavor: rpi", "6:11: rpi is for arm64"),
    ("flavor: virt", "flavor: virt\n  repositories: [testing]", "only edge has `testing`"),
    ("flavor: virt", "flavor: virt\n  repositories: [community]", "without `main`"),
    ("flavor: virt", "flavor: virt\n  repository: release", "7:15: needs `signing-key`"),
    ("flavor: virt", "flavor: virt\n  source: mkinitfs", "7:11: needs `signing-key`"),
    ("flavor: virt", "flavor: virt\n  mkinitfs: {features: [base]}", "the official initramfs is as it is"),
    ("flavor: virt", "flavor: virt\n  signing-key: {}", "says one of `file` and `env`"),
    ("lab.rsa.pub", "private.rsa.pub", "private.rsa.pub is no public key"),
    ("arch: amd64", "arch: amd64\nusers: [{name: ops}]", "2:16: in an apkovl only root's"),
    ("arch: amd64", "arch: amd64\nservices: {enable: [sshd]}", "2:11: these are systemd's"),
    ("flavor: virt", "flavor: virt\n  encryption: {}", "7:15: says one of `password-file` and `password-env`"),
    ("arch: amd64", "arch: amd64\nlocale: de_DE.UTF-8", "2:9: musl knows C.UTF-8 alone"),
]


@pytest.mark.parametrize(("old", "new", "text"), WRONG)
def test_a_recipe_that_cannot_be_right(old: str, new: str, text: str, tmp_path: Path) -> None:
    home = tmp_path / "recipes/one"
    home.mkdir(parents=True)
    (home / "recipe.yaml").write_text(RECIPE.replace(old, new))
    for name in (apklab.NAME, "more.rsa.pub"):
        (home / name).write_text(apklab.public())
    (home / "private.rsa.pub").write_text("x")
    with pytest.raises(SchemaError) as error:
        _ = House(tmp_path).recipes
    assert text in str(error.value)


def test_apkovls_that_cannot_be_started_from(tmp_path: Path) -> None:
    encrypted = tmp_path / "x.apkovl.tar.gz.aes-256-cbc"
    encrypted.touch()
    with pytest.raises(BuildError, match="encrypted"):
        apkovl.unpacked(encrypted)
    path = tmp_path / "x.apkovl.tar.gz"
    path.write_bytes(gzip.compress(b"no archive" * 100))
    with pytest.raises(BuildError, match="is no apkovl"):
        apkovl.unpacked(path)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../etc/passwd"))
    with pytest.raises(BuildError, match="leads out of the root"):
        apkovl.unpacked(path)


def test_the_same_members_are_the_same_bytes() -> None:
    some = {"etc/b": Member("f", b"x"), "etc/a": Member("l", b"/b")}
    first = packed(some, 7)
    time.sleep(1.1)
    assert packed(dict(reversed(some.items())), 7) == first
