"""Connections to machines by SSH that run scripts there, as many as needed over one. By keys and agents alone.

Bulk data goes by the `ssh` program, whose command line is `route.program`'s.
"""

from __future__ import annotations

import contextlib
import logging
import re
import select
import socket
import threading
from typing import Any

import paramiko

from buildlib import command, login
from buildlib.errors import BuildError
from buildlib.route import BEAT, BEATS, TIMEOUT, Route, known
from buildlib.shell import Answer, Held, Talk, said, start, wrap
from buildlib.transport import Transport

_READY = b"shell is ready"

_SUDO = (
    (
        r"password is required|no askpass",
        "sudo wants a password of {user}",
        "it is never given one; let it run `sh` without: `{user} ALL=(root) NOPASSWD: ALL`, by visudo there",
    ),
    (
        r"not allowed|not in the sudoers|may not run",
        "sudo does not let {user} run sh as root",
        "allow it: `{user} ALL=(root) NOPASSWD: ALL`, by visudo there",
    ),
    (
        r"must have a tty|no tty present",
        "sudo wants a terminal",
        "take `requiretty` away: `Defaults:{user} !requiretty`, by visudo there",
    ),
    (r"sudo.*(not found|No such file)", "there is no sudo", "log in as root, and say `sudo: no`"),
)
"""What sudo says, what that means, and what to do."""


def connect(route: Route, *, sudo: bool = False, timeout: float = TIMEOUT) -> Connection:
    """Log in and see that scripts run there. Raises BuildError, each reason for that with a message of its own.

    sudo    -- run them as root
    timeout -- seconds that each step may take
    """
    logger = logging.getLogger("paramiko")
    logger.addHandler(logging.NullHandler())
    # What it has to say is in its exceptions.
    logger.propagate = False
    transports: list[Transport] = []
    try:
        for hop in (*route.jumps, route):
            try:
                transports.append(_open(hop, transports[-1] if transports else None, timeout))
                login.check_host(transports[-1], hop)
                login.log_in(transports[-1], hop)
            except BuildError as error:
                if hop is route:
                    raise
                message = f"{route.destination}: jump host {error.message}"
                raise BuildError(message, hint=error.hint) from None
        connection = Connection(route, transports, sudo)
    except BaseException:
        for transport in reversed(transports):
            transport.close()
        raise
    try:
        connection.check()
    except BaseException:
        connection.close()
        raise
    return connection


class Connection:
    """A machine at the other end. It may be used by several threads."""

    def __init__(self, route: Route, transports: list[Transport], sudo: bool) -> None:
        self.where = route.where
        self._route = route
        self._transports = transports
        self._command = "sudo -n sh" if sudo else "sh"
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def run(self, script: str) -> Answer:
        with self._transports[-1].turn:
            talk = _Talk(self.where, self._transports[-1], self._command)
            try:
                # A shell that is none reads nothing; what it said explains that.
                with contextlib.suppress(BuildError):
                    talk.send(wrap(script, empty=True))
                answer = talk.end()
            except BaseException:
                talk.drop()
                raise
        if answer.status < 0:
            raise BuildError(answer.err.splitlines()[-1], hint="whatever was not done there yet, isn't; run it again")
        return answer

    def hold(self, script: str) -> Held:
        talk = _Talk(self.where, self._transports[-1], self._command)
        talk.send(wrap(script, empty=False))
        return talk

    def close(self) -> None:
        self._over.set()
        for transport in reversed(self._transports):
            transport.close()

    def check(self) -> None:
        """See that what runs scripts is a shell, and root's where it has to be."""
        answer = self.run(f"echo {_READY.decode()}")
        lines = answer.err.strip().splitlines() or answer.out.decode(errors="replace").strip().splitlines()
        what = lines[-1] if lines else command.describe(answer.status)
        if answer.out == _READY + b"\n":
            return
        prefix = f"{self._route.destination}: {self.where}: "
        for pattern, message, hint in _SUDO if self._command != "sh" else ():
            if re.search(pattern, answer.err):
                user = self._route.user
                raise BuildError(prefix + message.format(user=user), hint=hint.format(user=user))
        if answer.out.endswith(_READY + b"\n"):
            first = answer.out.decode(errors="replace").splitlines()[0]
            raise BuildError(
                f"{prefix}its shell writes {first!r} before anything is run",
                hint="its startup files, such as ~/.bashrc, must be silent where there is no terminal",
            )
        raise BuildError(f"{prefix}no shell runs there: {what}", hint="it is to be a login that can run `sh`")

    def _watch(self) -> None:
        """End all when the other end shows no more sign of life: what waits for it would do so for hours."""
        last = self._transports[-1]
        while not self._over.wait(BEAT) and last.is_active():
            alarm = threading.Timer(BEAT * BEATS, self.close)
            alarm.daemon = True
            alarm.start()
            with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
                last.global_request("keepalive@openssh.com", wait=True)
            alarm.cancel()


