"""Boot loaders as Debian 13 ships them: signed ones for UEFI, PXELINUX and iPXE, for machines of every architecture.

Packages are downloaded and unpacked; nothing of them is installed or run. Older releases' GRUB knows neither HTTP nor
proxy DHCP, so the suite is no option.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from buildlib import command
from buildlib.distros.debian.options import Options
from buildlib.errors import BuildError
from buildlib.plan import Json, Stage
from buildlib.store import describe

if TYPE_CHECKING:
    from buildlib.files import Files
    from buildlib.work import Work

SUITE = "trixie"
COPYRIGHT = "copyright"
"""Folder of the packages' licences, beside the boot loaders."""

_HELPER = "/usr/lib/apt/apt-helper"
_MODE = 0o644
_ARCHES = ("amd64", "arm64")
_GONE = re.compile(r" (404|410) | Hash Sum mismatch|has unexpected size")
"""What apt says when a mirror answers without what is wanted."""
_HINT = "take what upstream offers now with `./doit bootloaders:lock`"


@dataclass(frozen=True)
class Source:
    """Where a file comes from.

    arch -- the architecture whose package list names the package; one for all architectures is in amd64's
    path -- the file in the package
    """

    package: str
    arch: str
    path: str


_BIOS = "usr/lib/syslinux/modules/bios"

FILES: Mapping[str, Source] = {
    "grubx64.efi": Source("grub-efi-amd64-signed", "amd64", "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"),
    "grubaa64.efi": Source("grub-efi-arm64-signed", "arm64", "usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed"),
    "shimx64.efi": Source("shim-signed", "amd64", "usr/lib/shim/shimx64.efi.signed"),
    "shimaa64.efi": Source("shim-signed", "arm64", "usr/lib/shim/shimaa64.efi.signed"),
    **{name: Source("pxelinux", "amd64", f"usr/lib/PXELINUX/{name}") for name in ("pxelinux.0", "lpxelinux.0")},
    **{
        f"{name}.c32": Source("syslinux-common", "amd64", f"{_BIOS}/{name}.c32")
        for name in ("ldlinux", "libutil", "libcom32", "menu", "vesamenu", "chain")
    },
    **{
        name: Source("ipxe", "amd64", f"usr/lib/ipxe/{name}")
        for name in ("undionly.kpxe", "ipxe-amd64.efi", "ipxe-arm64.efi")
    },
}
"""The boot loaders by their names below the boot root."""

_PACKAGES = sorted({(source.arch, source.package) for source in FILES.values()})


@dataclass(frozen=True)
class Deb:
    """A package as the lock has it; `filename` is its path below a mirror."""

    package: str
    arch: str
    version: str
    sha256: str
    size: int
    filename: str

    @property
    def cache_name(self) -> str:
        """How apt names a download: unlike the archive, with the version's epoch."""
        return f"{self.package}_{self.version.replace(':', '%3a')}_{self.filename.rpartition('_')[2]}"

    def __str__(self) -> str:
        return f"{self.package} {self.version} for {self.arch}"


def stage(lock: Mapping[str, Json]) -> Stage:
    """The stage whose outcome is a folder with the boot loaders; without facts while `lock` lacks any package."""
    known: Mapping[str, Mapping[str, Json]] = lock.get("packages", {}) if lock.get("suite") == SUITE else {}
    locked = all(package in known.get(arch, {}) for arch, package in _PACKAGES)
    signed = _options().signed_by
    return Stage(
        "bootloaders",
        f"{__name__}:run",
        {"suite": SUITE},
        files={"keyring": signed} if signed.exists() else {},
        tools=("apt-get", "dpkg-deb"),
        facts=_said(known, "version", "sha256") if locked else None,
        # An update moves from one pool to another when a point release takes it in: the same package all the while.
        routes={"pools": _said(known, "filename", "size") if locked else {}},
    )


def _said(known: Mapping[str, Mapping[str, Json]], *fields: str) -> dict[str, dict[str, Json]]:
    found: dict[str, dict[str, Json]] = {}
    for arch, package in _PACKAGES:
        found.setdefault(arch, {})[package] = {field: known[arch][package][field] for field in fields}
    return found


def take_lock(mirrors: Mapping[str, str | None], scratch: Path, log: Path) -> dict[str, Json]:
    """What upstream offers now, by package lists whose signatures apt has verified.

    mirrors -- the site's mirrors of Debian
    Shape: `{"suite": SUITE, "packages": {ARCH: {NAME: {"version", "sha256", "size", "filename"}}}}`.
    """
    from buildlib.distros.debian import archive

    where = _where()
    wanted = archive.sources(where, archive.build_mirrors(where, mirrors))
    settings = [f'APT::Architectures {{ "{arch}"; }};' for arch in _ARCHES]
    apt = scratch / "apt"
    archive.update(scratch / "lists", wanted, where["arch"], _options().signed_by, apt, log, settings)
    line = ["apt-cache", "show", "--no-all-versions", *(f"{package}:{arch}" for arch, package in _PACKAGES)]
    offered = parse(command.output(line, env=_environment(apt / "apt.conf")))
    missing = [f"{package} for {arch}" for arch, package in _PACKAGES if package not in offered.get(arch, {})]
    if missing:
        raise BuildError(f"{SUITE} has no {', '.join(missing)}", hint="is the mirror whole?", log=log)
    return {"suite": SUITE, "packages": offered}


