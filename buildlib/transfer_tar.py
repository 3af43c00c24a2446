"""A root tree on its way to a machine without rsync: a predecessor's tree, its files linked, and a tar of what differs.

BusyBox' tar will do, but for extended attributes, which are capabilities and ACLs too: these take GNU tar there.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from buildlib import verify
from buildlib.command import converse, end
from buildlib.errors import BuildError
from buildlib.listing import Entry, Groups, shown, text
from buildlib.shell import quote
from buildlib.way import (
    CHUNK,
    STEADY,
    Previous,
    Progress,
    Source,
    Way,
    ask,
    begin,
    beside,
    complete,
    failure,
    pour,
    wide,
)

Tell = Callable[[int], None]
"""Called with a number of bytes."""

_PART = ".tar.part"
"""Not the one that rsync goes on with: that one holds no links to files that are to be changed."""

_BATCH = 24 * 1024
"""Bytes of names that one command gets at most, or a single longer name."""

_NONE = Previous("", {}, set())

HEADER = 1024
"""Bytes that an entry takes in a tar, about."""

_CREATE = {
    True: (
        "--format=posix",
        "--pax-option=delete=atime,delete=ctime",
        "--sparse",
        "--xattrs",
        "--xattrs-include=security.capability",
        "--xattrs-include=user.*",
        "--xattrs-include=system.posix_acl_*",
        "--xattrs-exclude=user.overlay.*",
    ),
    False: ("--format=gnu",),
}
"""How the tar is made for GNU tar, and for others."""

_EXTRACT = {
    True: "tar -x -p --numeric-owner --same-owner --xattrs --xattrs-include='*' --warning=no-timestamp -f -",
    False: "tar -x -p -f -",
}


class Plan(NamedTuple):
    """What is sent of a tree, in its order, and what of its predecessor is removed before."""

    chosen: list[str]
    gone: set[str]


class Look(NamedTuple):
    """A tree's folders, and files with several names."""

    folders: set[str]
    groups: Groups


def tree(way: Way, source: Source, folder: str, previous: Previous | None, progress: Progress) -> int:
    """As `transfer.tree`. An earlier try's rest is removed. All of the tree is verified there, but for attributes."""
    entries = source.entries
    _check(way, folder, entries)
    part = beside(folder, _PART)
    if begin(way, folder, part, keep=False) == "there":
        return 0
    old = _copied(way, folder, part, previous, entries) if previous else _NONE
    sent = _send(way, source, folder, part, old, progress)
    listed = text(entries)
    wrong = verify.tree(way.shell, part, listed)
    if wrong and old.entries:
        # The predecessor is not what it was.
        begin(way, folder, part, keep=False)
        sent += _send(way, source, folder, part, _NONE, progress)
        wrong = verify.tree(way.shell, part, listed)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
        raise BuildError(
            f"{way.shell.where}: {folder}: did not arrive as it is here: {wrong[0]}{more}",
            hint="look after that machine's disk and its tar, or install rsync there",
        )
    complete(way, folder, part)
    return sent


def _check(way: Way, folder: str, listing: Mapping[str, Entry]) -> None:
    """Raise BuildError for what the machine's programs can't make."""
    lacking = [tool for tool in ("tar", "stat", "touch") if tool not in way.tools]
    if lacking:
        raise BuildError(
            f"{way.shell.where}: {folder}: has no rsync, and no {' and no '.join(lacking)}",
            hint="install rsync there",
        )
    plain = "gnutar" not in way.tools
    beyond = [path for path, entry in listing.items() if entry.kind == "s" or (plain and entry.attributes)]
    if beyond:
        more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        names = ", ".join(shown(path) for path in beyond[:3])
        what = "capabilities, ACLs or other attributes, or are sockets" if plain else "are sockets"
        raise BuildError(
            f"{way.shell.where}: {folder}: some files have {what}, which its tar can't make: {names}{more}",
            hint=f"install rsync {'or GNU tar ' if plain else ''}there",
        )


