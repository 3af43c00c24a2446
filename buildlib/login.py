"""Who is at the other end of an SSH connection, and who we are: host keys that must be known; our own keys."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import paramiko

from buildlib.errors import BuildError
from buildlib.route import Route, interactive, is_default, known

_NOTHING = "nothing was sent"


def check_host(transport: paramiko.Transport, hop: Route) -> None:
    """Raise BuildError unless the server has shown a key that is known to be its own."""
    key = transport.get_remote_server_key()
    its = _fingerprint(key)
    lines = known(hop)
    mine = [each for each in lines if each.key == base64.b64encode(key.asbytes()).decode()]
    revoked = [each for each in mine if each.marker == "@revoked"]
    name = hop.known_as[0]
    if revoked:
        raise BuildError(
            f"{hop.destination}: host key {its} of {name} is revoked by {revoked[0].file}:{revoked[0].line}; {_NOTHING}"
        )
    plain_lines = [each for each in lines if not each.marker]
    if any(each in plain_lines for each in mine):
        return
    same = [each for each in plain_lines if each.kind == key.get_name()] or plain_lines
    if same:
        old = same[0]
        raise BuildError(
            f"{hop.destination}: host key of {name} changed (was {old.fingerprint}, is {its}); {_NOTHING}",
            hint=f"somebody may be between. If it was set up anew, remove {old.file}:{old.line}: "
            f"ssh-keygen -f {shlex.quote(str(old.file))} -R {shlex.quote(name)}",
        )
    raise BuildError(
        f"{hop.destination}: host key of {name} is not known: {key.get_name()} {its}; {_NOTHING}",
        hint="compare it with the machine's own (there: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then once: "
        + shlex.join(interactive(hop)),
    )


def log_in(transport: paramiko.Transport, hop: Route) -> None:
    """Try keys, as ssh does: those of files that an agent has, of files, and of the agent. Raises BuildError."""
    tried: list[str] = []
    unusable: list[str] = []
    for name, key in _keys(hop, unusable):
        tried.append(name)
        try:
            if not transport.auth_publickey(hop.user, key):
                return
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not transport.is_active():
                raise BuildError(
                    f"{hop.destination}: {hop.where} hung up after {len(tried)} of our keys: {error}; {_NOTHING}",
                    hint="name the right one: `IdentityFile` and `IdentitiesOnly yes` in the SSH client's config",
                ) from None
    if tried:
        raise BuildError(
            f"{hop.destination}: {hop.where} accepts none of our keys: {', '.join([*tried, *unusable])}; {_NOTHING}",
            hint=f"add a public key to ~{hop.user}/.ssh/authorized_keys there",
        )
    why = f": {', '.join(unusable)}" if unusable else ""
    raise BuildError(
        f"{hop.destination}: there is no key to log in with{why}; {_NOTHING}",
        hint="`IdentityFile` in the SSH client's config, or `ssh-add`; passwords are never used",
    )


def plain(kind: str) -> str:
    """The kind of a key that is used by an algorithm."""
    return "ssh-rsa" if kind.startswith("rsa-sha2-") else kind


def _fingerprint(key: paramiko.PKey) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _keys(hop: Route, unusable: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
    """Keys with their names; `unusable` gets what cannot be one, and why."""
    offered = {key.asbytes(): key for key in _agents(hop)}
    for path in hop.identities:
        own = _public(path)
        if own in offered:
            yield f"{path} (agent)", offered.pop(own)
        elif path.exists():
            try:
                yield str(path), paramiko.PKey.from_path(path)
            except paramiko.PasswordRequiredException:
                unusable.append(f"{path} (it has a passphrase, and no agent has it)")
            except (paramiko.SSHException, OSError, TypeError, ValueError) as error:
                # paramiko knows some kinds of encrypted keys by other errors.
                encrypted = "password" in str(error).lower() or "encrypted" in str(error).lower()
                said = "it has a passphrase, and no agent has it" if encrypted else "it is no private key"
                unusable.append(f"{path} ({said})")
        elif not is_default(path):
            unusable.append(f"{path} (is not there)")
    if not hop.identities_only:
        yield from ((f"{key.get_name()} {_fingerprint(key)} (agent)", key) for key in offered.values())


def _agents(hop: Route) -> list[paramiko.PKey]:
    """The keys that the agent has."""
    if not hop.agent or not Path(hop.agent).exists():
        return []
    before = os.environ.get("SSH_AUTH_SOCK")
    os.environ["SSH_AUTH_SOCK"] = hop.agent
    try:
        return list(paramiko.Agent().get_keys())
    except (paramiko.SSHException, OSError):
        return []
    finally:
        os.environ.pop("SSH_AUTH_SOCK")
        if before is not None:
            os.environ["SSH_AUTH_SOCK"] = before


def _public(path: Path) -> bytes | None:
    """The public half of a key, from beside it; of a public key, itself."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return base64.b64decode((path if path.suffix == ".pub" else Path(f"{path}.pub")).read_text().split()[1])
    return None
