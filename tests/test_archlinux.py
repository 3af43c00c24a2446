"""Arch Linux from a mirror and from an ISO, on real servers, up to a machine that mounts its root."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildlib.distros.archlinux import Options, image
from buildlib.errors import BuildError
from buildlib.house import House
from buildlib.schema import SchemaError
from tests import archlab
from tests.archlab import MARKER
from tests.checkout import Checkout
from tests.test_fetch import Server

RECIPE = """\
arch: amd64
root: squashfs
cmdline: console=ttyS0
archlinux:
  {what}
"""

ROOT = "arch/x86_64/airootfs.sfs"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release's files, whose kernel is none."""
    return archlab.tree(tmp_path_factory.mktemp("plain") / "tree")


class Mirror(Server):
    """A mirror of the folder `home`."""

    def __init__(self, home: Path) -> None:
        super().__init__({})
        self.home = home

    def refresh(self) -> None:
        paths = [path for path in self.home.rglob("*") if path.is_file()]
        self.files = {str(path.relative_to(self.home)): path.read_bytes() for path in paths}
        latest = self.home / "iso/latest"
        if latest.exists():
            self.files["iso/latest/sha256sums.txt"] = (latest / "sha256sums.txt").read_bytes()

    def release(self, name: str, made: Path) -> None:
        archlab.mirrored(self.home, name, made)
        self.refresh()


@pytest.fixture
def mirror(tmp_path: Path, plain: Path) -> Iterator[Mirror]:
    made = Mirror(tmp_path / "mirror")
    made.release("2026.10.01", plain)
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout.make(tmp_path / "checkout")
    shutil.rmtree(made.folder / "recipes/_parts")
    return made


def recipe(checkout: Checkout, what: str, *mirrors: Mirror, root: str = "squashfs", more: str = "") -> None:
    text = RECIPE.format(what=what).replace("root: squashfs", f"root: {root}") + more
    if mirrors:
        text += f"  mirrors: [{', '.join(one.url('')[:-1] for one in mirrors)}]\n"
    checkout.recipe("one", text)


def test_a_release_is_taken_and_stays(checkout: Checkout, mirror: Mirror, plain: Path) -> None:
    recipe(checkout, "release: latest", mirror)
    checkout.doit("build:one")
    release = checkout.release("one")
    for ours, theirs in {
        "vmlinuz": "arch/boot/x86_64/vmlinuz-linux",
        "initrd": "arch/boot/x86_64/initramfs-linux.img",
        ROOT: ROOT,
        "arch/x86_64/airootfs.sha512": "arch/x86_64/airootfs.sha512",
    }.items():
        assert (release / ours).read_bytes() == (plain / theirs).read_bytes()
    assert checkout.cmdline("one", http="http://h/r") == (
        "archisobasedir=arch archiso_http_srv=http://h/r/ checksum=y ip=dhcp console=ttyS0"
    )
    assert (release / "packages.tsv").read_text().splitlines()[0] == ("bash\t1-1\tx86_64\tbash@1-1\tGPL-3.0-or-later")
    assert checkout.licenses("one") == {
        "bash": "GPL-3.0-or-later",
        "linux": "GPL-2.0-only AND GPL-2.0-only WITH Linux-syscall-note",
    }
    asked = len(mirror.asked)
    assert "cached" in checkout.doit("build:one")
    assert len(mirror.asked) == asked

    # A newer one is taken when it is asked for, and no sooner.
    newer = plain.parent / "newer"
    shutil.copytree(plain, newer)
    (newer / "arch/boot/x86_64/vmlinuz-linux").write_text("a newer kernel")
    mirror.release("2026.11.01", newer)
    shutil.rmtree(newer)
    assert "nothing would run" in checkout.doit("why:one")
    said = checkout.doit("lock:one", "--check", status=1)
    assert "release: 2026.10.01 -> 2026.11.01" in said
    assert "release: 2026.10.01 -> 2026.11.01" in checkout.doit("lock:one")
    checkout.doit("build:one")
    assert (checkout.release("one") / "vmlinuz").read_text() == "a newer kernel"