def _copied(way: Way, folder: str, part: str, previous: Previous, new: Mapping[str, Entry]) -> Previous:
    """Fill `part` with links to a predecessor's files; gives what is in there, nothing if that can't be."""
    if loses_attributes(previous.entries, new):
        return _NONE
    before = quote(previous.folder)
    script = f"""\
rmdir {quote(part)} || exit 1
[ -d {before} ] && cp -al {before} {quote(part)} && echo copied && exit 0
rm -rf {quote(part)}
mkdir {quote(part)}
"""
    if ask(way, folder, script).strip() != b"copied":
        return _NONE
    there = look(way, folder, part)
    if there.folders != {path for path, entry in previous.entries.items() if entry.kind == "d"}:
        # Something is planted there, perhaps a link: nothing is removed along its paths.
        begin(way, folder, part, keep=False)
        return _NONE
    return previous._replace(groups=there.groups)


def loses_attributes(old: Mapping[str, Entry], new: Mapping[str, Entry]) -> bool:
    """Whether a folder has other attributes than it had: a tar adds them, and takes none away."""
    folders = (path for path, entry in old.items() if entry.kind == "d")
    return any(path in new and new[path].attributes != old[path].attributes for path in folders)


def planned(new: Mapping[str, Entry], here: Groups, previous: Previous) -> Plan:
    """What makes a tree that is like its predecessor the new one."""
    old = previous.entries
    changed = {path for path, entry in new.items() if old.get(path) != entry}
    if old:
        changed |= {path for group in here ^ previous.groups for path in group if path in new}
    for group in here:
        if group & changed:
            changed |= group
    gone = {path for path in old if path not in new or (path in changed and not _are_folders(old[path], new[path]))}
    # What is in them changes folders' times; and not every cp copies their attributes.
    folders = {parent(path) for path in changed | gone} & new.keys()
    folders |= {path for path, entry in new.items() if old and entry.kind == "d" and entry.attributes}
    chosen = [path for path in new if path in changed or (path in folders and new[path].kind == "d")]
    return Plan(chosen, gone)


def removed(plan: Plan, old: Mapping[str, Entry]) -> Iterator[str]:
    """Quoted names of what is removed first, as many as a command takes."""
    return batches(path for path in old if path in plan.gone and parent(path) not in plan.gone)


def _send(way: Way, source: Source, folder: str, part: str, old: Previous, progress: Progress) -> int:
    """Make the tree in `part`, which is as `old` says, what the source is. Returns bytes that were sent."""
    new = source.entries
    plan = planned(new, source.groups, old)
    if plan.gone:
        _run(way, folder, part, (f"rm -rf {names}" for names in removed(plan, old.entries)))
    total = sum(new[path].size + HEADER for path in plan.chosen)
    where = source.some(plan.chosen) if old.entries else source.whole()
    sent = pump(way, where, folder, part, plan.chosen, lambda done: progress(min(done, total), total))
    if "gnutar" not in way.tools:
        _run(way, folder, part, _mended(where, [new[path] for path in plan.chosen if new[path].kind in "dl"]))
    return sent


def _mended(source: Path, entries: Iterable[Entry]) -> Iterator[str]:
    """What BusyBox' tar leaves out: commands for the times of folders and symbolic links, and the latter's owners."""
    owners: dict[str, list[str]] = {}
    times: dict[int, list[str]] = {}
    for entry in entries:
        if entry.kind == "l" and entry.owner != "0:0":
            owners.setdefault(entry.owner, []).append(entry.path)
        times.setdefault(int(os.lstat(source / entry.path).st_mtime), []).append(entry.path)
    for owner, paths in owners.items():
        yield from (f"chown -h {owner} {names}" for names in batches(paths))
    for time, paths in times.items():
        yield from (f"touch -h -d @{time} {names}" for names in batches(paths))


def _are_folders(*entries: Entry) -> bool:
    return all(entry.kind == "d" for entry in entries)


def parent(path: str) -> str:
    return os.path.dirname(path) or "."


def _run(way: Way, folder: str, part: str, lines: Iterable[str]) -> None:
    ask(way, folder, "\n".join([f"cd {quote(part)} || exit 1", *(f"{line} || exit 1" for line in lines)]))


