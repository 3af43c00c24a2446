"""A pacman repository in the real format, made by repo-add and signed by gpg, with a mkinitcpio of the tests' own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests import apklab, archlab
from tests.initrdlab import busybox

MKINITCPIO = """\
#!/bin/sh
# Stands in for mkinitcpio: the same options, the files of its package and the kernel's modules.
while getopts "c:k:g:" word; do
    case $word in c) conf=$OPTARG ;; k) version=$OPTARG ;; g) out=$OPTARG ;; esac
done
sed 's/=(\\(.*\\))/="\\1"/' $conf >/tmp/conf
. /tmp/conf
case " $HOOKS " in *" archiso_pxe_http archiso_pxe_nfs "*) ;; *) echo "no archiso hooks" >&2; exit 1 ;; esac
dir=$(mktemp -d)
cp -a /usr/lib/initcpio/root/. $dir/
mkdir -p $dir/dev $dir/usr/lib/modules
ln -s usr/lib $dir/lib 2>/dev/null || mkdir -p $dir/lib
mkdir -p $dir/lib/modules
cp -a /usr/lib/modules/$version $dir/lib/modules/
rm -f $dir/lib/modules/$version/vmlinuz
find $dir -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
umask 077
(cd $dir && find . | sort | cpio -R 0:0 --renumber-inodes --ignore-devno -o -H newc 2>/dev/null | gzip -9 -n) >$out
"""

SYSTEMCTL = """\
#!/bin/sh
[ -e /usr/lib/systemd/system/$2 ] || { echo "Unit $2 could not be found."; exit 1; }
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -sf /usr/lib/systemd/system/$2 /etc/systemd/system/multi-user.target.wants/$2
"""

USERMOD = """\
#!/bin/sh
sed -i "s|^root:[^:]*:|root:$2:|" /etc/shadow
"""


@dataclass
class Package:
    """A package's words and files, as apklab's."""

    version: str = "1.0-1"
    depends: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    files: Mapping[str, str | bytes | Path] = field(default_factory=dict)


class Key:
    """A gpg key of the tests' own."""

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o700, parents=True)
        self.environment = {**os.environ, "GNUPGHOME": str(home)}
        self.line = ["gpg", "--batch", "--quiet", "--pinentry-mode=loopback", "--passphrase="]
        subprocess.run([*self.line, "--quick-gen-key", "arch@lab", "ed25519"], env=self.environment, check=True)

    def sign(self, path: Path) -> None:
        subprocess.run([*self.line, "--yes", "--detach-sign", path], env=self.environment, check=True)

    def clearsigned(self, text: str) -> bytes:
        done = subprocess.run(
            [*self.line, "--clearsign"], env=self.environment, input=text.encode(), stdout=subprocess.PIPE, check=True
        )
        return done.stdout

    def export(self, to: Path) -> Path:
        done = subprocess.run([*self.line, "--export"], env=self.environment, check=True, stdout=subprocess.PIPE)
        to.write_bytes(done.stdout)
        return to

    def close(self) -> None:
        subprocess.run(["gpgconf", "--kill", "all"], env=self.environment, check=False)


def package(folder: Path, name: str, said: Package) -> Path:
    """A package's file."""
    info = [
        f"pkgname = {name}",
        f"pkgbase = {name}",
        f"pkgver = {said.version}",
        "pkgdesc = of the lab",
        "url = http://lab",
    ]
    info += ["builddate = 1784073600", "packager = lab", "size = 4096", "arch = x86_64", "license = MIT"]
    info += [f"depend = {word}" for word in said.depends] + [f"provides = {word}" for word in said.provides]
    path = folder / f"{name}-{said.version}-x86_64.pkg.tar.gz"
    path.write_bytes(apklab.tarred({".PKGINFO": "".join(f"{line}\n" for line in info), **said.files}))
    return path


def repository(mirror: Path, name: str, packages: Mapping[str, Package], key: Key, *, embedded: bool = False) -> None:
    """A repository of a mirror. embedded -- its index has the signatures too, as repo-add once did by itself."""
    home = mirror / name / "os/x86_64"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    files = [package(home, one, said) for one, said in packages.items()]
    for path in files if embedded else ():
        key.sign(path)
    script = shutil.which("repo-add")
    assert script
    # Older ones always do, and newer ones don't tell of it.
    knows = "include-sigs" in Path(script).read_text()
    line = ["repo-add", "-q", *(["--include-sigs"] if knows and embedded else []), f"{home}/{name}.db.tar.gz"]
    line += [str(path) for path in files]
    subprocess.run(line, check=True, env=key.environment)
    for path in files if not embedded else ():
        key.sign(path)


def packages(modules: Path, kernel: Path, initramfs: Path) -> dict[str, Package]:
    """What a root with an initramfs needs. modules -- folder of a kernel's"""
    box = {f"usr/bin/{name}": "->busybox" for name in apklab.APPLETS.split()}
    version = modules.name
    tree = {
        f"usr/lib/modules/{version}/{path.relative_to(modules)}": path
        for path in sorted(modules.rglob("*"))
        if path.is_file()
    }
    lab = {
        f"usr/lib/initcpio/root/{path.relative_to(initramfs)}": path
        for path in sorted(initramfs.rglob("*"))
        if path.is_file() and "lib/modules" not in str(path)
    }
    return {
        "base": Package(
            depends=("filesystem", "busybox", "systemd"),
        ),
        "filesystem": Package(
            files={
                "bin": "->usr/bin",
                "sbin": "->usr/bin",
                "lib": "->usr/lib",
                "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
                "etc/shadow": "root::14871::::::\n",
                "etc/group": "root:x:0:\n",
                "etc/marker": f"{archlab.MARKER}\n",
                "root/.keep": "",
                "var/tmp/.keep": "",
                "sys/.keep": "",
            }
        ),
        "busybox": Package(depends=("filesystem",), files={"usr/bin/busybox": apklab._file(busybox()), **box}),
        "systemd": Package(
            depends=("busybox",),
            files={
                "usr/bin/systemctl": SYSTEMCTL,
                "usr/bin/usermod": USERMOD,
                "usr/lib/systemd/system/sshd.service": "[Unit]\n",
            },
        ),
        "linux": Package("6.12.1-1", ("mkinitcpio",), files={f"usr/lib/modules/{version}/vmlinuz": kernel, **tree}),
        "mkinitcpio": Package(depends=("busybox",), files={"usr/bin/mkinitcpio": MKINITCPIO, **lab}),
        "mkinitcpio-archiso": Package(depends=("mkinitcpio",)),
        "mkinitcpio-nfs-utils": Package(),
        "nbd": Package(),
        "curl": Package(),
        "openssh": Package("9.9-1", ("busybox",)),
    }
