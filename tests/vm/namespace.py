"""Network, mount and process namespaces that vanish with everything in them when this process ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

# /run, because rpcbind's socket and everybody's pid files lie there; /var/lib/nfs, for nfs-ganesha's state.
# The mounts are private, so the machine's own directories stay as they are. `read` ends when the other
# end of the pipe is closed, by us or by the kernel after a kill -9; and with it, as it is process 1 of its
# namespace, everything that runs in there.
_HOLDER = """
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/rpcbind /run/ganesha
if [ -d /var/lib/nfs ]; then
    mount -t tmpfs -o mode=755 tmpfs /var/lib/nfs
    mkdir -p /var/lib/nfs/ganesha
fi
ip link set lo up
echo ready
read -r _ || :
"""


class Namespace:
    """A context manager; `popen` starts commands inside. Needs root: NFS file handles can't be had without."""

    def __enter__(self) -> Namespace:
        if os.geteuid() != 0:
            raise PermissionError("virtual machines over NFS need root: nfs-ganesha opens files by handle")
        missing = [tool for tool in ("unshare", "nsenter", "setpriv", "ip") if not shutil.which(tool)]
        if missing:
            raise FileNotFoundError(f"missing: {' '.join(missing)}; apt-get install util-linux iproute2")
        flags = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            ["unshare", *flags, "sh", "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            self.close()
            raise RuntimeError("the namespaces for virtual machines could not be set up (see the messages above)")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self._target = children.read_text(encoding="ascii").split()[0]
        return self

    def popen(
        self,
        command: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = subprocess.STDOUT,
    ) -> subprocess.Popen[bytes]:
        """Starts `command` inside. The returned process is nsenter; killing it kills the command as well.

        A session of its own, so that a Ctrl-C reaches the test alone, which then ends things in order.
        """
        enter = ["nsenter", "--target", self._target, "--net", "--mount", "--pid", "--"]
        die_with_nsenter = ["setpriv", "--pdeathsig", "KILL", "--"]
        return subprocess.Popen(
            [*enter, *die_with_nsenter, *command], stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )

    def close(self) -> None:
        if self._holder.stdin is not None:
            self._holder.stdin.close()
        try:
            self._holder.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
