"""Alpine's stages beside the same by hand: `python -m bench.alpines [ROUNDS]`. Medians, and ratios within one run.

A mirror on this machine, by nginx for packages; they are 300 of 200 kB; the modloop is of 120 MB of modules.
`NETBOOT_APK` may name an apk to fetch them with, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from buildlib import atomic
from buildlib.distros.alpine import packages, resolving
from tests import apklab
from tests.test_apk import MAIN, MKINITFS, RELEASE, Lab, kernel, modules

NAMES = [f"package-{number}" for number in range(300)]


FETCH = """
import json, pathlib, sys, time
import requests
from buildlib.distros.alpine import resolving
lock, mirror, folder, *names = sys.argv[1:]
said = json.loads(pathlib.Path(lock).read_bytes())["packages"]
where = resolving.Where((mirror,), "v3.22", (), "x86_64", {}, pathlib.Path(folder))
begun = time.monotonic()
resolving.fetched(where, {name: said[name] for name in names}, lambda done, total: None)
print(time.monotonic() - begun)
"""


def ours(lab: Lab) -> dict[str, float]:
    """Seconds by stage of a build, and of `all`."""
    env = {name: value for name, value in lab.checkout.environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.monotonic()
    folder = lab.checkout.folder
    done = subprocess.run(lab.checkout.command("build:one"), cwd=folder, env=env, check=True, capture_output=True)
    found = {"all": time.monotonic() - begun}
    for line in done.stdout.decode().splitlines():
        words = line.split()
        if len(words) > 4 and words[2] == "built":
            found[words[1]] = float(words[3])
    return found


@contextlib.contextmanager
def served(lab: Lab, folder: Path) -> Iterator[str]:
    """The mirror's files by nginx, which costs the least; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Run by root, it reads files as another user.
    folder.chmod(0o755)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{port}; root {lab.home}; }} }}\n"
    )
    with subprocess.Popen(["nginx", "-c", str(config)]) as server:
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def locked(lab: Lab) -> dict[str, packages.Package]:
    said = json.loads((lab.checkout.folder / "recipes/one/recipe.lock").read_bytes())["packages"]
    return {name: resolving.package(name, said[name]) for name in NAMES}


def by_curl(lab: Lab, mirror: str, folder: Path) -> tuple[float, float]:
    """All packages, eight at a time; the same verified and on the disk."""
    urls = [f"{mirror}/{MAIN}/{name}-1.0-r0.apk" for name in NAMES]
    wanted = locked(lab)
    begun = time.monotonic()
    line = ["curl", "-sS", "--no-progress-meter", "--parallel", "--parallel-max", "8", "--remote-name-all", *urls]
    subprocess.run(line, check=True, cwd=folder)
    came = time.monotonic() - begun
    for one in wanted.values():
        assert packages.check((folder / one.file).read_bytes(), one) is None
    atomic.sync(folder)
    return came, time.monotonic() - begun


def by_apk(apk: str, mirror: str, folder: Path) -> float:
    """By a real apk, which verifies."""
    root = folder / "root"
    keys = folder / "keys"
    keys.mkdir()
    (keys / apklab.NAME).write_text(apklab.public())
    line = [apk, "--root", str(root), "--arch", "x86_64", "--keys-dir", str(keys)]
    subprocess.run([*line, "add", "--initdb"], check=True, stdout=subprocess.DEVNULL)
    begun = time.monotonic()
    more = ["--no-cache", "-X", f"{mirror}/v3.22/main", "fetch", "-q", "-o", str(folder), *NAMES]
    subprocess.run([*line, *more], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def fetched(lab: Lab, mirror: str, folder: Path) -> float:
    """The same by what the stage does it with, verified and on the disk; in a process of its own, as curl is."""
    lock = lab.checkout.folder / "recipes/one/recipe.lock"
    line = [sys.executable, "-c", FETCH, str(lock), mirror, str(folder), *NAMES]
    return float(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def fetches(lab: Lab, folder: Path) -> dict[str, float]:
    """Seconds by who has fetched all packages from where; each into a folder of its own, which stays.

    ext4 without a journal steps over the inodes of files that were deleted within the last minute, one by one, for
    each file that is made: what one leaves behind would make the next one slow.
    """
    found = {}
    lab.mirror.delay = 0.02

    def target() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))

    with served(lab, folder) as near:
        for where, mirror in (("near", near), ("far", lab.mirror.url("")[:-1])):
            found[f"curl {where}"], found[f"verified {where}"] = by_curl(lab, mirror, target())
            found[f"fetched {where}"] = fetched(lab, mirror, target())
            if apk := os.environ.get("NETBOOT_APK"):
                found[f"apk {where}"] = by_apk(apk, mirror, target())
    lab.mirror.delay = 0
    return found


def by_mksquashfs(tree: Path, out: Path) -> float:
    begun = time.monotonic()
    line = ["mksquashfs", str(tree), str(out), "-noappend", "-no-progress", "-comp", "xz", "-all-root"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        tree = modules(folder)
        for number in range(600):
            half = os.urandom(100_000)
            (tree / f"kernel/drivers/net/{number}.ko").write_bytes(half + half)
        known = apklab.base(tree, kernel(folder), "#!/bin/busybox sh\n")
        known |= {name: apklab.Package(files={f"usr/{name}": os.urandom(200_000)}) for name in NAMES}
        lab = Lab(folder, known)
        times: dict[str, list[float]] = {}
        more = f"{MKINITFS}{RELEASE}  packages: [{', '.join(NAMES)}]\n"
        head = "overlay: [overlay]\n"
        (lab.recipe(more, head) / "overlay").mkdir()
        note = lab.checkout.folder / "recipes/one/overlay/note"
        for number in range(rounds):
            note.write_text("begin\n")
            for path in ("out/store", "out/cache/downloads", "out/images"):
                shutil.rmtree(lab.checkout.folder / path, ignore_errors=True)
            for stage, seconds in ours(lab).items():
                times.setdefault(stage, []).append(seconds)
            note.write_text(f"{number}\n")
            changed = ours(lab)
            assert set(changed) == {"all", "apkovl", "release"}, changed
            times.setdefault("changed", []).append(changed["all"])
            for what, seconds in fetches(lab, folder).items():
                times.setdefault(what, []).append(seconds)
            whole = folder / "whole/modules"
            shutil.copytree(tree, whole / tree.name)
            times.setdefault("mksquashfs", []).append(by_mksquashfs(folder / "whole", folder / "modloop"))
            shutil.rmtree(folder / "whole")
        lab.close()
    middle = {name: statistics.median(found) for name, found in times.items()}
    print(f"{rounds} rounds; medians, seconds")
    ratio = middle["modloop"] / middle["mksquashfs"]
    print(
        f"modloop / mksquashfs   {middle['modloop']:6.2f} / {middle['mksquashfs']:6.2f} = {ratio:5.2f}  (at most 1.1)"
    )
    for where, words in (("near", "this machine"), ("far", "20 ms away")):
        own = middle[f"fetched {where}"]
        for by in ("curl", "verified", "apk"):
            hand = middle.get(f"{by} {where}")
            name = {"verified": "curl, verified"}.get(by, by)
            if hand is not None:
                head = f"{name} / packages"
                print(f"{head:<22} {hand:6.2f} / {own:6.2f} = {hand / own:5.2f}  (at least 1; a mirror {words})")
    print(f"apkovl changed         {middle['changed']:6.2f}                  (at most 1)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
