"""One file a service: the configuration by which a server serves a target. They are found by looking; no list names
them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

from buildlib.site import Host, Target


@dataclass(frozen=True)
class Export:
    """A folder that NFS exports.

    path   -- absolute, on the server
    pseudo -- what a client mounts it as; a kernel's server has no other name than the path
    """

    path: str
    pseudo: str
    writable: bool = False


@dataclass(frozen=True)
class Wiring:
    """All that a service must know.

    name    -- the target's
    hosts   -- the hosts that boot from it, by MAC
    exports -- all that NFS exports
    images  -- NBD export name -> absolute path of the file
    """

    name: str
    target: Target
    hosts: Mapping[str, Host]
    exports: tuple[Export, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)


class Service(Protocol):
    """What a service's module offers."""

    FILE: str
    """The usual name of its file."""

    TOOL: str | None
    """The program that checks such a file."""

    def render(self, wiring: Wiring) -> str | None:
        """The file's text; None when the target doesn't use the service. ValueError names what can't be written."""
        ...

    def check(self, path: Path) -> list[str] | None:
        """The command line that checks such a file; None when there is no program for it."""
        ...


def names() -> list[str]:
    """The services that there are. A module without `render` writes no file and is none."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if hasattr(_module(name), "render"))


def get(name: str) -> Service:
    """The module of a service."""
    return cast(Service, _module(name))


def render_all(wiring: Wiring) -> dict[str, str]:
    """The text of each service that the target uses, by the service's name."""
    texts = {name: get(name).render(wiring) for name in names()}
    return {name: text for name, text in texts.items() if text is not None}


def exports_of(target: Target) -> tuple[Export, ...]:
    """What a target with NFS exports: all root trees, and what clients keep."""
    if target.nfs is None or target.persist is None:
        return ()
    path, persist = target.nfs.path, target.persist
    return Export(path, path), Export(persist, persist, writable=True)


def sayable(service: str, text: str, refused: str = "") -> str:
    """`text`, if it is a line without any of the signs that the service's file can't express."""
    for sign in text:
        if sign in refused or not sign.isprintable():
            raise ValueError(f"{service}: {text!r} cannot be written into its configuration because of {sign!r}")
    return text


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
