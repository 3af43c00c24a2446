"""Several things at the same time, and all of what went wrong with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from buildlib.errors import BuildError

T = TypeVar("T")
R = TypeVar("R")


def each(items: Sequence[T], call: Callable[[T], R]) -> list[R | BaseException]:
    """Call for each item at the same time; what it returned, or raised.

    Whoever interrupts this thread does not wait for the others: they end with the process, and what they run as well.
    """
    results: list[R | BaseException] = [BuildError("interrupted") for _ in items]

    def run(number: int) -> None:
        try:
            results[number] = call(items[number])
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)
    return results


def every(items: Sequence[T], call: Callable[[T], R]) -> list[R]:
    """As `each`, but all errors are raised as one."""
    found = each(items, call)
    raise_all([result for result in found if isinstance(result, BaseException)])
    return [result for result in found if not isinstance(result, BaseException)]


def raise_all(errors: Sequence[BaseException]) -> None:
    """Raise all of these as one; what isn't a user's is raised as it is."""
    for error in errors:
        if not isinstance(error, BuildError):
            raise error
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BuildError("\n".join(f"{error}" for error in errors))
