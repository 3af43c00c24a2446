"""A command in user, mount, pid and (unless asked) network namespaces of its own, over a stack of layers.

All mounts live in the private mount namespace of one child with its own pid namespace: when that child dies, for
whatever reason, no mount, loop device or process is left behind. Root gets a user namespace too, with every id mapped
to itself: files keep their owners, but the command can neither make device nodes nor load modules. The user namespace
has its own binfmt_misc (Linux 6.7 and newer), so a foreign architecture needs no registration on the host.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from buildlib import command, inside
from buildlib.errors import BuildError
from buildlib.plan import Json

INSIDE = Path(inside.__file__)

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
}
"""All that a command sees of an environment: the caller's LANG, proxies and tokens must not reach an image."""

_MAGIC = {
    "arm64": (
        "7f454c460201010000000000000000000200b700",
        "ffffffffffffff00fffffffffffffffffeffffff",
    ),
    "amd64": (
        "7f454c4602010100000000000000000002003e00",
        "fffffffffffefe00fffffffffffffffffeffffff",
    ),
}
"""ELF header and mask by Debian architecture, as in qemu's scripts/qemu-binfmt-conf.sh."""

_QEMU = {"arm64": "aarch64", "amd64": "x86_64"}
_HOST = {"x86_64": "amd64", "aarch64": "arm64"}
_IDS = 65536


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host at `target` in the sandbox; with `scratch`, writes go there and not to `source`."""

    source: Path
    target: str
    writable: bool = False
    scratch: Path | None = None


@dataclass(frozen=True)
class Sandbox:
    """Where a command runs.

    layers  -- root trees, lowest first, never written to
    upper   -- folder that receives what the command changes; None throws the changes away
    chroot  -- True: the stack is the command's root. False: the host's file system is, read and written as
               usual, and the stack is mounted at `mount`
    mount   -- where the stack is mounted; an empty folder
    work    -- scratch folder on the same file system as `upper`
    arch    -- Debian architecture of what runs
    user    -- False: no user namespace (debootstrap makes device nodes); needs root
    """

    work: Path
    layers: tuple[Path, ...] = ()
    upper: Path | None = None
    chroot: bool = True
    binds: tuple[Bind, ...] = ()
    network: bool = False
    arch: str | None = None
    hostname: str = "localhost"
    user: bool = True
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def mount(self) -> Path:
        return self.work / "mount"

    def run(
        self,
        argv: Sequence[str],
        *,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        terminal: bool = False,
        accept: Sequence[int] = (0,),
        hint: str | None = None,
    ) -> int:
        """Run `argv` inside; as `command.run`. Raises CommandError, named after the inner command."""
        with self._specified({"argv": list(argv)}, terminal=terminal) as helper:
            try:
                return command.run(
                    helper,
                    log=log,
                    on_line=on_line,
                    terminal=terminal,
                    accept=accept,
                    hint=hint,
                )
            except command.CommandError as error:
                raise command.CommandError(argv, error.status, log=log, hint=error.hint) from None

    def call(
        self,
        function: Callable[[dict[str, Any]], Json],
        arguments: Mapping[str, Json],
        *,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        terminal: bool = False,
    ) -> Json:
        """Call a function of this package inside, and give its result; both are what `json` can say.

        Its module is imported before the root changes, so that the root needs no Python; it may use the standard
        library and modules that do. What it raises as BuildError is raised here.
        """
        name = f"{function.__module__}:{function.__name__}"
        self.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.work, prefix="call.") as folder:
            result = Path(folder) / "result.json"
            spec = {"call": name, "arguments": dict(arguments), "result": str(result)}
            with self._specified(spec, terminal=terminal) as helper:
                status = command.run(helper, log=log, on_line=on_line, terminal=terminal, accept=range(256))
            answer = json.loads(result.read_bytes() or b"{}") if result.exists() else {}
        if "error" in answer:
            raise BuildError(answer["error"], hint=answer["hint"], log=log)
        if status != 0 or "value" not in answer:
            raise command.CommandError([name], status, log=log)
        return answer["value"]

    @contextlib.contextmanager
    def _specified(self, job: Mapping[str, Json], *, terminal: bool, orphan: bool = False) -> Iterator[list[str]]:
        """The command line that starts `inside.py` with the whole specification."""
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "overlay").mkdir(exist_ok=True)
        self.mount.mkdir(exist_ok=True)
        env = {**ENVIRONMENT, **self.env}
        if terminal:
            env["TERM"] = os.environ.get("TERM", "dumb")
        spec = {
            **job,
            "env": env,
            "layers": [str(layer.absolute()) for layer in self.layers],
            "upper": str(self.upper.absolute()) if self.upper else None,
            "work": str((self.work / "overlay").absolute()),
            "mount": str(self.mount.absolute()),
            "chroot": self.chroot,
            "binds": [
                [str(bind.source.absolute()), bind.target, bind.writable, str(bind.scratch) if bind.scratch else None]
                for bind in self.binds
            ],
            "network": self.network,
            "hostname": self.hostname,
            "maps": _maps() if self.user else None,
            "binfmt": _registration(self.arch),
            "parent": None if orphan else os.getpid(),
        }
        with tempfile.NamedTemporaryFile("w", dir=self.work, prefix="spec.", suffix=".json") as file:
            json.dump(spec, file)
            file.flush()
            yield [sys.executable, "-I", "-S", str(INSIDE), file.name]


def host(work: Path) -> Sandbox:
    """The host's own file system, as the root of the user namespace: reads and removes what layers hold."""
    return Sandbox(work=work, chroot=False)


