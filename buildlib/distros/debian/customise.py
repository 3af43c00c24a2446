"""The stage `customise`: the recipe's own files and hooks, and the check that the root can be shared."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from buildlib import rootfs
from buildlib.distros.debian import clean, copyright
from buildlib.errors import BuildError
from buildlib.sandbox import Bind
from buildlib.work import Work

OVERLAYS = "/run/netboot/overlay"
HOOK = "/run/netboot/hook"


def run(work: Work) -> None:
    own = work.stage.files
    overlays = tuple(Bind(own[name], f"{OVERLAYS}/{number}") for number, name in enumerate(work.options["overlays"]))
    copied: dict[str, Any] = {"owners": work.options["owners"], "overlays": [bind.target for bind in overlays]}
    if work.options["hooks"] and any(copied.values()):
        work.sandbox(binds=overlays).call(rootfs.copy_overlays, copied, log=work.log)
    for hook in work.options["hooks"]:
        work.progress(None, hook["name"])
        sandbox = work.sandbox(binds=(Bind(own[hook["name"]], HOOK),), network=hook["network"])
        sandbox.run([HOOK], log=work.log, hint=f"the recipe's {hook['name']} failed")
    out = "/run/netboot/out"
    binds = [Bind(work.out, out, writable=True)]
    if not work.options["hooks"]:
        binds += overlays
    arguments = {"out": out, "copied": None if work.options["hooks"] else copied}
    work.sandbox(binds=tuple(binds)).call(finish, arguments, log=work.log)


def finish(arguments: dict[str, Any]) -> None:
    """In the root: copy what no hook was to see first, clean, prove that it is, and write the package list."""
    if arguments["copied"]:
        rootfs.copy_overlays(arguments["copied"])
    clean.clean()
    found = list(clean.findings())
    if found:
        raise BuildError(
            "the root is not fit to be shared:\n" + "\n".join(f"  {finding}" for finding in found),
            hint="the recipe's overlay, hooks or packages put it there",
        )
    form = "${Package}\t${Version}\t${Architecture}\t${source:Package}@${source:Version}\n"
    line = ["dpkg-query", "--show", "--showformat", form]
    said = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
    lines = [f"{text}\t{copyright.licenses(text.split(maxsplit=1)[0])}\n" for text in said.splitlines()]
    Path(f"{arguments['out']}/packages.tsv").write_text("".join(lines))
