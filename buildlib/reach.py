"""A target whose machines are connected, looked at and, to change something, locked."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from buildlib import loaders, publish, server
from buildlib.place import IMAGES, Place
from buildlib.server import Server
from buildlib.site import Host, Target
from buildlib.survey import Want
from buildlib.together import each, raise_all

T = TypeVar("T")

SERVICES = {"dnsmasq": "boot", "nginx": "files", "nbd": "files", "exports": "nfs", "ganesha": "nfs"}
"""Which of a target's machines a service runs on."""


@dataclass(frozen=True)
class Reached:
    """A target at hand. One machine may be all three; `boot` and `files` are None for a target of NFS alone."""

    place: Place
    boot: Server | None
    files: Server | None
    nfs: Server | None

    @property
    def servers(self) -> tuple[Server, ...]:
        """Each machine once; the one with the boot root last."""
        found = {id(each): each for each in (self.nfs, self.files, self.boot) if each is not None}
        return tuple(found.values())

    @property
    def image_roots(self) -> tuple[tuple[Server, str], ...]:
        """Machine and folder of each place that releases' files go to."""
        if self.boot is None or self.files is None:
            return ()
        first, *more = (str(path) for path in self.place.roots)
        return ((self.files, first), *((self.boot, path) for path in more))

    def machine(self, service: str) -> Server | None:
        """The machine that a service runs on."""
        found: Server | None = getattr(self, SERVICES[service])
        return found

    def releases(self, name: str) -> list[str]:
        """IDs of a recipe's releases that are complete wherever they must be, oldest first."""
        kept = [set(machine.facts.releases(f"{root}/{IMAGES}/{name}")) for machine, root in self.image_roots]
        return sorted(set.intersection(*kept)) if kept else []


@contextlib.contextmanager
def reach(
    name: str,
    target: Target,
    hosts: Mapping[str, Host],
    *,
    config: Path | None = None,
    lock: bool = False,
    tell: Callable[[str], None] = print,
) -> Iterator[Reached]:
    """Connect to all machines of a target at once. Raises BuildError with what is wrong with any of them."""
    logins = _logins(target)
    wants = {login: _want(target, logins, login) for login in dict.fromkeys(logins.values())}
    with contextlib.ExitStack() as stack:

        def connect(login: tuple[str | None, bool]) -> contextlib.AbstractContextManager[Server]:
            return server.opened(name, login, wants[login], config=config, lock=lock, tell=tell)

        machines = dict(zip(wants, enter(stack, [functools.partial(connect, login) for login in wants]), strict=True))
        at = {part: machines[login] for part, login in logins.items()}
        place = Place(name, target, hosts)
        if "boot" in at:
            place = Place(name, target, hosts, at["boot"].files, at["files"].files)
        yield Reached(place, at.get("boot"), at.get("files"), at.get("nfs"))


def enter(
    stack: contextlib.ExitStack, openers: Sequence[Callable[[], contextlib.AbstractContextManager[T]]]
) -> list[T]:
    """Enter contexts at the same time, each in a thread, to be left by `stack`. Raises all their errors as one."""

    def one(opener: Callable[[], contextlib.AbstractContextManager[T]]) -> _Entered[T]:
        context = opener()
        return _Entered(context, context.__enter__())

    found = each(openers, one)
    entered = [stack.enter_context(result) for result in found if not isinstance(result, BaseException)]
    raise_all([result for result in found if isinstance(result, BaseException)])
    return entered


class _Entered(contextlib.AbstractContextManager[T]):
    """A context that was entered by another thread already."""

    def __init__(self, context: contextlib.AbstractContextManager[T], value: T) -> None:
        self._context, self._value = context, value

    def __enter__(self) -> T:
        return self._value

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)


def _logins(target: Target) -> dict[str, tuple[str | None, bool]]:
    found: dict[str, tuple[str | None, bool]] = {}
    if target.boot_root is not None:
        found |= {"boot": target.boot_login, "files": target.files_login}
    if target.nfs is not None:
        found["nfs"] = target.nfs_login
    return found


def _want(target: Target, logins: Mapping[str, tuple[str | None, bool]], login: tuple[str | None, bool]) -> Want:
    """What to look at on the machine of a login."""
    parts = {part for part, its in logins.items() if its == login}
    images = []
    boot = target.boot_root if "boot" in parts else None
    if "files" in parts:
        images.append(target.files_root)
    if "boot" in parts and target.loaders.bios == "pxelinux":
        images.append(target.tftp)
    texts = [path for service, path in target.services.items() if SERVICES[service] in parts]
    return Want(
        boot=boot,
        images=tuple(dict.fromkeys(path for path in images if path)),
        nfs=target.nfs.path if target.nfs and "nfs" in parts else None,
        menus=tuple(sorted(publish.menu_folders())) if boot else (),
        digests=tuple(f"{boot}/{name}" for name in loaders.FILES) if boot else (),
        texts=tuple(texts),
    )
