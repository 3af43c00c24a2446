"""The server side of a target: what each service must be told, rendered, checked by its own program, and installed."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from buildlib import atomic, command, host, services
from buildlib.bootloaders import grub
from buildlib.errors import BuildError
from buildlib.files import Files
from buildlib.place import IMAGES, Place, boot_menu, live, manifest_of
from buildlib.services import pixiecore

_UNITS = {
    "dnsmasq": ("restart", "dnsmasq"),
    "exports": ("reload", "nfs-server"),
    "ganesha": ("restart", "nfs-ganesha"),
    "nbd": ("reload", "nbd-server"),
    "nginx": ("reload", "nginx"),
}
"""How each service takes a new configuration: dnsmasq reads its own at the start only."""

_DISTURBING = ("ganesha",)
"""What clients lose, or wait a long time for, when it is restarted: left to people."""

_BLOCK = ("medium.squashfs", "rootfs.squashfs")
"""What is a block device over NBD."""

_RELOAD = """\
if command -v systemctl >/dev/null && [ -d /run/systemd/system ]; then systemctl {verb} {unit}
elif command -v rc-service >/dev/null; then rc-service {unit} {verb}
elif [ -x /etc/init.d/{unit} ]; then /etc/init.d/{unit} {verb}
else echo 'neither systemd, nor OpenRC, nor /etc/init.d/{unit} is there' >&2; exit 1
fi
"""


def wiring(place: Place) -> services.Wiring:
    """All that the server side must know of this target."""
    exports = []
    images: dict[str, str] = {}
    nfs = place.target.nfs
    if nfs is not None:
        exports = [services.Export(nfs.path, nfs.path)]
        kept = str(place.target.persist)
        exports.append(services.Export(kept, kept, writable=True))
    for name, facts in live(place).items() if place.target.boot_root else ():
        if "release" not in facts:
            continue
        content = manifest_of(place, name, facts["release"])["content"]
        if nfs is not None and content["root"]["kind"] == "nfs" and content["clients"] == "rw":
            # Of older releases as well: their clients still run.
            for release in place.image_files.names(f"{place.roots[0]}/{IMAGES}/{name}"):
                tree = f"{nfs.path}/{name}/{release}"
                exports.append(services.Export(tree, tree, writable=True))
        for file in (file for file in _BLOCK if file in content["artifacts"]):
            # Of older releases as well: a new one is added, and no client loses what it has.
            home = place.roots[0] / IMAGES / name
            images |= {f"{name}/{one}": str(home / one / file) for one in place.image_files.names(str(home))}
    return services.Wiring(place.name, place.target, place.hosts, tuple(exports), images)


def rendered(place: Place) -> dict[str, str]:
    """Text by service. Raises BuildError for a value that a service has no way to say."""
    try:
        return {**services.render_all(wiring(place))}
    except ValueError as error:
        raise BuildError(f"{place.name}: {error}", hint="see the target and its hosts in site.yaml") from None


def render_services(place: Place, folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Write the server side, and GRUB's entry for machines that boot from disk, into `folder`.

    Gives path, text, and by what it was checked. Raises BuildError with the tool's words when one refuses its file.
    """
    for name, text in rendered(place).items():
        service = services.get(name)
        path = folder / service.FILE
        atomic.write(path, text)
        yield path, text, _checked(service, path)
    yield from _pixiecore(place, folder)
    server = place.target.address if place.target.tftp else str(place.target.url)
    for hidden, name in ((False, "42_netboot"), (True, "42_netboot-once")):
        text = grub.disk_snippet("netboot", server=server, hidden=hidden)
        atomic.write(folder / name, text, mode=0o755)
        yield folder / name, text, "for /etc/grub.d/ of machines that boot from disk"


def _pixiecore(place: Place, folder: Path) -> Iterator[tuple[Path, str, str]]:
    """What a pixiecore must be told of each release that it can boot: its command line, and its API's answer."""
    menu = boot_menu(place)
    http = menu.http
    if http is None:
        return
    for entry in (entry for entry in menu.of("amd64") if entry.kernel):
        for name, text in (
            (f"pixiecore-{entry.id}.sh", shlex.join(pixiecore.flags(entry, http)) + "\n"),
            (f"pixiecore-{entry.id}.json", json.dumps(pixiecore.api(entry, http), indent=1) + "\n"),
        ):
            atomic.write(folder / name, text)
            yield folder / name, text, "for pixiecore, which boots PCs only"


def install_services(place: Place, files_of: Callable[[str], Files | None]) -> list[tuple[str, str]]:
    """Write the configurations that the site file names, checked before.

    files_of -- the files of the machine that a service runs on
    Gives service and path of those that changed.
    """
    texts = rendered(place) if place.target.services else {}
    changed: list[tuple[str, str]] = []
    for name, where in place.target.services.items():
        text, files = texts.get(name), files_of(name)
        if text is None or files is None:
            # Nothing to say yet: a target without a squashfs has nothing for NBD.
            continue
        service = services.get(name)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / service.FILE
            path.write_text(text)
            _checked(service, path)
        if files.write(where, text.encode()):
            changed.append((name, where))
    return changed


def reload(service: str) -> str | None:
    """The script by which a service takes its configuration; None where clients would feel it."""
    if service in _DISTURBING:
        return None
    verb, unit = _UNITS[service]
    if service == "exports":
        return "exportfs -ra"
    if service == "nbd":
        # Told by a signal it adds what is new; a restart would cut clients off.
        running = "[ -s /run/nbd-server.pid ] && kill -0 $(cat /run/nbd-server.pid) 2>/dev/null"
        again = _RELOAD.format(verb="restart", unit=unit)
        return f"if {running}; then kill -HUP $(cat /run/nbd-server.pid); else\n{again}fi"
    return _RELOAD.format(verb=verb, unit=unit)


def told(service: str) -> str:
    """What was done about a changed configuration, or is left to do."""
    verb, unit = _UNITS[service]
    if service in _DISTURBING:
        return f"to be taken by `systemctl {verb} {unit}`, which clients feel"
    return f"{unit} {verb}ed" if service != "exports" else "exported"


def _checked(service: services.Service, path: Path) -> str:
    """Check a configuration by its program's own check, where that is here."""
    line = service.check(path)
    if line is None or not service.TOOL or host.find(service.TOOL) is None:
        return "not checked" if line is None else f"not checked: {service.TOOL} is not installed"
    try:
        command.run([str(host.find(line[0]) or line[0]), *line[1:]], log=path.with_name(f"{path.name}.check"))
    except command.CommandError as error:
        raise BuildError(f"{path.name}: {service.TOOL} refuses it", log=error.log) from None
    return f"checked by {service.TOOL}"
