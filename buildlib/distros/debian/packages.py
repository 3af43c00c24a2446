"""The stage `packages`: the recipe's packages, the kernel and what the root's kind needs, by the root's own apt."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from buildlib import rootfs
from buildlib.distros.debian import clean
from buildlib.distros.debian.archive import Archive, apt_settings, network_sandbox
from buildlib.errors import BuildError
from buildlib.work import Work

SETTINGS = "/run/netboot/apt.conf"
SOURCES = "/run/netboot/sources.list"
POLICY = "/usr/sbin/policy-rc.d"


def run(work: Work) -> None:
    archive = Archive.of(work)
    settings = [
        *apt_settings(certificates="/run/netboot/certificates.crt"),
        f'Dir::Etc::sourcelist "{SOURCES}";',
        'Dir::Etc::sourceparts "/dev/null";',
        'Dir::Cache::pkgcache "/tmp/pkgcache.bin";',
        'Dir::Cache::srcpkgcache "/tmp/srcpkgcache.bin";',
        'Dpkg::Options { "--force-confold"; "--force-confdef"; "--force-unsafe-io"; };',
    ]
    sandbox = network_sandbox(work, binds=archive.binds())
    arguments = {
        "settings": settings,
        "sources": [source.line() for source in archive.wanted],
        "packages": list(work.options["packages"]),
        "recommends": work.options["recommends"],
    }
    try:
        sandbox.call(install, arguments, log=work.log, on_line=_progress(work))
    except BuildError as error:
        raise _explained(error, work.log) from None
    finally:
        archive.collect()


def install(arguments: dict[str, Any]) -> None:
    """In the root: bring it up to the lists' state and install the packages. No service is started."""
    rootfs.write(SETTINGS, "\n".join(arguments["settings"]) + "\n")
    rootfs.write(SOURCES, "\n".join(arguments["sources"]) + "\n")
    rootfs.write(POLICY, "#!/bin/sh\nexit 101\n", mode=0o755)
    # Each kernel package would make an initrd now, with too little in it; the next stage makes the only one.
    divert("add")
    recommends = "true" if arguments["recommends"] else "false"
    line = ["apt-get", "-c", SETTINGS, "-o", f"APT::Install-Recommends={recommends}", "dist-upgrade"]
    done = subprocess.run([*line, "--", *arguments["packages"]], check=False)
    if done.returncode:
        raise BuildError(f"apt-get: exit status {done.returncode}")
    divert("remove")
    clean.clean()


def divert(verb: str) -> None:
    """Put a program that does nothing in the place of update-initramfs, or take it away again."""
    name = "/usr/sbin/update-initramfs"
    if verb == "remove":
        Path(name).unlink(missing_ok=True)
    subprocess.run(["dpkg-divert", "--local", "--rename", "--quiet", f"--{verb}", name], check=True)
    if verb == "add":
        rootfs.write(name, "#!/bin/sh\nexit 0\n", mode=0o755)


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
    if any(line.startswith("E: Failed to fetch") and "404" in line for line in lines):
        return BuildError(
            "the mirror no longer has a package that is locked, and the download cache does not either",
            hint="take what upstream offers now with `./doit lock:NAME`, or name a `snapshot:` in the recipe",
            log=log,
        )
    said = [line for line in lines if line.startswith(("E:", "dpkg: error"))]
    return BuildError(said[0] if said else error.message, hint=error.hint, log=log)
