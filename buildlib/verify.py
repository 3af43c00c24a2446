"""What lies on a target, checked there against what was published: by sh, find, sha256sum and stat, BusyBox' too.

Programs write odd names each in a way of its own. So a script tells names first, each ended by a NUL and a list of them
by an empty one, and then what the program says of them, which is read by the names that it must hold.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from buildlib import together
from buildlib.errors import BuildError
from buildlib.listing import KINDS, Entry, read, shown
from buildlib.release import CHECKSUMS, PROOF, SIGNATURE
from buildlib.shell import Shell, quote

BESIDE = (CHECKSUMS, SIGNATURE, PROOF)
"""Files of a release that its checksums don't name."""

_BATCH = 24 * 1024
"""Bytes of names that one command gets at most, or a single longer name."""

_MUCH = 64 << 20
"""Bytes whose digests take longer than another script."""

_MISSING = 9
"""A script's status when its folder is not there."""

_LETTERS = {0o10: "f", 0o04: "d", 0o12: "l", 0o02: "c", 0o06: "b", 0o01: "p", 0o14: "s"}
"""An entry's kind by the upper bits of its mode."""

_LINE = re.compile(rb"\\?([0-9a-f]{64}) [ *]")
_STATUS = re.compile(rb"([0-9a-f]+) ([0-9]+) ([0-9]+) ([0-9]+) ([0-9a-f]+) ([0-9a-f]+) ")

_NAMES = r"""printf "%s\0" "$@" """
_SUM = r"""printf "%s\0" "$@" ""; $SUM "$@"; :"""
_STAT = r"""printf "%s\0" "$@" ""; stat -c "%f %u %g %s %t %T %N" "$@"; :"""
_END = r"printf '\0'"

_PROGRAM = f"""\
SUM=sha256sum
case $(printf abc | openssl dgst -sha256 -r 2>/dev/null) in
{hashlib.sha256(b"abc").hexdigest()}*) SUM="openssl dgst -sha256 -r" ;;
esac
export SUM"""
"""What tells digests: OpenSSL, where it is, uses the processor's own instructions, and takes a fifth of the time."""

_FEW = f"""\
sums() {{
    for name; do
        [ -f "$name" ] && [ ! -L "$name" ] && continue
        # Neither what a link leads to, which may be anywhere, nor a pipe, which nobody may ever write to.
        for name; do
            shift
            if [ -f "$name" ] && [ ! -L "$name" ]; then set -- "$@" "$name"; fi
        done
        break
    done
    [ $# -gt 0 ] || return 0
    {_SUM}
}}
"""

_RELEASE = f"""\
find . -xdev ! -type d ! -type f -exec sh -c '{_NAMES}' sh {{}} + || exit 1
{_END}
find . -xdev -type d -exec sh -c '{_NAMES}' sh {{}} + || exit 1
{_END}
find . -xdev -type f -exec sh -c '{_SUM}' sh {{}} + || exit 1
"""

_TREE = f"""\
find . -xdev -exec sh -c '{_STAT}' sh {{}} + || exit 1
{_END}
find . -xdev -type f -exec sh -c '{_SUM}' sh {{}} + || exit 1
"""