def parse(told: str) -> dict[str, dict[str, Json]]:
    """Packages by architecture and name, as a lock has them, of what apt-cache shows."""
    found: dict[str, dict[str, Json]] = {}
    for paragraph in told.strip().split("\n\n"):
        lines = [line for line in paragraph.splitlines() if ": " in line and not line.startswith(" ")]
        fields = dict(line.split(": ", 1) for line in lines)
        if not fields:
            continue
        arch = "amd64" if fields["Architecture"] == "all" else fields["Architecture"]
        found.setdefault(arch, {})[fields["Package"]] = {
            "version": fields["Version"],
            "sha256": fields["SHA256"],
            "size": int(fields["Size"]),
            "filename": fields["Filename"],
        }
    return found


def run(work: Work) -> None:
    """The stage `bootloaders`: the files at the top, the licences in a folder."""
    facts, pools = work.stage.facts or {}, work.options["pools"]
    debs = [Deb(package, arch, **facts[arch][package], **pools[arch][package]) for arch, package in _PACKAGES]
    kept = {deb: work.cache / "debs" / deb.cache_name for deb in debs}
    lacking = [deb for deb, path in kept.items() if not _is(path, deb)]
    if lacking:
        work.progress(None, f"fetching {sum(deb.size for deb in lacking) / 1e6:.1f} MB")
        _fetch(work, lacking)
    unpacked: dict[tuple[str, str], Path] = {}
    for number, (deb, path) in enumerate(kept.items()):
        work.progress(number / len(kept), deb.package)
        folder = unpacked[deb.arch, deb.package] = work.scratch / deb.arch / deb.package
        folder.mkdir(parents=True)
        command.run(["dpkg-deb", "--extract", str(path), str(folder)], log=work.log)
    for name, source in FILES.items():
        _take(unpacked[source.arch, source.package], source.path, work.out / name)
    (work.out / COPYRIGHT).mkdir()
    for (_, package), folder in unpacked.items():
        _take(folder, f"usr/share/doc/{package}/copyright", work.out / COPYRIGHT / package)


def _is(path: Path, deb: Deb) -> bool:
    return path.is_file() and describe(path).digest == deb.sha256


def _take(folder: Path, path: str, target: Path) -> None:
    """Copy a file of an unpacked package; a link could lead out of it, to a file of this machine's own."""
    source = folder / path
    if not source.is_file() or source.resolve() != folder.resolve() / path:
        raise BuildError(f"the package {folder.name} has no file /{path}", hint="another version of it? See the lock")
    shutil.copyfile(source, target)
    target.chmod(_MODE)


def _fetch(work: Work, debs: Sequence[Deb]) -> None:
    """Download packages into the cache, each from whichever of the mirrors has it."""
    from buildlib.distros.debian import archive

    folder = work.scratch / "debs"
    folder.mkdir()
    lines = [*archive.apt_settings(), *(f'Dir::Etc::{name} "{os.devnull}";' for name in ("main", "parts"))]
    configuration = folder / "apt.conf"
    configuration.write_text("\n".join(lines) + "\n")
    where = _where()
    mirrors = archive.build_mirrors(where, work.mirrors.get(where["distribution"], {}))
    said: list[str] = []
    lacking = list(debs)
    for uri in dict.fromkeys(mirrors.values()):
        wanted = [(f"{uri}/{deb.filename}", str(folder / deb.cache_name), f"SHA256:{deb.sha256}") for deb in lacking]
        command.run(
            [_HELPER, "download-file", *(word for words in wanted for word in words)],
            env=_environment(configuration),
            log=work.log,
            on_line=said.append,
            accept=(0, 100),
        )
        lacking = [deb for deb in lacking if not _is(folder / deb.cache_name, deb)]
        if not lacking:
            break
    if lacking:
        raise unavailable(lacking[0], said)
    cache = work.cache / "debs"
    cache.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        # By a rename: others may be reading what is there.
        _copy(folder / deb.cache_name, cache / deb.cache_name)


def unavailable(deb: Deb, said: Sequence[str]) -> BuildError:
    """Why apt got no such package, by what it said: mirrors that answer have moved on, of others nobody knows."""
    # As URLs have it: `%2b` for a plus.
    errors = [unquote(line.removeprefix("E: ")) for line in said if line.startswith("E: ")]
    own = [line for line in errors if f"/{Path(deb.filename).name} " in line] or errors
    unknown = [line for line in own if not _GONE.search(line)]
    if unknown or not own:
        told = unknown[0] if unknown else "apt does not say why"
        return BuildError(f"{deb} cannot be had: {told}", hint="is the mirror reachable?")
    return BuildError(f"upstream no longer has {deb}, which is locked, and no download of it is kept here", hint=_HINT)


def _environment(configuration: Path) -> dict[str, str]:
    return {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C.UTF-8"}


def _options() -> Options:
    return Options(suite=SUITE)


def _where() -> dict[str, Json]:
    """The archive in the words of a recipe's stages."""
    options = _options()
    return {
        "distribution": options.distribution,
        "suites": options.suites,
        "components": list(options.components),
        "arch": _ARCHES[0],
        "mirror": options.mirror,
        "security_mirror": options.security_mirror,
        "snapshot": options.snapshot,
    }


def install(folder: Path, boot_root: str, files: Files) -> list[str]:
    """Put the boot loaders of `folder` into a boot root, each by a rename; returns the names of those that differed.

    They are copies: whoever changes the boot root must not change the store.
    """
    differ = [name for name in FILES if files.digest(f"{boot_root}/{name}") != describe(folder / name).digest]
    for name in differ:
        files.write(f"{boot_root}/{name}", (folder / name).read_bytes(), _MODE)
    return differ


def _copy(source: Path, target: Path) -> None:
    """Give `target` the content of `source` by a rename."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    temporary.chmod(_MODE)
    temporary.replace(target)