@contextlib.contextmanager
def guard(folder: Path) -> Iterator[None]:
    """Remove `folder` unless the block ends well: also if this process is killed outright while it runs.

    A process of its own session waits on a pipe that only this process holds open; end of file without a word means
    that this process is no more, or has failed. It tries again while what the block started is still dying.
    """
    with tempfile.TemporaryDirectory(prefix="netboot-") as scratch:
        # What the block started may still be dying, and writing.
        script = (
            "read -r word; case $word in done) exit;; failed) shift;; esac; "
            'for try in 1 2 3 4 5 6 7 8 9; do rm -rf -- "$@" && exit; sleep 0.5; done'
        )
        job = {"argv": ["sh", "-c", script, "guard", scratch, str(folder.absolute())]}
        with host(Path(scratch))._specified(job, terminal=False, orphan=True) as helper:
            watcher = subprocess.Popen(
                helper,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            assert watcher.stdin is not None
            word = b"failed\n"
            try:
                yield
                word = b"done\n"
            finally:
                with contextlib.suppress(BrokenPipeError):
                    watcher.stdin.write(word)
                    watcher.stdin.close()
                watcher.wait()


def remove(path: Path) -> None:
    """Delete a tree, whoever of the mapped users owns its files; a missing one is fine."""
    if not path.exists():
        return
    if os.geteuid() == 0:
        shutil.rmtree(path)
        return
    with tempfile.TemporaryDirectory(prefix="netboot-") as scratch:
        host(Path(scratch)).run(["rm", "-rf", "--", str(path.absolute())])


def host_arch() -> str:
    """This machine's Debian architecture."""
    return _HOST.get(platform.machine(), platform.machine())


def is_foreign(arch: str | None) -> bool:
    """Whether programs of `arch` need an emulator here."""
    return arch is not None and arch != host_arch()


def emulator(arch: str) -> str:
    """The name of the program that runs `arch`'s programs, of Debian's qemu-user-static."""
    return f"qemu-{_QEMU[arch]}-static"


def problems(arch: str, *, user: bool = True) -> list[tuple[str, str]]:
    """What keeps this machine from running `arch` in a sandbox: pairs of what is wrong and what to do."""
    found: list[tuple[str, str]] = []
    if os.geteuid() != 0:
        try:
            _maps()
        except BuildError as error:
            found.append((error.message, error.hint or ""))
    if not is_foreign(arch):
        return found
    if arch not in _QEMU:
        return [*found, (f"no emulator is known for {arch}", "build it on a machine of that architecture")]
    registered = Path(f"/proc/sys/fs/binfmt_misc/qemu-{_QEMU[arch]}").exists()
    if not registered and not user:
        found.append((f"{arch} programs are not registered with this kernel", "systemctl restart systemd-binfmt"))
    elif not registered and kernel_version() < (6, 7):
        release = platform.release()
        found.append(
            (
                f"{arch} programs are not registered with this kernel, and {release} has no binfmt_misc of its own "
                "for each sandbox (6.7 has)",
                "apt-get install qemu-user-static binfmt-support, or systemctl restart systemd-binfmt",
            )
        )
    return found


def kernel_version() -> tuple[int, int]:
    """The running kernel's major and minor version."""
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or "0")


def _registration(arch: str | None) -> str | None:
    """The line for binfmt_misc's `register`; `F` keeps the emulator open, so that the root need not hold it."""
    if arch is None or not is_foreign(arch) or arch not in _MAGIC:
        return None
    program = shutil.which(emulator(arch))
    if program is None:
        return None
    magic, mask = ("".join(f"\\x{text[i : i + 2]}" for i in range(0, len(text), 2)) for text in _MAGIC[arch])
    return f":qemu-{_QEMU[arch]}:M::{magic}:{mask}:{program}:FPO"


@cache
def _maps() -> dict[str, list[list[int]]]:
    """Id maps of the user namespace: [inside, outside, count] each. Root: all ids; others: own and subordinate ids."""
    if os.geteuid() == 0:
        return {"uid": [[0, 0, 2**32 - 1]], "gid": [[0, 0, 2**32 - 1]]}
    if shutil.which("newuidmap") is None:
        raise BuildError("newuidmap: program not found", hint="apt-get install uidmap")
    return {
        "uid": [[0, os.getuid(), 1], [1, _subordinate("/etc/subuid"), _IDS - 1]],
        "gid": [[0, os.getgid(), 1], [1, _subordinate("/etc/subgid"), _IDS - 1]],
    }


def _subordinate(table: str) -> int:
    """First id of this user's range in `table`; subuid(5): `name-or-uid:first:count`."""
    user = getpass.getuser()
    names = (user, str(os.getuid()))
    lines = Path(table).read_text().splitlines() if Path(table).exists() else []
    for line in lines:
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdigit() and count.isdigit() and int(count) >= _IDS - 1:
            return int(first)
    raise BuildError(
        f"{table}: no range of {_IDS} subordinate ids for {user}",
        hint=f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
    )
