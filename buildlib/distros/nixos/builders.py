"""Builders of the site file: nix' line for them, ssh's configuration, and what each is asked before a build."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from buildlib import command, route
from buildlib.builder import Builder
from buildlib.distros.nixos import nix
from buildlib.errors import BuildError

_ROOM = 1 << 30
"""Bytes that a builder's store has free at least."""

_ALL_HOSTS = """\
Host *
  BatchMode yes
  StrictHostKeyChecking yes
  ConnectTimeout 15
  ServerAliveInterval 10
  ControlMaster auto
  ControlPath {socket}
  ControlPersist 10"""
"""nix connects anew for each derivation: with one connection for all of them, many small ones take less time. The one
by which a builder is asked before is the first."""

_QUESTIONS = """\
for program in nix nix-store nix-daemon; do
    command -v $program >/dev/null || { echo "lacks $program"; exit 0; }
done
echo "version $(nix --version)"
echo "user $(id -un)"
echo "groups $(id -Gn)"
features='nix-command flakes'
{ nix --extra-experimental-features "$features" show-config 2>/dev/null ||
    nix --extra-experimental-features "$features" config show 2>/dev/null; } |
    grep -E '^(system|extra-platforms|system-features|trusted-users) ='
echo "free $({ df -Pk /nix/store || df -Pk /nix; } 2>/dev/null | tail -n 1)"
exit 0
"""


def line(builder: Builder, *, direct: bool) -> str:
    """The builder's entry in nix' `builders`. direct: ssh has its configuration from `ssh_config`."""
    where = _where(builder) if direct else builder.ssh
    key = "-" if direct or not builder.key else str(Path(builder.key).expanduser())
    host_key = "-" if direct or not builder.host_key else base64.b64encode(builder.host_key.encode()).decode()
    words = (
        f"{builder.protocol}://{where}",
        ",".join(builder.systems),
        key,
        str(builder.jobs),
        str(builder.speed),
        ",".join((*builder.features, *builder.mandatory_features)) or "-",
        ",".join(builder.mandatory_features) or "-",
        host_key,
    )
    return " ".join(words)


