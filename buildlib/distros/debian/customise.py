"""The stage `customise`: the recipe's own files and hooks, and the check that the root can be shared."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from buildlib.distros.debian import clean
from buildlib.errors import BuildError
from buildlib.sandbox import Bind
from buildlib.work import Work

OVERLAYS = "/run/netboot/overlay"
HOOK = "/run/netboot/hook"


def run(work: Work) -> None:
    files = work.stage.files
    overlays = tuple(Bind(files[name], f"{OVERLAYS}/{number}") for number, name in enumerate(work.options["overlays"]))
    if overlays or work.options["owners"]:
        arguments = {"owners": work.options["owners"], "overlays": [bind.target for bind in overlays]}
        work.sandbox(binds=overlays).call(copy_overlays, arguments, log=work.log)
    for hook in work.options["hooks"]:
        work.progress(None, hook["name"])
        sandbox = work.sandbox(binds=(Bind(files[hook["name"]], HOOK),), network=hook["network"])
        sandbox.run([HOOK], log=work.log, hint=f"the recipe's {hook['name']} failed")
    out = "/run/netboot/out"
    work.sandbox(binds=(Bind(work.out, out, writable=True),)).call(finish, {"out": out}, log=work.log)


def copy_overlays(arguments: dict[str, Any]) -> None:
    """In the root: copy the recipe's trees over it. Root owns everything, 0755 what is executable and 0644 the rest:
    of a file's mode git keeps no more. `owners` states the exceptions."""
    for tree in arguments["overlays"]:
        for folder, folders, files in os.walk(tree):
            target = folder.removeprefix(tree) or "/"
            for name in (*folders, *files):
                _copy(os.path.join(folder, name), os.path.join(target, name))
    for rule in arguments["owners"]:
        path = rule["path"]
        if not os.path.lexists(path):
            raise BuildError(f"owners: no {path} in the root")
        if rule["owner"]:
            owner, _, group = rule["owner"].partition(":")
            shutil.chown(path, _number(owner), _number(group or owner))
        if rule["mode"]:
            os.chmod(path, int(rule["mode"], 8))


def _number(name: str) -> str | int:
    return int(name) if name.isdigit() else name


def _copy(source: str, target: str) -> None:
    if os.path.islink(source):
        clean.link(target, os.readlink(source))
    elif os.path.isdir(source):
        # /lib and others are links in the image: a folder of the overlay means what the link points to.
        if not os.path.isdir(target):
            os.mkdir(target, 0o755)
    else:
        if os.path.lexists(target):
            if os.path.isdir(target) and not os.path.islink(target):
                raise BuildError(f"overlay: {target} is a folder in the root")
            os.unlink(target)
        shutil.copyfile(source, target)
        os.chmod(target, 0o755 if os.stat(source).st_mode & 0o100 else 0o644)


def finish(arguments: dict[str, Any]) -> None:
    """In the root: clean, prove that it is, and write the package list."""
    clean.clean()
    found = list(clean.findings())
    if found:
        raise BuildError(
            "the root is not fit to be shared:\n" + "\n".join(f"  {finding}" for finding in found),
            hint="the recipe's overlay, hooks or packages put it there",
        )
    form = "${Package}\t${Version}\t${Architecture}\n"
    done = subprocess.run(["dpkg-query", "--show", "--showformat", form], check=True, stdout=subprocess.PIPE)
    Path(f"{arguments['out']}/packages.tsv").write_bytes(done.stdout)