def batches(paths: Iterable[str]) -> Iterator[str]:
    """Quoted names, as many as a command takes."""
    batch: list[str] = []
    size = 0
    for path in paths:
        word = quote(f"./{path}")
        if batch and size + len(word) > _BATCH:
            yield " ".join(batch)
            batch, size = [], 0
        batch.append(word)
        size += len(word.encode(errors="surrogateescape")) + 1
    if batch:
        yield " ".join(batch)


def pump(way: Way, source: Path, folder: str, part: str, paths: list[str], tell: Tell, *, held: bool = False) -> int:
    """Entries of `source` into `part`, by tar; bytes that were sent.

    held -- they are few: they go the way of scripts, since a connection of their own would take longer
    """
    gnu = "gnutar" in way.tools
    sent = 0
    with tempfile.TemporaryDirectory() as scratch:
        names, errors = Path(scratch) / "names", Path(scratch) / "errors"
        names.write_bytes(b"".join(f"./{path}\0".encode(errors="surrogateescape") for path in paths))
        line = ["tar", "--create", "--numeric-owner", *_CREATE[gnu], "--no-recursion", f"--directory={source}"]
        line += ["--null", "--verbatim-files-from", f"--files-from={names}"]
        if not held:
            # Less often woken, both ends take less time; a few files would be padded to as much.
            line.append(f"--blocking-factor={CHUNK // 512}")
        with _output(["sh", "-c", 'exec "$@" 2>"$0"', str(errors), *line]) as archive:

            def feed(write: Callable[[bytes], object]) -> None:
                nonlocal sent
                while data := archive.read(CHUNK):
                    write(data)
                    sent += len(data)
                    tell(sent)

            # What tar can't set, an attribute perhaps, it tells, and succeeds.
            script = f'said=$({_EXTRACT[gnu]} 2>&1); status=$?; printf "%s" "$said"; [ -z "$said" ] || status=1; '
            if held:
                # It ends when it is told to, not with its archive.
                script = f"cd {quote(part)} || exit 1; {script} cat >/dev/null; exit $status"
                shell = way.shell.hold(f"echo ready; {script}")
                shell.until(b"ready")
                feed(shell.send)
                answer = shell.end()
                status, said = answer.status, [*answer.out.decode(errors="replace").splitlines(), answer.err]
            else:
                script = f"{STEADY}\ncd {quote(part)} || exit 1; steady .; {script} steadied .; exit $status"
                status, said = pour(way.line(script), lambda pipe: feed(pipe.write))
        complaints = errors.read_text(errors="replace").splitlines()
    if status:
        raise failure(way, folder, said, status)
    if complaints:
        raise BuildError(f"{source}: can't be read: {complaints[0]}")
    return sent


@contextlib.contextmanager
def _output(line: list[str]) -> Iterator[IO[bytes]]:
    """What a command writes; it is ended when nobody reads it any more."""
    process = converse(line)
    assert process.stdin and process.stdout
    try:
        process.stdin.close()
        wide(process.stdout)
        yield process.stdout
    finally:
        process.stdout.close()
        end(process)


def look(way: Way, folder: str, part: str) -> Look:
    """A tree there that becomes `folder`."""
    words = ask(way, folder, _LOOK.format(part=quote(part))).decode(errors="surrogateescape").split("\0")
    middle = words.index("")
    found: dict[str, set[str]] = {}
    for word in words[middle + 1 : -1]:
        inode, _, path = word.partition(" ")
        found.setdefault(inode, set()).add(path.removeprefix("./"))
    return Look({path.removeprefix("./") for path in words[:middle]}, {frozenset(group) for group in found.values()})


_LOOK = """\
cd {part} || exit 1
find . -xdev -type d -exec sh -c 'printf "%s\\0" "$@"' sh {{}} + || exit 1
printf '\\0'
set --
for inode in $(find . -xdev ! -type d -exec stat -c %i {{}} + | sort | uniq -d); do
    [ $# -eq 0 ] || set -- "$@" -o
    set -- "$@" -inum "$inode"
done
[ $# -eq 0 ] || find . -xdev ! -type d '(' "$@" ')' -exec sh -c '
    for path; do printf "%s %s\\0" "$(stat -c %i "$path")" "$path"; done
' sh {{}} +
"""
