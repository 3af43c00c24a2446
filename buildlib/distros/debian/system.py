"""The stage `system`: locale, time zone, names, users and services."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from buildlib import rootfs
from buildlib.distros.debian import clean
from buildlib.distros.debian.archive import Source, image_mirrors, sources
from buildlib.distros.debian.initramfs import GUEST
from buildlib.errors import BuildError
from buildlib.sandbox import Bind
from buildlib.work import Work

KEYS = "/run/netboot/keys"
KEYRING = "/run/netboot/keyring"
SOURCE = "/run/netboot/guest"


def run(work: Work) -> None:
    wanted: list[Source] = sources(work.options, image_mirrors(work.options))
    keys = [Bind(path, f"{KEYS}/{name}") for name, path in work.stage.files.items() if not name.endswith("/")]
    binds = (Bind(GUEST / "usr/lib", SOURCE), *keys)
    keyring = Path(work.options["keyring"])
    in_image = f"/usr/share/keyrings/{keyring.name}"
    arguments = {
        **work.options,
        "secrets": dict(work.stage.secrets),
        "sources": [source.line(in_image) for source in wanted],
        "keyring": in_image,
    }
    work.sandbox(binds=(*binds, Bind(keyring, KEYRING))).call(configure, arguments, log=work.log)


def configure(options: dict[str, Any]) -> None:
    """In the root: all that the recipe says of the system, but its files and hooks."""
    if not os.path.exists(options["keyring"]):
        rootfs.write(options["keyring"], "")
        Path(options["keyring"]).write_bytes(Path(KEYRING).read_bytes())
    rootfs.write("/etc/apt/sources.list", "\n".join(options["sources"]) + "\n")
    _locale(options["locale"])
    rootfs.timezone(options["timezone"])
    _hostname(options["hostname"])
    for user in options["users"]:
        rootfs.user(user, options["secrets"].get(f"password of {user['name']}"), KEYS)
    _client(options)
    rootfs.services(options["services"])
    if not os.path.exists("/etc/fstab") or "UNCONFIGURED" in Path("/etc/fstab").read_text():
        rootfs.write("/etc/fstab", "# The root is mounted by the initrd.\n")
    if os.path.exists("/usr/lib/systemd/systemd-resolved"):
        rootfs.link("/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
    clean.clean()


def _locale(locale: str) -> None:
    rootfs.write("/etc/default/locale", f"LANG={locale}\n")
    if locale.partition(".")[0] in ("C", "POSIX"):
        return
    charset = locale.partition(".")[2].partition("@")[0]
    known = Path("/usr/share/i18n/SUPPORTED").read_text().splitlines()
    wanted = f"{locale} {charset}"
    if wanted not in known:
        raise BuildError(f"locale: {locale} is not among the locales of this suite", hint="like en_GB.UTF-8")
    rootfs.write("/etc/locale.gen", wanted + "\n")
    subprocess.run(["locale-gen"], check=True)


def _hostname(hostname: str | None) -> None:
    """No name of its own: each client takes the one that DHCP gives."""
    names = "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n"
    if hostname is None:
        Path("/etc/hostname").unlink(missing_ok=True)
    else:
        rootfs.write("/etc/hostname", hostname + "\n")
        names += f"127.0.1.1\t{hostname}\n"
    rootfs.write("/etc/hosts", names)


def _client(options: dict[str, Any]) -> None:
    """What makes a root one that clients boot over the network: the guest files that its packages can use."""
    persist = "".join(f"{path}\n" for path in options["persist"])
    if persist:
        rootfs.write("/usr/lib/netboot/persist", persist)
    rootfs.copy_tree(SOURCE, "/usr/lib")
    if os.path.exists("/usr/lib/systemd/systemd-networkd") and not _other_network():
        rootfs.systemctl("enable", "systemd-networkd.service")
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer"):
        if options["clients"] == "volatile" and os.path.exists(f"/usr/lib/systemd/system/{timer}"):
            rootfs.systemctl("mask", timer)


def _other_network() -> bool:
    """Whether a package that manages networks was chosen: it has the last word then."""
    return any(os.path.exists(path) for path in ("/usr/sbin/NetworkManager", "/usr/sbin/ifup", "/usr/sbin/netplan"))
