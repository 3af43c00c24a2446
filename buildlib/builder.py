"""Builders, as the site file tells them: machines that build for this one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from buildlib.schema import Doc, Range, Text

Feature = Annotated[str, Text(r"[A-Za-z0-9_.-]+", what="a feature", example="big-parallel")]
System = Annotated[str, Text(r"[a-z0-9_]+-[a-z0-9]+", what="a system", example="aarch64-linux")]


@dataclass(frozen=True)
class Builder:
    """A machine that builds for this one; nix' distributed builds use it."""

    ssh: Annotated[
        Annotated[
            str,
            Text(
                r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.-]*(:[0-9]{1,5})?",
                what="an SSH destination",
                example="nix@spark-1.lab:22",
            ),
        ],
        Doc("How to reach it: an alias of ~/.ssh/config, or user@host:port."),
    ]
    systems: Annotated[tuple[System, ...], Doc("What it builds for, like aarch64-linux.")]
    key: Annotated[
        Annotated[str, Text(r"\S.*", what="a path", example="~/.ssh/nix-builder")] | None,
        Doc("The private key that may log in, without a passphrase; what ssh takes by itself without."),
    ] = None
    host_key: Annotated[
        Annotated[
            str, Text(r"[a-z0-9@.-]+ [A-Za-z0-9+/]+=*", what="a public key", example="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5")
        ]
        | None,
        Doc("Its public host key; what ~/.ssh/known_hosts says without."),
    ] = None
    jobs: Annotated[Annotated[int, Range(1, 4096)], Doc("Builds that it runs at the same time.")] = 1
    speed: Annotated[Annotated[int, Range(1, 1000)], Doc("How fast it is beside the others.")] = 1
    features: Annotated[
        tuple[Feature, ...], Doc("What it can, like kvm. Kernels ask for big-parallel, so that is among them.")
    ] = ("big-parallel",)
    mandatory_features: Annotated[tuple[Feature, ...], Doc("It builds only what asks for these.")] = ()
    protocol: Annotated[Literal["ssh-ng", "ssh"], Doc("How nix speaks to it.")] = "ssh-ng"

    @property
    def user(self) -> str | None:
        return self.ssh.rpartition("@")[0] or None

    @property
    def host(self) -> str:
        return self.ssh.rpartition("@")[2].partition(":")[0]

    @property
    def port(self) -> int | None:
        port = self.ssh.rpartition("@")[2].partition(":")[2]
        return int(port) if port else None

    def check(self) -> Iterable[tuple[str, str]]:
        if not self.systems:
            yield "systems", "a builder builds for at least one system"
        if self.host_key and self.host_key.startswith(("-", "@")):
            yield "host-key", "is the line of a public key file: type and key"
