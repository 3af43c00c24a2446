"""The stages of a root of one's own: packages by pacman, an initramfs by mkinitcpio with archiso's hooks, the system.

packages -> initramfs
packages -> system -> squashfs
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from buildlib import rootfs
from buildlib.distros.archlinux import pacman
from buildlib.errors import BuildError
from buildlib.sandbox import Bind
from buildlib.work import Work

OUT = "/run/netboot/out"
KEYS = "/run/netboot/keys"
OVERLAYS = "/run/netboot/overlay"
HOOK = "/run/netboot/hook"

HOOKS = (
    "base udev microcode modconf kms archiso archiso_loop_mnt archiso_pxe_common archiso_pxe_nbd archiso_pxe_http "
    "archiso_pxe_nfs block filesystems keyboard"
)
"""As Arch's own images have them (archiso's releng), but memdisk: no network boots by it, and it wants syslinux."""

NEEDED = ("base", "mkinitcpio", "mkinitcpio-archiso", "mkinitcpio-nfs-utils", "nbd", "curl")
"""What the hooks run, beside a kernel."""

_NETWORK = """\
# The initramfs' own address is kept: a root over NFS or NBD hangs on it.
[Match]
Type=ether

[Network]
DHCP=yes
KeepConfiguration=yes
"""

_LEFT = (
    "/var/log/pacman.log",
    "/var/cache/ldconfig/*",
    "/etc/machine-id",
    "/etc/pacman.d/hooks/90-mkinitcpio-install.hook",
)


def packages(work: Work) -> None:
    """The layer is the root of the lock's packages; outputs `packages.tsv`."""
    facts = work.stage.facts or {}
    options = work.options

    def tell(done: int, total: int) -> None:
        work.progress(done / total if total else None, f"{done >> 20} of {total >> 20} MB")

    keyring = Path(options["keyring"])
    files = pacman.fetched(options["mirrors"], facts["packages"], keyring, work.cache, work.scratch, tell)
    home = work.scratch / "packages"
    home.mkdir()
    names = {said["sha256"]: said["file"] for said in facts["packages"].values()}
    for path in files:
        os.link(path, home / names[path.name])
    empty = work.scratch / "empty"
    empty.mkdir()
    empty.chmod(0o755)
    root = work.mount
    work.sandbox(chroot=False, layers=(empty,)).call(prepared, {"root": str(root)}, log=work.log)
    config = work.scratch / "pacman.conf"
    config.write_text(pacman.configuration(()))
    devices = tuple(Bind(Path("/dev", name), f"{root}/dev/{name}") for name in ("null", "zero", "random", "urandom"))
    work.progress(None, "installing")
    sandbox = work.sandbox(chroot=False, layers=(empty,), binds=(*devices, Bind(Path("/proc"), f"{root}/proc")))
    line = pacman.program(config, root, root / "var/lib/pacman")
    sandbox.run([*line, "-U", *(str(path.absolute()) for path in sorted(home.iterdir()))], log=work.log)
    work.sandbox(layers=()).call(tidied, {}, log=work.log)
    (work.out / "packages.tsv").write_text(pacman.listed(work.tree))


