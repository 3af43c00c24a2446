"""The stage `apkovl`: what makes a diskless Alpine the recipe's; a gzipped tar that is unpacked into its root.

What it must hold, and what breaks without, is of Alpine's mkinitfs (initramfs-init) and alpine-conf (lbu). In short: an
apkovl without runlevels gets none, and then there is no modloop, so no modules; packages come after it, and leave the
configuration that is there alone.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from buildlib import command
from buildlib.distros.alpine import signing
from buildlib.distros.alpine.repository import SERVICES
from buildlib.errors import BuildError
from buildlib.members import Member, Members, of_folder, packed
from buildlib.plan import Json
from buildlib.work import Work

SUFFIX = ".apkovl.tar.gz"

RUNLEVELS: Mapping[str, tuple[str, ...]] = {
    "sysinit": ("devfs", "dmesg", "hwdrivers", "mdev", "modloop"),
    "boot": ("bootmisc", "hostname", "modules", "networking", "sysctl", "syslog"),
    "default": (),
    "shutdown": ("killprocs", "mount-ro", "savecache"),
}
"""What every machine needs, as mkinitfs' own default boot services are."""

BOOT = ("alpine-base", "openssl")
"""What the initramfs itself asks for: openssl, since it has a signature of the modloop."""

INTERFACES = "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n"

_LOCKED = ("bin", "daemon", "lp", "sync", "shutdown", "halt", "mail", "news", "uucp", "cron", "ftp", "sshd", "games")
_LOCKED_TOO = ("ntp", "guest", "nobody")
_SHADOW_GROUP = 42


def run(work: Work) -> None:
    """Outputs: one apkovl, or `ovl/MAC.apkovl.tar.gz` of each host; `packages.tsv`."""
    options = work.options
    files = work.stage.files
    members = below(files[options["base"]] if options["base"] else None, [files[name] for name in options["overlays"]])
    texts = {name: path.read_text() for name, path in files.items() if name in options["keys"]}
    interfaces = files[options["interfaces"]].read_text() if options["interfaces"] else INTERFACES
    keys = [texts[name] for name in options["keys"]]
    common = members | made(options, keys, interfaces, work.stage.secrets, members)
    common |= {f"etc/apk/keys/{name}": Member("f", pem.encode()) for name, pem in _public(work)}
    _check_services(common, work)
    for file, hostname in options["files"].items():
        path = work.out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        data = packed(common | named(hostname), work.epoch)
        if options["cipher"]:
            data = encrypted(data, options["cipher"], work.stage.secrets["password of apkovls"], work.scratch)
        path.write_bytes(data)
    known = (work.stage.facts or {}).get("packages", {})
    lines = [_listed(name, said, options["arch"]) for name, said in sorted(known.items())]
    (work.out / "packages.tsv").write_text("".join(lines))


def _listed(name: str, said: Mapping[str, Json], arch: str) -> str:
    """A line of packages.tsv. Locks of before have neither origin nor license."""
    version = said["version"]
    source = f"{said['origin']}@{version}" if said.get("origin") else ""
    return f"{name}\t{version}\t{arch}\t{source}\t{said.get('license', '')}\n"


def world(options: Mapping[str, Json], *, ssh: bool, before: Members) -> list[str]:
    """The packages that a machine is told to install. before -- of the base and the overlays"""
    found = {"alpine-base", *options["packages"]}
    if "etc/apk/world" in before:
        found |= {*before["etc/apk/world"].data.decode(errors="replace").split()}
    if ssh:
        found.add("openssh")
    if options["timezone"] != "Etc/UTC":
        found.add("tzdata")
    return sorted(found)


def _public(work: Work) -> Iterator[tuple[str, str]]:
    """Keys that the machine trusts beside those of its initramfs."""
    key = work.stage.secrets.get("signing key")
    if key:
        name, pem = signing.public(key)
        yield name, pem.decode()
    for name in work.options["trusted"]:
        path = work.stage.files[name]
        yield path.name, path.read_text()


def _check_services(members: Members, work: Work) -> None:
    """Raise BuildError for a service that nothing brings, where all packages are known."""
    if "repository" not in work.inputs:
        return
    known = {*(work.inputs["repository"] / SERVICES).read_text().split()}
    known |= {path.rpartition("/")[2] for path in members if path.startswith("etc/init.d/")}
    asked = {path.rpartition("/")[2] for path in members if re.fullmatch(r"etc/runlevels/[^/]+/[^/]+", path)}
    lacking = sorted(asked - known)
    if lacking:
        raise BuildError(
            f"no package of the recipe has the service {', '.join(lacking)}",
            hint="add the package that brings it to `packages`; some are of their own, such as chrony-openrc",
        )


