"""Pixiecore, for who has it already: an entry as its command line, and as the answer of its API.

It writes no configuration file, so it is no service of a target.
"""

from __future__ import annotations

from buildlib.bootmenu import BootEntry


def flags(entry: BootEntry, http: str) -> list[str]:
    """The command that offers one entry to whoever asks. `http` is the boot root's URL."""
    _bootable(entry)
    if entry.kernel is None:
        raise ValueError(f"pixiecore: {entry.id} has no kernel, and `pixiecore boot` knows nothing else")
    urls = [_url(path, http) for path in (entry.kernel, *entry.initrds)]
    return ["pixiecore", "boot", *urls, *([f"--cmdline={_literal(entry.cmdline)}"] if entry.cmdline else [])]


def api(entry: BootEntry, http: str) -> dict[str, object]:
    """What `GET /v1/boot/MAC` answers, as JSON, for a machine that boots the entry."""
    _bootable(entry)
    if entry.chain is not None:
        return {"ipxe-script": f"#!ipxe\nchain --autofree {entry.chain}\n"}
    if entry.kernel is None:
        raise ValueError(f"pixiecore: {entry.id} has neither a kernel nor a URL; answer 404 and the disk is next")
    return {
        "kernel": _url(entry.kernel, http),
        "initrd": [_url(path, http) for path in entry.initrds],
        "cmdline": _literal(entry.cmdline),
    }


def _bootable(entry: BootEntry) -> None:
    if entry.arch == "arm64":
        raise ValueError(f"pixiecore: {entry.id} is for arm64, and pixiecore answers x86 machines alone")


def _url(path: str, http: str) -> str:
    return path if path.startswith(("http://", "https://")) else f"{http}/{path}"


def _literal(cmdline: str) -> str:
    """The command line as a Go template that says just that."""
    return cmdline.replace("{{", '{{"{{"}}')
