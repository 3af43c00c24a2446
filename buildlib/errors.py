"""Every failure that a user can cause."""

from __future__ import annotations

from pathlib import Path


class BuildError(Exception):
    """One line that says what is wrong and where, one that says what to do, and the log to read.

    message -- what is wrong, and where; several findings are joined by newlines
    hint    -- what to do about it
    log     -- path of the log whose last lines explain it
    """

    def __init__(self, message: str, *, hint: str | None = None, log: Path | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message
