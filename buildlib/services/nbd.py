"""nbd-server: images as read-only network block devices."""

from __future__ import annotations

import re
from pathlib import Path

from buildlib.services import Wiring, sayable

FILE = "nbd-server.conf"
TOOL = None

PORT = 10809


def render(wiring: Wiring) -> str | None:
    """A whole configuration: `[generic]` has to be the first group of it."""
    if not wiring.images:
        return None
    groups = [f"# Target {wiring.name}.\n[generic]\nport = {PORT}\nallowlist = true\n"]
    for name, path in sorted(wiring.images.items()):
        if name == "generic" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", name):
            raise ValueError(f"nbd: {path} cannot be exported as {name!r}: expects letters, digits, '.', '_', '/', '-'")
        groups.append(f"[{name}]\nexportname = {_escaped(path)}\nreadonly = true\n")
    return "\n".join(groups)


def check(path: Path) -> list[str] | None:
    return None


def _escaped(path: str) -> str:
    return sayable("nbd", path).replace("\\", "\\\\").replace(" ", "\\s")
