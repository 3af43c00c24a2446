"""Whatever ends a push, a rollback or a prune, and whenever: machines boot one release, whole; the next push succeeds.

A benchmark of trust: faults at random moments, of which it prints the count.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from buildlib import survey
from buildlib.errors import BuildError
from buildlib.site import Target
from tests import pushlab, sshlab
from tests.pushlab import Made, booted
from tests.sshlab import Box

pytestmark = pytest.mark.integration

POINTS = 200
"""Faults in all, over all kinds of them and all that they end."""

VERBS = ("push", "switch", "rollback", "prune")
FAULTS = ("pusher killed", "shells killed", "connection cut", "disk full")
DISK = 24 << 20


@dataclass
class Bench:
    """One target, and what was ever made for it."""

    box: Box
    where: Target
    folder: Path
    chance: random.Random
    made: list[Made] = field(default_factory=list)
    takes: dict[str, float] = field(default_factory=dict)

    def make(self) -> Made:
        self.made.append(pushlab.make(self.folder, "one", len(self.made) + 1, size=60_000, files=8))
        return self.made[-1]

    def push(self, made: Made) -> None:
        pushlab.publish(self.folder, self.where, made, config=self.box.config)

    def prepare(self, verb: str) -> Callable[[], object]:
        """Whatever the verb needs, done; what is to be disturbed."""
        if verb == "push":
            made = self.make()
            return lambda: self.push(made)
        if verb == "switch":
            # All is there already: what is left is the switch.
            live = booted(self.where, "one", self.made)
            made = next(each for each in reversed(self.made) if each.id != live and self.has(each))
            return lambda: self.push(made)
        if verb == "rollback":
            self.push(self.make())
            return lambda: pushlab.rollback(self.where, "one", config=self.box.config)
        while len(list(Path(str(self.where.boot_root), "images/one").iterdir())) < 5:
            self.push(self.make())
        return lambda: pushlab.prune(self.where, config=self.box.config)

    def has(self, made: Made) -> bool:
        assert self.where.nfs is not None
        roots = (Path(str(self.where.boot_root), "images"), Path(self.where.nfs.path))
        return all((root / "one" / made.id).is_dir() for root in roots)

    def disturb(self, verb: str, fault: str) -> None:
        """Begin, and end it by a fault somewhere on the way; then look, and push again."""
        call = self.prepare(verb)
        filler = self.box.folder / "filler"
        if fault == "disk full":
            # Somewhere between nothing at all and all that is needed.
            free = os.statvfs(self.box.folder)
            filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - self.chance.randrange(4096, 400_000))))
        process = pushlab.apart(_quietly, call)
        if fault == "disk full":
            process.join(60)
        else:
            time.sleep(self.chance.random() * self.takes.get(verb, 1.0))
            self.end(process, fault)
        assert booted(self.where, "one", self.made), (verb, fault)
        if process.is_alive():
            process.join(60)
        filler.unlink(missing_ok=True)
        assert booted(self.where, "one", self.made), (verb, fault)
        last = self.make()
        self.push(last)
        assert booted(self.where, "one", self.made) == last.id, (verb, fault)
        if len(list(Path(str(self.where.boot_root), "images/one").iterdir())) > 8:
            pushlab.prune(self.where, config=self.box.config)

    def end(self, process: BaseProcess, fault: str) -> None:
        assert process.pid is not None
        if fault == "shells killed":
            self.box.kill_shells()
            return
        if fault == "connection cut":
            self.box.cut()
            assert booted(self.where, "one", self.made)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        if fault == "connection cut":
            self.box.mend()


def _quietly(call: Callable[[], object]) -> None:
    with suppress(BuildError):
        call()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch, sshlab.box("openssh", disk=str(DISK)) as box:
        # A lock is anybody's sooner than in earnest.
        patch.setattr(survey, "BEAT", 0.5)
        patch.setattr(survey, "DEAD", 3)
        made = Bench(
            box, replace(pushlab.target(box), keep=2), tmp_path_factory.mktemp("trust"), random.Random(time.time_ns())
        )
        for _ in range(3):
            made.push(made.make())
        for verb in VERBS:
            call = made.prepare(verb)
            begun = time.monotonic()
            call()
            made.takes[verb] = 1.1 * (time.monotonic() - begun)
        yield made


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", VERBS)
def test_whatever_ends_it(verb: str, fault: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    points = -(-POINTS // (len(VERBS) * len(FAULTS)))
    for _ in range(points):
        bench.disturb(verb, fault)
    with capsys.disabled():
        print(f"\n{points} times {verb}, {fault}: {points} times one release, whole; all pushes after it succeeded")


def test_who_fetches_all_the_time_never_gets_a_mixture(tmp_path: Path) -> None:
    """50 pushes to another machine, while a client fetches again and again."""
    with sshlab.box("openssh") as box:
        where = pushlab.target(box)
        made = [pushlab.make(tmp_path, "one", number, size=20_000, files=4) for number in range(1, 51)]
        pushlab.publish(tmp_path, where, made[0], config=box.config)

        def pushes() -> None:
            for each in made[1:]:
                pushlab.publish(tmp_path, where, each, config=box.config)

        process = pushlab.apart(pushes)
        seen = set()
        while process.is_alive():
            seen.add(booted(where, "one", made))
        process.join()
        assert process.exitcode == 0
        assert booted(where, "one", made) == made[-1].id
        assert len(seen) > 10
