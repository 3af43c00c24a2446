"""The stage `system`: locale, time zone, names, users and services."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from buildlib.distros.debian import clean, files
from buildlib.distros.debian.archive import Source, image_mirrors, sources
from buildlib.distros.debian.initramfs import GUEST
from buildlib.errors import BuildError
from buildlib.sandbox import Bind
from buildlib.work import Work

KEYS = "/run/netboot/keys"
SOURCE = "/run/netboot/guest"


def run(work: Work) -> None:
    wanted: list[Source] = sources(work.options, image_mirrors(work.options))
    keys = [Bind(path, f"{KEYS}/{name}") for name, path in work.stage.files.items() if name not in ("guest", "keyring")]
    binds = (Bind(GUEST / "usr/lib", SOURCE), *keys)
    keyring = Path(work.options["keyring"])
    in_image = f"/usr/share/keyrings/{keyring.name}"
    arguments = {
        **work.options,
        "secrets": dict(work.stage.secrets),
        "sources": [source.line(in_image) for source in wanted],
        "keyring": in_image,
    }
    work.sandbox(binds=(*binds, Bind(keyring, f"{KEYS}/archive"))).call(configure, arguments, log=work.log)


def configure(options: dict[str, Any]) -> None:
    """In the root: all that the recipe says of the system, but its files and hooks."""
    if not os.path.exists(options["keyring"]):
        files.write(options["keyring"], "")
        Path(options["keyring"]).write_bytes(Path(f"{KEYS}/archive").read_bytes())
    files.write("/etc/apt/sources.list", "\n".join(options["sources"]) + "\n")
    _locale(options["locale"])
    _timezone(options["timezone"])
    _hostname(options["hostname"])
    for user in options["users"]:
        _user(user, options["secrets"].get(f"password of {user['name']}"))
    _client(options)
    _services(options["services"])
    if not os.path.exists("/etc/fstab") or "UNCONFIGURED" in Path("/etc/fstab").read_text():
        files.write("/etc/fstab", "# The root is mounted by the initrd.\n")
    if os.path.exists("/usr/lib/systemd/systemd-resolved"):
        files.link("/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
    clean.clean()


def _locale(locale: str) -> None:
    files.write("/etc/default/locale", f"LANG={locale}\n")
    if locale.partition(".")[0] in ("C", "POSIX"):
        return
    charset = locale.partition(".")[2].partition("@")[0]
    known = Path("/usr/share/i18n/SUPPORTED").read_text().splitlines()
    wanted = f"{locale} {charset}"
    if wanted not in known:
        raise BuildError(f"locale: {locale} is not among the locales of this suite", hint="like en_GB.UTF-8")
    files.write("/etc/locale.gen", wanted + "\n")
    subprocess.run(["locale-gen"], check=True)


def _timezone(zone: str) -> None:
    if not os.path.isfile(f"/usr/share/zoneinfo/{zone}"):
        raise BuildError(f"timezone: {zone} is not known to this suite", hint="like Europe/Berlin")
    files.link("/etc/localtime", f"/usr/share/zoneinfo/{zone}")
    files.write("/etc/timezone", f"{zone}\n")


def _hostname(hostname: str | None) -> None:
    """No name of its own: each client takes the one that DHCP gives."""
    names = "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n"
    if hostname is None:
        Path("/etc/hostname").unlink(missing_ok=True)
    else:
        files.write("/etc/hostname", hostname + "\n")
        names += f"127.0.1.1\t{hostname}\n"
    files.write("/etc/hosts", names)


def _user(user: dict[str, Any], password: str | None) -> None:
    name = user["name"]
    home = "/root" if name == "root" else f"/home/{name}"
    groups = [*user["groups"], *(["sudo"] if user["sudo"] != "no" else [])]
    lacking = [group for group in groups if _run("getent", "group", group, check=False).returncode]
    if lacking:
        raise BuildError(f"users: {name}: no group {', '.join(lacking)} in the root", hint="which package makes it?")
    if name != "root":
        known = _run("getent", "passwd", name, check=False).returncode == 0
        line = ["usermod"] if known else ["useradd", "--create-home"]
        uid = [] if user["uid"] is None else ["--uid", str(user["uid"])]
        _run(*line, "--shell", user["shell"], *uid, name)
    if groups:
        _run("usermod", "--append", "--groups", ",".join(groups), name)
    # Through standard input: on the command line every process could read the hash.
    if password is not None:
        _run("chpasswd", "--encrypted", text=f"{name}:{password}\n")
    elif name != "root":
        _run("passwd", "--lock", name)
    if user["sudo"] == "nopasswd":
        files.write(f"/etc/sudoers.d/{name}", f"{name} ALL=(ALL:ALL) NOPASSWD: ALL\n", mode=0o440)
    if user["keys"]:
        text = "".join(Path(f"{KEYS}/{key}").read_text().rstrip("\n") + "\n" for key in user["keys"])
        _run("install", "-d", "-m", "0700", "-o", name, "-g", name, f"{home}/.ssh")
        files.write(f"{home}/.ssh/authorized_keys", text, mode=0o600)
        _run("chown", f"{name}:", f"{home}/.ssh/authorized_keys")


def _client(options: dict[str, Any]) -> None:
    """What makes a root one that clients boot over the network: the guest files that its packages can use."""
    persist = "".join(f"{path}\n" for path in options["persist"])
    if persist:
        files.write("/usr/lib/netboot/persist", persist)
    files.copy_tree(SOURCE, "/usr/lib")
    if os.path.exists("/usr/lib/systemd/systemd-networkd") and not _other_network():
        _systemctl("enable", "systemd-networkd.service")
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer"):
        if options["clients"] == "volatile" and os.path.exists(f"/usr/lib/systemd/system/{timer}"):
            _systemctl("mask", timer)


def _other_network() -> bool:
    """Whether a package that manages networks was chosen: it has the last word then."""
    return any(os.path.exists(path) for path in ("/usr/sbin/NetworkManager", "/usr/sbin/ifup", "/usr/sbin/netplan"))


def _services(services: dict[str, list[str]]) -> None:
    for verb in ("enable", "disable", "mask"):
        for unit in services[verb]:
            _systemctl(verb, unit)


def _systemctl(verb: str, unit: str) -> None:
    # Not the root's own systemctl for a missing unit: it only says that it failed.
    done = _run("systemctl", verb, unit, check=False)
    if done.returncode:
        raise BuildError(f"services: cannot {verb} {unit}", hint=done.stdout.strip() or "which package brings it?")


def _run(*argv: str, check: bool = True, text: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(f"$ {' '.join(argv)}\n{done.stdout}", end="")
    if check and done.returncode:
        raise BuildError(f"{argv[0]}: {done.stdout.strip() or f'exit status {done.returncode}'}")
    return done
