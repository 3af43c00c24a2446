"""Pushes to another machine beside rsync, scp and sftp by hand: `python -m bench.pushes [ROUNDS]`. Needs root.

A machine in a network namespace, files that can't be compressed; medians, and ratios within one run. Bytes are those
that went over its link.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from buildlib import route, survey, tree
from buildlib.release import LISTING
from buildlib.shell import Held
from buildlib.ssh import Connection
from tests import pushlab, sshlab

MB = 1_000_000


@dataclass
class Times:
    """Seconds and bytes of each round."""

    seconds: list[float]
    sent: list[int]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def bytes(self) -> float:
        return statistics.median(self.sent)


def measure(
    box: sshlab.Box, rounds: int, *calls: Callable[[], object], before: Callable[[], object] = lambda: None
) -> list[Times]:
    """Of each call: they take turns, since a machine is not as fast at any time."""
    counter = Path(f"/sys/class/net/{box.name}/statistics/tx_bytes")
    found = [Times([], []) for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, found, strict=True):
            before()
            os.sync()
            at, begun = int(counter.read_text()), time.monotonic()
            call()
            times.seconds.append(time.monotonic() - begun)
            times.sent.append(int(counter.read_text()) - at)
    return found


def layer(folder: Path, megabytes: int, files: int) -> Path:
    """A layer of so many files of equal size, with its listing."""
    made = folder / "tree"
    for number in range(files):
        path = made / f"usr/{number % 100}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(megabytes * MB // files))
    return listed(made)


def listed(made: Path) -> Path:
    tree.write_listing({"tree": str(made), "listing": str(made.parent / LISTING), "epoch": int(time.time())})
    return made


def run(*line: object) -> None:
    subprocess.run([str(word) for word in line], check=True, stdout=subprocess.DEVNULL)


def tell(what: str, ours: float, other: float, wanted: str) -> None:
    print(f"{what:<58} {ours:10.2f} / {other:10.2f} = {ours / other:5.2f}  (wanted: {wanted})", flush=True)


def full(box: sshlab.Box, folder: Path, rounds: int) -> None:
    """1 GB as a root tree, and as a file without rsync."""
    made = pushlab.make(folder, "one", 1, size=1000, layers=(layer(folder / "full", 1000, 2000),))
    where = pushlab.target(box)
    ssh = " ".join(route.program(route.route(box.name, box.config))[:-1])

    def clean() -> None:
        shutil.rmtree(box.folder / "srv", ignore_errors=True)
        pushlab.target(box)

    def ours() -> None:
        pushlab.publish(folder, where, made, config=box.config)

    source, there = made.layers[0], f"{box.name}:{where.nfs.path if where.nfs else ''}"

    def by_rsync() -> None:
        run("rsync", "-aHAX", "--numeric-ids", "-e", ssh, f"{source}/", f"{there}/x/")

    def by_scp() -> None:
        run("scp", "-q", "-r", "-F", box.config, source, there)

    push, rsync, scp = measure(box, rounds, ours, by_rsync, by_scp, before=clean)
    tell("1 GB in 2000 files: rsync / push, seconds", rsync.median, push.median, "at least 0.95")
    tell("1 GB in 2000 files: scp / push, seconds", scp.median, push.median, "at least 0.95")
    big = pushlab.make(folder, "two", 2, size=500 * MB, files=0)
    batch = folder / "batch"
    batch.write_text("".join(f"put {big.release.folder}/{name} {where.tftp}/\n" for name in ("vmlinuz", "initrd")))
    push, sftp = measure(
        box,
        rounds,
        lambda: pushlab.publish(folder, where, big, config=box.config),
        lambda: run("sftp", "-q", "-F", box.config, "-b", batch, box.name),
        before=clean,
    )
    tell("1 GB in 2 files, no rsync: sftp / push, seconds", sftp.median, push.median, "at least 0.8")
    clean()


def little(box: sshlab.Box, folder: Path, rounds: int) -> None:
    """One file of a 500 MB root changed; then nothing; then the way back."""
    lower = layer(folder / "lower", 500, 10_000)
    where = pushlab.target(box)
    ssh = " ".join(route.program(route.route(box.name, box.config))[:-1])
    chance = random.Random(1)
    made = []
    for number in range(1, rounds + 2):
        upper = folder / f"upper{number}/tree"
        (upper / "etc").mkdir(parents=True)
        (upper / "etc/motd").write_bytes(chance.randbytes(50_000))
        made.append(pushlab.make(folder, "three", number, size=1000, layers=(lower, listed(upper))))
    pushlab.publish(folder, where, made[0], config=box.config)
    assert where.nfs is not None
    base = Path(where.nfs.path, "three")
    plain = folder / "plain"
    shutil.copytree(lower, plain, symlinks=True)
    run("rsync", "-aHAX", "-e", ssh, f"{plain}/", f"{box.name}:{base}/base/")
    rest = iter(made[1:])
    count = iter(range(rounds))
    (plain / "etc").mkdir()

    def ours() -> None:
        now = next(rest)
        shutil.copy(now.layers[1] / "etc/motd", plain / "etc/motd")
        pushlab.publish(folder, where, now, config=box.config)

    def by_hand() -> None:
        link = f"--link-dest={base}/base"
        run("rsync", "-aHAX", "--numeric-ids", link, "-e", ssh, f"{plain}/", f"{box.name}:{base}/x{next(count)}/")

    push, rsync = measure(box, rounds, ours, by_hand)
    tell("one file of 500 MB changed: push / rsync, bytes", push.bytes, rsync.bytes, "at most 1.2")
    tell("one file of 500 MB changed: push / rsync, seconds", push.median, rsync.median, "at most 1.3")
    scripts: list[str] = []
    real = Connection.hold

    def counted(self: Connection, script: str) -> Held:
        scripts.append(script)
        return real(self, script)

    Connection.hold = counted  # type: ignore[method-assign]
    (nothing,) = measure(box, rounds, lambda: pushlab.publish(folder, where, made[-1], config=box.config))
    asked = 1 + len(scripts) // rounds
    print(f"nothing to push: {nothing.median:.2f} s, {asked} scripts there (wanted: at most 1 s, 5)")
    (back,) = measure(box, 1, lambda: pushlab.rollback(where, "three", config=box.config))
    print(f"rollback: {back.median:.2f} s (wanted: at most 1 s)")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, sshlab.box("openssh") as box:
        print(f"{rounds} rounds, {os.cpu_count()} cores; a lock shows life every {survey.BEAT:g} s", flush=True)
        full(box, Path(folder), rounds)
        little(box, Path(folder), rounds)


if __name__ == "__main__":
    main()
