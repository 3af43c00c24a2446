"""In the root: what must not be in an image that many machines share, and the check that it isn't.

Standard library only: it runs inside the sandbox. Paths are the image's own.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from buildlib import rootfs

SECRETS = (
    "/etc/ssh/ssh_host_*",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/lib/urandom/*",
    "/etc/ssl/private/ssl-cert-snakeoil.key",
    "/etc/ssl/certs/ssl-cert-snakeoil.pem",
)
"""Made by packages when they are installed: every client would have the same."""

LEFTOVERS = (
    "/var/lib/apt/lists/*",
    "/var/lib/apt/extended_states.*",
    "/var/cache/apt/*.bin",
    "/var/cache/apt/archives/*",
    "/var/cache/debconf/*-old",
    "/var/lib/dpkg/*-old",
    "/var/cache/ldconfig/*",
    "/var/cache/man/*",
    "/var/lib/dhcp/*",
    "/var/lib/NetworkManager/*",
    "/var/log/apt/*",
    "/var/log/journal/*",
    "/var/log/*.log",
    "/var/log/*.log.*",
    "/var/log/faillog",
    "/var/log/lastlog",
    "/var/backups/*",
    "/etc/*-",
    "/etc/.pwd.lock",
    "/root/.bash_history",
    "/root/.wget-hsts",
    "/usr/sbin/policy-rc.d",
    "/etc/apt/apt.conf.d/*proxy*",
    "/debootstrap",
    "/var/log/bootstrap.log",
)
"""Logs, caches and traces of the build: size, privacy, and bytes that differ between two builds."""

EMPTY = ("/dev", "/proc", "/sys", "/run", "/tmp", "/var/tmp")
"""Mounted over by the client; what a build leaves there is never seen, and never wanted."""

LINKS = {"/var/lib/dbus/machine-id": "/etc/machine-id"}


def clean() -> None:
    """Delete all that is listed above. Done at the end of each stage: a layer that travels holds no secret either."""
    for pattern in (*SECRETS, *LEFTOVERS):
        _empty(pattern)
    for folder in EMPTY:
        _empty(f"{folder}/*")
        _empty(f"{folder}/.*")
    # An empty file is the form that works on a read-only root too; systemd fills it on each client (machine-id(5)).
    rootfs.write("/etc/machine-id", "", mode=0o444)
    for path, points_to in LINKS.items():
        if os.path.lexists(path):
            rootfs.link(path, points_to)


def _empty(pattern: str) -> None:
    """Delete what matches, but for what is mounted there while a stage runs: downloads that other builds share."""
    for path in glob(pattern):
        if not os.path.ismount(os.path.dirname(path)):
            rootfs.remove(path)


def findings() -> Iterator[str]:
    """What still makes this root unfit to be shared, a sentence each."""
    for pattern in (*SECRETS, *LEFTOVERS):
        for path in glob(pattern):
            yield f"{path} is of the build, not of a client"
    if os.path.getsize("/etc/machine-id"):
        yield "/etc/machine-id is not empty: all clients would be the same machine"
    for path in ("/etc/fstab",):
        if os.path.exists(path) and re.search(r"^[^#\s]+\s+/\s", Path(path).read_text(), re.MULTILINE):
            yield f"{path} mounts a root of its own"
    resolvers = Path("/etc/resolv.conf")
    if not resolvers.is_symlink() and resolvers.exists() and resolvers.stat().st_size == 0:
        yield "/etc/resolv.conf is empty: clients could not resolve names"
    for folder in ("/", "/etc", "/usr", "/var"):
        facts = os.stat(folder)
        if (facts.st_uid, facts.st_gid) != (0, 0) or stat.S_IMODE(facts.st_mode) != 0o755:
            yield f"{folder} is not root's, mode 0755"
