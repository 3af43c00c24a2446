"""Three small stages and their release, built by the real code in a process of its own, which tests kill or starve.

`python -m tests.chain OUT` builds on a disk that is full.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from doit.exceptions import TaskFailed

from buildlib import build, distros, gc, plan, release
from buildlib.host import PACKAGES
from buildlib.identity import HostIdentity
from buildlib.plan import Keyed, Plan, Stage
from buildlib.rebuild import damage
from buildlib.store import Store
from buildlib.tasks import user_errors

NAME = "chain"
ABOUT = {"distro": "debian", "arch": "amd64", "description": "", "root": {"kind": "squashfs", "over": "http"}}
EPOCH = 1_700_000_000


def planned(text: str) -> Plan:
    """base -> top -> squashfs-base -> squashfs; `text` goes into `top`."""
    base = Stage("base", "tests.stage_helper:grow", {"files": 40, "text": "base"})
    top = Stage("top", "tests.stage_helper:grow", {"files": 20, "text": text}, inputs=(base,))
    parts, pack = distros.squashfs((base,), (top,))
    artifacts = {"vmlinuz": (base, "vmlinuz"), "rootfs.squashfs": (pack, "rootfs.squashfs")}
    return Plan(NAME, (base, top, *parts, pack), artifacts, (base, top), "quiet", (top, "packages.tsv"), {})


def keys(out: Path, text: str) -> dict[str, Keyed]:
    return plan.keyed(planned(text).stages, HostIdentity(out / "cache/digests.json", PACKAGES))


def make(out: Path, text: str) -> None:
    """As doit does it: sweep, a stage after the other, the release. What was built is printed."""
    store = Store(out)
    store.sweep()
    made = keys(out, text)
    for stage in planned(text).stages:
        build.run(
            made[stage.name],
            {name: keyed.key for name, keyed in made.items()},
            store,
            cache=out / "cache",
            log=out / "log" / f"{stage.name}.log",
            epoch=EPOCH,
            progress=lambda _fraction, _text: None,
            mirrors={},
        )
    with store.used(), store.lock(f"release-{NAME}"):
        print(release.assemble(planned(text), made, store, out / "images", ABOUT).id)


def collect(out: Path) -> None:
    """Remove all that a build does not need which is over."""
    store = Store(out)
    with store.alone("gc"):
        gc.carry_out(store, out / "images", gc.plan(store, out / "images", {}, keep=1))


def look(out: Path) -> dict[str, Any]:
    """What of a store and its releases is wrong, and the content of the newest release."""
    store = Store(out)
    wrong = []
    for key in store.entries():
        if store.has(key):
            document = store.get(key).document
            keyed = Keyed(Stage(str(document["stage"]), ""), key, document)
            wrong += damage(keyed, store, epoch=EPOCH, log=Path(os.devnull))
        else:
            wrong.append(f"{key}: {store.damage(key)}")
    home = out / "images" / NAME
    found = [release.Release(NAME, path.name, path) for path in sorted(home.glob("[0-9]*"))]
    wrong += [f"{one.id}: {name}" for one in found for name in release.damage(one)]
    newest = release.latest(out / "images", NAME)
    return {"wrong": wrong, "content": newest.manifest["content"] if newest else None}


def starve(out: Path) -> None:
    """Build on a disk that is full, with a little more room each time until it fits; then fill it, and clean up. What
    was said each time, and what was there then, is printed as a line of JSON. In a mount namespace of its own."""
    size = 120
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(out)], check=True)
    failed: object = True
    while failed:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(out)], check=True)
        failed = _tell(lambda: make(out, "top"), out)
        size = int(size * 1.3)
    with contextlib.suppress(OSError), (out / "ballast").open("wb") as ballast:
        while True:
            ballast.write(bytes(4096))
    _tell(lambda: collect(out), out)


def _tell(action: Callable[[], None], out: Path) -> str | None:
    with contextlib.redirect_stdout(io.StringIO()):
        failed = user_errors(action)()
    said = failed.message if isinstance(failed, TaskFailed) else None
    print(json.dumps({"said": said, "seen": look(out)}), flush=True)
    return said


if __name__ == "__main__":
    starve(Path(sys.argv[1]))
