"""Target machines for tests: real SSH servers, each with a network, processes and mounts of its own. Needs root.

A box is a set of namespaces on this machine, at the other end of a link of its own:

    with sshlab.box("openssh") as box:
        subprocess.run(["ssh", "-F", box.config, box.name, "id"])
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildlib import command

NETWORK = ipaddress.ip_network("198.18.0.0/15")
"""For tests of networks alone; a box has four addresses of it."""

PROGRAMS = ("sshd", "dropbear", "busybox", "rsync", "sudo", "unshare", "nsenter", "ip")

SERVERS = ("sshd", "sshd-session", "dropbear")

needed = pytest.mark.skipif(os.geteuid() != 0, reason="another machine is a namespace that root alone can make")

SUDO = {
    "nopasswd": "pusher ALL=(ALL) NOPASSWD: ALL",
    "password": "pusher ALL=(ALL) ALL",
    "other": "pusher ALL=(ALL) NOPASSWD: /usr/bin/true",
    "not sh": "pusher ALL=(ALL) NOPASSWD: ALL, !/usr/bin/sh, !/bin/sh",
    "terminal": "Defaults requiretty\npusher ALL=(ALL) NOPASSWD: ALL",
    "nobody": "",
}
"""What /etc/sudoers of a "user" box says, by the name of the variant."""

_UNSHARE = (
    "unshare",
    "--net",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--mount-proc",
    "--propagation=private",
)

_SSHD = """\
ListenAddress {address}:22
HostKey {state}/host_ed25519
HostKey {state}/host_ecdsa
AuthorizedKeysFile {state}/authorized .ssh/authorized_keys
AuthenticationMethods publickey
StrictModes no
UsePAM no
UseDNS no
PidFile none
PermitRootLogin prohibit-password
MaxSessions 50
MaxStartups 100
LogLevel VERBOSE
Subsystem sftp internal-sftp
"""


@dataclass
class Box:
    """A machine.

    name    -- what `config`, an OpenSSH client configuration, calls it
    user    -- who logs in, with the private key `key`
    folder  -- a folder that it sees under the same path
    """

    name: str
    user: str
    address: str
    folder: Path
    state: Path
    process: command.Process
    port: int = 22

    def tell(self, script: str) -> str:
        """What a script writes there."""
        line = ["ssh", "-F", str(self.config), self.name, script]
        return subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout

    @property
    def config(self) -> Path:
        return self.state / "config"

    @property
    def key(self) -> Path:
        return self.state / "key"

    @property
    def known_hosts(self) -> Path:
        return self.state / "known_hosts"

    @property
    def log(self) -> str:
        """What its SSH server has said."""
        return (self.state / "log").read_text(errors="replace")

    @property
    def pids(self) -> list[int]:
        """Its processes, as this machine numbers them, but the SSH server itself."""
        found = []
        own = os.readlink(f"/proc/{self.process.pid}/ns/net")
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(path / "ns/net") == own and not _first(path) and int(path.name) != self.process.pid:
                    found.append(int(path.name))
        return found

    def run(self, *line: str) -> str:
        """Run a program of this machine in the box' network and, but for a busybox, on its files."""
        return _tool("nsenter", f"--target={self.process.pid}", "--net", "--mount", "--", *line)

    def kill_shells(self) -> int:
        """End all that sessions run with SIGKILL, but leave their connections; how many processes."""
        killed = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() not in SERVERS:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        return killed

    def cut(self, *, silent: bool = False) -> None:
        """Take its link down: connections hang, new ones find no route; `silent`: they wait for an answer."""
        if silent:
            self._neighbour("replace", "lladdr", "02:00:00:00:00:01", "nud", "permanent")
        else:
            self.run("ip", "link", "set", "eth0", "down")

    def mend(self) -> None:
        """Take back what `cut` did."""
        with contextlib.suppress(RuntimeError):
            self._neighbour("delete")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "replace", "default", "via", _gateway(self.address))

    def rekey(self) -> None:
        """Give it other host keys, unknown to `known_hosts`; takes effect for new connections."""
        for kind in ("ed25519", "ecdsa"):
            path = self.state / f"host_{kind}"
            path.unlink()
            Path(f"{path}.pub").unlink()
            _key(path, kind)
        for pid in self._servers():
            os.kill(pid, signal.SIGHUP)
        self.wait()

    def wait(self) -> None:
        """Until it answers."""
        for _ in range(400):
            asked = subprocess.run(
                ["ssh-keyscan", "-T", "5", self.address],
                capture_output=True,
                check=False,
            )
            if asked.stdout and self._offered() in asked.stdout.decode():
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} does not answer: {self.log}")

    def close(self) -> None:
        """End it, and leave nothing of it."""
        command.end(self.process)
        subprocess.run(["ip", "link", "delete", self.name], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["umount", "--lazy", self.folder], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.state)

    def _offered(self) -> str:
        return (self.state / "host_ed25519.pub").read_text().split()[1]

    def _servers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in children.split()]

    def _neighbour(self, verb: str, *words: str) -> None:
        _tool("ip", "neighbour", verb, self.address, "dev", self.name, *words)


