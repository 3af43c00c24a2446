"""The stage `bootstrap`: a minimal root by mmdebstrap or debootstrap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from buildlib import rootfs
from buildlib.distros.debian import clean
from buildlib.distros.debian.archive import Archive, apt_settings, lost, network_sandbox
from buildlib.errors import BuildError
from buildlib.store import describe
from buildlib.work import Work

PHASES = {
    "I: downloading": (0.1, "downloading"),
    "I: extracting": (0.3, "unpacking"),
    "I: installing essential": (0.4, "installing essential packages"),
    "I: installing remaining": (0.7, "installing apt"),
    "I: cleaning": (0.95, "cleaning"),
    "I: Retrieving": (0.1, "downloading"),
    "I: Extracting": (0.3, "unpacking"),
    "I: Unpacking required": (0.5, "unpacking required packages"),
    "I: Configuring required": (0.6, "configuring required packages"),
    "I: Unpacking the base": (0.8, "unpacking base packages"),
    "I: Configuring the base": (0.9, "configuring base packages"),
}
"""How both engines begin the lines that tell how far they are."""

USR_IS_MERGED = ("bookworm", "noble")
"""Suites in which a package says that /bin and the like are links; later ones ship the links themselves."""


def run(work: Work) -> None:
    archive = Archive.of(work)
    engine = {"mmdebstrap": _mmdebstrap, "debootstrap": _debootstrap}[work.options["engine"]]
    try:
        engine(work, archive)
    except BuildError as error:
        raise lost(work.log) or error from None
    finally:
        archive.collect()
    work.sandbox().call(tidy, {}, log=work.log)


def _mmdebstrap(work: Work, archive: Archive) -> None:
    """The lists lie there before it starts: it neither updates nor fetches anything but what they name."""
    # An overlay over nothing: `volatile` makes each of dpkg's fsyncs free, the store syncs once.
    empty = work.scratch / "empty"
    empty.mkdir()
    root = str(work.mount)
    sandbox = network_sandbox(work, chroot=False, layers=(empty,), binds=archive.binds(root))
    keyring = work.options["keyring"]
    settings = [f"--aptopt={line}" for line in apt_settings()]
    skipped = (
        "update",
        "check/empty",
        "check/qemu",
        "download/empty",
        "essential/unlink",
        "cleanup/apt",
        "cleanup/reproducible",
        "output/dev",
        "output/mknod",
    )
    sandbox.run(
        [
            "mmdebstrap",
            "--mode=root",
            "--format=directory",
            "--verbose",
            f"--variant={work.options['variant']}",
            f"--architectures={work.options['arch']}",
            f"--skip={','.join(skipped)}",
            # As debootstrap does it: without the package, apt would take usrmerge, which brings all of perl.
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            *(["--include=usr-is-merged"] if work.options["suites"][0] in USR_IS_MERGED else []),
            *settings,
            work.options["suites"][0],
            root,
            *(source.line(keyring) for source in archive.wanted),
        ],
        log=work.log,
        on_line=_phase(work),
    )


def _debootstrap(work: Work, archive: Archive) -> None:
    """Needs real root: it makes device nodes. It fetches its own lists, which must be those of the lock."""
    main = archive.wanted[0]
    variant = {"minbase": ["--variant=minbase"], "important": []}[work.options["variant"]]
    archive.cache.mkdir(parents=True, exist_ok=True)
    sandbox = network_sandbox(work, change=False, chroot=False, user=False)
    sandbox.run(
        [
            "debootstrap",
            *variant,
            f"--arch={work.options['arch']}",
            f"--keyring={work.options['keyring']}",
            # The name that works with every version; without it a missing keyring is a mere warning.
            "--force-check-gpg",
            f"--components={','.join(main.components)}",
            f"--cache-dir={archive.cache.absolute()}",
            "--merged-usr",
            main.suite,
            str(work.tree),
            main.uri,
        ],
        log=work.log,
        on_line=_phase(work),
    )
    kept = list((work.tree / "var/lib/apt/lists").glob("*InRelease"))
    locked = (work.stage.facts or {})[main.suite]
    if not kept or describe(kept[0]).digest != locked:
        raise BuildError(
            f"{main.suite} moved on since the lock was written; debootstrap can only take what is there now",
            hint="take it with `./doit lock:NAME`, name a `snapshot:`, or take `engine: mmdebstrap`",
        )


def _phase(work: Work) -> Any:
    def tell(line: str) -> None:
        for start, (fraction, text) in PHASES.items():
            if line.startswith(start):
                work.progress(fraction, text)

    return tell


def tidy(_arguments: dict[str, Any]) -> None:
    """In the root: what both engines leave differently, or of the building machine, is made the same."""
    for path in ("/etc/apt/apt.conf.d/99mmdebstrap", "/etc/dpkg/dpkg.cfg.d/99mmdebstrap", "/etc/apt/sources.list"):
        Path(path).unlink(missing_ok=True)
    for source in Path("/etc/apt/sources.list.d").glob("*mmdebstrap*"):
        source.unlink()
    rootfs.link("/etc/resolv.conf", "../run/netboot/resolv.conf")
    Path("/etc/hostname").unlink(missing_ok=True)
    clean.clean()
