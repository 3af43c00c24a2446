"""Every tutorial, command by command, against real servers, up to a machine that boots."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildlib.machine import Hardware, Machine
from tests import alpinelab, apklab, archlab, initrdlab, nixlab, sshlab
from tests.checkout import PROJECT, Checkout
from tests.test_alpine import mirror_of
from tests.test_archlinux import Mirror
from tests.test_push_cli import DNSMASQ, EXPORTS, programs  # noqa: F401
from tests.tutorlab import Desk

pytestmark = [pytest.mark.integration, sshlab.needed]

NGINX = """\
#!/bin/sh
[ "$1" = reload ] || exit 2
if [ -s /run/nginx.pid ]; then exec nginx -s reload; fi
exec nginx
"""
"""What a system without systemd has for it."""

OLD_MENU = """\
DEFAULT disk
PROMPT 0
LABEL disk
  LOCALBOOT 0
"""
"""Of a PXE server that was there before."""

OLD_DNSMASQ = """\
port=0
interface=tap0
bind-interfaces
dhcp-range=192.168.7.100,192.168.7.150
dhcp-boot=lpxelinux.0
enable-tftp
tftp-root=/srv/tftp
"""

OLD_NGINX = "server { listen 80; server_name 192.168.7.1; root /srv/tftp; }\n"


@contextlib.contextmanager
def server(*more: str, dnsmasq: str = "/etc/dnsmasq.d") -> Iterator[sshlab.Box]:
    """The server that all tutorials have, at its address. /srv and the folders of its services are its own.

    dnsmasq -- the folder that its netboot.conf is in
    """
    own = ["mkdir -p {data}/srv && mount --bind {data}/srv /srv"]
    for name in ("dnsmasq.d", "nginx/conf.d"):
        own.append(f"mkdir -p {{data}}/{name} && mount --bind {{data}}/{name} /etc/{name}")
    own.append("ip tuntap add tap0 mode tap && ip address add 192.168.7.1/24 dev tap0 && ip link set tap0 up")
    etc = {
        "init.d/dnsmasq": DNSMASQ.replace("{data}", dnsmasq),
        "init.d/nginx": NGINX,
        **dict.fromkeys(("dnsmasq.d/none", "nginx/conf.d/none", "exports.d/none", "exports"), ""),
    }
    with sshlab.box("openssh", etc=etc, before=[*more, *own]) as box:
        yield box


def desk_at(small: Checkout, folder: Path, *, shared: bool = True) -> Desk:
    """With the boot loaders that others use too."""
    small.doit("build:small-volatile", "bootloaders")
    made = Desk.make(folder, shared=shared)
    lock = "recipes/bootloaders.lock"
    shutil.copy(small.folder / lock, made.checkout.folder / lock)
    return made


def with_nix(desk: Desk, folder: Path, conf: str = "") -> None:
    """A nix whose store is this desk's alone."""
    store = folder / "nix"
    (store / "conf").mkdir(parents=True)
    (store / "conf/nix.conf").write_text(nixlab.CONF + conf)
    Path("/nix").mkdir(exist_ok=True)
    desk.within = nixlab.Nix(desk.checkout.folder, store=store).within
    desk.environment = {"NIX_CONF_DIR": str(store / "conf")}


@dataclass(frozen=True)
class InBox(Hardware):
    """A machine on the network of a box, whose end of it is tap0."""

    pid: int = 0

    def argv(self, serial: str) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--", *super().argv(serial)]


def close(mirror: Mirror) -> None:
    mirror.shutdown()
    mirror.server_close()


def powered_on(box: sshlab.Box, folder: Path, mac: str, sign: str) -> None:
    """A PC on the server's network boots what the server gives it, and shows a sign."""
    netdev = "tap,id=n0,ifname=tap0,script=no,downscript=no"
    hardware = InBox("amd64", "bios-pxelinux", mac, 1024, netdev, "tcg", folder, box.process.pid)
    with Machine(hardware, folder / "console.log") as machine:
        assert machine.wait(lambda text: sign in text, 300) == "done", machine.text[-2000:]


