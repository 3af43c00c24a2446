"""The way to a machine as the OpenSSH client finds it: destination, jump hosts, keys, known hosts. Asked of `ssh -G`.

What the user's configuration says holds for all that connects, the `ssh` program and others.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import getpass
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from buildlib import command
from buildlib.errors import BuildError

BEAT = 10
"""Seconds between two signs of life on a connection."""

BEATS = 3
"""So many of them without an answer, and the connection is lost."""

TIMEOUT = 15
"""Seconds that connecting may take."""

_FORM = re.compile(r"(?:(?P<user>[\w.+@\\][\w.+@\\-]*)@)?(?P<host>\[[\da-fA-F:.%\w]+\]|[\w.:][\w.:%-]*)", re.ASCII)

_QUICK = "aes128-gcm@openssh.com"
"""The cipher that takes least time where the processor has instructions for AES."""

_JUMPS = 8
"""More jump hosts are a circle."""


@dataclass(frozen=True)
class Route:
    """How to connect.

    destination    -- as the user wrote it: an alias, user@host, user@host:port
    identities     -- files of private keys, or of public keys whose private ones an agent has
    agent          -- socket of the agent
    known_hosts    -- files, the user's first
    host_key_alias -- what they call the host, if not by its name
    jumps          -- hosts between, outermost first
    proxy_command  -- what connects in place of a socket, for a shell
    config         -- configuration file of the client, in place of the user's
    ciphers        -- that the client may use, the preferred one first
    """

    destination: str
    host: str
    port: int
    user: str
    identities: tuple[Path, ...]
    identities_only: bool
    agent: str | None
    known_hosts: tuple[Path, ...]
    host_key_alias: str | None
    jumps: tuple[Route, ...]
    proxy_command: str | None
    config: Path | None
    ciphers: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return f"{self.user}@{self.host}"

    @property
    def server(self) -> str:
        """Host and port, for messages."""
        return f"{self.host} port {self.port}"

    @property
    def known_as(self) -> tuple[str, ...]:
        """The host's names in files of known hosts: the next counts where the first is not known."""
        name = self.host_key_alias or self.host.lower()
        return (name,) if self.port == 22 or self.host_key_alias else (f"[{name}]:{self.port}", name)


@dataclass(frozen=True)
class Known:
    """A line of a file of known hosts.

    marker -- "", `@revoked`, `@cert-authority`
    key    -- in base64
    """

    file: Path
    line: int
    marker: str
    kind: str
    key: str

    @property
    def fingerprint(self) -> str:
        return f"SHA256:{base64.b64encode(hashlib.sha256(base64.b64decode(self.key)).digest()).decode().rstrip('=')}"


def route(destination: str, config: Path | None = None) -> Route:
    """What `ssh -G` makes of a destination. Raises BuildError when it is none, or the configuration is wrong."""
    return _route(destination, config, 0)


def program(route: Route, *, quick: bool = False) -> list[str]:
    """The command line of `ssh` that leads there; a command to be run there may follow. It never asks anything.

    quick -- both ends have instructions for AES: prefer it, if it may be used
    """
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ServerAliveInterval": BEAT,
        "ServerAliveCountMax": BEATS,
        "ConnectTimeout": TIMEOUT,
        "RemoteCommand": "none",
        "RequestTTY": "no",
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
    }
    if quick and _QUICK in route.ciphers:
        options["Ciphers"] = ",".join([_QUICK, *(cipher for cipher in route.ciphers if cipher != _QUICK)])
    line = interactive(route)
    return [line[0], *(word for name, value in options.items() for word in ("-o", f"{name}={value}")), *line[1:]]


def interactive(route: Route) -> list[str]:
    """The command line by which a person would log in there."""
    user, host, _ = _split(route.destination)
    config = [] if route.config is None else ["-F", str(route.config)]
    return ["ssh", *config, "-p", str(route.port), f"{user}@{host}" if user else host]


def known(route: Route) -> list[Known]:
    """All that is known of the host's keys."""
    found: list[Known] = []
    for name in route.known_as:
        for file in route.known_hosts:
            # Its status is 1 when it finds nothing, or there is no such file.
            with contextlib.suppress(command.CommandError):
                found += _lines(file, command.output(["ssh-keygen", "-F", name, "-f", str(file)]))
        if found:
            break
    return found


def is_default(identity: Path) -> bool:
    """Whether nobody has named this file: it is tried if it is there."""
    return identity.parent == Path("~/.ssh").expanduser() and identity.name.startswith("id_")


