"""An ISO read without mounting it, as any user."""

from __future__ import annotations

import hashlib
from pathlib import Path

from buildlib import command
from buildlib.distros.archlinux import files
from buildlib.errors import BuildError

KEYRING = Path("/usr/share/keyrings/archlinux-keyring.gpg")
"""Of Debian's package archlinux-keyring."""


def verify(iso: Path, signature: Path, keyring: Path, log: Path) -> None:
    """Raise BuildError unless a key of the keyring has signed the ISO."""
    line = ["gpgv", "--keyring", str(keyring.absolute()), str(signature), str(iso)]
    try:
        command.run(line, log=log)
    except command.CommandError:
        raise BuildError(
            f"{iso.name}: {signature.name} is no signature of it by a key of {keyring.name}",
            hint="fetch both again, or name the `keyring` that has the release's key",
            log=log,
        ) from None


def names(iso: Path) -> list[str]:
    """What an ISO has of an image. Raises BuildError when that isn't enough."""
    try:
        there = set(command.output(["bsdtar", "-t", "-f", str(iso)]).split("\n"))
    except command.CommandError as error:
        said = (error.hint or error.message).splitlines()[0]
        raise BuildError(f"{iso.name}: is no ISO, or is cut off: {said}", hint="fetch it again") from None
    root = next((name for name in files.ROOTS if name in there), files.ROOTS[0])
    lacking = [name for name in (files.KERNEL, files.INITRD, root) if name not in there]
    if lacking:
        raise BuildError(f"{iso.name}: has no {', '.join(lacking)}", hint="is it an ISO of Arch Linux (archiso)?")
    known = (files.KERNEL, files.INITRD, root, *files.sides(root), *files.MICROCODE)
    return [name for name in known if name in there]


def take(iso: Path, folder: Path, wanted: list[str], log: Path) -> dict[str, Path]:
    """Files out of an ISO, unverified, by their names there. Raises BuildError."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        command.run(["bsdtar", "-x", "-f", str(iso), "-C", str(folder), *wanted], log=log)
    except command.CommandError:
        hint = "fetch it again: it is cut off"
        raise BuildError(f"{iso.name}: can't be read to its end", hint=hint, log=log) from None
    return {name: folder / name for name in wanted}


def extract(iso: Path, folder: Path, log: Path) -> dict[str, Path]:
    """The files of an image out of its ISO, its root verified, by their names there. Raises BuildError."""
    wanted = names(iso)
    root, _ = files.names(dict.fromkeys(wanted))
    found = take(iso, folder, wanted, log)
    if files.CHECKSUM in found:
        said = files.checksum(found[files.CHECKSUM].read_text(), root, iso.name)
        with found[root].open("rb") as file:
            if hashlib.file_digest(file, "sha512").hexdigest() != said:
                raise BuildError(f"{iso.name}: its {root} is not what its checksum says", hint="fetch it again")
    return found
