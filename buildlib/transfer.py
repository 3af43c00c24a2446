"""Releases on their way to a target's machine: files by streams that go on where they ended, trees by rsync.

All of it comes into a folder beside the final one, `.ID.part`, is verified there and then renamed: what is found under
its name is complete and never changes. What a folder shares with its predecessor is linked to that one's files. So no
file that is there is ever written to: a changed one is a new one.
"""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from buildlib import transfer_little, transfer_tar, verify
from buildlib.errors import BuildError
from buildlib.listing import Entry, shown
from buildlib.release import CHECKSUMS
from buildlib.shell import quote
from buildlib.store import Output
from buildlib.way import CHUNK, STEADY, Previous, Progress, Source, Way, ask, begin, beside, complete, failure, pour

__all__ = ["Previous", "Progress", "Source", "Way", "files", "tools_script", "tree"]

_PART = ".part"

_SMALL = 1 << 20
"""Bytes of a file that travels with others: a connection of its own would take longer than itself."""

_LONG = 64 << 20
"""Bytes that take long enough to be put on to the disk while they come."""

_TRIES = 2
"""How often a file is sent before its machine is given up."""

_ATTRIBUTES = ("-AX", "--filter=-x user.overlay.*", "--filter=+x user.*", "--filter=+x security.capability")

_SENT = re.compile(r"sent ([0-9,.]+) bytes")
_DONE = re.compile(r"\s*([0-9,.]+)\s+[0-9]+%\s+\S+\s+[0-9:]+\s*(?:\(.*?\))?")


def tools_script() -> str:
    """Lines of a shell script that write what is there, a word a line.

    Programs by their names; `gnutar` for GNU tar; `rsync-attributes` for an rsync that knows attributes and ACLs; `aes`
    for a processor with instructions for it.
    """
    return """\
for tool in rsync tar flock sha256sum stat touch find; do
    if command -v "$tool" >/dev/null 2>&1; then echo "$tool"; fi
done
case "$(tar --version 2>/dev/null)" in *"GNU tar"*) echo gnutar ;; esac
case "$(rsync --version 2>/dev/null | tr '\\n' ' ')" in
*"no ACLs"* | *"no xattrs"*) ;;
*ACLs*xattrs*) echo rsync-attributes ;;
esac
! grep -qw aes /proc/cpuinfo 2>/dev/null || echo aes"""


def files(
    way: Way,
    source: Path,
    wanted: Mapping[str, Output],
    folder: str,
    *,
    previous: str | None,
    progress: Progress,
) -> int:
    """Make the new folder `folder` there with files of the folder `source`; nothing when it is there.

    wanted   -- digest and size by name, which may have folders in it
    previous -- a release's folder there, whose files are used where they are the same
    Returns bytes that were sent. Raises BuildError when something fails, or arrives with another content, twice.
    """
    part = beside(folder, _PART)
    if begin(way, folder, part, keep=True) == "there":
        return 0
    ask(way, folder, _shared(wanted, part, previous))
    sent = tries = 0
    left: Iterable[str] = wanted
    sizes = {name: output.size for name, output in wanted.items()}
    while left := verify.digests(way.shell, part, {name: wanted[name].digest for name in left}, sizes):
        if previous is not None and tries == 0 and _by_rsync(way):
            # What is like its predecessor, such as a listing, goes as the difference.
            sent += _differences(way, source, left, folder, part, previous)
            previous = None
            continue
        if tries == _TRIES:
            raise _broken(way, folder, left)
        tries += 1
        there = _cleared(way, folder, part, {name: wanted[name] for name in left})
        total = sum(wanted[name].size - there.get(name, 0) for name in left)
        done = 0

        def tell(more: int, total: int = total) -> None:
            nonlocal done
            done += more
            progress(done, total)

        small = [name for name in left if wanted[name].size < _SMALL and name not in there]
        if small:
            _send_small(way, source, small, folder, part, tell)
        for name in left:
            if name not in small:
                _send_file(way, source / name, wanted[name], folder, f"{part}/{name}", there.get(name, 0), tell)
        sent += done
    known = " ".join(f"! -path {quote(_pattern(f'./{name}'))}" for name in wanted)
    before = f"""\
find . ! -type d {known} -exec rm -f {{}} + || exit 1
find . -type f ! -perm 0444 -exec chmod 0444 {{}} + || exit 1
find . -type d ! -perm 0755 -exec chmod 0755 {{}} + || exit 1"""
    complete(way, folder, part, before)
    return sent


def _by_rsync(way: Way) -> bool:
    return "rsync" in way.tools and shutil.which("rsync") is not None


