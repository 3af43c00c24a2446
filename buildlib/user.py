"""Accounts of an image, as recipes tell them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from buildlib import secret
from buildlib.schema import Doc, File, Range, Text

_HASH = r"\$[A-Za-z0-9]+\$\S+"


def _absolute(text: str) -> str:
    if not text.startswith("/") or posixpath.normpath(text) != text or text == "/":
        raise ValueError(f"expects an absolute path of the image like '/var/lib/kubelet', found {text!r}")
    return text


Name = Annotated[str, Text(r"[a-z_][a-z0-9_-]{0,31}", what="a user or group name", example="ops")]
ImagePath = Annotated[str, Text(what="a path of the image", example="/var/lib/kubelet", normal=_absolute)]


class Sudo(StrEnum):
    """What a user may do as root."""

    NO = "no"
    PASSWORD = "yes"
    NOPASSWD = "nopasswd"


@dataclass(frozen=True)
class User:
    """An account of the image."""

    name: Annotated[Name, Doc("Login name; `root` sets root's own password and keys.")]
    uid: Annotated[Annotated[int, Range(0, 60000)] | None, Doc("User id; the next free one without.")] = None
    groups: Annotated[tuple[Name, ...], Doc("Groups beside the user's own.")] = ()
    sudo: Annotated[Sudo, Doc("yes: with the password; nopasswd: without one.")] = Sudo.NO
    password_file: Annotated[
        Annotated[str, Text(r"\S.*", what="a path", example="~/.secrets/admin")] | None,
        Doc("File whose first line is the hash of the password, no file of the recipe; none: no login by password."),
    ] = None
    password_env: Annotated[
        Annotated[str, Text(r"[A-Z_][A-Z0-9_]*", what="a variable", example="ADMIN_PASSWORD", secret=True)] | None,
        Doc("In place of that: a variable of the environment that holds the hash."),
    ] = None
    shell: Annotated[ImagePath, Doc("Login shell.")] = "/bin/bash"
    authorized_keys: Annotated[
        tuple[Annotated[Path, File()], ...], Doc("Files of SSH public keys that may log in.")
    ] = ()

    @property
    def has_password(self) -> bool:
        return bool(self.password_file or self.password_env)

    @property
    def password_hash(self) -> str | None:
        """The hash, wherever it is; None where it isn't, or is none."""
        found = secret.line(self.password_file, self.password_env)
        return found if found and re.fullmatch(_HASH, found) else None

    def check(self) -> Iterable[tuple[str, str]]:
        if self.password_file is not None and self.password_env is not None:
            yield "password", "says one of `password-file` and `password-env`"