def prepared(arguments: dict[str, Any]) -> None:
    """Before packages come: no initramfs by the kernel's hook, and folders to mount on."""
    root = arguments["root"]
    for folder in ("var/lib/pacman", "etc/pacman.d/hooks", "dev", "proc", "tmp", "run"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    os.chmod(f"{root}/tmp", 0o1777)
    os.symlink("/dev/null", f"{root}/etc/pacman.d/hooks/90-mkinitcpio-install.hook")


def tidied(_arguments: dict[str, Any]) -> None:
    """In the root: nothing of the build, and nothing that all machines would share."""
    for pattern in (*_LEFT, "/etc/ssh/ssh_host_*", "/var/log/*.log"):
        for path in Path("/").glob(pattern[1:]):
            rootfs.remove(str(path))
    rootfs.write("/etc/machine-id", "", mode=0o444)
    # When a package was installed is of no interest, and differs.
    for path in Path("/var/lib/pacman/local").glob("*/desc"):
        lines = path.read_text().split("\n")
        epoch = os.environ.get("SOURCE_DATE_EPOCH", "0")
        if "%INSTALLDATE%" in lines:
            lines[lines.index("%INSTALLDATE%") + 1] = epoch
            path.write_text("\n".join(lines))


def initramfs(work: Work) -> None:
    """Outputs `vmlinuz` and `initrd`."""
    work.progress(None, "mkinitcpio")
    sandbox = work.sandbox(change=False, binds=(Bind(work.out, OUT, writable=True),))
    work.facts["kernel"] = sandbox.call(made, dict(work.options), log=work.log)


def made(options: dict[str, Any]) -> str:
    """In the root: make the initramfs, copy the kernel; give its version. Raises BuildError."""
    kernels = sorted(path.parent for path in Path("/usr/lib/modules").glob("*/vmlinuz"))
    if len(kernels) != 1:
        found = " and ".join(path.name for path in kernels) or "none"
        raise BuildError(f"the root has not one kernel: {found}", hint="`kernel` and `packages` are to bring just one")
    config = Path("/run/netboot/mkinitcpio.conf")
    modules = " ".join(options["modules"])
    config.write_text(
        f'MODULES=({modules})\nBINARIES=()\nFILES=()\nHOOKS=({HOOKS})\nCOMPRESSION="{options["compression"]}"\n'
    )
    rootfs.run("mkinitcpio", "-c", str(config), "-k", kernels[0].name, "-g", f"{OUT}/initrd")
    # mkinitcpio leaves it to root alone, and a TFTP server isn't root.
    os.chmod(f"{OUT}/initrd", 0o644)
    shutil.copyfile(kernels[0] / "vmlinuz", f"{OUT}/vmlinuz")
    return kernels[0].name


def system(work: Work) -> None:
    """Names, users, services, the recipe's files and hooks."""
    options, own = work.options, work.stage.files
    keys = [name for user in options["users"] for name in user["keys"]]
    overlays = [Bind(own[name], f"{OVERLAYS}/{number}") for number, name in enumerate(options["overlays"])]
    binds = (*(Bind(own[name], f"{KEYS}/{name}") for name in keys), *overlays)
    arguments = {**options, "secrets": dict(work.stage.secrets), "overlays": [bind.target for bind in overlays]}
    work.sandbox(binds=binds).call(configured, arguments, log=work.log)
    for hook in options["hooks"]:
        work.progress(None, hook["name"])
        sandbox = work.sandbox(binds=(Bind(own[hook["name"]], HOOK),), network=hook["network"])
        sandbox.run([HOOK], log=work.log, hint=f"the recipe's {hook['name']} failed")
    work.sandbox().call(tidied, {}, log=work.log)


def configured(options: dict[str, Any]) -> None:
    """In the root: all that the recipe says of it, but its hooks."""
    rootfs.write("/etc/locale.conf", f"LANG={options['locale']}\n")
    if options["locale"].partition(".")[0] not in ("C", "POSIX"):
        charset = options["locale"].partition(".")[2].partition("@")[0]
        rootfs.write("/etc/locale.gen", f"{options['locale']} {charset}\n")
        rootfs.run("locale-gen")
    if options["timezone"] != "Etc/UTC":
        rootfs.timezone(options["timezone"])
    if options["hostname"]:
        rootfs.write("/etc/hostname", f"{options['hostname']}\n")
    # Arch's own root has no password: whoever sits at the console would be in.
    if "password of root" not in options["secrets"]:
        rootfs.run("usermod", "--password", "!*", "root")
    for user in options["users"]:
        rootfs.user(user, options["secrets"].get(f"password of {user['name']}"), KEYS, admins="wheel")
    if os.path.exists("/usr/lib/systemd/systemd-networkd") and not os.path.exists("/usr/bin/NetworkManager"):
        rootfs.write("/etc/systemd/network/20-netboot.network", _NETWORK)
        rootfs.systemctl("enable", "systemd-networkd.service")
    rootfs.services(options["services"])
    rootfs.copy_overlays({"overlays": options["overlays"], "owners": options["owners"]})