@contextlib.contextmanager
def ssh_config(builders: Mapping[str, Builder], user: Path | None) -> Iterator[Path]:
    """OpenSSH's configuration for the builders, before the user's own: nothing is ever asked, host keys must be known.

    In a folder without blanks in its name: nix takes its options for ssh apart by them.
    """
    home = _sockets()
    for left in home.glob("config-*"):
        # Of a process that was killed.
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"config-{os.getpid()}-", dir=home) as folder:
        known = Path(folder, "known_hosts")
        blocks = []
        for name, builder in builders.items():
            words = [f"Host {builder.host}"]
            if builder.port:
                words.append(f"Port {builder.port}")
            if builder.user:
                words.append(f"User {builder.user}")
            if builder.key:
                words += [f'IdentityFile "{Path(builder.key).expanduser()}"', "IdentitiesOnly yes"]
            if builder.host_key:
                words += [f"HostKeyAlias builder-{name}", f"UserKnownHostsFile {known}"]
                words += ["GlobalKnownHostsFile /dev/null"]
                with known.open("a") as file:
                    file.write(f"builder-{name} {builder.host_key}\n")
            blocks.append("\n  ".join(words))
        included = [user] if user else [Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config")]
        # Not that of other keys: what they may, these may not.
        digest = hashlib.sha256(f"{sorted(builders.items())} {user}".encode()).hexdigest()[:12]
        all_hosts = _ALL_HOSTS.format(socket=home / f"{digest}-%C")
        # An Include belongs to the Host before it.
        path = Path(folder, "config")
        path.write_text("\n".join([*blocks, all_hosts, *(f'  Include "{file}"' for file in included)]) + "\n")
        yield path


def _sockets() -> Path:
    """A folder of our own, with a short name: that of a socket may have 100 bytes."""
    folder = Path(f"/tmp/netboot-ssh-{os.geteuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    said = folder.lstat()
    if said.st_uid != os.geteuid() or said.st_mode & 0o077 or not stat.S_ISDIR(said.st_mode):
        raise BuildError(f"{folder}: is somebody else's", hint="remove it")
    return folder


def problems(builders: Mapping[str, Builder], system: str, user: Path | None) -> list[tuple[str, str]]:
    """What keeps builders from building for `system`: pairs of what is wrong and what to do. All are asked at once."""
    from buildlib.together import each

    fit = {name: builder for name, builder in builders.items() if system in builder.systems}
    if not fit:
        return [(f"no builder is for {system}: {', '.join(builders)}", "see `systems` under `builders` in site.yaml")]
    for name, builder in fit.items():
        if builder.key and not Path(builder.key).expanduser().is_file():
            return [(f"builder {name}: there is no key {builder.key}", "see `key` in site.yaml")]
    # A key that only the nix daemon may read: it will see for itself.
    ours = {name: one for name, one in fit.items() if not one.key or os.access(Path(one.key).expanduser(), os.R_OK)}
    with ssh_config(ours, user) as config:
        asked = each(list(ours.items()), functools.partial(_ask, config=config))
    found = []
    for (name, builder), answer in zip(ours.items(), asked, strict=True):
        if isinstance(answer, BuildError):
            found.append((f"builder {name}: {answer.message}", answer.hint or ""))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found += [(f"builder {name}: {wrong}", todo) for wrong, todo in judge(builder, answer)]
    return found


def _ask(one: tuple[str, Builder], config: Path) -> dict[str, str]:
    """What a builder says of itself, by word."""
    _, builder = one
    way = route.route(_where(builder), config)
    try:
        text = command.output([*route.program(way), _QUESTIONS])
    except command.CommandError:
        text = _asked_slowly(way)
    said: dict[str, str] = {}
    for entry in text.splitlines():
        word, _, rest = entry.partition(" ")
        said[word] = rest.removeprefix("= ")
    return said


def _asked_slowly(way: route.Route) -> str:
    """The answers again, by a client that says precisely what is wrong; loading it takes longer than asking."""
    from buildlib import ssh

    connection = ssh.connect(way)
    try:
        answer = connection.run(_QUESTIONS)
    finally:
        connection.close()
    if answer.status:
        raise BuildError(f"can't be asked: {answer.err.strip() or f'exit status {answer.status}'}")
    return answer.out.decode(errors="replace")


def _where(builder: Builder) -> str:
    """The destination for ssh, which has the port from `ssh_config`."""
    return builder.ssh.rpartition(":")[0] if builder.port else builder.ssh


def judge(builder: Builder, said: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is wrong with a builder, by its answers: pairs of what is wrong and what to do."""
    if "lacks" in said:
        yield (
            f"no {said['lacks']} in the PATH of a login without a terminal",
            "install nix there; on a foreign distribution add its bin folder to /etc/environment",
        )
        return
    if "system" not in said:
        yield "its nix does not tell its settings", f"there: nix show-config ({said.get('version', 'version unknown')})"
        return
    has = {said["system"], *said.get("extra-platforms", "").split()}
    for system in builder.systems:
        if system not in has:
            yield (
                f"site.yaml says {system}, but it builds for {', '.join(sorted(has))}",
                "correct `systems`, or `extra-platforms` in its nix.conf with an emulator",
            )
    lacking = [word for word in builder.features if word not in said.get("system-features", "").split()]
    if lacking and said.get("system-features"):
        yield f"has no feature {', '.join(lacking)}", "correct `features`, or `system-features` in its nix.conf"
    user, groups = said.get("user", ""), said.get("groups", "").split()
    trusted = said.get("trusted-users", "root").split()
    if user != "root" and not {user, "*", *(f"@{group}" for group in groups)} & {*trusted}:
        yield (
            f"its nix doesn't trust {user}, who logs in",
            f"there, in nix.conf: trusted-users = {' '.join(trusted)} {user}",
        )
    room = said.get("free", "").split()
    if len(room) > 3 and room[3].isdigit() and int(room[3]) * 1024 < _ROOM:
        yield f"only {int(room[3]) // 1024} MB are free in /nix/store", "there: nix-collect-garbage -d"


def fetched(builder: Builder, path: str, to: Path, user: Path | None, log: Path) -> None:
    """Copy a file of the builder's store to here."""
    said(builder, f"cat {shlex.quote(path)}", to, user, log)


def said(builder: Builder, script: str, to: Path, user: Path | None, log: Path) -> None:
    """Keep what a script there writes in a file here."""
    with ssh_config({"store": builder}, user) as config:
        line = [*route.program(route.route(_where(builder), config)), script]
        command.run(["sh", "-c", 'to=$1; shift; exec "$@" >"$to"', "sh", str(to), *line], log=log)


def uri(builder: Builder) -> str:
    """The builder's store, for nix that has its ssh from `ssh_config`."""
    return f"{builder.protocol}://{_where(builder)}"


def arguments(builders: Mapping[str, Builder]) -> list[str]:
    """What tells nix of them; nothing without any: what it is configured with counts then."""
    if not builders:
        return []
    lines = "; ".join(line(builder, direct=nix.is_direct()) for builder in builders.values())
    return ["--builders", lines, "--option", "builders-use-substitutes", "true"]
