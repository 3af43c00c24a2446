"""Every failure that a user can cause."""

from __future__ import annotations

import re
from pathlib import Path

_PASSWORD = re.compile(r"(://[^/\s:@'\"]*):[^/\s@'\"]+@")


def masked(text: str) -> str:
    """Without the passwords of URLs, such as a mirror's."""
    return _PASSWORD.sub(r"\1:***@", text)


class BuildError(Exception):
    """One line that says what is wrong and where, one that says what to do, and the log to read.

    message -- what is wrong, and where; several findings are joined by newlines
    hint    -- what to do about it
    log     -- path of the log whose last lines explain it
    """

    def __init__(self, message: str, *, hint: str | None = None, log: Path | None = None) -> None:
        self.message = masked(message)
        self.hint = masked(hint) if hint else hint
        super().__init__(self.message)
        self.log = log

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message
