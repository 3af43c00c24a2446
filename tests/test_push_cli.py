"""A site of two machines, published to, gone back on and looked after by doit's command line."""

from __future__ import annotations

import fcntl
import ipaddress
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests import sshlab
from tests.checkout import SHARED, Checkout

pytestmark = [pytest.mark.integration, sshlab.needed]

MAC = "52:54:00:00:00:0a"
PC = "description: clients share the root\nextends: ../_parts/base.yaml\nclients: volatile\n"
DISK = "description: one squashfs, read by NFS\nextends: ../_parts/base.yaml\nroot: {kind: squashfs, over: nfs}\n"

DNSMASQ = """\
#!/bin/sh
[ "$1" = restart ] || exit 2
kill "$(cat /run/dnsmasq.pid)" 2>/dev/null
while kill -0 "$(cat /run/dnsmasq.pid)" 2>/dev/null; do sleep 0.05; done
exec dnsmasq --conf-file={data}/netboot.conf --pid-file=/run/dnsmasq.pid --user=root
"""
"""What a system without systemd has for it."""

EXPORTS = (
    "mkdir {data}/exports.d",
    "mount --bind {data}/exports.d /etc/exports.d",
    "mount -t tmpfs tmpfs /var/lib/nfs",
    "touch /var/lib/nfs/etab",
    "mount --bind {bin} /usr/local/sbin",
)
"""The kernel's NFS server as far as it is a program's: installed, it would start on this machine."""


@dataclass
class Lab:
    """A checkout, and the two machines of its site."""

    checkout: Checkout
    lab: sshlab.Box
    den: sshlab.Box

    def doit(self, *arguments: str, status: int = 0) -> list[str]:
        """The lines that doit prints, with blanks made one."""
        return [" ".join(line.split()) for line in self.checkout.doit(*arguments, status=status).splitlines()]

    def change(self, name: str, text: str) -> str:
        """Another command line; the ID of the release that is built of it."""
        recipe = self.checkout.folder / "recipes" / name / "recipe.yaml"
        recipe.write_text(re.sub("(?m)^cmdline: .*\n|\\Z", "", recipe.read_text(), count=1) + f"cmdline: {text}\n")
        self.checkout.doit(f"build:{name}")
        return self.checkout.release(name).name

    def fetched(self, path: str) -> str:
        """What the dnsmasq of `lab` gives a machine that boots."""
        line = ["busybox", "tftp", "-g", "-r", path, "-l", "/dev/stdout", self.lab.address]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    def booted(self, name: str, host: str = "") -> str:
        """The release that a machine is told to boot; one alone."""
        menu = self.fetched(f"entries/{name}/{f'hosts/{host}/' if host else ''}boot.ipxe")
        (found,) = set(re.findall(r"\d{8}T\d{6}Z-[0-9a-f]{12}", menu))
        return str(found)


def target(box: sshlab.Box, **more: object) -> dict[str, object]:
    boot = f"{box.folder}/boot"
    for name in ("boot", "nfs"):
        (box.folder / name).mkdir()
    network = ipaddress.ip_interface(f"{box.address}/30").network
    where = {"ssh": box.name, "address": box.address, "network": str(network), "interface": "eth0"}
    return {**where, "tftp": boot, "http": boot, "nfs": f"{box.folder}/nfs", "keep": 1, **more}


