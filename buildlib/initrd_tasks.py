"""The doit shell over initrds: `initrd:NAME`, of a recipe's newest release."""

from __future__ import annotations

from collections.abc import Iterator

from buildlib import report
from buildlib.boot_tasks import current
from buildlib.errors import BuildError
from buildlib.tasks import Task, group, house, load_errors, user_errors


@load_errors
def task_initrd() -> Iterator[Task]:
    """look into a release's initrd"""
    yield group("look into a release's initrd: segments, biggest files, and what is wrong with it")
    for name in house().recipes:
        yield {"name": name, "actions": [(look, [name])], "io": {"capture": False}}


@user_errors
def look(name: str) -> None:
    """Print what is in it. BuildError if something is wrong with it."""
    from buildlib.initrd import show
    from buildlib.initrd.checks import check
    from buildlib.initrd.scan import scan

    release = current(name)
    found = scan(release.folder / "initrd")
    print(report.shown(found.path))
    print("\n".join(show.segments(found)))
    wrong = check(found, arch=release.manifest["content"]["arch"])
    if wrong:
        raise BuildError("\n".join(show.findings(wrong)))
