"""Secrets that stay outside of recipes: in a file, or in a variable of the environment."""

from __future__ import annotations

import os
from pathlib import Path


def read(file: str | None, env: str | None) -> str | None:
    """All of the file, or the variable's value; None where it isn't there or is empty."""
    if env is not None:
        return os.environ.get(env) or None
    try:
        return Path(str(file)).expanduser().read_text() or None
    except (OSError, RuntimeError, ValueError):  # of a home that nobody has, and of what is no text
        return None


def line(file: str | None, env: str | None) -> str | None:
    """The first line of that."""
    return ((read(file, env) or "").splitlines() or [""])[0] or None