class _Talk(Talk):
    """A script in a channel of its own."""

    def __init__(self, where: str, transport: Transport, line: str) -> None:
        super().__init__(where)
        self._transport = transport
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._err = bytearray()
        try:
            with transport.turn:
                self._channel = transport.session(TIMEOUT)
                self._channel.exec_command(line)
        except (paramiko.SSHException, OSError, EOFError) as error:
            reason = f"no more sessions: {error}" if transport.is_active() else "the connection was lost"
            raise BuildError(f"{where}: {reason}") from None
        # Apart, or one that is full would stop the other.
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def send(self, data: bytes) -> None:
        try:
            with self._lock:
                self._channel.sendall(data)
        except (OSError, EOFError, paramiko.SSHException):
            raise BuildError(self._over()) from None

    def end(self) -> Answer:
        if self._answer is None:
            with self._transport.turn:
                self._answer = self._ended()
        return self._answer

    def _ended(self) -> Answer:
        with self._lock, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()
        out = bytearray(self._kept)
        while data := self._more():
            out += data
        self._reader.join()
        status = self._channel.recv_exit_status()
        err = self._err.decode(errors="replace")
        if status < 0:
            err += f"{self._where}: {self._lost()}\n"
        self._transport.finish(self._channel)
        return Answer(status, bytes(out), err)

    def drop(self) -> None:
        """Leave it to itself."""
        self._channel.close()

    def _more(self) -> bytes:
        return self._channel.recv(1 << 16)

    def _over(self) -> str:
        status = self._channel.recv_exit_status()
        self._reader.join()
        lines = self._err.decode(errors="replace").strip().splitlines()
        if status < 0:
            return f"{self._where}: {self._lost()}"
        return f"{self._where}: {lines[-1] if lines else f'the shell ended: {command.describe(status)}'}"

    def _lost(self) -> str:
        return "the shell was killed there" if self._transport.is_active() else "the connection was lost"

    def _read_errors(self) -> None:
        while data := self._channel.recv_stderr(1 << 16):
            self._err += data


def _open(hop: Route, through: Transport | None, timeout: float) -> Transport:
    """A connection whose other end is an SSH server; not yet known which one."""
    sock: Any
    if through is not None:
        sock = _forwarded(hop, through, timeout)
    elif hop.proxy_command is not None:
        sock = _Pipes(hop.proxy_command)
    else:
        sock = _dialled(hop, timeout)
    try:
        transport = Transport(sock)
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = timeout
        options = transport.get_security_options()
        kinds = {each.kind for each in known(hop) if not each.marker}
        # The kinds that are known before others: else a server with several keys would seem to be another one.
        options.key_types = sorted(options.key_types, key=lambda kind: login.plain(kind) not in kinds)
        transport.start_client(timeout=timeout)
        if not transport.initial_kex_done:
            transport.close()
            raise paramiko.SSHException("it does not go on")
    except (paramiko.SSHException, OSError, EOFError) as error:
        sock.close()
        if isinstance(sock, _Pipes) and (lines := sock.said.strip().splitlines()):
            raise BuildError(f"{hop.destination}: its ProxyCommand says: {lines[-1]}") from None
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
            raise BuildError(f"{hop.destination}: {hop.server} is too old or too strict: {error}") from None
        raise BuildError(
            f"{hop.destination}: what answers at {hop.server} is no SSH server, or refuses to talk: {error}",
            hint="see its log, and whether the port is right",
        ) from None
    return transport


def _dialled(hop: Route, timeout: float) -> socket.socket:
    try:
        sock = socket.create_connection((hop.host, hop.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except socket.gaierror as error:
        raise BuildError(
            f"{hop.destination}: the name {hop.host} does not resolve: {error.strerror}",
            hint="is it spelled right, and does the SSH client's config know it?",
        ) from None
    except ConnectionRefusedError:
        raise BuildError(
            f"{hop.destination}: {hop.server} refuses connections", hint="is an SSH server running there, on that port?"
        ) from None
    except TimeoutError:
        raise BuildError(
            f"{hop.destination}: {hop.server} does not answer within {timeout:g} s",
            hint="is it on, and does a firewall let this machine through?",
        ) from None
    except OSError as error:
        raise BuildError(
            f"{hop.destination}: no way to {hop.server}: {error.strerror}",
            hint="is it on, and in a network of this one?",
        ) from None


def _forwarded(hop: Route, through: Transport, timeout: float) -> paramiko.Channel:
    try:
        return through.open_channel("direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=timeout)
    except paramiko.ChannelException as error:
        reason = "forbids to go on" if error.code == 1 else f"has no way there: {error.text}"
    except (paramiko.SSHException, OSError, EOFError) as error:
        reason = f"has no way there: {error}"
    raise BuildError(
        f"{hop.destination}: {hop.server} is not reached: the jump host {reason}",
        hint="its sshd must have AllowTcpForwarding, and reach that host",
    )


class _Pipes:
    """A program as a socket: ProxyCommand."""

    def __init__(self, line: str) -> None:
        self._process, self._err = start(["sh", "-c", f"exec {line}"])
        self._seconds: float | None = None
        # What paramiko asks of a socket that gave nothing.
        self._closed = False

    @property
    def said(self) -> str:
        return said(self._err)

    def settimeout(self, seconds: float | None) -> None:
        self._seconds = seconds

    def send(self, data: bytes) -> int:
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()
        return len(data)

    def recv(self, size: int) -> bytes:
        assert self._process.stdout
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(None if self._seconds is None else 1000 * self._seconds):
            raise TimeoutError
        return self._process.stdout.read1(size)  # type: ignore[attr-defined,no-any-return]

    def close(self) -> None:
        self._closed = True
        command.end(self._process)
