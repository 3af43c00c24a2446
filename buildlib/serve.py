"""The server side of a target on this machine: dnsmasq, nginx and nfs-ganesha over its folders, and what clients do.

Each thing that a client asks for becomes an `Event`. Used on a real interface by `doit serve`, and in namespaces of
its own by `doit boot`.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from buildlib import command
from buildlib.errors import BuildError

PROGRAMS = ("dnsmasq", "nginx", "ganesha.nfsd", "rpcbind")
FILES = (("/usr/lib/*/ganesha/libfsalvfs.so", "nfs-ganesha-vfs"), ("/etc/rpc", "netbase"))
"""What they need beside their programs, with the packages that bring it."""

_GANESHA = Path("/usr/lib/ganesha/libganesha_nfsd.so")

_NBD = 10809

_READY = 15.0
"""Seconds in which a server must answer."""

_NGINX = """
daemon off;
master_process off;
user root;
worker_processes 1;
error_log stderr;
pid "{state}/nginx.pid";
events {{ }}
http {{
    log_format step '$remote_addr $status $body_bytes_sent $request_completion $request_method $uri';
    access_log /dev/stdout step;
    client_body_temp_path "{state}/body";
    proxy_temp_path "{state}/proxy";
    fastcgi_temp_path "{state}/fastcgi";
    uwsgi_temp_path "{state}/uwsgi";
    scgi_temp_path "{state}/scgi";
    include "{include}";
}}
"""
"""master_process off: one process, so that nothing can outlive it."""


USUAL = re.compile(r"/(?:command|fs|crypto|terminal)\.lst: ")
"""What GRUB asks for, nobody has, and it does without."""


@dataclass(frozen=True)
class Event:
    """A step of a client, as a server saw it.

    time   -- seconds, of time.monotonic()
    server -- dhcp, tftp, http or nfs
    client -- its address, or its MAC as long as it has none
    what   -- what it asked for
    ok     -- whether it got that
    """

    time: float
    server: str
    client: str
    what: str
    ok: bool = True

    def __str__(self) -> str:
        went = "" if self.ok else "  as usual" if USUAL.search(self.what) else "  FAILED"
        return f"{self.client:<17} {self.server:<5} {self.what}{went}"


class Servers:
    """A context manager: starts the servers that there are configurations for, and ends them.

    configs  -- text by service, as `services` renders it: dnsmasq, nginx, ganesha
    port     -- of nginx
    folder   -- for configurations and logs
    on_event -- called for each client's step, from threads
    """

    def __init__(
        self, configs: Mapping[str, str], folder: Path, on_event: Callable[[Event], None], *, port: int = 80
    ) -> None:
        self._configs = configs
        self._folder = folder.absolute()
        self._on_event = on_event
        self._port = port
        self._processes: dict[str, command.Process] = {}
        self._macs: dict[str, str] = {}
        self._mounts: dict[str, str] = {}
        self._root = next(iter(re.findall(r'^tftp-root="?(.*?)"?$', configs.get("dnsmasq", ""), re.MULTILINE)), None)

    def __enter__(self) -> Servers:
        with contextlib.ExitStack() as stack:
            stack.callback(self.stop)
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start them. Raises BuildError with a server's own words when one does not answer."""
        self._folder.mkdir(parents=True, exist_ok=True)
        starts = {
            "ganesha": self._start_nfs,
            "nginx": self._start_http,
            "nbd": self._start_nbd,
            "dnsmasq": self._start_dns,
        }
        for name, start in starts.items():
            if name in self._configs:
                start()

    def stop(self) -> None:
        """End them all."""
        for process in reversed(self._processes.values()):
            command.end(process)
        self._processes.clear()

    def ended(self) -> str | None:
        """The name of a server that has ended by itself, if one has."""
        return next((name for name, process in self._processes.items() if process.poll() is not None), None)

    def address(self, mac: str) -> str | None:
        """The address that a MAC got here."""
        return next((address for address, owner in self._macs.items() if owner == mac), None)

    def _start_dns(self) -> None:
        config = self._write("dnsmasq.conf", self._configs["dnsmasq"])
        lease = self._folder / "leases"
        lease.unlink(missing_ok=True)
        line = ["dnsmasq", "--keep-in-foreground", f"--conf-file={config}", "--log-facility=-", "--log-dhcp"]
        line += ["--user=root", "--group=root", f"--dhcp-leasefile={lease}", "--pid-file", "--no-ping"]
        process = self._run("dnsmasq", line, self._dnsmasq_line)
        # It says nothing when it is ready, but a broken one ends at once.
        deadline = time.monotonic() + 0.3
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        self._must_run("dnsmasq")

    def _start_http(self) -> None:
        include = self._write("server.conf", self._configs["nginx"])
        config = self._write("nginx.conf", _NGINX.format(state=self._folder, include=include))
        self._must_be_free("nginx", self._port)
        self._run("nginx", ["nginx", "-p", str(self._folder), "-c", str(config)], self._nginx_line)
        self._wait("nginx", self._port)

    def _start_nbd(self) -> None:
        config = self._write("nbd.conf", self._configs["nbd"])
        self._must_be_free("nbd-server", _NBD)
        # It always goes into the background; in a namespace of its own it ends with what started it.
        script = 'rm -f "$1"; nbd-server -C "$0" -p "$1" && sleep 2; while kill -0 "$(cat "$1")"; do sleep 1; done'
        line = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script]
        self._run("nbd-server", [*line, str(config), str(self._folder / "nbd.pid")], None)
        self._wait("nbd-server", _NBD)

    def _start_nfs(self) -> None:
        # DEBUG tells who mounts what, and each request beside; those are dropped as they come.
        config = self._write(
            "ganesha.conf", tolerant(self._configs["ganesha"]) + "LOG { COMPONENTS { NFSPROTO = DEBUG; } }\n"
        )
        self._must_be_free("ganesha.nfsd", 2049)
        if not _answers(111):
            self._run("rpcbind", ["rpcbind", "-f", "-w"], None)
            self._wait("rpcbind", 111)
        pid = self._folder / "ganesha.pid"
        line = ["ganesha.nfsd", "-F", "-f", str(config), "-L", "/dev/stdout", "-p", str(pid), "-N", "NIV_EVENT"]
        self._run("ganesha.nfsd", line, self._ganesha_line, drop=b"Calling NFS")
        self._wait("ganesha.nfsd", 2049)
        # It goes on without the exports that it does not understand.
        said = self._log("ganesha.nfsd").read_text(errors="replace")
        if wrong := re.search(r":CONFIG :CRIT :Config File (.*)", said):
            raise BuildError(f"ganesha.nfsd refuses its configuration: {wrong[1]}", log=self._log("ganesha.nfsd"))

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text)
        return path

    def _must_be_free(self, name: str, port: int) -> None:
        if _answers(port):
            raise BuildError(f"{name}: something else answers on port {port} already", hint=f"ss -tlnp sport = :{port}")

    def _run(
        self, name: str, argv: list[str], on_line: Callable[[str], None] | None, *, drop: bytes | None = None
    ) -> command.Process:
        log = self._log(name)
        log.unlink(missing_ok=True)
        self._processes[name] = command.spawn(argv, log=log, on_line=on_line, drop=drop)
        return self._processes[name]

    def _log(self, name: str) -> Path:
        return self._folder / f"{name.partition('.')[0]}.log"

    def _wait(self, name: str, port: int) -> None:
        deadline = time.monotonic() + _READY
        while not _answers(port):
            self._must_run(name)
            if time.monotonic() > deadline:
                raise BuildError(f"{name}: does not answer on port {port} after {_READY:.0f} s", log=self._log(name))
            time.sleep(0.03)
        # Another one may have had the port.
        self._must_run(name)

    def _must_run(self, name: str) -> None:
        if self._processes[name].poll() is not None:
            time.sleep(0.1)
            said = self._log(name).read_text(errors="replace").splitlines()
            why = next((line for line in reversed(said) if not line.startswith("$")), "no message")
            raise BuildError(f"{name} did not start: {why}", hint="does another one run here?", log=self._log(name))

    def _tell(self, server: str, client: str, what: str, ok: bool = True) -> None:
        self._on_event(Event(time.monotonic(), server, client, what, ok))

    def _dnsmasq_line(self, line: str) -> None:
        for server, client, what, ok in dnsmasq_steps(line, self._macs):
            # Files as clients call them.
            self._tell(server, client, what.replace(f"{self._root}/", "") if self._root else what, ok)

    def _nginx_line(self, line: str) -> None:
        found = re.fullmatch(r"(\S+) (\d{3}) (\d+) (OK|) (GET|HEAD) (.*)", line)
        if found:
            address, status, size, whole, verb, path = found.groups()
            ok = status[0] in "23"
            what = f", {int(size):,} bytes" if ok and verb == "GET" else "" if ok else f": status {status}"
            if ok and not whole:
                what = f": ended after {int(size):,} bytes"
            self._tell("http", address, f"{verb} {path}{what}", ok and bool(whole))
        elif "[error]" in line and "open()" not in line:
            self._tell("http", "-", line, False)

    def _ganesha_line(self, line: str) -> None:
        for event in ganesha_steps(line, self._mounts):
            self._tell(*event)