def test_a_homelab_with_nfs(small: Checkout, programs: Path, tmp_path: Path) -> None:  # noqa: F811
    with server(*(line.replace("{bin}", str(programs)) for line in EXPORTS)) as box:
        desk = desk_at(small, tmp_path)
        desk.knows("boot.lab", box)
        packages = "  packages: [dbus, openssh-server]\n"
        desk.instead = {packages: f"{packages}  kernel: linux-image-cloud-amd64\n"}
        desk.work_through("debian-nfs.md")


def test_machines_without_disks(small: Checkout, tmp_path: Path) -> None:
    bundle = alpinelab.bundle(tmp_path / "bundle", small, flavor="lts")
    mirror = mirror_of(tmp_path / "mirror", bundle, version="3.22.1")

    def a_new_release() -> None:
        with bundle["initramfs-lts"].open("ab") as file:
            file.write(bytes(512))
        newer = mirror_of(tmp_path / "newer", bundle, version="3.22.2")
        mirror.files = newer.files
        close(newer)

    with server() as box, contextlib.ExitStack() as end:
        end.callback(close, mirror)
        desk = desk_at(small, tmp_path)
        desk.knows("boot.lab", box)
        (desk.checkout.folder / "recipes/_lab").mkdir()
        (desk.checkout.folder / "recipes/_lab" / apklab.NAME).write_text(apklab.public())
        flavor = "  flavor: lts\n"
        trust = f"  keys: [../_lab/{apklab.NAME}]\n  mirrors: ['{mirror.url('')[:-1]}']\n"
        desk.instead = {flavor: flavor + trust}
        desk.work_through("alpine-diskless.md", {"./doit lock:edge --check": a_new_release})
        console = desk.checkout.folder.joinpath("out/boot/edge/bios-pxelinux/console.log").read_text()
        assert "alpine: I am edge-1, 640 3 packages" in console
        assert "alpine: has its modules" in console


def test_beside_a_pxe_server(small: Checkout, tmp_path: Path) -> None:
    tree = archlab.tree(tmp_path / "tree", small)
    mirror = Mirror(tmp_path / "mirror")
    mirror.release("2026.11.01", tree)

    def a_new_release() -> None:
        with (tree / "arch/boot/x86_64/initramfs-linux.img").open("ab") as file:
            file.write(bytes(512))
        mirror.release("2026.12.01", tree)

    with server() as box, contextlib.ExitStack() as end:
        end.callback(close, mirror)
        desk = desk_at(small, tmp_path)
        desk.knows("boot.lab", box)
        loaders = small.folder / small.doit("bootloaders").splitlines()[-1]
        (box.folder / "srv/tftp/pxelinux.cfg").mkdir(parents=True)
        for name in ("lpxelinux.0", "ldlinux.c32"):
            shutil.copy(loaders / name, box.folder / "srv/tftp")
        (box.folder / "srv/tftp/pxelinux.cfg/default").write_text(OLD_MENU)
        (box.folder / "dnsmasq.d/netboot.conf").write_text(OLD_DNSMASQ)
        (box.folder / "nginx/conf.d/netboot.conf").write_text(OLD_NGINX)
        box.tell("/etc/init.d/dnsmasq restart && /etc/init.d/nginx reload")
        release = "  release: latest\n"
        desk.instead = {release: f"{release}  mirrors: ['{mirror.url('')[:-1]}']\n"}
        desk.work_through("arch-existing-pxe.md", {"./doit lock:rescue --check": a_new_release})
        powered_on(box, tmp_path, "52:54:00:12:34:21", "rescue: up")


