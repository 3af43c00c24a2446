"""Alpine of packages: mkinitfs' initramfs and modloop, and a release with the repository of its machines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from buildlib.distros.alpine import apk, packages, signing
from tests import alpinelab, apklab, archlab
from tests.checkout import Checkout
from tests.test_archlinux import Mirror

RECIPE = """\
arch: amd64
root: ram
cmdline: console=ttyS0
{head}alpine:
  branch: '3.22'
  flavor: virt
  keys: [lab.rsa.pub]
  mirrors: ['{mirror}']
  signing-key: {{file: {key}}}
{more}"""

RELEASE = "  repository: release\n"
MKINITFS = "  source: mkinitfs\n"
MAIN = "v3.22/main/x86_64"


class Lab:
    """A checkout, a mirror and a signing key."""

    def __init__(self, folder: Path, packages: dict[str, apklab.Package]) -> None:
        self.home = folder / "mirror"
        alpinelab.mirrored(self.home, alpinelab.bundle(folder / "files"), packages=packages)
        self.mirror = Mirror(self.home)
        self.mirror.refresh()
        self.checkout = Checkout.make(folder / "checkout")
        shutil.rmtree(self.checkout.folder / "recipes/_parts")
        self.key = folder / "site.rsa"
        self.key.write_text(apklab.private(SITE))

    def recipe(self, more: str, head: str = "") -> Path:
        text = RECIPE.format(head=head, mirror=self.mirror.url("")[:-1], key=self.key, more=more)
        made = self.checkout.recipe("one", text)
        (made / apklab.NAME).write_text(apklab.public())
        return made

    def serve(self, packages: dict[str, apklab.Package], key: rsa.RSAPrivateKey = apklab.KEY) -> None:
        shutil.rmtree(self.home / MAIN)
        apklab.repository(self.home / MAIN, packages, key)
        self.mirror.files = {name: data for name, data in self.mirror.files.items() if not name.startswith(MAIN)}
        self.mirror.refresh()

    def lock(self) -> dict[str, object]:
        said: dict[str, object] = json.loads((self.checkout.folder / "recipes/one/recipe.lock").read_bytes())
        return said

    def close(self) -> None:
        self.mirror.shutdown()
        self.mirror.server_close()


SITE = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def modules(folder: Path) -> Path:
    home = folder / "6.12.1-0-virt"
    (home / "kernel/drivers/net").mkdir(parents=True)
    (home / "kernel/drivers/net/lab.ko").write_text("module\n")
    for name in ("modules.dep", "modules.order", "modules.builtin", "modules.builtin.modinfo"):
        (home / name).write_text("")
    return home


def kernel(folder: Path) -> Path:
    path = folder / "kernel"
    path.write_bytes(alpinelab.KERNEL)
    return path


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path, apklab.base(modules(tmp_path), kernel(tmp_path), "#!/bin/busybox sh\n"))
    yield made
    made.close()


def member(path: Path, name: str) -> str:
    done = subprocess.run(["tar", "-xzOf", path, name], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


def test_a_release_carries_the_packages_of_its_machines(lab: Lab) -> None:
    lab.recipe(f"{RELEASE}  packages: [chrony, chrony-openrc]\n  services: {{default: [chronyd]}}\n")
    lab.checkout.doit("build:one")
    release = lab.checkout.release("one")
    found = {path.name: path for path in (release / "apks/x86_64").iterdir()}
    # What apk makes of alpine-base, chrony and its service, and nothing else.
    wanted = ["alpine-base-1.0-r0", "busybox-1.0-r0", "chrony-4.5-r0", "chrony-openrc-4.5-r0", "openrc-1.0-r0"]
    wanted.append("openssl-1.0-r0")
    assert sorted(found) == ["APKINDEX.tar.gz", *(f"{name}.apk" for name in wanted)]
    for name, path in found.items():
        if name.endswith(".apk"):
            assert path.read_bytes() == (lab.home / MAIN / name).read_bytes()
    # The index is the site's, and says of packages what the mirror's own says.
    name, pem = signing.public(lab.key.read_text())
    text = packages.verified_index(found["APKINDEX.tar.gz"].read_bytes(), {name: pem})
    theirs = packages.verified_index(
        (lab.home / MAIN / "APKINDEX.tar.gz").read_bytes(), {apklab.NAME: apklab.public().encode()}
    )
    known = {one.name: one for one in packages.parse(theirs)}
    assert [one == known[one.name] for one in packages.parse(text)] == [True] * 6
    for record in text.strip().split("\n\n"):
        assert {*record.splitlines()} <= {*theirs.splitlines()}
    # The machine trusts it, and takes nothing from anywhere else.
    apkovl = release / "one.apkovl.tar.gz"
    assert member(apkovl, f"etc/apk/keys/{name}").encode() == pem
    with tarfile.open(apkovl) as archive:
        assert "etc/apk/repositories" not in archive.getnames()
    assert "alpine_repo=http://h/r/apks modloop=" in lab.checkout.cmdline("one", http="http://h/r")
    # No private key leaves its file.
    secret = lab.key.read_text().splitlines()[3].encode()
    for written in lab.checkout.folder.rglob("*"):
        if written.is_file() and not written.is_symlink():
            assert secret not in written.read_bytes()
    # Everything is there already.
    asked = len(lab.mirror.asked)
    lab.recipe(f"{RELEASE}  packages: [chrony, chrony-openrc]\n", "hostname: box\n")
    said = lab.checkout.doit("build:one")
    assert re.search(r"repository +cached", said)
    assert len(lab.mirror.asked) == asked


def test_packages_are_those_of_the_lock(lab: Lab) -> None:
    known = apklab.base()
    lab.recipe(RELEASE)
    lab.checkout.doit("build:one")
    first = {path.name for path in (lab.checkout.release("one") / "apks/x86_64").iterdir()}
    newer = {**known, "openrc": apklab.Package("2.0-r0", files=known["openrc"].files)}
    lab.serve(newer)
    # Another package, of the indexes that the lock knows: nothing else moves.
    lab.recipe(f"{RELEASE}  packages: [less]\n")
    lab.checkout.doit("build:one")
    then = {path.name for path in (lab.checkout.release("one") / "apks/x86_64").iterdir()}
    assert then == first | {"less-1.0-r0.apk"}
    said = lab.checkout.doit("lock:one", "--check", status=1)
    assert "packages/openrc/version: 1.0-r0 -> 2.0-r0" in said
    lab.checkout.doit("lock:one")
    lab.checkout.doit("build:one")
    assert "2.0-r0" in (lab.checkout.release("one") / "packages.tsv").read_text()
    assert set(lab.checkout.licenses("one").values()) == {"MIT"}
    # A mirror that has it no more.
    shutil.rmtree(lab.checkout.folder / "out")
    lab.serve(known)
    said = lab.checkout.doit("build:one", status=1)
    assert "recipe.lock wants openrc-2.0-r0.apk, which the mirror has no more" in said
    assert "./doit lock:one" in said or "./doit lock:NAME" in said


def test_what_cannot_be_right(lab: Lab) -> None:
    def fails(text: str) -> str:
        said = lab.checkout.doit("build:one", status=1)
        assert text in said, said
        assert "Traceback" not in said
        assert not (lab.checkout.folder / "out/images/one").exists()
        return said

    lab.recipe(f"{RELEASE}  packages: [no-such]\n")
    said = fails("no package no-such in the recipe's repositories")
    assert "Error" not in said.replace("BuildError", "")
    lab.recipe(f"{RELEASE}  services: {{default: [chronyd]}}\n")
    fails("no package of the recipe has the service chronyd")
    shutil.rmtree(lab.checkout.folder / "out")
    (lab.checkout.folder / "recipes/one/recipe.lock").unlink()
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    lab.serve(apklab.base(), other)
    fails("its signature by lab.rsa.pub is wrong")
    home = lab.recipe(RELEASE)
    (home / "recipe.yaml").write_text((home / "recipe.yaml").read_text().replace("  keys: [lab.rsa.pub]\n", ""))
    fails("it is signed by a key that nobody trusts: lab.rsa.pub")
    lab.recipe(RELEASE)
    lab.serve(apklab.base())
    name = f"{MAIN}/openrc-1.0-r0.apk"
    whole = lab.mirror.files[name]
    lab.mirror.files[name] = whole[:-30] + bytes(30)
    fails("its files are not those that it was made with")
    lab.mirror.files[name] = apklab.made("openrc", apklab.Package(files={"x": bytes(len(whole))}))[0]
    fails("bytes, not")
    lab.mirror.files[name] = whole[: len(whole) // 2]
    fails("bytes, not")
    lab.mirror.files[name] = whole
    index = f"{MAIN}/APKINDEX.tar.gz"
    (lab.checkout.folder / "recipes/one/recipe.lock").unlink()
    lab.mirror.files[index] = b"no index"
    fails("APKINDEX.tar.gz: ")
    lab.key.write_text("no key")
    lab.serve(apklab.base())
    fails("is no plain RSA key")
    lab.key.unlink()
    fails("holds no key")


def cpio(path: Path, folder: Path) -> Path:
    folder.mkdir()
    data = path.read_bytes()
    subprocess.run(["cpio", "-idm", "--quiet"], cwd=folder, input=zlib.decompress(data, 31), check=True)
    return folder


def test_an_initramfs_and_a_modloop_of_packages(lab: Lab, tmp_path: Path) -> None:
    more = f"{MKINITFS}  mkinitfs:\n    packages: [strace]\n    files: [/usr/bin/strace]\n"
    more += "    firmware: [linux-firmware-lab]\n"
    lab.recipe(more)
    lab.checkout.doit("build:one")
    release = lab.checkout.release("one")
    assert (release / "vmlinuz").read_bytes() == alpinelab.KERNEL
    # mkinitfs leaves it to root alone, and a TFTP server isn't root.
    assert (release / "initrd").stat().st_mode & 0o444 == 0o444
    tree = cpio(release / "initrd", tmp_path / "initramfs")
    name, pem = signing.public(lab.key.read_text())
    assert (tree / "etc/apk/keys" / name).read_bytes() == pem
    assert (tree / "etc/apk/keys" / apklab.NAME).exists()
    assert (tree / "usr/bin/strace").exists()
    signature = tree / f"var/cache/misc/modloop-virt.SIGN.RSA.{name}"
    assert signing.verify((release / "modloop-virt").read_bytes(), signature.read_bytes(), pem, "RSA")
    listed = subprocess.run(
        ["unsquashfs", "-l", "-d", "", release / "modloop-virt"], check=True, capture_output=True, text=True
    ).stdout
    assert "/modules/6.12.1-0-virt/kernel/drivers/net/lab.ko" in listed
    assert "/modules/firmware/lab/card.bin" in listed
    first = {path.name: path.read_bytes() for path in release.iterdir() if path.is_file()}
    # A word of the initramfs is no reason for another modloop, nor the machine's packages for either.
    lab.recipe(more.replace("    files: [/usr/bin/strace]\n", "    features: [base, network, nvme]\n"))
    said = lab.checkout.doit("build:one")
    for stage, how in (("buildroot", "cached"), ("modloop", "cached"), ("initramfs", "built"), ("apkovl", "cached")):
        assert re.search(rf"{stage} +{how}", said), said
    lab.recipe(more.replace("    files: [/usr/bin/strace]\n", "") + "  packages: [less]\n")
    assert re.search(r"buildroot +cached", lab.checkout.doit("build:one"))
    lab.recipe(more.replace("[/usr/bin/strace]", "[/usr/bin/strace]\n    features: [base, zfs]"))
    said = lab.checkout.doit("build:one", status=1)
    assert "mkinitfs knows no feature zfs" in said
    assert "there are: base network nvme squashfs usb virtio" in said
    # The same again, from nothing.
    lab.recipe(more)
    shutil.rmtree(lab.checkout.folder / "out")
    before = os.umask(0o027)
    try:
        lab.checkout.doit("build:one")
    finally:
        os.umask(before)
    release = lab.checkout.release("one")
    again = {path.name: path.read_bytes() for path in release.iterdir() if path.is_file()}
    for name in ("vmlinuz", "initrd", "modloop-virt", "one.apkovl.tar.gz"):
        assert again[name] == first[name], name


def test_a_kernel_that_is_not_there(lab: Lab, tmp_path: Path) -> None:
    lab.recipe(MKINITFS)
    known = apklab.base(modules(tmp_path / "more"), kernel(tmp_path), "")
    del known["linux-virt"]
    lab.serve(known)
    assert "no package linux-virt in the recipe's repositories" in lab.checkout.doit("build:one", status=1)
    known["linux-virt"] = apklab.Package(
        depends=("linux-firmware-any",),
        files={"lib/modules/6.6.6-0-virt/modules.dep": "", "boot/vmlinuz-virt": alpinelab.KERNEL},
    )
    lab.serve(known)
    said = lab.checkout.doit("build:one", status=1)
    assert "linux-virt has kernel 6.12.1-0-virt, but modules of 6.6.6-0-virt" in said


START = """\
#!/bin/busybox sh
B=/bin/busybox
$B mkdir -p /etc/dropbear /dev/pts
$B mount -t devpts devpts /dev/pts
echo "root:x:0:0:root:/root:/bin/sh" >/etc/passwd
/usr/sbin/dropbear -R -s -p 22
"""


def test_a_machine_boots_with_packages_of_its_release(small: Checkout, tmp_path: Path) -> None:
    """The initramfs fetches the release's index and every package of it; the recipe's key logs in."""
    folder = tmp_path / "kernel"
    (folder / "initramfs/bin").mkdir(parents=True)
    (folder / "initramfs/lib").mkdir()
    tree = archlab.bootable(small, folder / "vmlinuz", folder / "initramfs")
    names = (folder / "initramfs/modules").read_text()
    some = folder / "initramfs/lib/modules" / tree.name
    known = apklab.base(some, folder / "vmlinuz", alpinelab.INIT, START)
    known["openssh"] = apklab.Package(files={**known["openssh"].files, **apklab.programs("dropbear")})
    known["mkinitfs"] = apklab.Package(
        "3.12.0-r0",
        depends=("busybox",),
        files={
            **known["mkinitfs"].files,
            "usr/share/mkinitfs/root/udhcpc": archlab.DHCP,
            "usr/share/mkinitfs/root/modules": names,
        },
    )
    lab = Lab(tmp_path, known)
    try:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
        head = (
            "hostname: box\noverlay: [overlay]\nusers: [{name: root, authorized-keys: [id.pub]}]\nboot:\n  expect:\n"
            "    - console: 'alpine: I am box'\n    - console: 'alpine: 5 packages of its release'\n"
            "    - console: 'alpine: has its modules'\n    - console: local-started\n"
            "    - ssh: {command: cat /etc/hostname, key: id}\n"
        )
        home = lab.recipe(f"{RELEASE}{MKINITFS}", head)
        for name in ("id", "id.pub"):
            shutil.copy(tmp_path / name, home / name)
        (home / "overlay/etc/local.d").mkdir(parents=True)
        (home / "overlay/etc/local.d/x.start").write_text("echo local-started\n")
        (home / "overlay/etc/local.d/x.start").chmod(0o755)
        lab.checkout.doit("boot:one", "--firmware=bios-pxelinux")
    finally:
        lab.close()


def test_packages_that_are_none() -> None:
    data, record = apklab.made("x", apklab.Package(files={"etc/init.d/x": "x"}))
    (one,) = packages.parse(record)
    path = Path(f"/tmp/netboot-test-{os.getpid()}.apk")
    try:
        path.write_bytes(data)
        assert packages.check(data, one) is None
        assert packages.services(path) == ["x"]
        for wrong, text in (
            (b"", "it ends in the middle"),
            (b"nothing", "is no package"),
            (data[:100], "it ends in the middle"),
            (data[:-9], "its files are not those"),
            (apklab.made("y", apklab.Package())[0], "is not what the index names"),
        ):
            assert text in str(packages.check(wrong, one))
    finally:
        path.unlink()


def test_signatures() -> None:
    name, pem = signing.public(apklab.private())
    assert re.fullmatch(r"netboot-[0-9a-f]{8}\.rsa\.pub", name)
    made = signing.sign(b"text", apklab.private())
    assert signing.verify(b"text", made, pem, "RSA")
    assert not signing.verify(b"texT", made, pem, "RSA")
    assert not signing.verify(b"text", made, pem, "RSA256")
    assert not signing.verify(b"text", made, b"no key", "RSA")
    assert not signing.verify(b"text", made, pem, "DSA")


def test_alpines_own_keys_are_read() -> None:
    keys = apk.trusted(())
    assert len(keys) == 16
    for pem in keys.values():
        assert isinstance(load_pem_public_key(pem), rsa.RSAPublicKey)
