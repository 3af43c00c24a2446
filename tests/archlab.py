"""Arch Linux' releases as mirrors have them, with a root and an initramfs of the tests' own, on a real HTTP server.

The initramfs knows archiso's parameters for HTTP and NFS, as its hooks do: it does nothing without `ip=`, wants the
slash at the URL's end, and checks the root where it is told to.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests import apklab
from tests.checkout import Checkout
from tests.initrdlab import busybox

MARKER = "root-of-arch"

INIT = """\
#!/bin/busybox sh
B=/bin/busybox
$B mkdir -p /proc /sys /dev /run/root /run/cow /new /medium
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev 2>/dev/null
fail() { echo "archiso: $*"; $B sleep 5; $B poweroff -f; }
for word in $($B cat /proc/cmdline); do
    case $word in
    archisobasedir=* | archisodevice=* | archiso_*_srv=* | archiso_*_name=* | ip=* | \\
        checksum=* | cow_spacesize=* | script=* | BOOTIF=*)
        eval "${word%%=*}='${word#*=}'" ;;
    esac
done
[ -n "$ip" ] || fail "no ip="
[ -n "$BOOTIF" ] || fail "no BOOTIF"
for name in $($B cat /modules); do $B modprobe $name; done
device=$(cd /sys/class/net; for name in *; do [ "$name" = lo ] || echo $name; done)
$B ifconfig $device up
$B udhcpc -q -n -t 20 -i $device -s /udhcpc || fail "no address"
folder=$archisobasedir/x86_64
if [ -n "$archiso_http_srv" ]; then
    case $archiso_http_srv in */) ;; *) fail "no slash at the end" ;; esac
    $B mkdir -p /medium/$folder
    $B wget -q -O /medium/$folder/airootfs.sfs "$archiso_http_srv$folder/airootfs.sfs" || fail "no root"
    $B wget -q -O /medium/$folder/airootfs.sha512 "$archiso_http_srv$folder/airootfs.sha512" || fail "no checksum"
elif [ -n "$archiso_nbd_srv" ]; then
    case $archiso_nbd_srv in *[a-z]*) fail "no address" ;; esac
    /usr/sbin/nbd-client "$archiso_nbd_srv" -N "$archiso_nbd_name" /dev/nbd0 || fail "no NBD"
    $B mount -t squashfs -o ro $archisodevice /medium || fail "no medium"
else
    $B mount -t nfs -o vers=3,nolock,ro,addr=${archiso_nfs_srv%%:*} "$archiso_nfs_srv" /medium || fail "no NFS"
fi
if [ "$checksum" = y ]; then
    (cd /medium/$folder && $B sha512sum -c airootfs.sha512) || fail "another root"
    echo "archiso: checked"
fi
$B mount -t squashfs -o loop,ro /medium/$folder/airootfs.sfs /run/root || fail "no squashfs"
$B mount -t tmpfs -o size=${cow_spacesize:-256M} tmpfs /run/cow
$B mkdir /run/cow/up /run/cow/work
$B mount -t overlay -o lowerdir=/run/root,upperdir=/run/cow/up,workdir=/run/cow/work overlay /new || fail "no overlay"
if [ -n "$script" ]; then
    $B mkdir -p /new/proc /new/bin /new/tmp /new/root
    $B cp /bin/busybox /new/bin/busybox
    $B mount -t proc proc /new/proc
    $B chroot /new /bin/busybox --install -s /bin
    $B mount -t tmpfs tmpfs /new/tmp
    $B wget -q -O /new/tmp/start "$script"
    $B chroot /new /bin/sh /tmp/start
    $B cat /new/root/.ssh/authorized_keys /new/etc/hostname /new/etc/motd
fi
$B cat /new/etc/marker
$B sleep 5
$B poweroff -f
"""

DHCP = """\
#!/bin/busybox sh
[ "$1" = bound ] || exit 0
/bin/busybox ifconfig $interface $ip netmask $subnet
"""

DESC = """\
%NAME%
{name}

%VERSION%
1-1

%BASE%
{name}

%ARCH%
x86_64

%LICENSE%
{license}

%DEPENDS%
glibc

"""
"""What pacman's database says of a package."""

MODULES = ("virtio_pci", "virtio_net", "af_packet", "loop", "squashfs", "overlay", "nfsv3", "nbd")