def test_what_is_here_is_not_fetched_again(checkout: Checkout, mirror: Mirror) -> None:
    recipe(checkout, "release: latest", mirror)
    checkout.doit("build:one")
    shutil.rmtree(checkout.folder / "out/store")
    shutil.rmtree(checkout.folder / "out/images")
    asked = len(mirror.asked)
    checkout.doit("build:one")
    assert len(mirror.asked) == asked


def test_downloads_go_when_no_lock_names_them(checkout: Checkout, mirror: Mirror, plain: Path) -> None:
    recipe(checkout, "release: latest", mirror)
    checkout.doit("build:one")
    downloads = checkout.folder / "out/cache/downloads"
    before = {path.name for path in downloads.iterdir()}
    checkout.doit("gc")
    assert {path.name for path in downloads.iterdir()} == before
    newer = plain.parent / "newest"
    shutil.copytree(plain, newer)
    (newer / "arch/boot/x86_64/vmlinuz-linux").write_text("the newest kernel")
    mirror.release("2026.12.01", newer)
    shutil.rmtree(newer)
    checkout.doit("lock:one")
    assert "no recipe's lock names it" in checkout.doit("gc", "--dry-run")
    assert len({path.name for path in downloads.iterdir()}) == len(before) + 1
    checkout.doit("gc")
    assert len({path.name for path in downloads.iterdir()} & before) == len(before) - 1
    checkout.doit("build:one")


def test_a_damaged_mirror_is_passed_over(checkout: Checkout, mirror: Mirror, tmp_path: Path, plain: Path) -> None:
    broken = Mirror(tmp_path / "broken")
    broken.release("2026.10.01", plain)
    recipe(checkout, "release: 2026.10.01", broken, mirror)
    broken.files[f"iso/2026.10.01/{ROOT}"] = mirror.files[f"iso/2026.10.01/{ROOT}"][:-1] + b"x"
    checkout.doit("build:one")
    assert (checkout.release("one") / ROOT).read_bytes() == (plain / ROOT).read_bytes()
    broken.shutdown()
    broken.server_close()


def fails(checkout: Checkout, text: str) -> str:
    said = checkout.doit("build:one", status=1)
    assert text in said, said
    assert "Traceback" not in said
    assert not (checkout.folder / "out/images/one").exists()
    return said


def test_a_root_that_is_not_what_it_should_be(checkout: Checkout, mirror: Mirror) -> None:
    recipe(checkout, "release: latest", mirror)
    mirror.files[f"iso/2026.10.01/{ROOT}"] += b"x"
    said = fails(checkout, "is not what it should be: sha512")
    assert "recipe.lock says release 2026.10.01" in said
    mirror.files["iso/2026.10.01/arch/x86_64/airootfs.sha512"] = b"nothing\n"
    (checkout.folder / "recipes/one/recipe.lock").unlink()
    fails(checkout, "has no checksum of airootfs.sfs")


def test_a_release_that_is_gone(checkout: Checkout, mirror: Mirror, plain: Path) -> None:
    recipe(checkout, "release: latest", mirror)
    checkout.doit("_lock:one")
    shutil.rmtree(mirror.home / "iso/2026.10.01")
    mirror.release("2026.11.01", plain)
    shutil.rmtree(checkout.folder / "out/cache/downloads")
    said = fails(checkout, "recipe.lock says release 2026.10.01, but its arch/")
    assert "the newest release is 2026.11.01: ./doit lock:NAME takes it" in said
    (checkout.folder / "recipes/one/recipe.lock").unlink()
    recipe(checkout, "release: 2026.10.01", mirror)
    said = fails(checkout, "release 2026.10.01 is gone from the mirrors")
    assert "say `release: 2026.11.01` or `latest`" in said


def test_a_mirror_that_is_none(checkout: Checkout, mirror: Mirror) -> None:
    recipe(checkout, "release: latest", mirror)
    mirror.files = {}
    fails(checkout, "sha256sums.txt: is not there (404)")


