"""Alpine's own package manager, statically linked, of the mirror's packages: what a set of packages comes to.

Global options stand before the command and others after it: both versions understand that.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from buildlib import command
from buildlib.distros.alpine import packages
from buildlib.distros.alpine.options import ARCHITECTURES
from buildlib.errors import BuildError
from buildlib.sandbox import Bind, Sandbox

KEYS = Path(__file__).with_name("keys")
"""Public keys of Alpine's developers."""

TOOL = "apk-tools-static"

_PROGRAM = "sbin/apk.static"


def trusted(more: Iterable[Path]) -> dict[str, bytes]:
    """Public keys (PEM) by file name: Alpine's own, and `more`."""
    return {path.name: path.read_bytes() for path in (*sorted(KEYS.glob("*.pub")), *more)}


def program(package: Path, to: Path) -> Path:
    """The program out of its package. Raises BuildError."""
    try:
        content = zlib.decompress(packages.streams(package.read_bytes(), 3)[2], 31)
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            source = archive.extractfile(_PROGRAM)
            assert source is not None
            to.write_bytes(source.read())
    except (KeyError, ValueError, zlib.error, tarfile.TarError):
        raise BuildError(f"{TOOL} has no {_PROGRAM}", hint="another mirror or branch") from None
    to.chmod(0o755)
    return to


def repository(folder: Path, arch: str, indexes: Mapping[str, bytes]) -> list[Path]:
    """Folders as apk reads repositories, each with an index and no packages."""
    for name, data in indexes.items():
        home = folder / name / arch
        home.mkdir(parents=True)
        (home / packages.INDEX).write_bytes(data)
    return [folder / name for name in indexes]


def keyring(folder: Path, keys: Mapping[str, bytes]) -> Path:
    """A folder of public keys."""
    folder.mkdir(parents=True)
    for name, data in keys.items():
        (folder / name).write_bytes(data)
    return folder


def resolve(
    apk: Path, repositories: Sequence[Path], keys: Path, arch: str, world: Sequence[str], scratch: Path, log: Path
) -> list[tuple[str, str]]:
    """Name and version of all packages that a world comes to, as apk decides it. Raises BuildError."""
    root = scratch / "root"
    machine = next(ours for ours, theirs in ARCHITECTURES.items() if theirs == arch)
    sandbox = Sandbox(work=scratch / "sandbox", chroot=False, arch=machine)
    line = _line(apk, root, repositories, keys, arch)
    said: list[str] = []
    try:
        sandbox.run([*line, "add", "--initdb"], log=log)
        sandbox.run([*line, "add", "--simulate", *world], log=log, on_line=said.append)
    except command.CommandError as error:
        raise _words(said, error) from None
    found = [re.search(r"\) Installing (\S+) \((\S+)\)", text) for text in said]
    return sorted((match[1], match[2]) for match in found if match)


def install(
    apk: Path, sandbox: Sandbox, repository: Path, keys: Path, arch: str, world: Sequence[str], log: Path
) -> None:
    """Install a world into the sandbox's mount. Raises BuildError."""
    said: list[str] = []
    line = _line(apk, sandbox.mount, [repository], keys, arch)
    try:
        sandbox.run([*line, "add", "--initdb", *world], log=log, on_line=said.append)
    except command.CommandError as error:
        raise _words(said, error) from None


def devices(root: Path) -> tuple[Bind, ...]:
    """What packages' scripts want of /dev."""
    return tuple(Bind(Path("/dev", name), f"{root}/dev/{name}") for name in ("null", "zero", "random", "urandom"))


def _line(apk: Path, root: Path, repositories: Sequence[Path], keys: Path, arch: str) -> list[str]:
    where = [word for path in repositories for word in ("--repository", str(path.absolute()))]
    # Paths below the root, unless they are absolute: os.devnull keeps the host's own list out.
    line = [str(apk.absolute()), "--root", str(root.absolute()), "--arch", arch]
    return [*line, "--keys-dir", str(keys.absolute()), "--repositories-file", os.devnull, "--no-cache", *where]


def _words(said: list[str], error: command.CommandError) -> BuildError:
    """What apk says is wrong, in one error."""
    text = "\n".join(said)
    lacking = re.findall(r"^\s*(\S+) \(no such package\)", text, re.M)
    if lacking:
        return BuildError(
            f"no package {', '.join(sorted(set(lacking)))} in the recipe's repositories",
            hint="is it in another one (`repositories`), or has this branch another name for it?",
        )
    wrong = [line for line in said if line.startswith(("ERROR:", "  "))]
    return BuildError("apk: " + "\n".join(wrong[:20]) if wrong else error.message, hint=error.hint)