@contextlib.contextmanager
def box(
    kind: str,
    *,
    sudo: str = "nopasswd",
    disk: str | None = None,
    etc: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
) -> Iterator[Box]:
    """A machine of a kind, until the context ends.

    kind -- "openssh": this system's programs, root logs in. "user": the same, `pusher` logs in, who may become root
            as SUDO[sudo] says. "busybox": dropbear and BusyBox and nothing else, root logs in
    disk -- size of its `folder`, such as "8m", which is a tmpfs then
    etc    -- not of "busybox": programs that lie over those of /etc, by their path in it
    before -- lines of sh that run before its SSH server; here and there {data} stands for `folder`
    """
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    assert not missing, f"missing here: {' '.join(missing)}; ./doit test installs all that tests need"
    state = Path(tempfile.mkdtemp(prefix="sshlab-", dir="/tmp"))
    state.chmod(0o755)
    folder = state / "data"
    folder.mkdir()
    name = _link()
    address = _address(name)
    process: command.Process | None = None
    try:
        if disk is not None:
            _tool("mount", "-t", "tmpfs", "-o", f"size={disk},mode=755", "sshlab", str(folder))
        _key(state / "key", "ed25519")
        shutil.copy(state / "key.pub", state / "authorized")
        if kind == "busybox":
            script = _busybox(state, folder)
        else:
            for path, text in (etc or {}).items():
                (state / "etc" / path).parent.mkdir(parents=True, exist_ok=True)
                (state / "etc" / path).write_text(text.replace("{data}", str(folder)))
                (state / "etc" / path).chmod(0o755)
            script = _openssh(state, address, sudo if kind == "user" else None, before)
        script = f"exec 2>>{state}/log >&2; read go; set -e\n{script}"
        process = command.converse([*_UNSHARE, "sh", "-c", script])
        user = "pusher" if kind == "user" else "root"
        made = Box(name, user, address, folder, state, process)
        _connect(made)
        _client(made)
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.flush()
        made.wait()
    except BaseException:
        Box(name, "", address, folder, state, process or command.converse(["true"])).close()
        raise
    try:
        yield made
    finally:
        made.close()


