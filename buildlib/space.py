"""A disk that is full, told from other failures."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from buildlib.errors import BuildError
from buildlib.report import size

FULL = (errno.ENOSPC, errno.EDQUOT)

HINT = "./doit gc removes what nobody needs; a build wants room for its root twice, and for its downloads"

_LITTLE = 1 << 20
"""Bytes; with less a program failed for want of space, whatever it said: its log had no room either."""

_TAIL = 1 << 16


def full(error: BaseException, folder: Path, log: Path | None = None) -> BuildError | None:
    """What failed for want of space in `folder`, in words; None if it failed for something else.

    log -- what the failed program wrote
    """
    if isinstance(error, OSError):
        return said(error, log=log) if error.errno in FULL else None
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize
    no_inodes = facts.f_files > 0 and facts.f_favail == 0
    if free >= _LITTLE and not no_inodes and not any(os.strerror(number) in _tail(log) for number in FULL):
        return None
    what = f"no room for more files in {folder.parent}" if no_inodes else f"no space left in {folder.parent}"
    return BuildError(f"{what}, {size(free)} are free: {error}", hint=HINT, log=log)


def said(error: OSError, *, log: Path | None = None) -> BuildError:
    """An error of `FULL`, in words."""
    where = f"{error.filename}: " if error.filename else ""
    return BuildError(f"{where}{os.strerror(error.errno or 0)}", hint=HINT, log=log)


def _tail(log: Path | None) -> str:
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        return file.read().decode(errors="replace")
