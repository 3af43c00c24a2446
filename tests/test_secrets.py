"""Secrets of every kind that recipes and site files know reach what they are for, and nothing else that is written."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import apklab, sshlab
from tests.checkout import Checkout
from tests.test_apk import SITE, Lab

HASH = "$6$salt-8c1f$Fq7Zkx0J0yJv3Zb1Yw0m5c2u8r6t4p2n0l8k6j4h2g0f8d6s4a2"
PHRASE = "seventeen red herrings 4471"
TOKEN = "tok-60d1b7aa93"
GARBAGE = "no-key-but-secret-77120"

DEBIAN = f"mirrors: {{debian: {{archive: 'http://reader:{TOKEN}@127.0.0.1:9/debian'}}}}\n"
"""A mirror that does not answer."""

PRODUCT = "etc/shadow"
"""The one file that a password's hash is for."""


def body(key: str) -> str:
    """A line from the middle of a private key."""
    lines = key.splitlines()
    return lines[len(lines) // 2]


def finds(secrets: dict[str, str], data: bytes) -> Iterator[str]:
    """Names of secrets that are in it, as they are or in base64, gzipped or not."""
    texts = [data]
    while data[:3] == b"\x1f\x8b\x08":
        unpacker = zlib.decompressobj(31)
        with contextlib.suppress(zlib.error):
            texts.append(unpacker.decompress(data))
        data = unpacker.unused_data
    for name, secret in secrets.items():
        # In base64 a word looks otherwise by where it begins: what its middle is must be seen in one of three.
        forms = [secret.encode(), *(base64.b64encode(bytes(at) + secret.encode())[4:-4] for at in range(3))]
        if any(form in text for form in forms for text in texts):
            yield name


def leaks(secrets: dict[str, str], *folders: Path, since: float = 0.0) -> list[str]:
    """Files that hold a secret, and are not what the secret is for."""
    found = []
    for folder in folders:
        # Other tests build into the same folder: what goes meanwhile holds nothing.
        for here, _, files in os.walk(folder):
            for path in (Path(here, name) for name in files):
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file() and not path.is_symlink() and path.lstat().st_ctime >= since:
                        names = [*finds(secrets, path.read_bytes())]
                        found += [f"{path}: {name}" for name in names if not str(path).endswith(PRODUCT)]
    return found


def test_what_is_looked_for_would_be_found(tmp_path: Path) -> None:
    encoded = base64.b64encode(f"x{PHRASE}yz".encode())
    (tmp_path / "etc").mkdir()
    for name, data in {"log": PHRASE.encode(), "encoded": encoded, "none": b"", PRODUCT: PHRASE.encode()}.items():
        (tmp_path / name).write_bytes(data)
    subprocess.run(["gzip", "-k", tmp_path / "log"], check=True)
    names = {line.partition(":")[0].rpartition("/")[2] for line in leaks({"phrase": PHRASE}, tmp_path)}
    assert names == {"log", "encoded", "log.gz"}


@sshlab.needed
def test_an_alpine_and_its_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, apklab.base())
    checkout = lab.checkout
    for name in ("home", "tmp", "hidden"):
        (tmp_path / name).mkdir()
    signing = tmp_path / "hidden/signing"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", signing], check=True)
    proof = tmp_path / "hidden/proof"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", proof], check=True)
    (tmp_path / "hidden/signers").write_text(f"me {signing.with_suffix('.pub').read_text()}")
    (tmp_path / "hidden/hash").write_text(f"{HASH}\n")
    own = apklab.private(SITE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("OVL_PHRASE", PHRASE)
    monkeypatch.setenv("OVL_KEY", own)
    mirror = lab.mirror.url("")[:-1].replace("://", f"://reader:{TOKEN}@")
    text = f"""\
arch: amd64
root: ram
users: [{{name: root, password-file: {tmp_path}/hidden/hash}}]
boot: {{expect: [{{ssh: {{command: 'true', key: proof}}}}]}}
alpine:
  branch: '3.22'
  flavor: virt
  keys: [lab.rsa.pub]
  mirrors: ['{mirror}']
  repository: release
  signing-key: {{env: OVL_KEY}}
  encryption: {{password-env: OVL_PHRASE}}
"""
    checkout.recipe("one", text, {"proof": proof.read_text()})
    with sshlab.box("openssh") as box:
        secrets = {
            "password hash": HASH,
            "pass phrase": PHRASE,
            "mirror's password": TOKEN,
            "signing key of packages": body(own),
            "signing key of releases": body(signing.read_text()),
            "key of the proof": body(proof.read_text()),
            "key of the target": body(box.key.read_text()),
            "what is no key": GARBAGE,
        }
        site = f"""\
ssh-config: {box.config}
signing: {{key: {signing}, allowed-signers: {tmp_path}/hidden/signers}}
targets:
  lab: {{address: {box.address}, network: {box.address}/32, ssh: {box.name}, http: {box.folder}/www}}
"""
        (box.folder / "www").mkdir()
        (checkout.folder / "site.yaml").write_text(site)
        commands = [
            "nightly --no-boot",
            "why:one --json",
            "lint --json",
            "doctor --json",
            "push:lab --dry-run",
            "status:lab",
            "verify:lab/one",
            "services:lab",
        ]
        warned = ("lint --json", "doctor --json")
        said = [checkout.doit(*line.split(), status=None if line in warned else 0) for line in commands]
        assert (box.folder / "www/entries/one").exists()
        assert (checkout.release("one") / "one.apkovl.tar.gz.aes-256-cbc").exists()
        assert (checkout.release("one") / "SHA256SUMS.sig").exists()
        # What fails says why, and no more.
        monkeypatch.setenv("OVL_KEY", GARBAGE)
        said.append(checkout.doit("build:one", status=1))
        assert "signing-key: is no plain RSA key" in said[-1]
        lab.close()
        (checkout.folder / "site.yaml").write_text(f"{site}{DEBIAN}")
        said.append(checkout.doit("bootloaders:lock", status=1))
        said.append(checkout.doit("lock:one", status=1))
        (tmp_path / "console").mkdir()
        (tmp_path / "console/all").write_text("\n".join(said))
        assert "reader:***@" in said[-1]
        folders = [checkout.folder / "out", box.folder, box.state / "log", tmp_path / "home", tmp_path / "tmp"]
        assert leaks(secrets, *folders, tmp_path / "console") == []


def test_a_debian(small: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.doit("build:small-volatile")
    checkout = Checkout.beside(tmp_path, "small-volatile")
    monkeypatch.setenv("ADMIN_HASH", HASH)
    text = "extends: ../_parts/base.yaml\nroot: nfs\nusers: [{name: admin, password-env: ADMIN_HASH}]\n"
    checkout.recipe("small-sealed", text)
    checkout.lock("small-sealed")
    begun = time.time()
    said = [checkout.doit(*line.split()) for line in ("build:small-sealed", "why:small-sealed --json", "report")]
    key = checkout.manifest("small-sealed")["build"]["keys"]["system"]
    assert HASH in (checkout.folder / "out/store" / key / "tree" / PRODUCT).read_text()
    (checkout.folder / "site.yaml").write_text(DEBIAN)
    said.append(checkout.doit("lock:small-sealed", status=1))
    monkeypatch.delenv("ADMIN_HASH")
    said.append(checkout.doit("build:small-sealed", status=1))
    assert "users: ADMIN_HASH holds no password hash of admin" in said[-1]
    secrets = {"password hash": HASH, "mirror's password": TOKEN}
    assert [name for text in said for name in finds(secrets, text.encode())] == []
    assert leaks(secrets, Path(os.path.realpath(checkout.folder / "out")), since=begun) == []
