"""Who is at the other end of an SSH connection, and who we are: host keys that must be known; our own keys."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import paramiko
import paramiko.agent

from buildlib import command
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
            more = transport.auth_publickey(hop.user, key)
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not transport.is_active():
                raise BuildError(
                    f"{hop.destination}: {hop.where} hung up after {len(tried)} of our keys: {error}; {_NOTHING}",
                    hint="name the right one: `IdentityFile` and `IdentitiesOnly yes` in the SSH client's config",
                ) from None
            continue
        if not more:
            return
        raise BuildError(
            f"{hop.destination}: {hop.where} wants {' or '.join(more)} beside the key {name}; {_NOTHING}",
            hint="let that login do with a key alone: `AuthenticationMethods` in its sshd_config",
        )
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
    offered = {_fingerprint(key): key for key in _agents(hop)}
    for path in hop.identities:
        own = _public(path) if offered else None
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
    if not hop.agent:
        return []
    # Not by paramiko.Agent: it reads the environment, which all threads share.
    agent = paramiko.agent.AgentSSH()
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(hop.agent)
        agent._connect(sock)  # type: ignore[attr-defined]
        return list(agent.get_keys())
    except (paramiko.SSHException, OSError):
        sock.close()
        return []


def _public(path: Path) -> str | None:
    """Fingerprint of a key, public or private; None of an encrypted one of an old form without a `.pub` beside it."""
    with contextlib.suppress(command.CommandError):
        for word in command.output(["ssh-keygen", "-lf", str(path)]).split():
            if word.startswith("SHA256:"):
                return word
    return None
