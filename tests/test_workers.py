"""Threads: how many there are, and what becomes of failures."""

from __future__ import annotations

import threading
import time

import pytest

from buildlib import workers


class Seen:
    """What was done, by how many at the same time."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def work(self, number: int, seconds: float) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(seconds)
        with self._lock:
            self._now -= 1
            self.done.append(number)


def test_all_is_done_once() -> None:
    seen = Seen()
    workers.each(lambda number: seen.work(number, 0), range(500), 8)
    assert sorted(seen.done) == list(range(500))


def test_there_is_nothing_to_do() -> None:
    workers.each(lambda _: pytest.fail("called"), [], 8)


def test_who_waits_gets_company_up_to_the_limit() -> None:
    seen = Seen()
    workers.each(lambda number: seen.work(number, 0.2), range(24), 4)
    assert sorted(seen.done) == list(range(24))
    assert seen.most == 4


def test_a_long_one_holds_up_nobody() -> None:
    """As a large file from afar before small ones."""
    long = threading.Event()
    short: list[int] = []

    def work(number: int) -> None:
        if number:
            short.append(number)
            if len(short) == 5:
                long.set()
        else:
            assert long.wait(60)

    workers.each(work, range(6), 8)
    assert short == [1, 2, 3, 4, 5]


def test_the_first_failure_is_told_and_no_more_is_begun() -> None:
    begun: list[int] = []
    together = threading.Barrier(2, timeout=60)

    def work(number: int) -> None:
        begun.append(number)
        if number < 2:
            together.wait()
            if number == 0:
                time.sleep(0.2)
            raise ValueError(number)
        time.sleep(0.2)

    with pytest.raises(ValueError, match="0"):
        workers.each(work, range(1000), 2)
    assert len(begun) < 10


def test_an_interruption_waits_for_what_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()

    def interrupted() -> float:
        raise KeyboardInterrupt

    def work(number: int) -> None:
        if not number:
            monkeypatch.setattr(time, "process_time", interrupted)
        seen.work(number, 0.2)

    with pytest.raises(KeyboardInterrupt):
        workers.each(work, range(100), 8)
    assert seen.done
    assert len(seen.done) <= 8
