"""Threads for work that mostly waits: as many as there is waiting for.

Threads that all have something to do take Python's lock from each other: eight of them fetch small files from a server
next door slower than one does. From a server that is far, eight are eight times as fast.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

_BUSY = 0.4
"""Part of the time that this process has to work for; with less there are threads too few."""

_TICK = 0.01
"""Seconds after which that is looked at again, over the last `_TICKS` of these."""
_TICKS = 5


def each(work: Callable[[T], None], things: Sequence[T], limit: int) -> None:
    """Do `work` with all of `things`, in threads, at most `limit` at a time; returns when all have ended.

    After a failure no more is begun. Raises what the first of `things` raised whose work failed.
    """
    left = deque(enumerate(things))
    failed: list[tuple[int, BaseException]] = []
    threads: list[threading.Thread] = []

    def run() -> None:
        while True:
            try:
                number, thing = left.popleft()
            except IndexError:
                return
            try:
                work(thing)
            except BaseException as error:
                failed.append((number, error))
                left.clear()

    def more(count: int) -> None:
        for _ in range(min(count, limit - len(threads), len(left))):
            threads.append(threading.Thread(target=run, daemon=True))
            threads[-1].start()

    try:
        more(1)
        ticks = deque([(time.monotonic(), time.process_time())], _TICKS + 1)
        while left and len(threads) < limit:
            threads[-1].join(_TICK)
            ticks.append((time.monotonic(), time.process_time()))
            (begun, before), (now, worked) = ticks[0], ticks[-1]
            if worked - before < _BUSY * (now - begun):
                more(len(threads))
        for thread in threads:
            thread.join()
    except BaseException:
        left.clear()
        for thread in threads:
            thread.join()
        raise
    if failed:
        raise min(failed, key=lambda pair: pair[0])[1]
