"""What boots wrong, or is unwise, and can be known before: of a recipe, its newest release, and the site file."""

from __future__ import annotations

import ctypes
import ipaddress
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from buildlib import kernel, listing
from buildlib.bootmenu import words
from buildlib.errors import masked
from buildlib.finding import Finding
from buildlib.initrd.scan import scan
from buildlib.plan import Json
from buildlib.recipe import FILE, Recipe
from buildlib.release import LISTING, Release
from buildlib.report import size
from buildlib.site import Site, Target

_MODULES = re.compile(r"(?:^|/)lib/modules/([^/]+)/")
_HOST_KEY = re.compile(r"etc/ssh/ssh_host_\w+_key")
_URL = re.compile(r"https?://[^\s,\"]+")

_TFTP = 65535 * 1468
"""Bytes of a file that TFTP can send without its block numbers beginning anew, which not every client takes."""

_COMMON_PASSWORDS = (
    "",
    "root",
    "toor",
    "admin",
    "password",
    "changeme",
    "alarm",
    "live",
    "nixos",
    "debian",
    "12345678",
)

_NEEDS = {
    "nfs": (("nfs", "nfsv3"), "it can't mount its root over NFS"),
    "squashfs": (("squashfs",), "it can't mount its root"),
    "ram": (("squashfs",), "it can't mount its root"),
}
"""Modules that an initrd of a Debian root must have, by the root's kind, and what happens without."""


@dataclass(frozen=True)
class Built:
    """What a release has, read once. modules -- names without their endings; versions -- of modules in the initrd"""

    content: Mapping[str, Json]
    kernel: str | None
    versions: frozenset[str]
    modules: frozenset[str]
    tree: str | None
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, release: Release) -> Built:
        content = release.manifest["content"]
        paths = [entry.member.path for entry in scan(release.folder / "initrd").entries]
        tree = release.folder / LISTING
        return cls(
            content,
            kernel.version(release.folder / "vmlinuz"),
            frozenset(found[1] for path in paths if (found := _MODULES.search(path))),
            frozenset(_module(path) for path in paths if ".ko" in path),
            tree.read_text(errors="surrogateescape") if tree.exists() else None,
            {name: said["size"] for name, said in content["artifacts"].items()},
        )


def recipe(one: Recipe, built: Built | None, site: Site) -> Iterator[Finding]:
    """All that is wrong with a recipe, and with what was built of it."""
    for level, said, todo in (*_passwords(one), *_secrets(one), *(_of_built(one, built, site) if built else ())):
        yield Finding(level, one.name, said, todo)


Told = tuple[str, str, str]
"""Level, what is wrong, what to do."""


def _of_built(one: Recipe, built: Built, site: Site) -> Iterator[Told]:
    yield from _kernels(built)
    yield from _modules(one, built)
    yield from _tree(built)
    yield from _consoles(str(built.content["cmdline"]), "its command line")
    for target, said in site.targets.items():
        if not said.recipes or one.name in said.recipes:
            yield from _sent(target, said, built)
    yield from _urls(one, built, site)
    yield from _memory(one, built)


def _kernels(built: Built) -> Iterator[Told]:
    """Kernel, initrd and root of one build."""
    if built.kernel is None:
        return
    if built.versions and built.kernel not in built.versions:
        there = " and ".join(sorted(built.versions))
        said = f"the kernel is {built.kernel}, but its initrd has modules of {there}: it has no drivers"
        yield "error", said, "build it again; an initrd of another kernel was put into the recipe's files"
    if built.tree is None:
        return
    root = {found[1] for path in built.tree.splitlines() if (found := _MODULES.search(path.partition(" ")[0]))}
    if root and built.kernel not in root:
        said = f"the kernel is {built.kernel}, but the root has modules of {' and '.join(sorted(root))}"
        yield "error", said, "build it again"


def _modules(one: Recipe, built: Built) -> Iterator[Told]:
    """What a Debian initrd must bring along; others have their own ways."""
    if one.distro != "debian" or not built.modules:
        return
    kind = str(built.content["root"]["kind"])
    needed, without = _NEEDS[kind]
    lacking = [name for name in needed if name not in built.modules]
    if lacking and not (kind == "squashfs" and built.content["root"]["over"] == "nfs"):
        todo = f"debian.initramfs.include: [{', '.join(lacking)}]"
        yield (
            "warning",
            f"its initrd has no module {' and '.join(lacking)}: unless the kernel has it built in, {without}",
            todo,
        )


def _tree(built: Built) -> Iterator[Told]:
    """What many machines share must hold nobody's keys."""
    if built.tree is None:
        return
    for entry in listing.read(built.tree).values():
        if entry.kind == "f" and _HOST_KEY.fullmatch(entry.path) and entry.size:
            said = f"{entry.path} is in the root: all machines have the same host key, and whoever mounts it has it too"
            yield "error", said, "take it out; each machine makes its own when it boots"
        if entry.kind == "f" and re.fullmatch(r"(root|home/[^/]+)/\.ssh/id_\w+", entry.path):
            yield "error", f"{entry.path} is in the root: whoever mounts it has that private key", "take it out"


