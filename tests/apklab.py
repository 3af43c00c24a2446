"""An Alpine mirror's repositories in the real format: packages, signed indexes, and stand-ins for apk and mkinitfs.

Where apk.static and mkinitfs of Alpine's own are on the machine (`NETBOOT_APK`, `NETBOOT_MKINITFS` name the program,
and a folder of its sources), they are in the packages in place of the stand-ins.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.initrdlab import busybox

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NAME = "lab.rsa.pub"

APPLETS = (
    "sh cat cp rm mkdir mv ln ls find sort sed awk gzip zcat cpio chmod chown touch install readlink grep head tail "
    "uname mktemp tar wget cut tr basename dirname echo test true false stat xargs wc dd od"
)

APK = '''\
#!/usr/bin/python3
"""Stands in for apk: adds packages of repositories on this machine, with what they depend on."""
import argparse, glob, gzip, io, os, re, subprocess, sys, tarfile, zlib

before, _, after = " ".join(sys.argv[1:]).partition(" add")
parser = argparse.ArgumentParser()
for name in ("--root", "--arch", "--keys-dir", "--repositories-file"):
    parser.add_argument(name)
parser.add_argument("--repository", action="append", default=[])
parser.add_argument("--no-cache", action="store_true")
place = sys.argv.index("add")
options = parser.parse_args(sys.argv[1:place])
adder = argparse.ArgumentParser()
for name in ("--initdb", "--simulate"):
    adder.add_argument(name, action="store_true")
adder.add_argument("world", nargs="*")
add = adder.parse_args(sys.argv[place + 1 :])
assert os.listdir(options.keys_dir)
known, provided = {}, {}
for repository in options.repository:
    folder = os.path.join(repository, options.arch)
    data = open(os.path.join(folder, "APKINDEX.tar.gz"), "rb").read()
    unpacker = zlib.decompressobj(31)
    signature = unpacker.decompress(data) + bytes(1024)
    name = tarfile.open(fileobj=io.BytesIO(signature)).getnames()[0].split(".", 3)[3]
    if not os.path.exists(os.path.join(options.keys_dir, name)):
        sys.exit(f"ERROR: {repository}: UNTRUSTED signature")
    index = tarfile.open(fileobj=io.BytesIO(gzip.decompress(unpacker.unused_data)))
    for record in index.extractfile("APKINDEX").read().decode().split("\\n\\n"):
        fields = dict(line.split(":", 1) for line in record.splitlines())
        if fields:
            known.setdefault(fields["P"], (fields, folder))
            for word in fields.get("p", "").split():
                provided[word.partition("=")[0]] = fields["P"]
root = options.root
if add.initdb:
    os.makedirs(os.path.join(root, "lib/apk/db"), exist_ok=True)
assert os.path.isdir(os.path.join(root, "lib/apk/db")), "no database"
wanted, todo = [], list(add.world)
while todo:
    word = re.split("[<>=~]", todo.pop(0))[0]
    name = word if word in known else provided.get(word)
    if name is None:
        print(f"ERROR: unable to select packages:\\n  {word} (no such package):\\n    required by: world[{word}]")
        sys.exit(1)
    if name not in wanted:
        wanted.append(name)
        todo += known[name][0].get("D", "").split()
for number, name in enumerate(wanted, 1):
    fields, folder = known[name]
    print(f"({number}/{len(wanted)}) Installing {name} ({fields['V']})")
    if add.simulate:
        continue
    data = open(os.path.join(folder, f"{name}-{fields['V']}.apk"), "rb").read()
    for _ in range(2):
        unpacker = zlib.decompressobj(31)
        unpacker.decompress(data)
        data = unpacker.unused_data
    content = tarfile.open(fileobj=io.BytesIO(zlib.decompress(data, 31)))
    for member in content:
        target = os.path.join(root, member.name)
        if member.name == "etc/mkinitfs/mkinitfs.conf" and os.path.exists(target):
            continue
        content.extract(member, root)
    if name.startswith("linux-") and "firmware" not in name:
        conf = os.path.join(root, "etc/mkinitfs/mkinitfs.conf")
        assert "disable_trigger" in open(conf).read(), "the kernel's trigger would run"
print(f"OK: {len(wanted)} packages")
'''

MKINITFS = """\
#!/bin/sh
# Stands in for mkinitfs: the same options, the init and the modules of its package.
while getopts "C:F:LP:o:s:" word; do
    case $word in
    C) [ $OPTARG = none ] || exit 1 ;; F) features=$OPTARG ;; L) list=1 ;;
    P) more=$OPTARG ;; o) out=$OPTARG ;; s) sign=$OPTARG ;;
    esac