@dataclass(frozen=True)
class Finding:
    """What is wrong with an entry of a published folder; `.` is the folder itself."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.problem}"


def digests(shell: Shell, folder: str, wanted: Mapping[str, str], sizes: Mapping[str, int] | None = None) -> list[str]:
    """Those of the files `wanted` whose content there is another one, or that are not there.

    wanted -- SHA-256 in hex by path relative to `folder`
    sizes  -- bytes by path: where they are many, two programs share the work
    """
    parts = [list(wanted)]
    if sizes is not None and sum(sizes[path] for path in wanted) > _MUCH:
        parts = _halves(wanted, sizes)
    found: dict[str, str] = {}
    for part in together.every(parts, lambda paths: _digests(shell, folder, paths)):
        found |= part
    return [path for path, digest in wanted.items() if found.get(path) != digest]


def _halves(paths: Iterable[str], sizes: Mapping[str, int]) -> list[list[str]]:
    """Two lists of about as many bytes, each in the order given."""
    halves: list[list[str]] = [[], []]
    bytes_of = [0, 0]
    for path in paths:
        lesser = bytes_of.index(min(bytes_of))
        halves[lesser].append(path)
        bytes_of[lesser] += sizes[path]
    return halves


def _digests(shell: Shell, folder: str, paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 in hex by path, of those that are there."""
    batches: list[list[str]] = [[]]
    size = 0
    for path in paths:
        length = len(path.encode(errors="surrogateescape")) + len("./ ")
        if size + length > _BATCH and batches[-1]:
            batches.append([])
            size = 0
        batches[-1].append(path)
        size += length
    calls = "".join(f"sums {' '.join(quote(f'./{path}') for path in batch)}\n" for batch in batches)
    data = _ask(shell, folder, _FEW + calls, "sha256sum")
    return dict(_Answer(data).sums()) if data is not None else {}


def release(shell: Shell, folder: str, sums: str) -> list[Finding]:
    """What is wrong with the files of a release there: missing, not of it, no file, or of another content.

    sums -- text of its SHA256SUMS
    """
    wrong = []
    wanted: dict[str, str] = {}
    for number, line in enumerate(sums.splitlines(), 1):
        digest, _, path = line.partition("  ")
        if not re.fullmatch("[0-9a-f]{64}", digest) or not path:
            wrong.append(Finding(CHECKSUMS, f"line {number} can't be read"))
            continue
        wanted[path] = digest
    data = _ask(shell, folder, _RELEASE, "find", "sha256sum")
    if data is None:
        return [Finding(".", "is missing")]
    answer = _Answer(data)
    odd = answer.names()
    folders = answer.names()
    found = dict(answer.sums())
    known = {".", *(str(parent) for path in wanted for parent in PurePosixPath(path).parents)}
    wrong += [Finding(path, "is no file") for path in odd]
    wrong += [Finding(path, "is a folder that is not of the release") for path in folders if path not in known]
    for path, digest in found.items():
        if path not in wanted and path not in BESIDE:
            wrong.append(Finding(path, "is not of the release"))
        elif digest != wanted.get(path, digest):
            wrong.append(Finding(path, "has another content" if digest else "can't be read"))
    wrong += [Finding(path, "is missing") for path in wanted if path not in found and path not in odd]
    return sorted(wrong, key=lambda finding: finding.path)


def tree(shell: Shell, folder: str, listing: str) -> list[Finding]:
    """What is wrong with a root tree there: missing or not of it, or of another kind, mode, owner or content.

    listing -- text of what it must hold. Times and extended attributes are not looked at.
    Of what a folder holds that is missing or not of the tree, nothing is told.
    """
    data = _ask(shell, folder, _TREE, "find", "sha256sum", "stat")
    if data is None:
        return [Finding(".", "is missing")]
    answer = _Answer(data)
    found = answer.entries()
    for path, digest in answer.sums():
        if path in found:
            found[path] = found[path]._replace(content=digest)
    wrong = []
    lost = set()
    wanted = read(listing)
    for path in sorted(wanted.keys() | found.keys(), key=lambda path: path.split("/")):
        problems = _problems(wanted.get(path), found.get(path))
        there, should = found.get(path), wanted.get(path)
        if there is None or should is None or there.kind != should.kind:
            lost.add(path)
            if path.rpartition("/")[0] in lost:
                continue
        if problems:
            wrong.append(Finding(path, ", ".join(problems)))
    return wrong