def _consoles(cmdline: str, where: str) -> Iterator[Told]:
    """The last one becomes /dev/console."""
    consoles = [word.partition("=")[2].partition(",")[0] for word in words(cmdline) if word.startswith("console=")]
    if len(consoles) > 1 and re.fullmatch(r"tty\d*", consoles[-1]) and not all(map(_is_screen, consoles)):
        said = f"{where} ends with console={consoles[-1]}: what initrd and panics say is not on the serial console"
        yield "warning", said, "put the serial console last"


def _is_screen(console: str) -> bool:
    return re.fullmatch(r"tty\d*", console) is not None


def _sent(name: str, target: Target, built: Built) -> Iterator[Told]:
    """What a target's boot loaders must fetch by TFTP."""
    by_tftp = target.http is None or (target.loaders.bios == "pxelinux" and built.content["arch"] == "amd64")
    for file in ("vmlinuz", "initrd"):
        if by_tftp and built.sizes.get(file, 0) > _TFTP:
            said = (
                f"its {file} has {size(built.sizes[file])}, and target {name} sends it by TFTP: many clients fail then"
            )
            yield "warning", said, "an `http:` of the target, and `loaders: {bios: lpxelinux}`"


def _urls(one: Recipe, built: Built, site: Site) -> Iterator[Told]:
    """URLs of the command line that no target of the site file serves."""
    own = [target.url for target in site.targets.values() if target.url]
    own += [url for option in ("mirrors", "mirror") for url in _listed(getattr(one.options, option, None))]
    for url in _URL.findall(str(built.content["cmdline"])):
        if not any(url.startswith(base.rstrip("/")) for base in own):
            yield (
                "warning",
                f"its command line has {url}, which no target serves",
                "is it reachable where machines boot?",
            )


def _listed(value: object) -> list[str]:
    return [str(value)] if isinstance(value, str) else [str(each) for each in value] if isinstance(value, tuple) else []


def _memory(one: Recipe, built: Built) -> Iterator[Told]:
    """What a machine holds in memory before anything runs: the initrd, and what it unpacks to."""
    memory = one.common.boot.memory
    held = built.sizes.get("initrd", 0) * 2
    if memory is not None and held > memory << 20:
        said = f"its initrd has {size(built.sizes['initrd'])}: a machine of {memory} MiB can't unpack it"
        yield "error", said, "more `boot.memory`, or another `root:`"


def _passwords(one: Recipe) -> Iterator[Told]:
    """Passwords that everybody tries."""
    for user in one.common.users:
        known = user.password_hash
        if known is None:
            continue
        tried = (*_COMMON_PASSWORDS, user.name)
        if any(_hashed(word, known) == known for word in tried):
            yield "error", f"user {user.name} has a password that everybody knows", "another one: mkpasswd"


def _hashed(password: str, salt: str) -> str | None:
    """crypt(3); None where it can't."""
    try:
        library = ctypes.CDLL("libcrypt.so.1")
    except OSError:
        return None
    library.crypt.restype = ctypes.c_char_p
    found: bytes | None = library.crypt(password.encode(), salt.encode())
    return found.decode() if found else None


def _secrets(one: Recipe) -> Iterator[Told]:
    """Passwords of mirrors in the recipe; private keys in what is copied into an image."""
    for number, line in enumerate((one.folder / FILE).read_text(errors="replace").splitlines(), 1):
        if masked(line) != line:
            said = f"line {number} of its {FILE} has the password of a mirror: whoever has the recipe has it"
            yield "warning", said, "keep it in ~/.netrc, or for Debian and Ubuntu in `mirrors` of the site file"
    for folder in one.common.overlay:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 16 and _is_private(path):
                said = f"{one.relative(path)} is a private key: every machine that boots the image has it"
                yield "error", said, "take it out of the overlay; give each machine its own"


def _is_private(path: Path) -> bool:
    with path.open("rb") as file:
        return b"PRIVATE KEY-----" in file.read(200)


def site(one: Site) -> Iterator[Finding]:
    """What doesn't go together in the site file."""
    for (name, target), (other, second) in itertools.combinations(one.targets.items(), 2):
        nets = ipaddress.IPv4Network(target.network), ipaddress.IPv4Network(second.network)
        if nets[0].overlaps(nets[1]) and "none" not in (target.dhcp.mode, second.dhcp.mode):
            said = f"serves {target.network}, as {other} does: two answer the same machines"
            yield Finding("warning", name, said, "`dhcp: none` for one of them")
    for mac, host in one.hosts.items():
        for _, said, todo in _consoles(host.cmdline, "its `cmdline`"):
            if not host.console:
                yield Finding("warning", host.name, said, todo)
        if host.recipe and host.target:
            offered = one.targets[host.target].recipes if host.target in one.targets else ()
            entries = {entry.id for entry in one.targets[host.target].entries} if host.target in one.targets else set()
            if offered and host.recipe not in (*offered, *entries):
                said = f"({mac}) is to boot {host.recipe}, which target {host.target} doesn't offer"
                yield Finding("error", host.name, said, f"add it to `recipes` of {host.target}")


def _module(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
