"""How nix is called: its features, whom it takes orders from, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from buildlib import command
from buildlib.distros.nixos import failures
from buildlib.errors import BuildError

FEATURES = ("--extra-experimental-features", "nix-command flakes")
STORE = Path("/nix/store")

_DATABASE = Path("/nix/var/nix/db")


def is_direct() -> bool:
    """Whether nix works on the store itself; a daemon does it else, and what that starts is not ours to set up."""
    if os.environ.get("NIX_REMOTE", "") not in ("", "local", "auto"):
        return False
    return os.geteuid() == 0 or os.access(_DATABASE, os.W_OK)


def version() -> tuple[int, ...]:
    """Of the nix on this machine, like (2, 26)."""
    found = re.search(r"(\d+)\.(\d+)", command.output(["nix", "--version"]))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def environment(ssh_config: Path | None) -> dict[str, str]:
    """For all of nix' programs. `ssh_config`: what its ssh is to use in place of the user's configuration."""
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    if ssh_config is not None:
        env["NIX_SSHOPTS"] = f"-F {ssh_config}"
    return env


def run(
    line: Sequence[str],
    *,
    name: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> list[str]:
    """Run one of nix' programs; the lines of its standard output and error. Raises BuildError that says what nix means.

    name -- of the recipe
    """
    said: list[str] = []

    def keep(text: str) -> None:
        said.append(text)
        if on_line is not None:
            on_line(text)

    with _told(said, name, log):
        command.run(line, log=log, env=env or environment(None), on_line=keep)
    return said


def read(line: Sequence[str], *, name: str, log: Path, env: Mapping[str, str] | None = None) -> str:
    """The standard output of one of nix' programs; errors as `run`'s."""
    said: list[str] = []
    with _told(said, name, log):
        try:
            return command.output(line, env=env or environment(None))
        except command.CommandError as error:
            said.append(error.hint or "")
            with log.open("a") as file:
                file.write(f"{error.message}\n{error.hint or ''}\n")
            raise


@contextlib.contextmanager
def _told(said: Sequence[str], name: str, log: Path) -> Iterator[None]:
    try:
        yield
    except command.CommandError as error:
        meant = failures.explain("\n".join(said), name)
        if meant is None:
            raise BuildError(f"nix failed: {error.message}", hint="see the log", log=log) from None
        meant.log = log
        raise meant from None