def _problems(wanted: Entry | None, found: Entry | None) -> list[str]:
    if found is None:
        return ["is missing"]
    if wanted is None:
        return ["is not of the tree"]
    if found.kind != wanted.kind:
        return [f"is a {KINDS[found.kind]}, not a {KINDS[wanted.kind]}"]
    wrong = []
    if found.mode != wanted.mode:
        wrong.append(f"mode {found.mode:04o}, not {wanted.mode:04o}")
    if found.owner != wanted.owner:
        wrong.append(f"owner {found.owner}, not {wanted.owner}")
    if found.content != wanted.content:
        if found.kind == "f":
            wrong.append("another content" if found.content else "can't be read")
        else:
            verb = "points to" if found.kind == "l" else "is device"
            wrong.append(f"{verb} {shown(found.content)}, not {shown(wanted.content)}")
    return wrong


def _ask(shell: Shell, folder: str, script: str, *tools: str) -> bytes | None:
    """What a script writes that runs in a folder there; None without that folder."""
    head = f"""\
export QUOTING_STYLE=literal
{_PROGRAM}
for tool in {" ".join(tools)}; do
    command -v "$tool" >/dev/null || {{ echo "there is no program $tool" >&2; exit 1; }}
done
[ -d {quote(folder)} ] || exit {_MISSING}
cd {quote(folder)} || exit 1
"""
    answer = shell.run(f"{head}{script}\nexit 0\n")
    if answer.status == _MISSING:
        return None
    if answer.status:
        said = answer.err.strip().splitlines() or [f"exit status {answer.status}"]
        raise BuildError(f"{shell.where}: {folder} can't be checked: {said[0]}")
    return answer.out


class _Answer:
    """What a script wrote, read from its beginning. Paths lose their `./`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def names(self) -> list[str]:
        """A list of names."""
        return [_path(name) for name in self._list()]

    def sums(self) -> Iterator[tuple[str, str]]:
        """All lists of files to the end with their digests; those that could not be read with none."""
        while self._at < len(self._data):
            for name in self._list():
                yield _path(name), self._sum(name)

    def entries(self) -> dict[str, Entry]:
        """All lists up to an empty one with what stat says; contents of files are still to come."""
        found = {}
        while names := self._list():
            for name in names:
                entry = self._status(name)
                if entry is not None:
                    found[entry.path] = entry
        return found

    def _list(self) -> list[bytes]:
        found: list[bytes] = []
        while True:
            end = self._data.find(b"\0", self._at)
            name = self._data[self._at : end]
            if end < 0 or not (name in (b"", b".") or name.startswith(b"./")):
                raise BuildError(f"an answer can't be read: {shown(name[:60].decode(errors='surrogateescape'))}")
            self._at = end + 1
            if not name:
                return found
            found.append(name)

    def _sum(self, name: bytes) -> str:
        line = _LINE.match(self._data, self._at)
        if line is None:
            return ""
        marked = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        for form in (name, marked, marked.replace(b"\r", b"\\r"), name.replace(b"\n", b"\\n")):
            if self._data.startswith(form + b"\n", line.end()):
                self._at = line.end() + len(form) + 1
                return line[1].decode()
        return ""

    def _status(self, name: bytes) -> Entry | None:
        line = _STATUS.match(self._data, self._at)
        if line is None:
            return None
        mode, size = int(line[1], 16), int(line[4])
        kind = _LETTERS[mode >> 12]
        content = "-"
        at = line.end()
        quoted = self._data.startswith(b"'" + name + b"'", at)
        form = b"'" + name + b"'" if quoted else name
        if not self._data.startswith(form, at):
            return None
        at += len(form)
        if kind == "l":
            start = at + len(b" -> ") + quoted
            content = self._data[start : start + size].decode(errors="surrogateescape")
            at = start + size + quoted
        elif kind in "cb":
            content = f"{int(line[5], 16)},{int(line[6], 16)}"
        if self._data[at : at + 1] != b"\n":
            return None
        self._at = at + 1
        owner = f"{line[2].decode()}:{line[3].decode()}"
        return Entry(_path(name), kind, mode & 0o7777, owner, 0, size if kind == "f" else 0, content)


def _path(name: bytes) -> str:
    return name.removeprefix(b"./").decode(errors="surrogateescape")