done
shift $((OPTIND - 1))
if [ -n "$list" ]; then
    ls $more /etc/mkinitfs/features.d | sed -n 's/[.][a-z]*$//p' | sort -u
    exit
fi
echo "features: $features"
dir=$(mktemp -d /tmp/mkinitfs.XXXXXX)
cp -a /usr/share/mkinitfs/root/. $dir/
mkdir -p $dir/etc/apk/keys $dir/var/cache/misc $dir/lib/modules $dir/bin
cp /bin/busybox $dir/bin/
cp /etc/apk/keys/* $dir/etc/apk/keys/
cp $sign $dir/var/cache/misc/
chmod 644 $dir/var/cache/misc/*
cp -a /lib/modules/$1 $dir/lib/modules/
for file in $(cat $more/netboot.files); do mkdir -p $dir${file%/*}; cp $file $dir$file; done
[ -z "$SOURCE_DATE_EPOCH" ] || find $dir -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
umask 077
(cd $dir && find . | sort | cpio -R 0:0 --renumber-inodes -o -H newc 2>/dev/null) >$out
"""


INIT = """\
#!/bin/sh
# Stands in for OpenRC in a machine whose initramfs is Alpine's own.
mount -t proc proc /proc
mount -t sysfs sys /sys
echo "alpine: I am $(cat /etc/hostname), $(stat -c %a /etc/shadow)"
echo "alpine: $(ls /packages | wc -l) packages of its release"
modloop=$(sed -n 's/.*modloop=\\([^ ]*\\).*/\\1/p' /proc/cmdline)
mkdir -p /.modloop
wget -q -O /lib/modloop "$modloop" && mount -t squashfs -o loop,ro /lib/modloop /.modloop
[ ! -d /.modloop/modules/$(uname -r) ] || echo "alpine: has its modules"
for file in /etc/local.d/*.start; do sh $file; done
[ ! -f /etc/sshd.sh ] || sh /etc/sshd.sh
sleep 1000
"""

REAL = "NETBOOT_MKINITFS" in os.environ


@dataclass
class Package:
    """A package's words and files; a file's text may be bytes, a link begins with `->`."""

    version: str = "1.0-r0"
    depends: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    files: Mapping[str, str | bytes | Path] = field(default_factory=dict)
    arch: str = "x86_64"


def tarred(files: Mapping[str, str | bytes | Path], *, whole: bool = True, sums: bool = False) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT if sums else tarfile.USTAR_FORMAT) as archive:
        folders: set[str] = set()
        for name, content in files.items():
            parts = name.split("/")[:-1]
            for count in range(1, len(parts) + 1):
                folder = "/".join(parts[:count])
                if folder not in folders:
                    folders.add(folder)
                    info = tarfile.TarInfo(folder)
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(info)
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            if isinstance(content, str) and content.startswith("->"):
                info.type, info.linkname = tarfile.SYMTYPE, content[2:]
                data = b""
            elif isinstance(content, Path):
                data = content.read_bytes()
                info.mode = stat.S_IMODE(content.stat().st_mode)
            else:
                data = content.encode() if isinstance(content, str) else content
                info.mode = 0o755 if data.startswith(b"#!") else 0o644
            if sums:
                told = info.linkname.encode() if info.issym() else data
                info.pax_headers = {"APK-TOOLS.checksum.SHA1": hashlib.sha1(told).hexdigest()}
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        end = archive.offset
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(raw.getvalue() if whole else raw.getvalue()[:end]) + packer.flush()


def signed(data: bytes, key: rsa.RSAPrivateKey = KEY, name: str = NAME) -> bytes:
    signature = key.sign(data, padding.PKCS1v15(), hashes.SHA1())
    return tarred({f".SIGN.RSA.{name}": signature}, whole=False) + data


def public(key: rsa.RSAPrivateKey = KEY) -> str:
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def private(key: rsa.RSAPrivateKey = KEY) -> str:
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def made(name: str, package: Package) -> tuple[bytes, str]:
    """A package's file, and its record of an index."""
    content = tarred({**package.files, f"packages/{name}": ""}, sums=True)
    size = sum(len(data) for data in package.files.values() if isinstance(data, str | bytes)) or 4096
    info = [f"pkgname = {name}", f"pkgver = {package.version}", f"arch = {package.arch}", f"size = {size}"]
    info += [f"pkgdesc = {name} of the lab", "license = MIT", "builddate = 1784073600", "url = http://lab"]
    info += [f"depend = {word}" for word in package.depends] + [f"provides = {word}" for word in package.provides]
    info.append(f"datahash = {hashlib.sha256(content).hexdigest()}")
    control = tarred({".PKGINFO": "".join(f"{line}\n" for line in info)}, whole=False)
    data = signed(control) + content
    checksum = base64.b64encode(hashlib.sha1(control).digest()).decode()
    lines = [f"C:Q1{checksum}", f"P:{name}", f"V:{package.version}", f"A:{package.arch}", f"S:{len(data)}"]
    lines += [f"I:{size}", f"T:{name} of the lab", "U:http://lab", "L:MIT", "t:1784073600"]
    lines += [f"D:{' '.join(package.depends)}"] if package.depends else []
    lines += [f"p:{' '.join(package.provides)}"] if package.provides else []
    return data, "\n".join(lines)


def repository(folder: Path, packages: Mapping[str, Package], key: rsa.RSAPrivateKey = KEY) -> None:
    """Packages and their signed index in a mirror's folder of a repository and an architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for name, package in packages.items():
        data, record = made(name, package)
        (folder / f"{name}-{package.version}.apk").write_bytes(data)
        records.append(record)
    text = "".join(f"{record}\n\n" for record in records)
    (folder / "APKINDEX.tar.gz").write_bytes(signed(tarred({"DESCRIPTION": "lab", "APKINDEX": text}), key))


def programs(*names: str) -> dict[str, Path]:
    """Programs of this machine with the libraries that they need, by their paths in a package."""
    found = {}
    for name in names:
        program = shutil.which(name) or f"/sbin/{name}"
        found[f"usr/sbin/{name}"] = Path(program)
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        for line in said.splitlines():
            path = line.split("=>")[-1].split("(")[0].strip()
            if path.startswith("/"):
                found[path[1:]] = Path(path)
    return found


def base(
    modules: Path | None = None, kernel: Path | None = None, init: str = "", start: str = ""
) -> dict[str, Package]:
    """What a diskless machine and a root for mkinitfs need. modules -- folder of a kernel's; init -- of an initramfs"""
    services: tuple[str, ...] = (
        "devfs",
        "dmesg",
        "hwdrivers",
        "mdev",
        "modloop",
        "bootmisc",
        "hostname",
        "modules",
        "networking",
    )
    services = (*services, "hwclock", "swclock", "sysctl", "syslog", "local", "killprocs", "mount-ro", "savecache")
    scripts = {f"etc/init.d/{name}": "#!/sbin/openrc-run\n" for name in services}
    box = {f"bin/{name}": "->busybox" for name in APPLETS.split() if not (REAL and modules and name in ("sh", "cpio"))}
    apk = os.environ.get("NETBOOT_APK")
    found = {
        "alpine-base": Package(depends=("busybox", "openrc"), files={"sbin/init": INIT}),
        "busybox": Package(files={"bin/busybox": _file(busybox()), **box, "tmp/.keep": "", "sbin/.keep": ""}),
        "openrc": Package(files=scripts),
        "apk-tools-static": Package(files={"sbin/apk.static": Path(apk) if apk else APK}),
        "chrony": Package("4.5-r0", files={"usr/sbin/chronyd": "#!/bin/sh\n"}),
        "chrony-openrc": Package("4.5-r0", files={"etc/init.d/chronyd": "#!/sbin/openrc-run\n"}),
        "nginx": Package(),
        "openssl": Package(),
        "less": Package(),
        "tzdata": Package(),
        "openssh": Package(
            files={"etc/init.d/sshd": "#!/sbin/openrc-run\n", **({"etc/sshd.sh": start} if start else {})}
        ),
    }
    if modules is None or kernel is None:
        return found
    tree = {f"lib/modules/{modules.name}/{path.relative_to(modules)}": path for path in _walk(modules)}
    found["linux-virt"] = Package(
        "6.12.1-r0", depends=("mkinitfs", "linux-firmware-any"), files={"boot/vmlinuz-virt": kernel, **tree}
    )
    found["linux-firmware-none"] = Package(provides=("linux-firmware-any=0",))
    found["linux-firmware-lab"] = Package(
        provides=("linux-firmware-any=1",), files={"lib/firmware/lab/card.bin": "firmware\n"}
    )
    found["strace"] = Package(files={"usr/bin/strace": "#!/bin/sh\n"})
    found["mkinitfs"] = Package("3.12.0-r0", depends=("busybox",), files=_mkinitfs(init))
    return found


def _walk(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _file(data: bytes) -> Path:
    path = Path("/tmp") / f"netboot-busybox-{os.getuid()}"
    if not path.exists() or path.stat().st_size != len(data):
        path.write_bytes(data)
        path.chmod(0o755)
    return path


def _mkinitfs(init: str) -> dict[str, str | bytes | Path]:
    sources = os.environ.get("NETBOOT_MKINITFS")
    if sources:
        return _real(Path(sources))
    names = ("base", "network", "squashfs", "usb", "virtio", "nvme")
    features = {f"etc/mkinitfs/features.d/{name}.modules": "" for name in names}
    return {
        "sbin/mkinitfs": MKINITFS,
        "etc/mkinitfs/mkinitfs.conf": 'features="base"\n',
        **features,
        "usr/share/mkinitfs/root/init": init,
        "usr/share/mkinitfs/root/dev/.keep": "",
    }


def _real(home: Path) -> dict[str, str | bytes | Path]:
    """Alpine's own script, init and features of its sources, with Debian's programs for what it calls."""
    # Debian's busybox prefers its own cpio to any other, and that one can't do what Alpine's does.
    found: dict[str, str | bytes | Path] = dict(programs("cpio", "dash", "kmod"))
    found["bin/sh"] = "->../usr/sbin/dash"
    for name in ("depmod", "modinfo", "modprobe"):
        found[f"usr/sbin/{name}"] = "->kmod"
    libraries = programs(str(home / "nlplug-findfs/nlplug-findfs"))
    found |= {path: file for path, file in libraries.items() if not path.startswith("usr/sbin/")}
    found["sbin/nlplug-findfs"] = home / "nlplug-findfs/nlplug-findfs"
    found["sbin/apk"] = Path(os.environ["NETBOOT_APK"])
    found["usr/sbin/lddtree"] = home.parent / "lddtree"
    made = {"@VERSION@": "3.12.0", "@sysconfdir@": "/etc/mkinitfs", "@datadir@": "/usr/share/mkinitfs"}

    def filled(name: str) -> str:
        text = (home / name).read_text()
        for word, value in made.items():
            text = text.replace(word, value)
        return text

    found["sbin/mkinitfs"] = filled("mkinitfs.in")
    found["usr/share/mkinitfs/initramfs-init"] = filled("initramfs-init.in")
    for name in ("fstab", "passwd", "group"):
        found[f"usr/share/mkinitfs/{name}"] = home / name
    for path in (home / "features.d").iterdir():
        found[f"etc/mkinitfs/features.d/{path.name}"] = path
    found["etc/mkinitfs/mkinitfs.conf"] = 'features="base"\n'
    return found