BENCH = """\
{
  outputs = { self }: let
    busybox = "${./bin}/busybox";
    make = name: script: derivation {
      inherit name;
      system = "x86_64-linux";
      builder = busybox;
      args = [ "sh" "-c" "set -e; ${busybox} mkdir $out; ${script}" ];
    };
  in {
    nixosConfigurations.bench.config.system.build = {
      toplevel = make "nixos-system-bench-26.11" ''
        echo "nohibernate loglevel=4" >$out/kernel-params
        echo 26.11 >$out/nixos-version
        echo "#!/bin/sh" >$out/init
      '';
      kernel = make "linux-6.1.99" "${busybox} cp ${./boot}/bzImage $out/bzImage";
      netbootRamdisk = make "initrd" ''
        ${busybox} mkdir -p t/bin t/proc
        ${busybox} cp ${./bin}/busybox t/bin/busybox
        ${busybox} cp ${./init} t/init
        ${busybox} chmod 755 t/init
        cd t
        ${busybox} find . | ${busybox} sort | ${busybox} cpio -o -H newc >$out/initrd
      '';
    };
  };
}
"""
"""The lab's flake, of a busybox and a kernel of Debian's."""

INIT = nixlab.INIT.replace("/bin/busybox sleep 5\n", 'echo "nixos login: "\n/bin/busybox sleep 5\n')


def git(repository: Path, *line: str) -> None:
    said = ["git", "-C", str(repository), "-c", "user.name=x", "-c", "user.email=x@lab", *line]
    subprocess.run(said, check=True, capture_output=True)


def test_a_nixos_lab(small: Checkout, tmp_path: Path) -> None:
    with server(dnsmasq="/srv/netboot.d/dnsmasq") as box:
        # As server/netboot.nix makes it.
        for name in ("netboot", "netboot.d/dnsmasq", "netboot.d/nginx"):
            (box.folder / "srv" / name).mkdir(parents=True)
        (box.folder / "nginx/conf.d/netboot.conf").write_text("include /srv/netboot.d/nginx/*.conf;\n")
        desk = desk_at(small, tmp_path, shared=False)
        for name in ("boot.lab", "git.lab"):
            desk.knows(name, box)
        with_nix(desk, tmp_path, "sandbox = false\n")
        lab = box.folder / "srv/git/lab"
        for path, data in {
            "bin/busybox": initrdlab.busybox(),
            "boot/bzImage": (small.release("small-volatile") / "vmlinuz").read_bytes(),
            "flake.nix": BENCH.encode(),
            "init": INIT.encode(),
        }.items():
            (lab / path).parent.mkdir(parents=True, exist_ok=True)
            (lab / path).write_bytes(data)
        (lab / "bin/busybox").chmod(0o755)
        for line in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
            git(lab, *line)

        def a_commit() -> None:
            (lab / "init").write_text(f"{INIT}# newer\n")
            git(lab, "commit", "-q", "-a", "-m", "two")

        desk.work_through("nixos-ipxe.md", {"./doit lock:bench --check": a_commit})


def test_a_rack_of_sparks(small: Checkout, tmp_path: Path) -> None:
    with server() as box, nixlab.builder() as builder:
        desk = desk_at(small, tmp_path, shared=False)
        desk.knows("boot.lab", box)
        desk.knows("spark-1.lab", builder)
        with_nix(desk, tmp_path)
        nixpkgs = tmp_path / "nixpkgs"
        nixpkgs.mkdir()
        (nixpkgs / "text").write_text("one\n")
        home = desk.checkout.folder / "recipes/spark-netboot"
        shutil.copytree(PROJECT / "recipes/spark-netboot", home)
        nixlab.flake(home / "flake")
        source = f'inputs.nixpkgs = {{ url = "path:{nixpkgs}"; flake = false; }};\n  outputs = {{ self, nixpkgs }}:'
        text = nixlab.FLAKE.replace("outputs = { self }:", source).replace(
            "Configurations.test", "Configurations.spark-netboot"
        )
        more = "${busybox} cat ${nixpkgs}/text ${./configuration.nix} >$out/configuration; echo 26.11 >"
        (home / "flake/flake.nix").write_text(text.replace("echo 26.11 >", more))
        (home / "flake/init").write_text(INIT)
        desk.work_through("spark-grub.md")