def dnsmasq_steps(line: str, macs: dict[str, str]) -> Iterator[tuple[str, str, str, bool]]:
    """Server, client, what and ok of a line that dnsmasq logs; `macs` learns who has which address."""
    if found := re.search(r"dnsmasq-tftp\[?\d*\]?: (.*)", line):
        said = found[1]
        if sent := re.fullmatch(r"sent (.*) to (\S+)", said):
            yield "tftp", sent[2], f"sent {sent[1]}", True
        elif lost := re.fullmatch(r"file (.*) not found for (\S+)", said):
            yield "tftp", lost[2], f"{lost[1]}: no such file", False
        elif lost := re.fullmatch(r"(?:failed sending|cannot access|cannot read) (.*?)(?: to (\S+))?", said):
            yield "tftp", lost[2] or "-", said, False
        elif lost := re.fullmatch(r"error (\d+) (.*) received from (\S+)", said):
            # Most firmware asks for the size first, and takes back its request then.
            yield "tftp", lost[3], f"client stopped: {lost[2]}", True
        return
    found = re.search(r"dnsmasq-dhcp\[?\d*\]?: (?:\d+ )?(\w+)\(\S+\) (.*)", line)
    if not found:
        return
    verb, rest = found.groups()
    mac = re.search(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", rest)
    if mac is None:
        return
    address = re.match(r"\d+\.\d+\.\d+\.\d+", rest)
    if verb == "DHCPACK" and address:
        macs[address[0]] = mac[0]
        yield "dhcp", mac[0], f"has address {address[0]}", True
    elif verb == "DHCPDISCOVER":
        yield "dhcp", mac[0], "asks for an address", True
    elif verb == "PXE":
        if address:
            macs[address[0]] = mac[0]
        yield "dhcp", mac[0], f"is told what to boot: {rest.split()[-1]}", True
    elif verb in ("DHCPNAK", "DHCPDECLINE"):
        yield "dhcp", mac[0], f"{verb}: {rest}", False


def tolerant(config: str) -> str:
    """A configuration of nfs-ganesha with what lets it start where nobody may be PR_SET_IO_FLUSHER, as in a container.

    Version 6.5 refuses to start there; 4.3 doesn't know the option.
    """
    option = "Allow_Set_Io_Flusher_Fail"
    if not _GANESHA.exists() or option.encode() not in _GANESHA.read_bytes():
        return config
    return config.replace("NFS_CORE_PARAM {\n", f"NFS_CORE_PARAM {{\n    {option} = true;\n", 1)


def ganesha_steps(line: str, mounts: dict[str, str]) -> Iterator[tuple[str, str, str, bool]]:
    """Server, client, what and ok of a line that nfs-ganesha logs; `mounts` learns what each of its threads is at."""
    found = re.search(r"\[(\w+)\] mnt_Mnt :\w+ :\w+ :(.*)", line)
    if found is None:
        return
    thread, said = found.groups()
    client = re.search(r"for client (?:::ffff:)?(\S+)", said)
    if asked := re.search(r"Calling MNT_MNT path=(.*)", said):
        mounts[thread] = asked[1]
        yield "nfs", "-", f"asked to mount {asked[1]}", True
    elif client and "Entry supports" in said:
        yield "nfs", client[1], f"mounted {mounts.get(thread, '?')}", True
    elif client or "not found" in said:
        yield "nfs", client[1] if client else "-", f"mount of {mounts.get(thread, '?')} refused: {said}", False


def _answers(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