@pytest.fixture(scope="module")
def programs() -> Path:
    """A folder with Debian's exportfs; its package stays for the next run."""
    folder = SHARED / "nfs-kernel-server"
    with SHARED.joinpath("nfs-kernel-server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "usr/sbin/exportfs").exists():
            folder.mkdir(exist_ok=True)
            subprocess.run(["apt-get", "download", "nfs-kernel-server"], cwd=folder, check=True)
            (deb,) = folder.glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
    return folder / "usr/sbin"


@pytest.fixture(scope="module")
def site(small: Checkout, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    small.doit("build:small-volatile")
    made = Checkout.beside(tmp_path_factory.mktemp("site"))
    lock = SHARED / "recipes/small-volatile/recipe.lock"
    for name, text in {"cli-pc": PC, "cli-disk": DISK}.items():
        made.recipe(name, text, {"recipe.lock": lock.read_text()})
    before = [line.replace("{bin}", str(programs)) for line in EXPORTS]
    with (
        sshlab.box(
            "openssh", etc={"init.d/dnsmasq": DNSMASQ, "exports.d/none": "", "exports": ""}, before=before
        ) as lab,
        sshlab.box("openssh") as den,
    ):
        config = made.folder / "ssh_config"
        config.write_text(lab.config.read_text() + den.config.read_text())
        key = made.folder / "signer"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ci@lab", "-f", key], check=True)
        public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
        (made.folder / "allowed_signers").write_text(f'ci@lab namespaces="netboot-release" {public}\n')
        services = {"dnsmasq": f"{lab.folder}/netboot.conf", "exports": f"{lab.folder}/exports.d/netboot.exports"}
        said = {
            "ssh-config": "ssh_config",
            "signing": {"key": "signer", "allowed-signers": "allowed_signers"},
            "targets": {"lab": target(lab, services=services), "den": target(den, recipes=["cli-pc"])},
            "hosts": {MAC: {"name": "node-07", "target": "lab"}},
        }
        (made.folder / "site.yaml").write_text(yaml.safe_dump(said))
        yield Lab(made, lab, den)


def test_a_site_from_its_first_push_to_its_last_prune(site: Lab) -> None:
    # On a terminal, as somebody would do it: everything that the site's targets list.
    line = shlex.join(["env", f"PYTHONPATH={site.checkout.environment['PYTHONPATH']}", *site.checkout.command("push")])
    screen = subprocess.run(
        ["script", "-qec", f"stty cols 160 rows 40; {line}", "/dev/null"],
        cwd=site.checkout.folder,
        env={**site.checkout.environment, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert screen.returncode == 0, screen.stdout
    seen = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "\n", screen.stdout)
    first, disk = site.checkout.release("cli-pc").name, site.checkout.release("cli-disk").name
    for name, where, release in (("cli-pc", "lab", first), ("cli-pc", "den", first), ("cli-disk", "lab", disk)):
        assert re.search(rf"(?m)^{name} +{where} +published .* {release} ", seen), seen
        assert re.search(rf"{name} +{where} +sending .*% .*B/s .* left", seen), seen
    assert "cli-disk den" not in " ".join(seen.split())

    # Its services run with what was written for them.
    assert site.booted("cli-pc") == first
    assert site.booted("cli-disk") == disk
    assert site.fetched(f"images/cli-disk/{disk}/manifest.json").startswith("{")
    table = site.lab.tell("cat /var/lib/nfs/etab")
    assert re.search(rf"(?m)^{site.lab.folder}/nfs\s.*\bro\b", table), table
    assert (site.lab.folder / f"nfs/cli-disk/{disk}/live/filesystem.squashfs").read_bytes()[:4] == b"hsqs"

    # A canary, and then for all.
    second = site.change("cli-pc", "console=ttyS0 second=1")
    said = site.doit("push:lab/cli-pc", "--host", "node-07")
    assert any(re.match(rf"cli-pc lab published .* {second} .*on node-07 alone", line) for line in said), said
    folder = "01-" + MAC.replace(":", "-")
    assert (site.booted("cli-pc"), site.booted("cli-pc", folder)) == (first, second)
    assert any("node-07" in line and second in line for line in site.doit("status:lab"))
    assert any("second=1" in line for line in site.doit("diff:lab/cli-pc"))
    assert f"cli-pc lab promoted {second} was on node-07 alone" in site.doit("promote:lab/cli-pc")
    assert site.booted("cli-pc") == second

    # And back; to one that it names too.
    assert f"cli-pc lab back {first} (was {second})" in site.doit("rollback:lab/cli-pc")
    assert site.booted("cli-pc") == first
    assert f"cli-pc lab back {second} (was {first})" in site.doit("rollback:lab/cli-pc", "--release", second)

    # Somebody who is allowed has signed it, and all of it is there.
    whole = site.doit("verify:lab/cli-pc")
    assert [line.split()[2] for line in whole] == ["whole", "whole"], whole
    assert all("signed by ci@lab" in line for line in whole), whole
    shadow = site.lab.folder / f"nfs/cli-pc/{second}/etc/shadow"
    kept = shadow.read_bytes()
    shadow.write_bytes(kept.replace(b"root:", b"evil:", 1))
    bad = site.doit("verify:lab/cli-pc", status=1)
    assert any("etc/shadow" in line and "another content" in line for line in bad), bad
    shadow.write_bytes(kept)
    signers = site.checkout.folder / "allowed_signers"
    allowed = signers.read_text()
    signers.write_text("")
    assert any("WRONG" in line for line in site.doit("verify:lab/cli-pc", status=1))
    assert any("signed by nobody" in line for line in site.doit("push:lab/cli-pc", status=1))
    signers.write_text(allowed)

    # Only what nobody needs goes.
    third = site.change("cli-pc", "console=ttyS0 third=1")
    site.doit("push:lab/cli-pc")
    dry = site.doit("prune:lab", "--dry-run")
    assert dry[-1] == "nothing was removed (--dry-run)"
    assert any(first in line for line in dry), dry
    assert (site.lab.folder / f"nfs/cli-pc/{first}").is_dir()
    site.doit("prune:lab")
    assert sorted(path.name for path in (site.lab.folder / "nfs/cli-pc").iterdir()) == [second, third]
    assert site.booted("cli-pc") == third
