"""One machine of a target: looked at, locked, and changed by one script when all is decided."""

from __future__ import annotations

import contextlib
import getpass
import io
import posixpath
import re
import shlex
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from buildlib import route, survey, transfer
from buildlib.errors import BuildError
from buildlib.files import Far, Step
from buildlib.shell import Answer, Held, LocalShell, Shell
from buildlib.survey import Facts, Want

WAIT = 600.0
"""Seconds to wait for another one who is publishing on the same machine."""


@dataclass(frozen=True)
class Server:
    """A machine whose state is known.

    name -- the target's, for messages
    ssh  -- the command line of ssh that leads there; () for this machine
    """

    name: str
    shell: Shell
    ssh: tuple[str, ...]
    sudo: bool
    want: Want
    facts: Facts

    @property
    def files(self) -> Far:
        return self.facts.files

    @property
    def way(self) -> transfer.Way:
        return transfer.Way(self.shell, self.ssh, self.sudo, self.facts.tools)

    def apply(self) -> None:
        """Do there what was decided: all that `files` has collected, in that order. Raises BuildError."""
        if not self.files.steps:
            return
        held = self.shell.hold(_script(self.want.roots[0], self.files.steps))
        # Only now: a shell may read more of its input than the script.
        try:
            held.until(b"ready")
            held.send(_archive(self.files.steps))
        except BuildError:
            answer = held.end()
            raise _failed(self, answer) from None
        answer = held.end()
        if answer.status != 0:
            raise _failed(self, answer)
        self.files.steps.clear()


@contextlib.contextmanager
def opened(
    name: str,
    login: tuple[str | None, bool],
    want: Want,
    *,
    config: Path | None = None,
    lock: bool = False,
    tell: Callable[[str], None] = print,
) -> Iterator[Server]:
    """Connect and look; with `lock`, as the only one who publishes there until the end. Raises BuildError.

    login -- SSH destination, None for this machine, and whether to become root there by sudo
    tell  -- gets lines about a lock that is waited for or taken over
    """
    destination, sudo = login
    with contextlib.ExitStack() as stack:
        line: tuple[str, ...] = ()
        shell: Shell
        if destination is None:
            for path in want.roots if lock else ():
                Path(path).mkdir(parents=True, exist_ok=True)
            shell = LocalShell()
        else:
            # paramiko takes a while to load, and this machine's own target needs none.
            from buildlib import ssh

            to = route.route(destination, config)
            line = tuple(route.program(to))
            try:
                shell = ssh.connect(to, sudo=sudo)
            except BuildError as error:
                raise BuildError(f"{name}: {error.message}", hint=error.hint) from None
        stack.callback(shell.close)
        if lock:
            held, facts = _locked(name, shell, want, tell)
            stack.callback(held.end)
            stack.enter_context(_beating(held))
        else:
            answer = shell.run(survey.script(want))
            facts = survey.parse(answer.out.partition(b"\n" + survey.MARK)[0])
        if line and "aes" in facts.tools and _has_aes():
            line = tuple(route.program(to, quick=True))
        if facts.taken:
            tell(f"{name}: took over the lock of {facts.taken}, who is gone")
        yield Server(name, shell, line, sudo, want, facts)


def _has_aes() -> bool:
    """Whether this machine's processor has instructions for AES."""
    try:
        return re.search(r"\baes\b", Path("/proc/cpuinfo").read_text()) is not None
    except OSError:
        return False


def _locked(name: str, shell: Shell, want: Want, tell: Callable[[str], None]) -> tuple[Held, Facts]:
    """Hold the lock as soon as it is free."""
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    begun = time.monotonic()
    told = False
    while True:
        held = shell.hold(survey.script(want, lock=who))
        try:
            return held, survey.parse(held.until(survey.MARK))
        except survey.BusyError as error:
            held.end()
            if time.monotonic() - begun > WAIT:
                raise BuildError(
                    f"{name}: {error.message} is publishing on {shell.where} and does not end; nothing was sent"
                ) from None
            if not told:
                tell(f"{name}: waiting for {error.message}, who is publishing on {shell.where}")
                told = True
            time.sleep(0.5)
        except BaseException:
            held.end()
            raise


@contextlib.contextmanager
def _beating(held: Held) -> Iterator[None]:
    """Show now and then that the holder of the lock lives."""
    over = threading.Event()

    def beat() -> None:
        with contextlib.suppress(BuildError, OSError):
            while not over.wait(survey.BEAT):
                held.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _archive(steps: Iterable[Step]) -> bytes:
    """The files of all steps, each step's in a folder of its number."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, step in enumerate(steps):
            for name, data in step.files.items():
                member = tarfile.TarInfo(f"{number}/{name or 'file'}")
                member.size = len(data)
                member.mode = 0o644
                tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def _script(root: str, steps: Iterable[Step]) -> str:
    incoming = shlex.quote(f"{root}/{survey.INCOMING}")
    lines = [_PRELUDE.format(incoming=incoming)]
    pointed = False
    for number, step in enumerate(steps):
        path = shlex.quote(step.path)
        if step.verb == "write":
            lines.append(f"put {number} {path} {step.mode:04o}")
        elif step.verb == "add":
            lines.append(f"add {number} {path}")
        elif step.verb == "point":
            if not pointed:
                lines.append("flush")
                pointed = True
            lines.append(f"point {path} {shlex.quote(step.to)}")
        elif step.verb == "remove":
            lines.append(f"rm -f {path}")
        else:
            beside = posixpath.join(posixpath.dirname(step.path), f".{posixpath.basename(step.path).lstrip('.')}.gone")
            lines.append(f"discard {path} {shlex.quote(beside)}")
    return "\n".join([*lines, "flush", ""])


def _failed(server: Server, answer: Answer) -> BuildError:
    said = answer.err.strip().splitlines()
    hint = None
    for word, todo in _HINTS.items():
        if any(word in line for line in said):
            hint = todo
    return BuildError(
        f"{server.name}: {server.shell.where}: {said[-1] if said else 'the shell there ended'}", hint=hint
    )


_HINTS = {
    "No space left": "free space there, or ./doit prune:TARGET",
    "Read-only file system": "its file system is mounted read-only",
    "Permission denied": "log in as somebody who may write there, or say `sudo: yes`",
}

_PRELUDE = """\
umask 022
set -e
work={incoming}.$$
for left in {incoming}.*; do [ ! -d "$left" ] || rm -rf "$left"; done
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"
flush() {{ sync -f "$work" 2>/dev/null || sync; }}
beside() {{
    folder=${{2%/*}}; mkdir -p "$folder"; new="$folder/.${{2##*/}}.$$"; rm -rf "$new"; cp -R "$work/$1" "$new"
}}
put() {{ beside "$1/file" "$2"; chmod "$3" "$new"; mv -f "$new" "$2"; }}
add() {{ [ -d "$2" ] || {{ beside "$1" "$2"; mv "$new" "$2"; }}; }}
point() {{
    folder=${{1%/*}}; mkdir -p "$folder"; new="$folder/.${{1##*/}}.$$"; rm -f "$new"; ln -s "$2" "$new"
    if [ -d "$1" ]; then mv -fT "$new" "$1"; else mv -f "$new" "$1"; fi
}}
discard() {{
    [ -e "$1" ] || return 0
    [ "$1" = "$2" ] || {{ rm -rf "$2"; mv "$1" "$2"; }}
    [ "$(id -u)" -eq 0 ] || chmod -R u+w "$2"
    rm -rf "$2"
}}
printf 'ready\\n'
tar -xf - -C "$work"
"""