def below(base: Path | None, overlays: Iterable[Path]) -> Members:
    """What the recipe's words go over."""
    found = unpacked(base) if base else {}
    for folder in overlays:
        found |= of_folder(folder)
    return found


def made(
    options: Mapping[str, Json], keys: list[str], interfaces: str, secrets: Mapping[str, str], before: Members
) -> Members:
    """What the recipe says, over `before`, which is of the base and the overlays."""
    found: Members = {}
    password = secrets.get("password of root")
    runlevels = {name: {*needed, *options["services"][name]} for name, needed in RUNLEVELS.items()}
    if keys:
        runlevels["default"].add("sshd")
        text = "".join(key if key.endswith("\n") else f"{key}\n" for key in keys)
        found |= {"root": Member("d", mode=0o700), "root/.ssh": Member("d", mode=0o700)}
        found["root/.ssh/authorized_keys"] = Member("f", text.encode(), 0o600)
    if any(path.startswith("etc/local.d/") and path.endswith((".start", ".stop")) for path in before):
        runlevels["default"].add("local")
    if options["timezone"] != "Etc/UTC":
        found["etc/localtime"] = Member("l", f"/usr/share/zoneinfo/{options['timezone']}".encode())
    for level, services in runlevels.items():
        for service in services:
            found[f"etc/runlevels/{level}/{service}"] = Member("l", f"/etc/init.d/{service}".encode())
    names = world(options, ssh=bool(keys), before=before)
    found["etc/apk/world"] = Member("f", "".join(f"{name}\n" for name in names).encode())
    if options["repositories"]:
        # Without, the initramfs writes those of the command line, which a target's URL is in.
        found["etc/apk/repositories"] = Member("f", "".join(f"{url}\n" for url in options["repositories"]).encode())
    found.setdefault("etc/network/interfaces", Member("f", interfaces.encode()))
    if "etc/network/interfaces" in before and not options["interfaces"]:
        del found["etc/network/interfaces"]
    if "etc/shadow" not in before or password:
        found["etc/shadow"] = Member("f", shadow(password).encode(), 0o640, (0, _SHADOW_GROUP))
    return found


def shadow(password: str | None) -> str:
    """Alpine's accounts. Nobody logs in by password but root, if it has one: Alpine's own file lets root in without."""
    locked = (*_LOCKED, *_LOCKED_TOO)
    return "".join([f"root:{password or '*'}:::::::\n", *(f"{name}:!::0:::::\n" for name in locked)])


def named(hostname: str) -> Members:
    """A machine's name."""
    hosts = f"127.0.0.1\t{hostname} localhost.localdomain localhost\n::1\t\tlocalhost localhost.localdomain\n"
    return {"etc/hostname": Member("f", f"{hostname}\n".encode()), "etc/hosts": Member("f", hosts.encode())}


def unpacked(path: Path) -> Members:
    """An apkovl's content. Raises BuildError for one that can't be read, is encrypted, or leads out of the root."""
    if not path.name.endswith((".tar.gz", ".tgz")):
        raise BuildError(f"{path.name}: an encrypted apkovl can't be started from", hint="lbu pkg writes a plain one")
    found: Members = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = posixpath.normpath(member.name).lstrip("/")
                if name == ".." or name.startswith("../"):
                    raise BuildError(f"{path.name}: {member.name} leads out of the root")
                owner = (member.uid, member.gid)
                if member.isfile():
                    source = archive.extractfile(member)
                    assert source is not None
                    found[name] = Member("f", source.read(), member.mode & 0o7777, owner)
                elif member.isdir() and name != ".":
                    found[name] = Member("d", mode=member.mode & 0o7777, owner=owner)
                elif member.issym():
                    found[name] = Member("l", member.linkname.encode(), owner=owner)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise BuildError(f"{path.name}: is no apkovl: {error}", hint="it is what `lbu pkg` writes") from None
    return found


def encrypted(data: bytes, cipher: str, password: str, scratch: Path) -> bytes:
    """As `openssl enc -d -CIPHER` decrypts it, which is what the initramfs runs; the same for the same."""
    salt = hashlib.sha256(data + password.encode()).digest()[:8]
    plain, made = scratch / "plain", scratch / "encrypted"
    plain.write_bytes(data)
    line = ["openssl", "enc", f"-{cipher}", "-S", salt.hex(), "-pass", "env:NETBOOT_PASSWORD"]
    env = {**os.environ, "NETBOOT_PASSWORD": password}
    command.run([*line, "-in", str(plain), "-out", str(made)], env=env)
    plain.unlink()
    head = b"Salted__" + salt
    found = made.read_bytes()
    # OpenSSL 3 leaves a salt out that it was given.
    return found if found.startswith(head) else head + found