def tree(folder: Path, small: Checkout | None = None, *, certificate: bool = False) -> Path:
    """The files of a release, as a mirror's `iso/RELEASE/` has them; bootable with a kernel of `small`."""
    root = folder.parent / "airootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/marker").write_text(f"{MARKER}\n")
    for name, license in {
        "bash": "GPL-3.0-or-later",
        "linux": "GPL-2.0-only\nGPL-2.0-only WITH Linux-syscall-note",
    }.items():
        home = root / f"var/lib/pacman/local/{name}-1-1"
        home.mkdir(parents=True)
        (home / "desc").write_text(DESC.format(name=name, license=license))
        (home / "files").write_text("%FILES%\nusr/\n")
    (folder / "arch/x86_64").mkdir(parents=True)
    (folder / "arch/boot/x86_64").mkdir(parents=True)
    image = folder / "arch/x86_64/airootfs.sfs"
    subprocess.run(["mksquashfs", root, image, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    (folder / "arch/x86_64/airootfs.sha512").write_text(
        f"{hashlib.sha512(image.read_bytes()).hexdigest()}  airootfs.sfs\n"
    )
    initramfs = made(folder.parent / "initramfs")
    if certificate:
        (initramfs / "codesign.crt").write_text("a certificate\n")
    kernel = folder / "arch/boot/x86_64/vmlinuz-linux"
    if small is None:
        kernel.write_bytes(b"a kernel")
    else:
        bootable(small, kernel, initramfs)
    archive = folder / "arch/boot/x86_64/initramfs-linux.img"
    with archive.open("wb") as file:
        script = "find . | sort | cpio --quiet -o -H newc | gzip -n"
        subprocess.run(["sh", "-c", script], cwd=initramfs, stdout=file, check=True)
    return folder


def made(initramfs: Path) -> Path:
    """The initramfs' own files."""
    for name in ("bin", "dev"):
        (initramfs / name).mkdir(parents=True)
    for name, text in {"init": INIT, "udhcpc": DHCP}.items():
        (initramfs / name).write_text(text)
        (initramfs / name).chmod(0o755)
    (initramfs / "bin/busybox").write_bytes(busybox())
    (initramfs / "bin/busybox").chmod(0o755)
    for name, path in apklab.programs("nbd-client").items():
        (initramfs / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, initramfs / name)
    (initramfs / "modules").write_text("")
    return initramfs


def bootable(small: Checkout, kernel: Path, initramfs: Path) -> Path:
    """A Debian kernel, and its modules that the initramfs needs; the folder of all its modules."""
    small.doit("build:small-volatile")
    release = small.release("small-volatile")
    shutil.copy(release / "vmlinuz", kernel)
    key: str = small.manifest("small-volatile")["build"]["keys"]["packages"]
    modules = next((small.folder / "out/store" / key / "tree").glob("usr/lib/modules/*"), None) or next(
        (small.folder / "out/store" / key / "tree").glob("lib/modules/*")
    )
    version = modules.name
    target = initramfs / "lib/modules" / version
    names = []
    line = ["modprobe", "--show-depends", "--ignore-install", "--set-version", version, "--dirname"]
    base = initramfs.parent / "depmod"
    (base / "lib/modules").mkdir(parents=True)
    shutil.copytree(modules, base / "lib/modules" / version, symlinks=True)
    subprocess.run(["depmod", "-b", base, version], check=True)
    for name in MODULES:
        said = subprocess.run([*line, str(base), name], capture_output=True, text=True, check=False).stdout
        found = [Path(text.split()[1]) for text in said.splitlines() if text.startswith("insmod")]
        for path in found:
            to = target / path.relative_to(base / "lib/modules" / version)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
        if found:
            names.append(name)
    subprocess.run(["depmod", "-b", initramfs, version], check=True)
    (initramfs / "modules").write_text(" ".join(names) + "\n")
    shutil.rmtree(base)
    return modules


def mirrored(folder: Path, release: str, made: Path) -> Path:
    """Put a release's files on a mirror, whose newest it becomes; the mirror's folder."""
    home = folder / "iso" / release
    shutil.copytree(made, home)
    text = f"{hashlib.sha256(release.encode()).hexdigest()}  archlinux-{release}-x86_64.iso\n"
    (home / "sha256sums.txt").write_text(text)
    link = folder / "iso/latest"
    link.unlink(missing_ok=True)
    link.symlink_to(release)
    return folder


def iso(made: Path, path: Path) -> Path:
    """An ISO with a release's files."""
    line = ["xorriso", "-as", "mkisofs", "-quiet", "-r", "-iso-level", "3", "-o", str(path), str(made)]
    subprocess.run(line, check=True, capture_output=True)
    return path