def _differences(way: Way, source: Path, names: Iterable[str], folder: str, part: str, previous: str) -> int:
    """Send files by what differs from those of the same name in `previous`; bytes that were sent."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(f"./{name}\0".encode() for name in names))
        file.flush()
        # By checksums: kernels of equal size and time are not the same.
        options = ["--checksum", "--no-whole-file", f"--copy-dest={previous}", "--from0", f"--files-from={file.name}"]
        return _rsync(way, source, folder, part, options, lambda _done: None)


def _pattern(path: str) -> str:
    return re.sub(r"([][*?\\])", r"\\\1", path)


def _broken(way: Way, folder: str, paths: Iterable[str]) -> BuildError:
    some = sorted(paths)
    more = f" and {len(some) - 3} more" if len(some) > 3 else ""
    names = ", ".join(shown(path) for path in some[:3])
    return BuildError(
        f"{way.shell.where}: {folder}: arrived with another content, also when sent again: {names}{more}",
        hint="look after that machine's disk and memory, and this one's: ./doit build checks what it has",
    )


def _shared(wanted: Mapping[str, Output], part: str, previous: str | None) -> str:
    """A script that makes the folders of `part`, and links what `previous` has into them, or copies it.

    A link is made to files that are read-only alone: others would get another mode by it.
    """
    folders = sorted({posixpath.dirname(name) or "." for name in wanted})
    lines = ["umask 022", f"cd {quote(part)} || exit 1", f"mkdir -p {' '.join(map(quote, folders))} || exit 1"]
    if previous is not None:
        lines += [f"old={quote(previous)}", _SHARE]
        lines += [f"share {output.digest} {quote(name)} || exit 1" for name, output in sorted(wanted.items())]
    return "\n".join(lines)


_SHARE = f"""\
[ -f "$old/{CHECKSUMS}" ] || exit 0
share() {{
    [ ! -e "$2" ] && [ ! -L "$2" ] || return 0
    name=$(sed -n "s/^$1  //p" "$old/{CHECKSUMS}" | head -n 1)
    [ -n "$name" ] && [ -f "$old/$name" ] && [ ! -L "$old/$name" ] || return 0
    [ -n "$(find "$old/$name" -perm 0444)" ] && ln "$old/$name" "$2" 2>/dev/null || cp "$old/$name" "$2"
}}
"""


def _cleared(way: Way, folder: str, part: str, wrong: Mapping[str, Output]) -> dict[str, int]:
    """Remove files that are wrong; give the bytes that are there of those that an earlier try began to send."""
    lines = [f"cd {quote(part)} || exit 1", f"rm -rf {' '.join(quote(f'./{name}') for name in wrong)} || exit 1"]
    for digest in sorted({output.digest for output in wrong.values()}):
        lines.append(f'[ ! -f .{digest} ] || echo {digest} "$(wc -c <.{digest})"')
    said = dict(line.split() for line in ask(way, folder, "\n".join(lines)).decode().splitlines())
    begun = {name: int(said.get(output.digest, 0)) for name, output in wrong.items()}
    return {name: size for name, size in begun.items() if 0 < size <= wrong[name].size}


def _send_small(way: Way, source: Path, names: list[str], folder: str, part: str, tell: transfer_tar.Tell) -> None:
    def feed(pipe: IO[bytes]) -> None:
        with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for name in names:
                data = (source / name).read_bytes()
                member = tarfile.TarInfo(name)
                member.size = len(data)
                member.mode = 0o444
                with (source / name).open("rb") as file:
                    tar.addfile(member, file)
                tell(len(data))

    status, said = pour(way.line(f"umask 022; cd {quote(part)} && tar -xf -"), feed)
    if status:
        raise failure(way, folder, said, status)


def _send_file(way: Way, path: Path, output: Output, folder: str, to: str, begun: int, tell: transfer_tar.Tell) -> None:
    """Send what is missing of a file. It has its digest as name until then: it is no other file's link for sure."""

    def feed(pipe: IO[bytes]) -> None:
        with path.open("rb") as file:
            at = begun
            while size := os.sendfile(pipe.fileno(), file.fileno(), at, CHUNK):
                at += size
                tell(size)

    partial = quote(posixpath.join(beside(folder, _PART), f".{output.digest}"))
    into = f"cat {'>>' if begun else '>'}{partial}"
    if output.size - begun > _LONG:
        beneath = quote(posixpath.dirname(to))
        into = f"{STEADY}\nsteady {beneath}; {into}; status=$?; steadied {beneath}; [ $status = 0 ]"
    script = (
        f"umask 022; {into} && "
        f'if [ "$(wc -c <{partial})" -eq {output.size} ]; then mv -f {partial} {quote(to)}; '
        "else echo connection lost >&2; exit 1; fi"
    )
    status, said = pour(way.line(script), feed)
    if status:
        raise failure(way, folder, said, status)


