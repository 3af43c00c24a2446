"""The stages `packages` and `packages-GROUP`, by the root's own apt: the kernel, what the root's kind needs and the
recipe's packages; then those of its groups."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from buildlib import rootfs
from buildlib.distros.debian import clean
from buildlib.distros.debian.archive import Archive, apt_settings, lost, network_sandbox
from buildlib.errors import BuildError
from buildlib.sandbox import Bind
from buildlib.work import Work

SETTINGS = "/run/netboot/apt.conf"
SOURCES = "/run/netboot/sources.list"
POLICY = "/usr/sbin/policy-rc.d"
UPDATE_INITRAMFS = "/usr/sbin/update-initramfs"
HOST_KEYS = Path("/etc/ssh")
OUT = "/run/netboot/out"
ASKED = "asked"
"""File of a group's outcome: one of its packages has called update-initramfs."""


def run(work: Work) -> None:
    _install(work, install)


def add(work: Work) -> None:
    """A group's stage: more packages, on top of what earlier stages have installed."""
    stub = work.scratch / "update-initramfs"
    stub.write_text(f"#!/bin/sh\n: > {OUT}/{ASKED}\n")
    stub.chmod(0o755)
    _install(work, install_more, Bind(stub, UPDATE_INITRAMFS), Bind(work.out, OUT, writable=True))


def _install(work: Work, function: Callable[[dict[str, Any]], None], *binds: Bind) -> None:
    archive = Archive.of(work)
    settings = [
        *apt_settings(certificates="/run/netboot/certificates.crt"),
        f'Dir::Etc::sourcelist "{SOURCES}";',
        'Dir::Etc::sourceparts "/dev/null";',
        'Dir::Cache::pkgcache "/tmp/pkgcache.bin";',
        'Dir::Cache::srcpkgcache "/tmp/srcpkgcache.bin";',
        'Dpkg::Options { "--force-confold"; "--force-confdef"; "--force-unsafe-io"; };',
    ]
    sandbox = network_sandbox(work, binds=(*archive.binds(), *binds))
    arguments = {
        "settings": settings,
        "sources": [source.line() for source in archive.wanted],
        "packages": list(work.options["packages"]),
        "recommends": work.options["recommends"],
    }
    try:
        sandbox.call(function, arguments, log=work.log, on_line=_progress(work))
    except BuildError as error:
        raise _explained(error, work.log) from None
    finally:
        archive.collect()


def install(arguments: dict[str, Any]) -> None:
    """In the root: bring it up to the lists' state and install the packages. No service is started."""
    # Each kernel package would make an initrd now, with too little in it; the next stage makes the only one.
    divert("add")
    with host_keys():
        _apt("dist-upgrade", arguments)
    divert("remove")
    clean.clean()


def install_more(arguments: dict[str, Any]) -> None:
    """In the root: install the packages beside those that are there, which stay as they are. Here a program that is
    mounted over it stands for update-initramfs: a diversion would copy it into this layer."""
    before = _installed()
    _apt("install", arguments)
    after = _installed()
    changed = [
        f"{name} {version} -> {after.get(name, 'removed')}"
        for name, version in before.items()
        if after.get(name) != version
    ]
    if changed:
        raise BuildError(
            f"this group would change what an earlier one has installed: {', '.join(changed)}",
            hint="put the packages that replace each other into one group, or into `packages`",
        )
    clean.clean()


def _apt(verb: str, arguments: dict[str, Any]) -> None:
    rootfs.write(SETTINGS, "\n".join(arguments["settings"]) + "\n")
    rootfs.write(SOURCES, "\n".join(arguments["sources"]) + "\n")
    rootfs.write(POLICY, "#!/bin/sh\nexit 101\n", mode=0o755)
    recommends = "true" if arguments["recommends"] else "false"
    line = ["apt-get", "-c", SETTINGS, "-o", f"APT::Install-Recommends={recommends}", verb]
    done = subprocess.run([*line, "--", *arguments["packages"]], check=False)
    if done.returncode:
        raise BuildError(f"apt-get: exit status {done.returncode}")


def _installed() -> dict[str, str]:
    """Version of each installed package."""
    form = "${db:Status-Abbrev}\t${binary:Package}\t${Version}\n"
    told = subprocess.run(["dpkg-query", "--show", "--showformat", form], check=True, stdout=subprocess.PIPE, text=True)
    rows = (line.split("\t") for line in told.stdout.splitlines())
    return {name: version for state, name, version in rows if state.startswith("ii")}


def divert(verb: str) -> None:
    """Put a program that does nothing in the place of update-initramfs, or take it away again."""
    if verb == "remove":
        Path(UPDATE_INITRAMFS).unlink(missing_ok=True)
    subprocess.run(["dpkg-divert", "--local", "--rename", "--quiet", f"--{verb}", UPDATE_INITRAMFS], check=True)
    if verb == "add":
        rootfs.write(UPDATE_INITRAMFS, "#!/bin/sh\nexit 0\n", mode=0o755)


@contextmanager
def host_keys() -> Iterator[None]:
    """In the root: let openssh-server find files where its host keys belong. It would make keys, which takes it up to
    a second, and which no image keeps."""
    if HOST_KEYS.exists():
        yield
        return
    for kind in ("rsa", "ecdsa", "ed25519"):
        rootfs.write(f"{HOST_KEYS}/ssh_host_{kind}_key", "", mode=0o600)
    yield
    for path in HOST_KEYS.glob("ssh_host_*"):
        path.unlink()
    with suppress(OSError):
        HOST_KEYS.rmdir()


def _progress(work: Work) -> Callable[[str], None]:
    """apt's lines as a fraction: each package is fetched, unpacked and set up once."""
    counts = {"all": 0, "done": 0}

    def tell(line: str) -> None:
        if found := re.match(r"(\d+) upgraded, (\d+) newly installed", line):
            counts["all"] = 2 * (int(found[1]) + int(found[2]))
        elif found := re.match(r"(Unpacking|Setting up) (\S+)", line):
            counts["done"] += 1
            work.progress(min(1.0, counts["done"] / max(1, counts["all"])), f"{found[1].lower()} {found[2]}")
        elif found := re.match(r"Get:\d+ \S+ \S+ \S+ (\S+)", line):
            work.progress(None, f"downloading {found[1]}")

    return tell


def _explained(error: BuildError, log: Path) -> BuildError:
    """What apt could not do, in one line."""
    lines = log.read_text(errors="replace").splitlines()
    unknown = [line.rsplit(" ", 1)[1] for line in lines if line.startswith("E: Unable to locate package")]
    if unknown:
        return BuildError(
            f"no package {', '.join(unknown)} in the recipe's suites and components",
            hint="is the name right, and is its component among `components`?",
            log=log,
        )
    if gone := lost(log):
        return gone
    said = [line for line in lines if line.startswith(("E:", "dpkg: error"))]
    return BuildError(said[0] if said else error.message, hint=error.hint, log=log)
