"""Each thing that boots wrong is found before it boots, and what is right is left alone."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from buildlib import kernel, lint
from buildlib.finding import Finding
from buildlib.house import House
from buildlib.lint import Built
from tests import alpinelab
from tests.checkout import Checkout
from tests.test_alpine import RECIPE, mirror_of

DEBIAN = "arch: amd64\ndebian: {suite: bookworm}\n"

TARGET = "{address: 192.0.2.1, network: 192.0.2.0/24, http: /srv/www}"

RIGHT = Built(
    content={
        "cmdline": "boot=nfs nfsroot=${nfs_server}:${nfs_root} console=tty0 console=ttyS0",
        "arch": "amd64",
        "root": {"kind": "nfs", "over": "http"},
    },
    kernel="6.1.0-9-amd64",
    versions=frozenset({"6.1.0-9-amd64"}),
    modules=frozenset({"nfs", "nfsv3", "virtio_net"}),
    tree=None,
    sizes={"vmlinuz": 8_000_000, "initrd": 30_000_000},
)


def found(folder: Path, built: Built | None = RIGHT, text: str = DEBIAN, site: str = "") -> list[tuple[str, str]]:
    """Level and words of what is said of the recipe."""
    home = folder / "recipes/one"
    home.mkdir(parents=True, exist_ok=True)
    (home / "recipe.yaml").write_text(text)
    (folder / "site.yaml").write_text(site or "{}\n")
    house = House(folder)
    said = [*lint.site(house.site), *lint.recipe(house.recipes["one"], built, house.site)]
    assert all(finding.todo for finding in said)
    return [(finding.level, finding.said) for finding in said]


def but(**changes: Any) -> Built:
    own: dict[str, Any] = {name: changes.pop(name) for name in ("cmdline", "root") if name in changes}
    content = {**RIGHT.content, **own}
    return dataclasses.replace(RIGHT, content=content, **changes)


def listed(path: str, size: int = 5) -> str:
    return f"{path} f 0600 0:0 1 {size} {'0' * 64}\n"


@pytest.fixture
def tree() -> str:
    return ". d 0755 0:0 1 0 -\n" + listed("usr/lib/modules/6.1.0-9-amd64/modules.dep")


def test_what_is_right_is_left_alone(tmp_path: Path, tree: str) -> None:
    site = f"targets:\n  lab: {TARGET}\nhosts:\n  '52:54:00:12:34:56': {{name: a, recipe: one, console: ttyS1}}\n"
    assert found(tmp_path, but(tree=tree), site=site) == []
    assert found(tmp_path, None) == []


def test_parts_of_different_kernels(tmp_path: Path, tree: str) -> None:
    (said,) = found(tmp_path, but(tree=tree, versions=frozenset({"6.1.0-8-amd64"})))
    assert said == (
        "error",
        "the kernel is 6.1.0-9-amd64, but its initrd has modules of 6.1.0-8-amd64: it has no drivers",
    )
    (said,) = found(tmp_path, but(tree=tree.replace("6.1.0-9", "6.1.0-7")))
    assert said == ("error", "the kernel is 6.1.0-9-amd64, but the root has modules of 6.1.0-7-amd64")


@pytest.mark.parametrize(("kind", "module"), [("nfs", "nfs and nfsv3"), ("squashfs", "squashfs"), ("ram", "squashfs")])
def test_modules_that_are_missing(kind: str, module: str, tmp_path: Path, tree: str) -> None:
    made = but(tree=tree, modules=frozenset({"virtio_net"}), root={"kind": kind, "over": "http"})
    (said,) = found(tmp_path, made)
    assert said[0] == "warning"
    assert f"its initrd has no module {module}" in said[1]


@pytest.mark.parametrize(
    ("path", "text"),
    [("etc/ssh/ssh_host_ed25519_key", "the same host key"), ("home/ops/.ssh/id_ed25519", "has that private key")],
)
def test_keys_in_a_root(path: str, text: str, tmp_path: Path, tree: str) -> None:
    (said,) = found(tmp_path, but(tree=tree + listed(path)))
    assert said[0] == "error"
    assert text in said[1]
    # As a first boot wants it, and what is no key.
    assert found(tmp_path, but(tree=tree + listed("etc/ssh/ssh_host_ed25519_key", 0) + listed("etc/ssh/x_key"))) == []


def test_consoles_in_the_wrong_order(tmp_path: Path, tree: str) -> None:
    (said,) = found(tmp_path, but(tree=tree, cmdline="console=ttyS0,115200 console=tty0"))
    assert said[0] == "warning"
    assert "ends with console=tty0" in said[1]
    assert found(tmp_path, but(tree=tree, cmdline="console=tty1 console=tty0")) == []
    site = "hosts:\n  '52:54:00:12:34:56': {name: a, recipe: one, cmdline: console=ttyS0 console=tty0}\n"
    assert "its `cmdline` ends with console=tty0" in found(tmp_path, but(tree=tree), site=site)[0][1]


def test_files_too_large(tmp_path: Path, tree: str) -> None:
    big = but(tree=tree, sizes={"vmlinuz": 8_000_000, "initrd": 300_000_000})
    by_tftp = f"targets:\n  lab: {TARGET.replace('http: /srv/www', 'tftp: /srv/tftp, nfs: /srv/nfs')}\n"
    (said,) = found(tmp_path, big, site=by_tftp)
    assert said[1].startswith("its initrd has 300 MB, and target lab sends it by TFTP")
    assert found(tmp_path, big, site=f"targets:\n  lab: {TARGET}\n") == []
    (said,) = found(tmp_path, big, f"{DEBIAN}boot: {{memory: 512}}\n")
    assert said == ("error", "its initrd has 300 MB: a machine of 512 MiB can't unpack it")


def test_urls_that_nobody_serves(tmp_path: Path, tree: str) -> None:
    made = but(tree=tree, cmdline="a=http://192.0.2.1/x b=http://other.lab/y")
    (said,) = found(tmp_path, made, site=f"targets:\n  lab: {TARGET}\n")
    assert said == ("warning", "its command line has http://other.lab/y, which no target serves")


def test_passwords_that_everybody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(word: str) -> list[tuple[str, str]]:
        line = ["openssl", "passwd", "-6", "-salt", "abcdefgh", word]
        hashed = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        monkeypatch.setenv("OPS_HASH", hashed)
        return found(tmp_path, None, f"{DEBIAN}users: [{{name: ops, password-env: OPS_HASH}}]\n")

    for word in ("changeme", "ops"):
        assert of(word) == [("error", "user ops has a password that everybody knows")]
    assert of("correct horse battery") == []


def test_a_password_of_a_mirror(tmp_path: Path) -> None:
    text = DEBIAN.replace("suite: bookworm", "suite: bookworm, mirror: 'http://me:word@mirror.lab/debian'")
    assert text != DEBIAN
    (said,) = found(tmp_path, None, text)
    assert said[0] == "warning"
    assert re.fullmatch(r"line \d+ of its recipe.yaml has the password of a mirror: .*", said[1])


def test_private_keys_in_an_overlay(tmp_path: Path) -> None:
    overlay = tmp_path / "recipes/one/overlay/etc"
    overlay.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", overlay / "key"], check=True)
    (said,) = found(tmp_path, None, f"{DEBIAN}overlay: [overlay]\n")
    assert said[0] == "error"
    assert said[1].startswith("overlay/etc/key is a private key")


def test_targets_that_get_into_each_others_way(tmp_path: Path) -> None:
    site = f"targets:\n  a: {TARGET}\n  b: {TARGET.replace('192.0.2.1', '192.0.2.2')}\n"
    (said,) = found(tmp_path, None, site=site)
    assert said == ("warning", "serves 192.0.2.0/24, as b does: two answer the same machines")
    assert found(tmp_path, None, site=site.replace("}\n  b", ", dhcp: none}\n  b")) == []


def test_a_host_of_a_target_that_does_not_offer_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipes/two").mkdir(parents=True)
    (tmp_path / "recipes/two/recipe.yaml").write_text(DEBIAN)
    target = TARGET.replace("}", ", recipes: [two]}")
    host = "'52:54:00:12:34:56': {name: a, recipe: one, target: lab}"
    (said,) = found(tmp_path, None, site=f"targets:\n  lab: {target}\nhosts:\n  {host}\n")
    assert said == ("error", "(52:54:00:12:34:56) is to boot one, which target lab doesn't offer")


def test_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT_HASH", HASH)
    checkout = Checkout.make(tmp_path / "checkout")
    shutil.rmtree(checkout.folder / "recipes/_parts")
    mirror = mirror_of(tmp_path / "mirror", alpinelab.bundle(tmp_path / "files"))
    text = f"{RECIPE}  mirrors: ['{mirror.url('')[:-1]}']\n"
    checkout.recipe("one", text)
    assert "as far as can be told before it is built" in checkout.doit("lint")
    checkout.doit("build:one")
    assert "ok       one                  nothing is wrong\n" in checkout.doit("lint:one")
    checkout.recipe("one", text.replace("console=ttyS0", "console=ttyS0 console=tty0"))
    checkout.doit("build:one")
    said = checkout.doit("lint", "--json")
    assert [Finding(**each).level for each in json.loads(said)] == ["warning"]
    checkout.recipe("one", f"{text}users: [{{name: root, password-env: ROOT_HASH}}]\n")
    assert "1 things are wrong" in checkout.doit("lint:one", status=1)
    mirror.shutdown()
    mirror.server_close()


HASH = subprocess.run(
    ["openssl", "passwd", "-6", "-salt", "abcdefgh", "root"], stdout=subprocess.PIPE, text=True, check=True
).stdout.strip()


def test_what_a_kernel_says_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(alpinelab.KERNEL)
    assert kernel.version(path) == "6.12.1-0-virt"
    path.write_bytes(bytes(0x38) + b"ARM\x64" + bytes(5000) + b"Linux version 6.1.0-9-arm64 (x) #1\0")
    assert kernel.version(path) == "6.1.0-9-arm64"
    path.write_bytes(b"no kernel")
    assert kernel.version(path) is None