def test_microcode_of_older_releases_comes_first(checkout: Checkout, tmp_path: Path) -> None:
    made = archlab.tree(tmp_path / "tree")
    (made / "arch/boot/amd-ucode.img").write_bytes(b"amd\n")
    (made / "arch/boot/intel-ucode.img").write_bytes(archive(tmp_path, "kernel/x86/microcode/GenuineIntel.bin"))
    (made / "arch/boot/amd-ucode.img").write_bytes(archive(tmp_path, "kernel/x86/microcode/AuthenticAMD.bin"))
    mirror = Mirror(tmp_path / "mirror")
    mirror.release("2024.01.01", made)
    recipe(checkout, "release: latest", mirror)
    checkout.doit("build:one")
    parts = [made / "arch/boot" / name for name in ("intel-ucode.img", "amd-ucode.img")]
    whole = b"".join(path.read_bytes() for path in [*parts, made / "arch/boot/x86_64/initramfs-linux.img"])
    assert (checkout.release("one") / "initrd").read_bytes() == whole
    assert not (checkout.release("one") / "arch/boot").exists()


def archive(folder: Path, path: str) -> bytes:
    """A cpio archive with one file."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text("microcode")
    line = ["cpio", "--quiet", "-o", "-H", "newc"]
    return subprocess.run(line, cwd=folder, input=f"{path}\n".encode(), stdout=subprocess.PIPE, check=True).stdout


def test_a_root_is_checked_by_signature_where_it_can_be(checkout: Checkout, tmp_path: Path) -> None:
    made = archlab.tree(tmp_path / "tree", certificate=True)
    mirror = Mirror(tmp_path / "mirror")
    mirror.release("2026.10.01", made)
    recipe(checkout, "release: latest\n  check: cms", mirror)
    fails(checkout, "the image has no signature of its root")
    (made / f"{ROOT}.cms.sig").write_text("a signature")
    mirror.release("2026.11.01", made)
    recipe(checkout, "release: latest", mirror)
    checkout.doit("lock:one")
    checkout.doit("build:one")
    assert "cms_verify=y" in checkout.manifest("one")["content"]["cmdline"]
    assert (checkout.release("one") / f"{ROOT}.cms.sig").read_text() == "a signature"
    recipe(checkout, "release: latest\n  check: checksum", mirror)
    checkout.doit("build:one")
    assert "checksum=y" in checkout.manifest("one")["content"]["cmdline"]


def test_an_iso_gives_the_same(checkout: Checkout, mirror: Mirror, plain: Path) -> None:
    recipe(checkout, "release: latest", mirror)
    checkout.doit("build:one")
    files = {path.name: path.read_bytes() for path in checkout.release("one").rglob("*") if path.is_file()}
    recipe(checkout, "iso: arch.iso")
    archlab.iso(plain, checkout.folder / "recipes/one/arch.iso")
    checkout.doit("build:one")
    for path in checkout.release("one").rglob("*"):
        if path.is_file() and path.name not in ("manifest.json", "SHA256SUMS"):
            assert path.read_bytes() == files[path.name]


def test_an_iso_by_its_url_is_pinned(checkout: Checkout, mirror: Mirror, plain: Path, tmp_path: Path) -> None:
    mirror.files["arch.iso"] = archlab.iso(plain, tmp_path / "arch.iso").read_bytes()
    recipe(checkout, f"iso-url: {mirror.url('arch.iso')}")
    checkout.doit("build:one")
    release = checkout.release("one")
    assert (release / "vmlinuz").read_bytes() == (plain / "arch/boot/x86_64/vmlinuz-linux").read_bytes()
    asked = len(mirror.asked)
    shutil.rmtree(checkout.folder / "out/store")
    checkout.doit("build:one")
    assert len(mirror.asked) == asked
    # Another one at the same place.
    shutil.rmtree(checkout.folder / "out")
    mirror.files["arch.iso"] += b"more"
    fails(checkout, "the ISO is not what recipe.lock says")
    checkout.doit("lock:one")
    checkout.doit("build:one")
    recipe(checkout, f"iso-url: {mirror.url('none.iso')}")
    assert "is not there (404)" in checkout.doit("build:one", status=1)
    mirror.files["other.iso"] = archlab.iso(plain / "arch/boot", tmp_path / "other.iso").read_bytes()
    recipe(checkout, f"iso-url: {mirror.url('other.iso')}")
    assert "has no arch/boot/x86_64/vmlinuz-linux" in checkout.doit("build:one", status=1)
    # A server that cuts, and can't go on from there.
    mirror.ranged, mirror.cut = False, 100_000
    recipe(checkout, f"iso-url: {mirror.url('arch.iso')}")
    (checkout.folder / "recipes/one/recipe.lock").unlink()
    said = checkout.doit("build:one", status=1)
    assert "the connection was cut, and the server sends no parts of files: each try begins anew" in said
    assert "Name another mirror" in said


def test_programs_of_single_hosts(checkout: Checkout, mirror: Mirror) -> None:
    recipe(checkout, "release: latest\n  host-scripts: {node-7: seven}", mirror)
    (checkout.folder / "recipes/one/seven").write_text("#!/bin/sh\n")
    assert "no host node-7 of site.yaml has this recipe" in checkout.doit("build:one", status=1)
    (checkout.folder / "site.yaml").write_text("hosts: {'52:54:00:12:34:56': {name: node-7, recipe: one}}\n")
    checkout.doit("build:one")
    release = checkout.release("one")
    assert (release / "hosts/52:54:00:12:34:56").read_text() == "#!/bin/sh\n"
    text = (release / "start.sh").read_text()
    assert "script=${http}/start.sh" in checkout.manifest("one")["content"]["cmdline"]
    # As a booted machine finds its own.
    line = text.split("\nmac=")[1].split("\n")[0]
    for words in ("BOOTIF=01-52-54-00-12-34-AB quiet", "x BOOTIF=52:54:00:12:34:ab"):
        script = f"mac={line}".replace("/proc/cmdline", "-") + "; echo $mac"
        done = subprocess.run(["sh", "-c", script], input=words, text=True, capture_output=True, check=True)
        assert done.stdout == "52:54:00:12:34:ab\n"


def test_isos_that_are_none(checkout: Checkout, plain: Path, tmp_path: Path) -> None:
    path = checkout.folder / "recipes/one/arch.iso"
    recipe(checkout, "iso: arch.iso")
    path.write_bytes(b"no ISO" * 1000)
    fails(checkout, "arch.iso: is no ISO, or is cut off: ")
    archlab.iso(plain / "arch/boot", path)
    fails(checkout, f"arch.iso: has no arch/boot/x86_64/vmlinuz-linux, arch/boot/x86_64/initramfs-linux.img, {ROOT}")
    archlab.iso(plain, path)
    whole = path.read_bytes()
    at = whole.rindex((plain / ROOT).read_bytes()[:64])
    path.write_bytes(whole[: at + 100])
    assert "Truncated" in fails(checkout, "arch.iso: is no ISO, or is cut off: bsdtar: ")
    path.write_bytes(whole[:at] + bytes(200) + whole[at + 200 :])
    fails(checkout, f"arch.iso: its {ROOT} is not what its checksum says")


def test_an_isos_signature(checkout: Checkout, plain: Path, tmp_path: Path) -> None:
    home = checkout.folder / "recipes/one"
    recipe(checkout, "iso: arch.iso\n  signature: arch.iso.sig\n  keyring: keys.gpg")
    archlab.iso(plain, home / "arch.iso")
    env = {**os.environ, "GNUPGHOME": str(tmp_path / "gpg")}
    (tmp_path / "gpg").mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--quiet", "--pinentry-mode=loopback", "--passphrase="]
    subprocess.run([*gpg, "--quick-gen-key", "arch@lab", "ed25519"], env=env, check=True)
    subprocess.run([*gpg, "--detach-sign", home / "arch.iso"], env=env, check=True)
    keys = subprocess.run([*gpg, "--export"], env=env, check=True, stdout=subprocess.PIPE).stdout
    (home / "keys.gpg").write_bytes(keys)
    checkout.doit("build:one")
    shutil.rmtree(checkout.folder / "out/images")
    with (home / "arch.iso").open("ab") as file:
        file.write(b"\0")
    fails(checkout, "arch.iso.sig is no signature of it by a key of keys.gpg")
    subprocess.run(["gpgconf", "--kill", "all"], env=env, check=False)


def test_a_machine_with_too_little_memory(checkout: Checkout, mirror: Mirror) -> None:
    recipe(checkout, "release: latest", mirror)
    text = (checkout.folder / "recipes/one/recipe.yaml").read_text()
    (checkout.folder / "recipes/one/recipe.yaml").write_text(text + "boot: {memory: 256}\n")
    fails(checkout, "a machine of 256 MiB can't hold it")


@pytest.fixture(scope="session")
def bootable(small: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archlab.tree(tmp_path_factory.mktemp("bootable") / "tree", small)


@pytest.mark.parametrize("over", ["nfs", "nbd"])
def test_it_boots(over: str, checkout: Checkout, bootable: Path, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "mirror")
    mirror.release("2026.10.01", bootable)
    recipe(checkout, "release: latest\n  script: hello", mirror, root=f"{{kind: squashfs, over: {over}, size: 64M}}")
    home = checkout.folder / "recipes/one"
    (home / "hello").write_text("#!/bin/sh\necho script-ran\n")
    (home / "one.pub").write_text("ssh-ed25519 AAAA one's key\n")
    (home / "overlay/etc").mkdir(parents=True)
    (home / "overlay/etc/motd").write_text("of-the-overlay\n")
    text = (checkout.folder / "recipes/one/recipe.yaml").read_text()
    signs = ("archiso: checked", "script-ran", "AAAA one''s key", "node-7", "of-the-overlay", MARKER)
    expect = ", ".join(f"{{console: '{sign}'}}" for sign in signs)
    more = "hostname: node-7\noverlay: [overlay]\nusers: [{name: root, authorized-keys: [one.pub]}]\n"
    (home / "recipe.yaml").write_text(f"{text}{more}boot: {{memory: 1024, expect: [{expect}]}}\n")
    checkout.doit("boot:one", "--firmware=bios-pxelinux")
    words = checkout.manifest("one")["content"]["cmdline"]
    assert ("archiso_nfs_srv=${nfs_server}:${nfs_root}" in words) == (over == "nfs")
    assert ("archiso_nbd_srv=${nbd_server} archiso_nbd_name=${nbd_name}" in words) == (over == "nbd")


LOCK = {
    "asked": "latest",
    "release": "2026.10.01",
    "files": {
        name: {"algorithm": "sha256", "digest": "0" * 64, "size": 1}
        for name in ("arch/boot/x86_64/vmlinuz-linux", "arch/boot/x86_64/initramfs-linux.img", ROOT)
    },
}

WORDS: dict[str, tuple[str, str, Any]] = {
    "release": ("release: latest", "release: 2026.10.01", None),
    "iso": ("release: latest", "iso: file", None),
    "mirrors": ("release: latest", "release: latest\n  mirrors: [http://other.lab]", ()),
    "check": ("release: latest", "release: latest\n  check: cms", ("image", "release")),
    "copytoram": ("release: latest", "release: latest\n  copytoram: 'yes'", ("image", "release")),
    "script": ("release: latest", "release: latest\n  script: file", ("image", "release")),
    "hostname": ("arch: amd64", "arch: amd64\nhostname: x", ("image", "release")),
    "overlay": ("arch: amd64", "arch: amd64\noverlay: [folder]", ("image", "release")),
    "keys": ("arch: amd64", "arch: amd64\nusers: [{name: root, authorized-keys: [file]}]", ("image", "release")),
    "root.over": ("root: squashfs", "root: {kind: squashfs, over: nfs}", ("image", "release")),
    "root.size": ("root: squashfs", "root: {kind: squashfs, size: 1G}", ("image", "release")),
    "cmdline": ("console=ttyS0", "quiet", ("release",)),
    "boot": ("arch: amd64", "arch: amd64\nboot: {memory: 512}", ()),
    "signature": ("release: latest", "iso: file\n  signature: file", None),
    "keyring": ("release: latest", "iso: file\n  signature: file\n  keyring: file", None),
    "iso_url": ("release: latest", "iso-url: http://mirror.lab/x.iso", None),
    "pacstrap": ("release: latest", "pacstrap: {packages: [vim]}", None),
    "host_scripts": (
        "release: latest",
        "release: latest\n  host-scripts: {node-7: file}",
        (),
    ),
}
"""Old and new text, and which keys change; None: what is built must be found out anew."""


def keys_of(folder: Path, text: str, lock: object = None) -> dict[str, str]:
    home = folder / "recipes/one"
    (home / "folder").mkdir(parents=True, exist_ok=True)
    (home / "recipe.yaml").write_text(text)
    (home / "file").write_text("x")
    (home / "recipe.lock").write_text(json.dumps(lock or LOCK))
    house = House(folder)
    made = {stage: keyed.key for stage, keyed in house.keys("one").items()}
    return {**made, "release": house.release_key("one", house.keys("one"))} if made else {}


@pytest.mark.parametrize("word", WORDS)
def test_what_a_word_changes(word: str, tmp_path: Path) -> None:
    old, new, changes = WORDS[word]
    text = RECIPE.format(what="release: latest")
    before, after = keys_of(tmp_path, text), keys_of(tmp_path, text.replace(old, new))
    assert set(before) == {"image", "release"}
    if changes is None:
        assert not after
    else:
        assert tuple(name for name in before if before[name] != after[name]) == changes


def test_which_of_the_same_files_is_the_iso(tmp_path: Path) -> None:
    """All that is read stays the same then, but for what it is read as."""
    lock = {"asked": None, "release": None, "files": LOCK["files"]}
    (tmp_path / "recipes/one").mkdir(parents=True)
    (tmp_path / "recipes/one/other").write_text("y")
    made = []
    for iso in ("file", "other"):
        text = RECIPE.format(what=f"iso: {iso}\n  signature: file\n  keyring: other")
        made.append(keys_of(tmp_path, text, lock))
    assert made[0]["image"] != made[1]["image"]


def test_every_word_is_in_the_table() -> None:
    assert {field.name for field in dataclasses.fields(Options)} <= set(WORDS)


WRONG = [
    ("release: latest", "release: newest", "5:12: expects a release like '2026.11.01', or 'latest'"),
    ("release: latest", "check: cms", "5:3: a recipe has one of `release`, `iso`"),
    ("release: latest", "release: latest\n  signature: file", "6:14: goes with `iso`"),
    ("arch: amd64", "arch: arm64", "1:7: Arch Linux is for amd64 (x86_64) only"),
    ("root: squashfs", "root: ram", "2:7: the root of Arch's images is a squashfs"),
    ("release: latest", "release: latest\n  copytoram: 'no'", "6:14: what comes over HTTP is in RAM"),
    ("root: squashfs", "root: squashfs\nusers: [{name: ops}]", "3:16: of an official image only root's keys"),
    ("root: squashfs", "root: squashfs\npersist: [/srv]", "3:10: what clients write is gone"),
    ("root: squashfs", "root: squashfs\ntimezone: Europe/Berlin", "3:11: an official image is taken as it is"),
    ("release: latest", "release: latest\n  mirrors: ['http://x/$(reboot)']", "expects a URL"),
]


@pytest.mark.parametrize(("old", "new", "text"), WRONG)
def test_a_recipe_that_cannot_be_right(old: str, new: str, text: str, tmp_path: Path) -> None:
    home = tmp_path / "recipes/one"
    home.mkdir(parents=True)
    (home / "file").write_text("x")
    (home / "recipe.yaml").write_text(RECIPE.format(what="release: latest").replace(old, new))
    with pytest.raises(SchemaError) as error:
        _ = House(tmp_path).recipes
    assert text in str(error.value)


def test_a_root_fits_or_not() -> None:
    image._fits(500 << 20, "nfs", "no", 512)
    image._fits(100 << 20, "http", "auto", 512)
    image._fits(500 << 20, "http", "auto", None)
    with pytest.raises(BuildError, match="1300 are needed"):
        image._fits(500 << 20, "http", "auto", 1024)
    for over in ("nfs", "nbd"):
        with pytest.raises(BuildError, match="800 are needed") as error:
            image._fits(500 << 20, over, "auto", 512)
        assert error.value.hint == "`copytoram: no`, or more `boot.memory`"


def test_the_labs_checksum_is_the_roots(plain: Path) -> None:
    said = (plain / "arch/x86_64/airootfs.sha512").read_text()
    assert said.split()[0] == hashlib.sha512((plain / ROOT).read_bytes()).hexdigest()
