"""What a kernel's file says of itself."""

from __future__ import annotations

import re
from pathlib import Path

_BZIMAGE = b"HdrS"
_BANNER = re.compile(rb"Linux version (\S+) \(")


def version(path: Path) -> str | None:
    """As `uname -r`; None for a kernel that is packed as a whole, as arm64's may be.

    Source: Linux, Documentation/arch/x86/boot.rst; an arm64 Image holds its banner as it is.
    """
    with path.open("rb") as file:
        head = file.read(0x210)
        if head[0x202:0x206] == _BZIMAGE:
            file.seek(0x200 + int.from_bytes(head[0x20E:0x210], "little"))
            text = file.read(200).partition(b"\0")[0]
            return text.decode(errors="replace").partition(" ")[0] or None
        if head[0x38:0x3C] != b"ARM\x64":
            return None
        file.seek(0)
        found = _BANNER.search(file.read())
    return found[1].decode(errors="replace") if found else None
