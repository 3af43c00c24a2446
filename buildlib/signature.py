"""Signatures of releases by SSH keys: who made one, whatever machine it comes from."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from buildlib import atomic, command
from buildlib.errors import BuildError

NAMESPACE = "netboot-release"
"""What these signatures are for: none that a key has made for something else counts."""


def sign(file: Path, key: Path) -> Path:
    """Sign a file; gives the path of the signature, `FILE.sig` beside it.

    key -- a private key, or the public one of a key that an agent has; nobody is asked for a passphrase
    """
    if not key.is_file():
        raise BuildError(f"{key}: there is no such key to sign with", hint="see `signing` in site.yaml")
    final = file.with_name(f"{file.name}.sig")
    with tempfile.TemporaryDirectory() as scratch:
        # ssh-keygen writes beside what it is given, and asks before it replaces anything.
        link = Path(scratch) / "signed"
        link.symlink_to(file.absolute())
        line = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(link)]
        said: list[str] = []
        env = {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}
        if command.run(line, env=env, on_line=said.append, accept=range(256)):
            reason = _reason("\n".join(said))
            private = str(key).removesuffix(".pub")
            hint = (
                f"an agent must have it: ssh-add {private}" if "passphrase" in reason or private != str(key) else None
            )
            raise BuildError(f"{file}: can't be signed with {key}: {reason}", hint=hint)
        atomic.write_bytes(final, link.with_name("signed.sig").read_bytes())
    return final


def check(file: Path, signature: Path, allowed: Path) -> str:
    """Who signed the file: a principal of `allowed`, a file as of ssh-keygen(1), ALLOWED SIGNERS.

    Raises BuildError unless one of these signed exactly this file, and as a release.
    """
    if not allowed.is_file():
        raise BuildError(f"{allowed}: there is no such file of allowed signers", hint="see `signing` in site.yaml")
    if not signature.is_file():
        raise BuildError(f"{file}: is not signed: there is no {signature}")
    line = ["ssh-keygen", "-Y", "find-principals", "-s", str(signature), "-f", str(allowed)]
    try:
        found = command.output(line)
    except command.CommandError as error:
        reason = _reason(error.hint or "")
        raise BuildError(f"{file}: is signed by nobody whom {allowed} names: {reason}") from None
    # A line of that file may name several, all of the same key.
    principal = found.splitlines()[0].partition(",")[0]
    line = ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", principal, "-n", NAMESPACE, "-s", str(signature)]
    process = command.converse(line)
    try:
        said = process.communicate(file.read_bytes())[0].decode(errors="replace")
    finally:
        command.end(process)
    if process.returncode:
        raise BuildError(f"{file}: its signature by {principal} does not hold: {_reason(said)}")
    return principal


def _reason(said: str) -> str:
    """The first that ssh-keygen said."""
    lines = said.replace("Enter passphrase: ", "").strip().splitlines()
    return lines[0].strip() if lines else "ssh-keygen doesn't say why"