def _route(destination: str, config: Path | None, depth: int) -> Route:
    user, host, port = _split(destination)
    if config is not None and not config.is_file():
        raise BuildError(f"{config}: no such file", hint="it is to be a configuration file of the OpenSSH client")
    if depth > _JUMPS:
        raise BuildError(
            f"{destination}: its jump hosts lead in a circle", hint="see ProxyJump in the SSH client's config"
        )
    line = ["ssh", "-G", *(["-F", str(config)] if config else []), *(["-p", port] if port else [])]
    try:
        text = command.output([*line, f"{user}@{host}" if user else host])
    except command.CommandError as error:
        said = (error.hint or error.message).strip().splitlines()
        raise BuildError(f"{destination}: ssh does not take its configuration: {said[0]}") from None
    values: dict[str, list[str]] = {}
    for entry in text.splitlines():
        key, _, value = entry.partition(" ")
        values.setdefault(key, []).append(value)
    return _parsed(destination, config, values, depth)


def _parsed(destination: str, config: Path | None, values: Mapping[str, list[str]], depth: int) -> Route:
    def one(key: str) -> str | None:
        value = values.get(key, [""])[0]
        return None if value in ("", "none") else value

    host, user, port = one("hostname") or "", one("user") or "", one("port") or "22"
    tokens = {"%": "%", "d": str(Path.home()), "h": host, "n": _split(destination)[1].strip("[]"), "p": port, "r": user}
    tokens["u"] = getpass.getuser()

    def expand(text: str) -> str:
        return re.sub("%(.)", lambda found: tokens.get(found[1], found[0]), text)

    def path(text: str) -> Path:
        return Path(os.path.expandvars(expand(text))).expanduser()

    agent = one("identityagent") or ("" if "identityagent" in values else "SSH_AUTH_SOCK")
    if agent == "SSH_AUTH_SOCK" or agent.startswith("$"):
        agent = os.environ.get(agent.strip("${}"), "")
    files = [value for key in ("userknownhostsfile", "globalknownhostsfile") for value in values.get(key, [])]
    command_line = one("proxycommand")
    return Route(
        destination,
        host,
        int(port),
        user,
        tuple(path(value) for value in values.get("identityfile", []) if value != "none"),
        one("identitiesonly") == "yes",
        str(path(agent)) if agent else None,
        tuple(path(name) for value in files for name in _names(value)),
        one("hostkeyalias"),
        _jumps(one("proxyjump"), config, depth),
        expand(command_line) if command_line else None,
        config,
        tuple((one("ciphers") or "").split(",")),
    )


def _jumps(text: str | None, config: Path | None, depth: int) -> tuple[Route, ...]:
    """Only the first has a way of its own: the others are reached by it."""
    jumps: list[Route] = []
    for jump in text.split(",") if text else ():
        hop = _route(jump.removeprefix("ssh://"), config, depth + 1)
        jumps += hop.jumps if not jumps else ()
        jumps.append(dataclasses.replace(hop, jumps=(), proxy_command=None if jumps else hop.proxy_command))
    return tuple(jumps)


def _split(destination: str) -> tuple[str | None, str, str | None]:
    """User, host, port. Whatever the ssh program could take for an option or a shell for a command is refused."""
    rest, colon, port = destination.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or (":" in rest and not rest.endswith("]")):
        rest, port = destination, ""
    found = _FORM.fullmatch(rest)
    if found is None or not rest.isascii() or (port and not 0 < int(port) < 65536):
        raise BuildError(
            f"{destination!r} is no SSH destination", hint="it is a host of the SSH client's config, or user@host:port"
        )
    return found["user"], found["host"].strip("[]"), port or None


def _names(value: str) -> Iterator[str]:
    """File names of a list whose quotes `ssh -G` has dropped: the longest that are files, else words."""
    words = value.split(" ")
    while words:
        for end in range(len(words), 0, -1):
            name = " ".join(words[:end])
            if end == 1 or Path(name).expanduser().is_file():
                yield name
                words = words[end:]
                break


def _lines(file: Path, text: str) -> Iterator[Known]:
    """What `ssh-keygen -F` has found."""
    number = 0
    for line in text.splitlines():
        if line.startswith("# Host "):
            number = int(re.findall(r"line (\d+)", line)[-1])
            continue
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) >= 3:
            yield Known(file, number, marker, words[1], words[2])
