"""This machine's system packages: what is missing, and how it is installed."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import glob

from buildlib import command
from buildlib.errors import BuildError

PACKAGES = {
    "apt-get": "apt",
    "bsdtar": "libarchive-tools",
    "busybox": "busybox-static",
    "arch-test": "arch-test",
    "cpio": "cpio",
    "dnsmasq": "dnsmasq-base",
    "dracut": "dracut-core",
    "dpkg-deb": "dpkg",
    "dropbear": "dropbear-bin",
    "debootstrap": "debootstrap",
    "depmod": "kmod",
    "gpgv": "gpgv",
    "ip": "iproute2",
    "lsinitramfs": "initramfs-tools-core",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "nginx": "nginx-light",
    "ganesha.nfsd": "nfs-ganesha",
    "getfattr": "attr",
    "grub-script-check": "grub-common",
    "nbd-client": "nbd-client",
    "nbd-server": "nbd-server",
    "nfs-ls": "libnfs-utils",
    "nix": "nix-bin",
    "pacman": "pacman-package-manager",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-aarch64-static": "qemu-user-static",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-x86_64-static": "qemu-user-static",
    "rpcbind": "rpcbind",
    "script": "bsdutils",
    "setcap": "libcap2-bin",
    "setfacl": "acl",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "systemd-analyze": "systemd",
    "tar": "tar",
    "unsquashfs": "squashfs-tools",
    "unshare": "util-linux",
}
"""Debian package by the program that is wanted of it."""

PXE_ROM = "/usr/lib/ipxe/qemu/pxe-virtio.rom|/usr/share/qemu/pxe-virtio.rom"
"""What a PC's network card boots by, where Debian 12 and 13 have it."""

TEST_TOOLS = (
    "busybox",
    "chromium",
    "cpio",
    "debootstrap",
    "depmod",
    "dnsmasq",
    "dracut",
    "dropbear",
    "ganesha.nfsd",
    "grub-script-check",
    "ip",
    "lsinitramfs",
    "lz4",
    "mksquashfs",
    "mmdebstrap",
    "nbd-client",
    "nbd-server",
    "pacman",
    "newuidmap",
    "nfs-ls",
    "nginx",
    "nix",
    "unshare",
    "openssl",
    "qemu-aarch64-static",
    "qemu-system-aarch64",
    "qemu-system-x86_64",
    "getfattr",
    "gpg",
    "gpg-agent",
    "git",
    "rpcbind",
    "rsync",
    "script",
    "setcap",
    "setfacl",
    "shellcheck",
    "ssh",
    "ssh-keygen",
    "sshd",
    "sudo",
    "systemd-analyze",
    "bsdtar",
    "xorriso",
    "zstd",
)
TEST_FILES = (
    ("/usr/lib/*/ganesha/libfsalvfs.so", "nfs-ganesha-vfs"),
    ("/etc/rpc", "netbase"),
    ("/usr/share/i18n/locales/tr_TR", "locales"),
    ("/usr/lib/*/faketime/libfaketimeMT.so.1", "libfaketime"),
    ("/usr/share/makepkg/util/compress.sh", "makepkg"),
    (PXE_ROM, "ipxe-qemu"),
    ("/usr/share/AAVMF/AAVMF_CODE.fd", "qemu-efi-aarch64"),
    ("/usr/share/OVMF/OVMF_CODE*.fd", "ovmf"),
)
"""What the tests run beside the build's own programs; nothing of it is mocked."""

_PATIENCE = 600
"""Seconds for another apt to end."""

_PATH = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))


def find(tool: str) -> str | None:
    """Path of a program; an ordinary user's PATH lacks the sbin folders."""
    return shutil.which(tool, path=os.environ.get("PATH", os.defpath) + os.pathsep + _PATH)


def missing(tools: Iterable[str], files: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Debian packages that lack here.

    files -- pairs of a path and the package that brings it; in its place a glob pattern, or several with `|` between
    """
    wanted = {PACKAGES.get(tool, tool) for tool in tools if find(tool) is None}
    wanted |= {package for patterns, package in files if not any(map(glob, patterns.split("|")))}
    return sorted(wanted)


def install(packages: list[str]) -> None:
    """Install Debian packages by apt, after printing the line. BuildError when that may not or cannot be done."""
    if not packages:
        return
    line = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    typed = shlex.join(line)
    hint = f"sudo {typed}"
    if find("apt-get") is None:
        raise BuildError(f"missing programs of {', '.join(packages)}", hint="install them; this system has no apt")
    if os.environ.get("DOIT_INSTALL", "yes") == "no":
        raise BuildError(f"missing system packages: {' '.join(packages)} (DOIT_INSTALL=no)", hint=hint)
    if os.geteuid() != 0:
        if find("sudo") is None:
            raise BuildError(f"missing system packages: {' '.join(packages)}", hint=f"as root: {typed}")
        line = ["sudo", *([] if sys.stdin.isatty() else ["--non-interactive"]), *line]
    # A fresh machine's timers update it while its user is at the first command.
    at = line.index("install") + 1
    line[at:at] = ["-o", f"DPkg::Lock::Timeout={_PATIENCE}"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _alone():
        print(f"+ {shlex.join(line)}", flush=True)
        try:
            command.run(line, env=env, terminal=True)
        except command.CommandError:
            # A fresh machine has no package lists, an old one lists of packages that are gone.
            update = [*line[: line.index("apt-get")], "apt-get", "update"]
            print(f"+ {shlex.join(update)}", flush=True)
            try:
                command.run(update, env=env, terminal=True)
                command.run(line, env=env, terminal=True)
            except command.CommandError as error:
                raise BuildError(f"missing system packages: {' '.join(packages)}; {error.message}", hint=hint) from None


@contextmanager
def _alone() -> Iterator[None]:
    """Of processes that install, one at a time: apt waits for dpkg's lock, but not for the one of its lists."""
    database = os.open("/var/lib/dpkg", os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(database, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("+ waiting for another process to install its packages", flush=True)
            fcntl.flock(database, fcntl.LOCK_EX)
        yield
    finally:
        os.close(database)
