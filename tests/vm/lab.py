"""One test's network: its servers, and the machines that boot from them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from .machine import DEFAULT_MAC, Machine
from .namespace import Namespace
from .servers import Export, HttpServer, NfsServer

# QEMU's user network forwards this address to the loopback of the namespace that QEMU runs in.
SERVER = "10.0.2.2"


class Lab:
    """A context manager: at its end, also by kill -9, no process, mount or file outside `folder` is left.

    All logs and configurations are kept in `folder`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exports: dict[str, Export] = {}
        self._numbers = itertools.count(1)
        self._ports = itertools.count(80)
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._namespace = self._cleanup.enter_context(Namespace())
        self.nfs = NfsServer(self._namespace, self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def export(self, path: Path, name: str, *, writable: bool = True) -> str:
        """Offers the folder `path` over NFS as `name` (`/root`). Returns what a client mounts: `10.0.2.2:/root`."""
        self._exports[name] = Export(path.resolve(strict=True), writable)
        self.nfs.start(self._exports)
        return f"{SERVER}:{name}"

    def http(self, folder: Path) -> str:
        """Offers `folder` over HTTP. Returns its URL, without a slash at the end."""
        port = next(self._ports)
        HttpServer(self._namespace, self.folder, folder.resolve(strict=True), port)
        return f"http://{SERVER}" if port == 80 else f"http://{SERVER}:{port}"

    def boot(
        self,
        *,
        kernel: Path,
        initrd: Path,
        append: str,
        mac: str = DEFAULT_MAC,
        memory: int = 1024,
        hostname: str | None = None,
        extra: Sequence[str] = (),
    ) -> Machine:
        """Powers a machine on; see `Machine`. Its console is logged to `serial-N.log`."""
        log = self.folder / f"serial-{next(self._numbers)}.log"
        machine = Machine(
            self._namespace,
            log,
            kernel=kernel,
            initrd=initrd,
            append=append,
            mac=mac,
            memory=memory,
            hostname=hostname,
            extra=extra,
        )
        return self._cleanup.enter_context(machine)
