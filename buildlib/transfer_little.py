"""A root tree that is nearly like its predecessor there: that one's files, and a tar of the little that differs.

Walking all of two trees, as rsync does, takes longer than to say what differs. That the rest is as it must be is told
by one digest of what GNU find sees there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from buildlib import verify
from buildlib.listing import Entry
from buildlib.shell import quote
from buildlib.transfer_tar import HEADER, batches, loses_attributes, parent, planned, pump, removed
from buildlib.way import Previous, Progress, Source, Way, ask, begin, complete

_LITTLE = 64 << 20
"""Bytes of files that are sent again from their beginning when the connection was lost."""

_HELD = 4 << 20
"""Bytes that go the way of scripts: a connection of their own would take longer."""


def tree(way: Way, source: Source, folder: str, part: str, previous: Previous, progress: Progress) -> int | None:
    """Make the tree `folder` of a predecessor's files and a tar of the little that differs; bytes that were sent.

    part -- the folder where it is made, empty
    None, and `part` is empty again, if that is no way: much differs, or the predecessor is not what it was.
    """
    new, old = source.entries, previous.entries
    plan = planned(new, source.groups, previous)
    size = sum(new[path].size for path in plan.chosen)
    if (
        "gnutar" not in way.tools
        or size > _LITTLE
        or any(new[path].kind == "s" for path in plan.chosen)
        or loses_attributes(old, new)
    ):
        return None
    # Nothing is removed or made along the path of what is planted there, perhaps a link.
    along = {parent(path) for path in (*plan.chosen, *plan.gone)}
    along |= {top for path in along for top in _parents(path)}
    folders = [path for path in old if path in along and old[path].kind == "d"]
    lines = [
        f"cd {quote(part)} || exit 1",
        f"rmdir {quote(part)} && cp -al {quote(previous.folder)} {quote(part)} && cd {quote(part)} || exit 0",
        'real() { for path; do [ -d "$path" ] && [ ! -L "$path" ] || exit 0; done; }',
        *(f"real {names}" for names in batches(folders)),
        *(f"rm -rf {names} || exit 1" for names in removed(plan, old)),
        "echo made",
    ]
    if ask(way, folder, "\n".join(lines)).strip() == b"made":
        total = size + HEADER * len(plan.chosen)

        def tell(done: int) -> None:
            progress(min(done, total), total)

        where = source.some(plan.chosen)
        sent = pump(way, where, folder, part, plan.chosen, tell, held=total < _HELD)
        if ask(way, folder, _look_script(part, new)).split()[:1] == [_look_digest(new)] and not verify.digests(
            way.shell, part, {path: new[path].content for path in plan.chosen if new[path].kind == "f"}
        ):
            complete(way, folder, part)
            return sent
    begin(way, folder, part, keep=False)
    return None


def _look_script(part: str, entries: Mapping[str, Entry]) -> str:
    """Lines of a shell script that write the digest of what GNU find sees of a tree."""
    newest = _newest(entries)
    return f"""\
cd {quote(part)} || exit 1
find . -xdev '(' -type d -printf 'd %m %U:%G %P\\0' ')' -o '(' -type l -printf 'l %U:%G %l %P\\0' ')' \\
    -o '(' -type f -newermt @{newest - 1}.999999999 -printf 'f - %m %U:%G %s %P\\0' ')' \\
    -o '(' -type f -printf 'f %T@ %m %U:%G %s %P\\0' ')' -o -printf '%y %m %U:%G %P\\0' 2>/dev/null |
    LC_ALL=C sed -z 's/^\\(f [0-9-]*\\)\\.[0-9]* /\\1 /' | LC_ALL=C sort -z | sha256sum
"""


def _look_digest(entries: Mapping[str, Entry]) -> bytes:
    """What `_look_script` writes of a tree that is as it must be.

    Of times, listings have whole seconds. None says when what is younger than its build was changed: that is told
    as the time of the newest file.
    """
    newest = _newest(entries)
    lines = []
    for path, entry in entries.items():
        facts = [entry.kind]
        if entry.kind == "f":
            facts.append("-" if entry.mtime >= newest else str(entry.mtime))
        facts += [*([] if entry.kind == "l" else [f"{entry.mode:o}"]), entry.owner]
        if entry.kind == "l":
            facts.append(entry.content)
        elif entry.kind == "f":
            facts.append(str(entry.size))
        lines.append(" ".join([*facts, "" if path == "." else path]).encode(errors="surrogateescape") + b"\0")
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest().encode()


def _newest(entries: Mapping[str, Entry]) -> int:
    return max((entry.mtime for entry in entries.values() if entry.kind == "f"), default=0)


def _parents(path: str) -> Iterator[str]:
    while path != ".":
        path = parent(path)
        yield path
