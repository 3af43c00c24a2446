"""A real nix and real builders: machines with a store of their own, and programs of another architecture.

Nothing of nixpkgs is needed: the flake here makes its derivations of Debian's busybox and kernel for arm64.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from buildlib import sandbox
from tests import sshlab
from tests.checkout import SHARED, Checkout

PACKAGES = ("busybox-static", "linux-image-cloud-arm64")

MARKER = "stage-1-of-nixos"

CONF = """\
experimental-features = nix-command flakes
build-users-group =
substituters =
flake-registry =
"""

FLAKE = """\
{
  outputs = { self }: let
    system = "aarch64-linux";
    busybox = "${./bin}/busybox";
    make = name: script: derivation {
      inherit name system;
      builder = busybox;
      args = [ "sh" "-c" "set -e; ${busybox} mkdir $out; ${script}" ];
    };
    toplevel = make "nixos-system-test-26.11" ''
      echo "nohibernate root=fstab loglevel=4" >$out/kernel-params
      echo 26.11 >$out/nixos-version
      echo "#!/bin/sh" >$out/init
    '';
    kernel = make "linux-6.1.99" "${busybox} cp ${./boot}/Image $out/Image";
    netbootRamdisk = make "initrd" ''
      ${busybox} mkdir -p t/bin t/proc
      ${busybox} cp ${./bin}/busybox t/bin/busybox
      ${busybox} cp ${./init} t/init
      ${busybox} chmod 755 t/init
      cd t
      ${busybox} find . | ${busybox} sort | ${busybox} cpio -o -H newc >$out/initrd
    '';
    netboot = make "netboot" ''
      ${busybox} ln -s ${kernel}/Image ${netbootRamdisk}/initrd $out
      ${busybox} mkdir $out/system
      ${busybox} ln -s ${toplevel}/init ${toplevel}/kernel-params $out/system
    '';
    script = make "netboot-ipxe" ''
      ${busybox} ln -s ${kernel}/Image ${netbootRamdisk}/initrd $out
      echo "#!ipxe
      kernel Image init=${toplevel}/init initrd=initrd nohibernate root=fstab ''${cmdline}
      initrd initrd
      boot" >$out/netboot.ipxe
    '';
  in {
    nixosConfigurations.test.config.system.build = { inherit kernel netbootRamdisk toplevel; };
    nixosConfigurations.bare.config.system.build = { inherit kernel toplevel; };
    packages.aarch64-linux = {
      inherit netboot script;
      broken = make "broken" "echo this is why; exit 3";
      slow = make "slow" "${busybox} sleep 600";
      fills = make "fills" "${busybox} dd if=/dev/zero of=$out/big bs=1M count=500";
      empty = make "empty" ":";
    };
    packages.x86_64-linux.other = derivation { name = "other"; system = "x86_64-linux"; builder = busybox; };
  };
}
"""

INIT = f"""\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
echo "{MARKER} $(/bin/busybox cat /proc/cmdline)"
/bin/busybox sleep 5
/bin/busybox poweroff -f
"""

_WRAPPER = """\
#!/bin/sh
# As root of a user namespace, which has a binfmt_misc of its own: nothing on this machine is registered.
exec unshare --user --map-root-user --mount --propagation=private sh -c '
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc || exit 1
printf %s "$1" >/proc/sys/fs/binfmt_misc/register || exit 1
shift
exec "$@"' sh '{registration}' {program} "$@"
"""


@dataclass(frozen=True)
class Nix(Checkout):
    """A checkout whose nix has a store of its own, in `store`."""

    store: Path = Path()

    def command(self, *arguments: str) -> list[str]:
        return [*self.within, *super().command(*arguments)]

    @property
    def within(self) -> list[str]:
        return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /nix && exec "$@"', str(self.store)]

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "NIX_CONF_DIR": str(self.store / "conf")}

    def nix(self, *line: str) -> str:
        """What one of nix' programs says in this checkout."""
        done = subprocess.run(
            [*self.within, *line], env=self.environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout


def checkout(folder: Path) -> Nix:
    """A new one, without recipes."""
    made = Nix.make(folder / "checkout")
    shutil.rmtree(made.folder / "recipes" / "_parts", ignore_errors=True)
    store = folder / "nix"
    (store / "conf").mkdir(parents=True)
    (store / "conf" / "nix.conf").write_text(CONF)
    Path("/nix").mkdir(exist_ok=True)
    return Nix(made.folder, store=store)


def flake(folder: Path) -> Path:
    """The flake above with its files."""
    files = arm()
    for name, source in {"bin/busybox": files / "busybox", "boot/Image": files / "Image"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    (folder / "flake.nix").write_text(FLAKE)
    (folder / "init").write_text(INIT)
    return folder


@contextlib.contextmanager
def builder(*, disk: str | None = None, conf: str = "", kind: str = "openssh") -> Iterator[sshlab.Box]:
    """A machine with nix, which builds for arm64 by an emulator."""
    registration = sandbox._registration("arm64")
    assert registration, "qemu-aarch64-static is missing: ./doit test installs it"
    # By itself nix has kvm only where there is /dev/kvm.
    features = "system-features = nixos-test benchmark big-parallel kvm\n"
    settings = f"{CONF}extra-platforms = aarch64-linux\nsandbox = false\n{features}{conf}"
    before = ["mkdir -p {data}/bin {data}/real {data}/nix"]
    for name in ("nix-daemon", "nix-store"):
        wrapper = _WRAPPER.format(registration=registration, program=f"{{data}}/real/{name}")
        before += [
            f"ln -s /usr/bin/nix {{data}}/real/{name}",
            f"cat >{{data}}/bin/{name} <<'END'\n{wrapper}END",
            f"chmod 755 {{data}}/bin/{name}",
        ]
    before += [
        "mount -t overlay -o lowerdir={data}/bin:/usr/bin builder /usr/bin",
        "mount --bind {data}/nix /nix",
    ]
    Path("/nix").mkdir(exist_ok=True)
    with sshlab.box(kind, disk=disk, etc={"nix/nix.conf": settings}, before=before) as box:
        yield box


def arm() -> Path:
    """A folder with Debian's busybox and kernel for arm64; fetched once."""
    home = SHARED / "nixlab"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "Image").exists():
            _fetch(home)
    return home


def _fetch(home: Path) -> None:
    apt = home / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": apt / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    line = ["apt-get", "-q", "-y", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*line, "update"], check=True, capture_output=True)
    only = [*line, "--no-install-recommends", "--download-only", "install", *PACKAGES]
    subprocess.run(only, check=True, capture_output=True)
    for path in sorted((apt / "cache" / "archives").glob("*.deb")):
        if path.name.startswith(("busybox", "linux-image")):
            subprocess.run(["dpkg-deb", "--extract", path, home / "root"], check=True)
    found = list((home / "root").glob("*/busybox")) + list((home / "root/usr").glob("bin/busybox"))
    shutil.copy(found[0], home / "busybox")
    (kernel,) = (home / "root" / "boot").glob("vmlinuz-*")
    os.replace(kernel, home / "Image")
    shutil.rmtree(apt)
    shutil.rmtree(home / "root")
