"""The sandbox's first process: makes the namespaces and mounts that its specification asks for, then runs the command.

Run as `python3 -I -S inside.py SPEC.json` by `sandbox`; uses nothing but the standard library, so that it starts in
milliseconds. Two processes stay: the outer one, which dies with the caller, and the namespace's pid 1, which dies with
the outer one and reaps; the kernel then ends everything else in the pid namespace and drops its mounts.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import IO, Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_NOATIME, MS_BIND, MS_REC, MS_PRIVATE, MS_RELATIME = (
    1,
    2,
    4,
    8,
    32,
    1024,
    4096,
    16384,
    1 << 18,
    1 << 21,
)
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    job = load(spec)
    die_with_parent(spec["parent"])
    unshare(spec)
    die_with_parent(spec["parent"])
    child = os.fork()
    if child:
        exit_as(child)
    # pid 1 of the new namespace sees its parent as pid 0.
    die_with_parent(0)
    prepare(spec)
    reap(spawn(job))


def load(spec: dict[str, Any]) -> Callable[[], NoReturn]:
    """What is to be done inside; a function's module is imported, and its result's file opened, while they are here."""
    if "argv" in spec:
        return lambda: execute(spec)
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    module, _, name = spec["call"].partition(":")
    function = getattr(importlib.import_module(module), name)
    result = open(spec["result"], "w", encoding="utf-8")  # noqa: SIM115
    return lambda: answer(function, spec, result)


def die_with_parent(parent: int | None) -> None:
    """To be said again after each change of credentials: the kernel forgets it then."""
    if parent is None:
        return
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def unshare(spec: dict[str, Any]) -> None:
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
    if not spec["network"]:
        flags |= CLONE_NEWNET
    maps = spec["maps"]
    if maps is None:
        check(libc.unshare(flags), "unshare")
        return
    ready, go = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(go)
        # End of file: there is no new namespace to write maps for.
        if os.read(ready, 1):
            write_maps(os.getppid(), maps)
        os._exit(0)
    os.close(ready)
    check(libc.unshare(flags | CLONE_NEWUSER), "unshare", "are user namespaces switched off here, or is this a chroot?")
    os.write(go, b"1")
    os.close(go)
    if os.waitpid(mapper, 0)[1]:
        fail("cannot write the user namespace's id maps")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def write_maps(pid: int, maps: dict[str, list[list[int]]]) -> None:
    for kind, rows in maps.items():
        if os.geteuid() == 0:
            with open(f"/proc/{pid}/{kind}_map", "w", encoding="ascii") as file:
                file.write("\n".join(" ".join(map(str, row)) for row in rows))
        else:
            subprocess.run([f"new{kind}map", str(pid), *(str(number) for row in rows for number in row)], check=True)


def prepare(spec: dict[str, Any]) -> None:
    """Mount all that the command needs, and make the stack its root when asked."""
    # Modes are an image's own, also those of folders to mount on: the caller's mask has no say in them.
    os.umask(0o022)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    socket.sethostname(spec["hostname"])
    if not spec["network"]:
        loopback_up()
    root = spec["mount"] if spec["chroot"] else ""
    if spec["layers"]:
        mount_stack(spec)
    elif spec["chroot"]:
        mount(spec["upper"], root, None, MS_BIND)
    mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    register(spec["binfmt"], root)
    if spec["chroot"]:
        mount_api(root)
        if spec["network"]:
            copy_resolvers(root)
    for source, target, writable, scratch in spec["binds"]:
        bind(source, root + target, writable, scratch)
    if spec["chroot"]:
        pivot(root)


def mount_stack(spec: dict[str, Any]) -> None:
    """An overlay of the layers. `volatile` skips each program's fsync: the caller syncs once, at the end."""
    upper, work = spec["upper"], spec["work"]
    if upper is None:
        mount("tmpfs", work, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        upper = work + "/upper"
        os.mkdir(upper, 0o755)
    # A work folder serves one mount: `volatile` leaves a mark in it that forbids the next.
    work = tempfile.mkdtemp(dir=work)
    lower = ":".join(escape(layer) for layer in reversed(spec["layers"]))
    options = f"lowerdir={lower},upperdir={escape(upper)},workdir={escape(work)},userxattr,volatile"
    hint = f"can overlayfs write to the file system of {upper}? Not if it is NFS, or a container's own overlay"
    mount("overlay", spec["mount"], "overlay", 0, options, hint)


def escape(path: str) -> str:
    """A path as overlayfs reads it in its options."""
    for sign in ("\\", ":", ","):
        path = path.replace(sign, "\\" + sign)
    return path


def mount_api(root: str) -> None:
    """/dev with the harmless nodes, and an empty /run, /tmp and /var/tmp: nothing of the host, nothing that stays."""
    for folder, options in (
        ("/dev", "mode=755"),
        ("/run", "mode=755"),
        ("/tmp", "mode=1777"),
        ("/var/tmp", "mode=1777"),
    ):
        mount("tmpfs", root + folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.mkdir(root + "/run/lock", 0o1777)
    for node in ("null", "zero", "full", "random", "urandom", "tty"):
        os.close(os.open(f"{root}/dev/{node}", os.O_CREAT | os.O_WRONLY, 0o666))
        mount(f"/dev/{node}", f"{root}/dev/{node}", None, MS_BIND)
    os.mkdir(root + "/dev/pts")
    mount("devpts", root + "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    os.mkdir(root + "/dev/shm", 0o1777)
    for name, points_to in (
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        os.symlink(points_to, f"{root}/dev/{name}")


def copy_resolvers(root: str) -> None:
    """The host's resolvers, where the root's /etc/resolv.conf points: a link into /run leaves no trace."""
    link = root + "/etc/resolv.conf"
    if not os.path.exists("/etc/resolv.conf"):
        return
    if os.path.islink(link):
        points_to = os.path.normpath(os.path.join("/etc", os.readlink(link)))
        if not points_to.startswith("/run/"):
            return
        os.makedirs(os.path.dirname(root + points_to), exist_ok=True)
        with open("/etc/resolv.conf", "rb") as source, open(root + points_to, "wb") as target:
            target.write(source.read())
    elif os.path.exists(link):
        mount("/etc/resolv.conf", link, None, MS_BIND)


def bind(source: str, target: str, writable: bool, scratch: str | None) -> None:
    if not os.path.lexists(target):
        if os.path.isdir(source):
            os.makedirs(target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    if scratch is not None:
        options = f"lowerdir={escape(source)},upperdir={escape(scratch)}/upper,workdir={escape(scratch)}/work,userxattr"
        mount("overlay", target, "overlay", 0, options)
        return
    mount(source, target, None, MS_BIND | MS_REC)
    if not writable:
        # Flags that the source's mount has are locked in a user namespace and must be said again.
        held = os.statvfs(target).f_flag
        kept = held & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME)
        if held & 4096:  # ST_RELATIME
            kept |= MS_RELATIME
        mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | kept)


def register(line: str | None, root: str) -> None:
    """Register an emulator in the namespace's own binfmt_misc; older kernels refuse and keep the host's."""
    if line is None:
        return
    folder = root + "/proc/sys/fs/binfmt_misc"
    if libc.mount(b"binfmt_misc", os.fsencode(folder), b"binfmt_misc", 0, None) == 0:
        with open(folder + "/register", "wb") as file:
            file.write(line.encode())


def pivot(root: str) -> None:
    """Change the root so that the old one is gone, not just hidden: chroot(2) can be left again."""
    os.chdir(root)
    number = SYS_PIVOT_ROOT[os.uname().machine]
    check(libc.syscall(number, b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def spawn(job: Callable[[], NoReturn]) -> int:
    child = os.fork()
    if child == 0:
        job()
    return child


def execute(spec: dict[str, Any]) -> NoReturn:
    try:
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as error:
        print(f"{spec['argv'][0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def answer(function: Callable[[Any], Any], spec: dict[str, Any], result: IO[str]) -> NoReturn:
    """Call the function; what it gives, or what it raises for the user, is written as JSON."""
    os.environ.clear()
    os.environ.update(spec["env"])
    status = 0
    try:
        said = {"value": function(spec["arguments"])}
    except Exception as error:
        status = 1
        said = {}
        if hasattr(error, "hint"):
            said = {"error": str(getattr(error, "message", error)), "hint": error.hint}
        else:
            traceback.print_exc()
    with result:
        json.dump(said, result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def reap(child: int) -> NoReturn:
    """As pid 1: wait for everything that is orphaned into this namespace; end as the command does."""
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(exit_status(status))


def exit_as(child: int) -> NoReturn:
    os._exit(exit_status(os.waitpid(child, 0)[1]))


def exit_status(status: int) -> int:
    """A wait status as a shell would give it: 128 and the signal's number for a killed command."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None, hint: str = "") -> None:
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    data = None if options is None else os.fsencode(options)
    check(libc.mount(*arguments, ctypes.c_ulong(flags), data), f"mount {kind or 'bind'} {source} on {target}", hint)


def check(result: int, what: str, hint: str = "") -> None:
    if result < 0:
        fail(f"{what}: {os.strerror(ctypes.get_errno())}{'; ' + hint if hint else ''}")


def fail(message: str) -> NoReturn:
    print(f"sandbox: {message}", file=sys.stderr, flush=True)
    os._exit(125)


if __name__ == "__main__":
    main()