def _link() -> str:
    """A new link, whose name is no other's and says its address."""
    while True:
        name = f"box{random.randrange(NETWORK.num_addresses // 4)}"
        line = ["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return name
        if "File exists" not in done.stderr:
            raise RuntimeError(done.stderr)


def _address(name: str) -> str:
    return str(NETWORK[4 * int(name.removeprefix("box")) + 2])


def _gateway(address: str) -> str:
    return str(ipaddress.ip_address(address) - 1)


def _connect(made: Box) -> None:
    """The link's other end into the box; boxes reach each other over this machine."""
    peer = f"{made.name}p"
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{made.process.pid}/ns/net") == own:
        time.sleep(0.01)
    _tool("ip", "link", "set", peer, "netns", str(made.process.pid))
    for line in (
        f"link set {peer} name eth0",
        f"address add {made.address}/30 dev eth0",
        "link set lo up",
        "link set eth0 up",
    ):
        _tool("nsenter", f"--target={made.process.pid}", "--net", "--", "ip", *line.split())
    _tool("ip", "address", "add", f"{_gateway(made.address)}/30", "dev", made.name)
    _tool("ip", "link", "set", made.name, "up")
    Path(f"/proc/sys/net/ipv4/conf/{made.name}/forwarding").write_text("1")
    way = ("ip", "route", "add", "default", "via", _gateway(made.address))
    _tool("nsenter", f"--target={made.process.pid}", "--net", "--", *way)


def _client(made: Box) -> None:
    """What a client must know."""
    made.config.write_text(
        f"Host {made.name}\n"
        f"  HostName {made.address}\n"
        f"  User {made.user}\n"
        f"  IdentityFile {made.key}\n"
        "  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {made.known_hosts}\n"
        "  GlobalKnownHostsFile /dev/null\n"
    )
    made.known_hosts.write_text(
        "".join(
            f"{made.address} {' '.join(path.read_text().split()[:2])}\n"
            for path in sorted(made.state.glob("host_*.pub"))
        )
    )


def _openssh(state: Path, address: str, sudo: str | None, before: Sequence[str]) -> str:
    for kind in ("ed25519", "ecdsa"):
        _key(state / f"host_{kind}", kind)
    (state / "sshd_config").write_text(_SSHD.format(address=address, state=state))
    lines = ["mount -t tmpfs -o mode=755 run /run", "mkdir -p /run/sshd"]
    _root(state)
    if sudo is not None:
        _user(state, sudo)
    # Not file by file: a mount on a file is gone as soon as somebody replaces that, as useradd does.
    lines += [f"mount -t overlay -o lowerdir={state}/etc:/etc sshlab /etc"]
    lines += [line.replace("{data}", str(state / "data")) for line in before]
    return "\n".join([*lines, f"exec {shutil.which('sshd')} -D -e -f {state}/sshd_config"])


def _root(state: Path) -> None:
    """A root whose login runs nothing of this machine's own."""
    etc, home = state / "etc", state / "root"
    etc.mkdir(exist_ok=True)
    home.mkdir(mode=0o700)
    _name, *rest = Path("/etc/passwd").read_text().splitlines()
    (etc / "passwd").write_text("\n".join([f"root:x:0:0:root:{home}:/bin/sh", *rest, ""]))


def _user(state: Path, sudo: str) -> None:
    """Files that lie over those of /etc."""
    etc = state / "etc"
    home = state / "home"
    home.mkdir()
    os.chown(home, 1999, 1999)
    for name, line in {
        "passwd": f"pusher:x:1999:1999::{home}:/bin/sh",
        "shadow": "pusher:*:19000:0:99999:7:::",
        "group": "pusher:x:1999:",
    }.items():
        old = etc / name if (etc / name).exists() else Path("/etc", name)
        (etc / name).write_text(f"{old.read_text().rstrip()}\n{line}\n")
        (etc / name).chmod(0o600 if name == "shadow" else 0o644)
    (etc / "sudoers").write_text(f"root ALL=(ALL) ALL\n{SUDO[sudo]}\n")
    (etc / "sudoers").chmod(0o440)


def _busybox(state: Path, folder: Path) -> str:
    """A root of its own with BusyBox' applets, and dropbear with the libraries that it needs."""
    root = state / "root"
    for name in ("bin", "sbin", "usr/bin", "usr/sbin", "etc", "dev", "proc", "tmp", "run", "root/.ssh"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    busybox, dropbear = shutil.which("busybox"), shutil.which("dropbear")
    assert busybox and dropbear
    shutil.copy(busybox, root / "bin/busybox")
    _tool("chroot", str(root), "/bin/busybox", "--install", "-s")
    libraries = re.findall(r"(/\S+) \(0x", _tool("ldd", dropbear))
    for path in (dropbear, *libraries):
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path[1:])
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/shells").write_text("/bin/sh\n")
    shutil.copy(state / "authorized", root / "root/.ssh/authorized_keys")
    for path in (root / "root", root / "root/.ssh"):
        path.chmod(0o700)
    key = root / "etc/host_ed25519"
    told = _tool("dropbearkey", "-t", "ed25519", "-f", str(key))
    public = re.search(r"^ssh-ed25519 \S+", told, re.M)
    assert public
    (state / "host_ed25519.pub").write_text(f"{public[0]}\n")
    (root / str(folder)[1:]).mkdir(parents=True)
    return "\n".join(
        [
            f"mount --bind {folder} {root}{folder}",
            f"mount --rbind /dev {root}/dev",
            f"mount -t proc proc {root}/proc",
            f"exec chroot {root} {dropbear} -F -E -s -r /etc/host_ed25519 -p 22",
        ]
    )


def _key(path: Path, kind: str) -> None:
    _tool("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", path.name, "-f", str(path))


def _first(path: Path) -> bool:
    """Whether a process is the first of its namespace."""
    status = (path / "status").read_text()
    return status.partition("NSpid:")[2].partition("\n")[0].split()[-1] == "1"


def _tool(*line: str) -> str:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{line}: {done.stderr}")
    return done.stdout
