"""rpcbind with nfs-ganesha, and nginx, in a `Namespace`.

A machine with QEMU's user network sees them at 10.0.2.2.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from buildlib.serve import tolerant

from .namespace import Namespace

_NFS_PORT = 2049
_PORTMAP_PORT = 111

# mount_path_pseudo: clients of NFSv3 too mount by the name that the test chose, not by where its files lie.
_GANESHA = """
NFS_CORE_PARAM {
    Protocols = 3, 4;
    NFS_Port = 2049;
    MNT_Port = 20048;
    Enable_NLM = false;
    Enable_RQUOTA = false;
    mount_path_pseudo = true;
}
NFSv4 { Graceless = true; }
"""

_EXPORT = """
EXPORT {{
    Export_Id = {number};
    Path = "{path}";
    Pseudo = "{pseudo}";
    Access_Type = {access};
    Squash = No_Root_Squash;
    SecType = sys;
    Protocols = 3, 4;
    FSAL {{ Name = VFS; }}
}}
"""

# master_process off: one process, so that nothing can outlive it.
_NGINX = """
daemon off;
master_process off;
user root;
worker_processes 1;
error_log stderr;
pid {state}/nginx.pid;
events {{ }}
http {{
    types {{ }}
    default_type application/octet-stream;
    sendfile on;
    access_log {log};
    client_body_temp_path {state}/body;
    proxy_temp_path {state}/proxy;
    fastcgi_temp_path {state}/fastcgi;
    uwsgi_temp_path {state}/uwsgi;
    scgi_temp_path {state}/scgi;
    server {{ listen 0.0.0.0:{port}; root "{root}"; }}
}}
"""


class ServerError(Exception):
    """A server did not start. Names its log and shows the log's end."""


@dataclasses.dataclass(frozen=True)
class Export:
    path: Path
    writable: bool


class NfsServer:
    """NFSv3 and v4 for whatever `exports` says: name that clients mount -> folder."""

    def __init__(self, namespace: Namespace, logs: Path) -> None:
        self._namespace = namespace
        self._logs = logs
        self._portmap: subprocess.Popen[bytes] | None = None
        self._ganesha: subprocess.Popen[bytes] | None = None

    def start(self, exports: Mapping[str, Export]) -> None:
        """Starts, or restarts with other exports: NFSv3 clients that run on it go on after the pause."""
        _require({"rpcbind": "rpcbind", "ganesha.nfsd": "nfs-ganesha nfs-ganesha-vfs"})
        self.stop_exports()
        if self._portmap is None:
            log = self._logs / "rpcbind.log"
            with log.open("wb") as output:
                self._portmap = self._namespace.popen(["rpcbind", "-f", "-d"], stdout=output)
            _wait(self._portmap, log, lambda: _listens(self._namespace, _PORTMAP_PORT))
        blocks = [
            _EXPORT.format(number=number, path=export.path, pseudo=name, access="RW" if export.writable else "RO")
            for number, (name, export) in enumerate(sorted(exports.items()), 1)
        ]
        config, log = self._logs / "ganesha.conf", self._logs / "ganesha.log"
        config.write_text(tolerant(_GANESHA) + "".join(blocks), encoding="utf-8")
        command = ["ganesha.nfsd", "-F", "-f", str(config), "-L", str(log), "-p", "/run/ganesha/pid", "-N", "NIV_EVENT"]
        with (self._logs / "ganesha.out").open("wb") as output:
            self._ganesha = self._namespace.popen(command, stdout=output)
        _wait(self._ganesha, log, lambda: _listens(self._namespace, _NFS_PORT))

    def stop_exports(self) -> None:
        """Takes NFS away and leaves rpcbind, as a server that hangs or reboots would."""
        if self._ganesha is not None:
            self._ganesha.kill()
            self._ganesha.wait()
            self._ganesha = None


class HttpServer:
    """nginx with byte ranges for one folder."""

    def __init__(self, namespace: Namespace, logs: Path, folder: Path, port: int) -> None:
        _require({"nginx": "nginx-light"})
        state = logs / f"nginx-{port}"
        state.mkdir(exist_ok=True)
        config, log = state / "nginx.conf", state / "error.log"
        text = _NGINX.format(state=state, log=state / "access.log", port=port, root=folder)
        config.write_text(text, encoding="utf-8")
        with log.open("wb") as output:
            process = namespace.popen(["nginx", "-p", str(state), "-c", str(config)], stdout=output)
        _wait(process, log, lambda: _listens(namespace, port))


def _require(tools: Mapping[str, str]) -> None:
    missing = {package for tool, package in tools.items() if not shutil.which(tool)}
    if missing:
        raise ServerError(f"missing servers; apt-get install {' '.join(sorted(missing))}")


def _listens(namespace: Namespace, port: int) -> bool:
    process = namespace.popen(["cat", "/proc/net/tcp", "/proc/net/tcp6"], stdout=subprocess.PIPE)
    lines, _ = process.communicate()
    fields = (line.split() for line in lines.decode().splitlines())
    return any(f[1].endswith(f":{port:04X}") and f[3] == "0A" for f in fields if len(f) > 3)


def _wait(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.exists() else ""
            raise ServerError(f"{log.stem} did not start; its log {log} ends with:\n{tail}")
        time.sleep(0.05)
