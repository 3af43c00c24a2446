"""The stage `netboot`: kernel, initramfs and modloop out of the official bundle, as they are."""

from __future__ import annotations

import re
import shutil
import tarfile
import zlib
from pathlib import Path

from buildlib import command, fetch
from buildlib import kernel as versions
from buildlib.distros.alpine import mirror
from buildlib.errors import BuildError
from buildlib.work import Work


def run(work: Work) -> None:
    """Outputs `vmlinuz`, `initrd`, `modloop-FLAVOR`."""
    options = work.options
    lock = dict(work.stage.facts or {})
    path = work.cache / "downloads" / lock["sha256"]
    urls = mirror.bundle(options["mirrors"], lock, options["arch"])
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        work.progress(done / lock["size"], f"{done >> 20} of {lock['size'] >> 20} MB")

    try:
        fetch.get(fetch.Job(urls, path, fetch.Digest("sha256", lock["sha256"]), lock["size"]), tell)
    except BuildError as error:
        raise BuildError(
            f"recipe.lock says Alpine {lock['version']}, but its bundle can't be had:\n{error.message}",
            hint="another mirror, or ./doit lock:NAME for the newest",
        ) from None
    flavor = options["flavor"]
    wanted = {f"vmlinuz-{flavor}": "vmlinuz", f"initramfs-{flavor}": "initrd", f"modloop-{flavor}": f"modloop-{flavor}"}
    _unpack(path, lock["file"], wanted, work.out)
    _check_kernel(work.out / "vmlinuz", work.out / f"modloop-{flavor}")


def _unpack(bundle: Path, name: str, wanted: dict[str, str], out: Path) -> None:
    """Take files of these names out of the bundle. Raises BuildError."""
    seen: set[str] = set()
    try:
        with tarfile.open(bundle, "r:gz") as archive:
            for member in archive:
                base = member.name.rpartition("/")[2]
                if not member.isfile():
                    continue
                seen.add(base)
                if base in wanted:
                    source = archive.extractfile(member)
                    assert source is not None
                    with (out / wanted[base]).open("wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                    (out / wanted[base]).chmod(0o644)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise BuildError(f"{name}: can't be unpacked: {error}", hint="./doit lock:NAME takes the newest") from None
    lacking = sorted(wanted.keys() - seen)
    if lacking:
        flavors = sorted(base.removeprefix("vmlinuz-") for base in seen if base.startswith("vmlinuz-"))
        raise BuildError(f"{name}: has no {', '.join(lacking)}", hint=f"flavors in it: {', '.join(flavors) or 'none'}")


def _check_kernel(kernel: Path, modloop: Path) -> None:
    """Raise BuildError for a modloop that isn't of the kernel: the machine would boot, and have no modules."""
    version = versions.version(kernel)
    try:
        text = command.output(["unsquashfs", "-l", "-d", "", "-max-depth", "2", str(modloop)])
    except command.CommandError as error:
        said = (error.hint or error.message).splitlines()[0]
        raise BuildError(f"{modloop.name}: is no squashfs: {said}", hint="./doit lock:NAME takes the newest") from None
    there = re.findall(r"^/modules/([^/\n]+)$", text, re.M)
    there = [name for name in there if name != "firmware"]
    if version is not None and version not in there:
        raise BuildError(
            f"{modloop.name}: is of kernel {' and '.join(there) or 'none'}, but the kernel is {version}",
            hint="another mirror: these files are of different builds",
        )
