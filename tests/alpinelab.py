"""An Alpine mirror's netboot bundle in the real format, with an initramfs of the tests' own, on a real HTTP server.

The initramfs does what Alpine's does with its parameters, and then what OpenRC would: an apkovl that isn't there is no
error, without its runlevels there is no modloop.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests import apklab, archlab
from tests.checkout import Checkout
from tests.initrdlab import busybox

INIT = """\
#!/bin/busybox sh
B=/bin/busybox
$B mkdir -p /proc /sys /dev /sysroot
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev 2>/dev/null
fail() { echo "alpine: $*"; $B sleep 5; $B poweroff -f; }
for word in $($B cat /proc/cmdline); do
    case $word in
    ip=* | modloop=* | apkovl=* | alpine_repo=* | BOOTIF=*) eval "${word%%=*}='${word#*=}'" ;;
    esac
done
[ -n "$ip" ] || fail "no ip="
for name in $($B cat /modules); do $B modprobe $name; done
device=$(cd /sys/class/net; for name in *; do [ "$name" = lo ] || echo $name; done)
$B ifconfig $device up
$B udhcpc -q -n -t 20 -i $device -s /udhcpc || fail "no address"
case $apkovl in *.gz) ;; *) fail "would be decrypted" ;; esac
mac=$($B cat /sys/class/net/$device/address)
before=${apkovl%%\\{MAC\\}*}
[ "$before" = "$apkovl" ] || apkovl=$before$mac${apkovl#*\\}}
$B wget -q -O - "$apkovl" | $B tar -xz -C /sysroot
cd /sysroot
echo "alpine: I am $($B cat etc/hostname), $($B stat -c %a etc/shadow) $($B wc -l <etc/apk/world) packages"
case $alpine_repo in */apks)
    # As apk does it: the index, and every package that it names.
    $B mkdir -p /index
    $B wget -q -O - "$alpine_repo/x86_64/APKINDEX.tar.gz" | $B tar -xz -C /index || fail "no index"
    signed=$(cd /index; for name in .SIGN.RSA.*; do echo ${name#.SIGN.RSA.}; done)
    [ -f etc/apk/keys/$signed ] || fail "index by $signed, which is no key of the machine's"
    count=0
    for name in $($B awk -F: '/^P:/{p=$2} /^V:/{print p "-" $2 ".apk"}' /index/APKINDEX); do
        $B wget -q -O /package "$alpine_repo/x86_64/$name" || fail "no $name"
        $B tar -xz -f /package || fail "$name is broken"
        count=$((count + 1))
    done
    echo "alpine: $count packages of its release"
    ;;
esac
if [ -L etc/runlevels/sysinit/modloop ]; then
    $B mkdir /.modloop
    $B wget -q -O /lib/modloop "$modloop" || fail "no modloop"
    $B mount -t squashfs -o loop,ro /lib/modloop /.modloop || fail "no squashfs"
    [ ! -d /.modloop/modules/$($B uname -r) ] || echo "alpine: has its modules"
fi
[ ! -L etc/runlevels/boot/hostname ] || $B hostname -F etc/hostname
if [ -L etc/runlevels/default/local ]; then
    for file in etc/local.d/*.start; do [ ! -x $file ] || $B sh $file; done
fi
if [ -f etc/sshd.sh ]; then
    for name in dev proc sys; do $B mkdir -p $name; $B mount -o bind /$name $name; done
    $B chroot . /bin/busybox sh /etc/sshd.sh || fail "no sshd"
    $B sleep 1000
fi
$B sleep 5
$B poweroff -f
"""

KERNEL = bytes(0x202) + b"HdrS" + bytes(8) + (0x100).to_bytes(2, "little") + bytes(0xF0) + b"6.12.1-0-virt (x) #1\0"


def bundle(folder: Path, small: Checkout | None = None, *, modules: str = "", flavor: str = "virt") -> dict[str, Path]:
    """The files of a bundle by their names in it; bootable with a kernel of `small`."""
    folder.mkdir(parents=True)
    initramfs = folder / "initramfs"
    for name in ("bin", "dev", "lib"):
        (initramfs / name).mkdir(parents=True)
    for name, text in {"init": INIT, "udhcpc": archlab.DHCP}.items():
        (initramfs / name).write_text(text)
        (initramfs / name).chmod(0o755)
    (initramfs / "bin/busybox").write_bytes(busybox())
    (initramfs / "bin/busybox").chmod(0o755)
    (initramfs / "modules").write_text("")
    kernel = folder / f"vmlinuz-{flavor}"
    version = "6.12.1-0-virt"
    if small is None:
        kernel.write_bytes(KERNEL)
    else:
        version = archlab.bootable(small, kernel, initramfs).name
    tree = folder / "modloop"
    (tree / "modules" / (modules or version)).mkdir(parents=True)
    (tree / "modules/firmware").mkdir()
    (tree / "modules" / (modules or version) / "modules.dep").write_text("")
    modloop = folder / f"modloop-{flavor}"
    subprocess.run(["mksquashfs", tree, modloop, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    archive = folder / f"initramfs-{flavor}"
    with archive.open("wb") as file:
        script = "find . | sort | cpio --quiet -o -H newc | gzip -n"
        subprocess.run(["sh", "-c", script], cwd=initramfs, stdout=file, check=True)
    shutil.rmtree(tree)
    shutil.rmtree(initramfs)
    return {path.name: path for path in (kernel, modloop, archive)}


def mirrored(
    home: Path,
    files: dict[str, Path],
    *,
    version: str = "3.22.1",
    branch: str = "v3.22",
    packages: Mapping[str, apklab.Package] | None = None,
) -> Path:
    """Put a bundle on a mirror, as its branch's newest release, and its packages; the bundle's path there."""
    releases = home / branch / "releases/x86_64"
    releases.mkdir(parents=True, exist_ok=True)
    path = releases / f"alpine-netboot-{version}-x86_64.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, source in files.items():
            archive.add(source, f"boot/{name}")
    listed(path, version, branch)
    main = home / branch / "main/x86_64"
    if not main.exists():
        apklab.repository(main, packages or apklab.base())
        apklab.repository(home / branch / "community/x86_64", {})
    link = home / "latest-stable"
    if not link.exists():
        link.symlink_to(branch)
    return path


def listed(path: Path, version: str = "3.22.1", branch: str = "v3.22") -> None:
    """Let the mirror say what there is, as Alpine's mkimage-yaml.sh does."""
    text = ["---"]
    for flavor, file in (("alpine-standard", path.with_name("x.iso")), ("alpine-netboot", path)):
        data = file.read_bytes() if file.exists() else b""
        text.append(
            f'-\n  title: "{flavor}"\n  desc: |\n    Words: of it\n    more.\n  branch: {branch}\n  arch: x86_64\n'
            f"  version: {version}\n  flavor: {flavor}\n  file: {file.name}\n  iso: {file.name}\n  date: 2026-07-15\n"
            f"  time: 10:11:12\n  size: {len(data)}\n  sha256: {hashlib.sha256(data).hexdigest()}\n"
        )
    (path.parent / "latest-releases.yaml").write_text("\n".join(text))