def tree(way: Way, source: Source, folder: str, *, previous: Previous | None, progress: Progress) -> int:
    """Make the new folder `folder` there of the root tree `source`, with all that a file system knows of it.

    Nothing is done when `folder` is there. Returns bytes that were sent. Raises BuildError.
    """
    entries = source.entries
    attributed = any(entry.attributes for entry in entries.values())
    if not _by_rsync(way) or (attributed and "rsync-attributes" not in way.tools):
        return transfer_tar.tree(way, source, folder, previous, progress)
    part = beside(folder, _PART)
    begun = begin(way, folder, part, keep=True)
    if begun == "there":
        return 0
    before, old, groups = previous or Previous("", {}, set())
    if begun == "new" and old:
        little = transfer_little.tree(way, source, folder, part, Previous(before, old, groups), progress)
        if little is not None:
            return little
    changed = {path for path, entry in entries.items() if old.get(path) != entry}
    total = sum(entries[path].size for path in changed)

    def tell(done: int) -> None:
        progress(min(done, total), total)

    if begun == "new" and not old and "gnutar" in way.tools and all(entry.kind != "s" for entry in entries.values()):
        # Where there is nothing to compare with, a tar takes less time.
        sent = transfer_tar.pump(way, source.whole(), folder, part, list(entries), tell)
    else:
        options = ["--delete", "--partial", *([f"--link-dest={before}"] if before else [])]
        sent = _rsync(way, source.whole(), folder, part, options, tell)
    # Size and time tell rsync that a file is the same. They don't: builds set times back.
    again = {path for path in changed & old.keys() if _looks_same(old[path], entries[path])}
    if begun == "kept" or source.groups != groups:
        again |= _linked_otherwise(way, source, folder, part)
    sent += _again(way, source, folder, part, again)
    # What an earlier try has left may have been like another predecessor.
    travelled = changed | again if begun == "new" else entries.keys()
    wanted = {path: entries[path].content for path in travelled if entries[path].kind == "f"}
    wrong = verify.digests(way.shell, part, wanted, {path: entries[path].size for path in wanted})
    if wrong:
        sent += _again(way, source, folder, part, wrong)
        wrong = verify.digests(way.shell, part, {path: wanted[path] for path in wrong})
    if wrong:
        raise _broken(way, folder, wrong)
    complete(way, folder, part)
    return sent


def _looks_same(old: Entry, new: Entry) -> bool:
    return old.kind == new.kind == "f" and (old.size, old.mtime) == (new.size, new.mtime) and old.content != new.content


def _linked_otherwise(way: Way, source: Source, folder: str, part: str) -> set[str]:
    """Files that share an inode there with others than here."""
    entries = source.entries
    groups = transfer_tar.look(way, folder, part).groups ^ source.groups
    return {path for group in groups for path in group if path in entries and entries[path].kind == "f"}


def _again(way: Way, source: Source, folder: str, part: str, paths: Iterable[str]) -> int:
    """Send files whatever there is, with all their other names: each as a new file."""
    chosen = set(paths)
    if not chosen:
        return 0
    for group in source.groups:
        if group & chosen:
            chosen |= group
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(f"./{path}\0".encode(errors="surrogateescape") for path in sorted(chosen)))
        file.flush()
        options = ["--ignore-times", "--from0", f"--files-from={file.name}"]
        return _rsync(way, source.whole(), folder, part, options, lambda _done: None)


def _rsync(way: Way, source: Path, folder: str, part: str, options: list[str], tell: transfer_tar.Tell) -> int:
    """Run rsync; bytes that it has sent."""
    sent = 0

    def on_line(line: str) -> None:
        nonlocal sent
        if found := _DONE.match(line):
            tell(_number(found[1]))
        elif found := _SENT.match(line):
            sent = _number(found[1])

    line = ["rsync", "-aHS", "--numeric-ids", "-s", "--no-human-readable", "--info=progress2,stats1"]
    if "rsync-attributes" in way.tools:
        line += [*_ATTRIBUTES, "--filter=-x *"]
    to = f"{part}/"
    if way.ssh:
        *program, host = way.ssh
        user, at, name = host.rpartition("@")
        to = f"{user}{at}{f'[{name}]' if ':' in name else name}:{to}"
        line += [f"--rsh={shlex.join(program)}", *(["--rsync-path=sudo -n rsync"] if way.sudo else [])]
    status, said = pour([*line, *options, f"{source.absolute()}/", to], on_line=on_line)
    if status:
        raise failure(way, folder, [_DONE.sub("", line) for line in said], status)
    return sent


def _number(text: str) -> int:
    return int(re.sub("[,.]", "", text))
