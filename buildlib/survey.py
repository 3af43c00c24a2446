"""What a target's machine has and is, found out by one script: tools, space, releases, menus, clients; and its lock.

The script is POSIX sh with the tools of BusyBox. It only looks, but for the lock.
"""

from __future__ import annotations

import io
import re
import shlex
import socket
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from buildlib import transfer
from buildlib.bootmenu import ENTRIES
from buildlib.errors import BuildError
from buildlib.files import Far
from buildlib.place import IMAGES, MENUS

MARK = b"=== that is all ==="
LOCK = ".netboot.lock"
INCOMING = ".incoming"
_TAR = b"=== what follows is a tar ==="
BEAT = 5.0
"""Seconds between signs of life of who holds the lock."""
DEAD = 60
"""Seconds without a sign of life after which a lock is nobody's."""
ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")

_NAME = r"[a-z0-9][a-z0-9_.-]*"
_SWITCH = re.compile(rf"\.\./{MENUS}/({_NAME})/[0-9a-f]{{12}}")


@dataclass(frozen=True)
class Want:
    """What to look at on a machine. All paths are absolute.

    boot    -- the boot root, if it is there
    images  -- folders that hold `images/`
    nfs     -- the folder of root trees
    menus   -- folders of menus below the boot root, "." being itself
    digests -- files whose digest is asked for
    texts   -- files whose content is
    """

    boot: str | None = None
    images: tuple[str, ...] = ()
    nfs: str | None = None
    menus: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def roots(self) -> tuple[str, ...]:
        """All folders that the site file names."""
        return tuple(dict.fromkeys(path for path in (self.boot, *self.images, self.nfs) if path))


@dataclass(frozen=True)
class Root:
    """A folder that the site file names: is it there, can it be written to, free space in bytes."""

    there: bool
    writable: bool
    space: int


@dataclass(frozen=True)
class Facts:
    """What was found.

    user    -- numeric id of who the scripts run as
    tools   -- see `transfer.tools_script`
    planted -- symbolic links where folders should be
    folders -- releases, trees, and what killed pushes left, by path
    clients -- addresses that are connected to the NFS server
    mounts  -- (address, path) that clients mounted by NFS 3, as far as the server still knows
    files   -- the small files
    taken   -- whose stale lock was taken over
    """

    user: int
    tools: frozenset[str]
    roots: Mapping[str, Root]
    planted: tuple[str, ...]
    folders: tuple[str, ...]
    clients: frozenset[str]
    mounts: frozenset[tuple[str, str]]
    files: Far
    taken: str | None

    def releases(self, folder: str) -> list[str]:
        """IDs of the complete releases in a folder, oldest first."""
        found = (path.rpartition("/") for path in self.folders)
        return sorted(name for parent, _, name in found if parent == folder and ID.fullmatch(name))


class BusyError(BuildError):
    """Somebody else is publishing there."""


def script(want: Want, *, lock: str | None = None) -> str:
    """The script that looks. With `lock`, who wants it, it takes the lock before and keeps it while it lives."""
    parts = ["umask 022", "LC_ALL=C", "export LC_ALL"]
    if lock is not None:
        parts.append(
            _TAKE.format(
                lock=shlex.quote(f"{want.roots[0]}/{LOCK}"), who=shlex.quote(lock), dead=DEAD, mark=MARK.decode()
            )
        )
    parts += [_LOOK, 'printf "user %s\\n" "$(id -u)"', f"{{ {transfer.tools_script()}\n}} | sed 's/^/tool /'"]
    parts += [f"root {shlex.quote(path)}" for path in want.roots]
    parts += [f"plain {' '.join(map(shlex.quote, _folders(want)))}", *(f"plain {glob}" for glob in _globs(want, "*"))]
    parts += [f"have {glob}" for glob in _strays(want)]
    if want.nfs:
        parts.append(_CLIENTS)
    parts.append(f"digests {' '.join(map(shlex.quote, want.digests))}")
    parts += ["set --", *(f'for f in {glob}; do [ ! -e "$f" ] || set -- "$@" "$f"; done' for glob in _texts(want))]
    parts.append(f"printf '%s\\n' '{_TAR.decode()}'; [ $# -eq 0 ] || tar -cf - \"$@\" 2>/dev/null || :")
    parts.append(f"printf '\\n%s\\n' {shlex.quote(MARK.decode())}")
    if lock is not None:
        parts.append(_KEEP)
    return "\n".join(parts) + "\n"


def parse(output: bytes) -> Facts:
    """What the script wrote, up to its mark. Raises BusyError, and BuildError for what isn't such an output."""
    head, mark, archive = output.partition(_TAR + b"\n")
    lines = [line.partition(" ")[::2] for line in head.decode(errors="replace").splitlines()]
    for word, rest in lines:
        if word == "busy":
            raise BusyError(rest)
    if not mark:
        raise BuildError("the machine gave no sensible answer", hint=head.decode(errors="replace")[-500:])
    said: dict[str, list[str]] = {}
    for word, rest in lines:
        said.setdefault(word, []).append(rest)
    files, links = _unpacked(archive)
    digests = {path: digest for digest, _, path in (line.partition("  ") for line in said.get("digest", []))}
    roots = {}
    for line in said.get("root", []):
        there, writable, kilobytes, path = line.split(" ", 3)
        roots[path] = Root(there == "yes", writable == "yes", int(kilobytes or 0) * 1024)
    mounts = [line.split(":/", 1) for line in said.get("rmtab", []) if ":/" in line]
    return Facts(
        user=int(said["user"][0]),
        tools=frozenset(said.get("tool", [])),
        roots=roots,
        planted=tuple(said.get("link", [])) + tuple(_astray(links)),
        folders=tuple(said.get("have", [])),
        clients=frozenset(_addresses(said.get("tcp", []))),
        mounts=frozenset((client, f"/{rest.rpartition(':')[0]}") for client, rest in mounts),
        files=Far(files, links, digests),
        taken=next(iter(said.get("taken", [])), None),
    )


def _folders(want: Want) -> list[str]:
    """Folders of ours, which must not be links."""
    found = [f"{want.boot}/{name}" for name in (ENTRIES, MENUS, *want.menus) if name != "."] if want.boot else []
    return [*found, *(f"{path}/{IMAGES}" for path in want.images)]


def _globs(want: Want, last: str) -> Iterable[str]:
    """Of the folders of recipes, and below: shell patterns."""
    for path in want.images:
        yield f"{shlex.quote(f'{path}/{IMAGES}')}/{last} {shlex.quote(f'{path}/{IMAGES}')}/*/{last}"
    if want.boot:
        yield f"{shlex.quote(f'{want.boot}/{MENUS}')}/{last}"
    if want.nfs:
        yield f"{shlex.quote(want.nfs)}/{last} {shlex.quote(want.nfs)}/*/{last}"


def _strays(want: Want) -> Iterable[str]:
    for path in (*(f"{path}/{IMAGES}" for path in want.images), *([want.nfs] if want.nfs else [])):
        yield f"{shlex.quote(path)}/*/* {shlex.quote(path)}/*/.[!.]*"
    if want.boot:
        menus, entries = shlex.quote(f"{want.boot}/{MENUS}"), shlex.quote(f"{want.boot}/{ENTRIES}")
        yield f"{menus}/*/* {menus}/*/.[!.]* {entries}/.[!.]*"
    for path in want.roots:
        yield f"{shlex.quote(path)}/{INCOMING}*"


def _texts(want: Want) -> Iterable[str]:
    if want.boot:
        yield from (shlex.quote(f"{want.boot}/{name}") for name in (ENTRIES, MENUS))
        for name in want.menus:
            folder = shlex.quote(want.boot if name == "." else f"{want.boot}/{name}")
            # Menus, and not the boot loaders or whatever else lies beside them.
            yield f"{folder}/*.cfg {folder}/default {folder}/01-* {folder}/*.ipxe"
    for path in want.images:
        yield f"{shlex.quote(f'{path}/{IMAGES}')}/*/[0-9]*/manifest.json"
    yield from map(shlex.quote, want.texts)


def _unpacked(archive: bytes) -> tuple[dict[str, bytes], dict[str, str]]:
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    if not archive.strip():
        return files, links
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            path = f"/{member.name.strip('/')}"
            if member.issym():
                links[path] = member.linkname
            elif (content := tar.extractfile(member)) is not None:
                files[path] = content.read()
    return files, links


def _astray(links: Mapping[str, str]) -> Iterable[str]:
    """Links among entries that lead elsewhere than to an entry's menus."""
    for path, to in links.items():
        folder, _, name = path.rpartition("/")
        said = _SWITCH.fullmatch(to)
        if not (folder.endswith(f"/{ENTRIES}") and said and said[1] == name) and not name.startswith("."):
            yield path


def _addresses(lines: Iterable[str]) -> Iterable[str]:
    """The other ends of connections, of lines of /proc/net/tcp and tcp6."""
    for line in lines:
        raw = line.split()[2].partition(":")[0]
        words = [bytes.fromhex(raw[i : i + 8])[::-1] for i in range(0, len(raw), 8)]
        data = b"".join(words)
        if len(data) == 16 and data.startswith(bytes(10) + b"\xff\xff"):
            data = data[12:]
        yield socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


# Start times tell a process from a later one with its number. A link is made at once or not at all, also by NFS.
_TAKE = """\
lock={lock}
began() {{ sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }}
me="$$ $(began $$) $(date +%s) "{who}
tries=0
# Where nothing can be written nothing is published: that is found out, and said, after this.
until [ ! -w "${{lock%/*}}" ] || ln -s "$me" "$lock" 2>/dev/null; do
    old=$(readlink "$lock") || old=
    tries=$((tries + 1))
    if [ -z "$old" ]; then
        [ $tries -lt 5 ] && continue
        ln -s "$me" "$lock"
        exit 1
    fi
    set -- $old
    owner=$1 start=$2 since=$3
    shift 3
    seen=$(cat "$lock.beat" 2>/dev/null) || seen=
    [ "${{seen:-0}}" -gt "$since" ] 2>/dev/null || seen=$since
    if [ "$(began "$owner")" = "$start" ] && [ $(($(date +%s) - seen)) -lt {dead} ]; then
        printf 'busy %s\\n{mark}\\n' "$*"
        exit 0
    fi
    [ "$(began "$owner")" != "$start" ] || kill -9 "$owner" 2>/dev/null
    mv "$lock" "$lock.$$" 2>/dev/null || continue
    if [ "$(readlink "$lock.$$")" = "$old" ]; then
        rm -f "$lock.$$" "$lock.beat"
        printf 'taken %s\\n' "$*"
    else
        mv "$lock.$$" "$lock"
    fi
done
[ ! -w "${{lock%/*}}" ] || date +%s >"$lock.beat"
"""

_KEEP = """\
while IFS= read -r _; do date +%s >"$lock.beat"; done
[ "$(readlink "$lock")" != "$me" ] || rm -f "$lock" "$lock.beat"
"""

_LOOK = """\
root() {
    near=$1 there=no writable=no
    [ ! -d "$1" ] || there=yes
    while [ ! -d "$near" ]; do near=${near%/*}; [ -n "$near" ] || near=/; done
    [ ! -w "$near" ] || writable=yes
    free=$(df -Pk "$near" | tail -n 1 | sed 's/.* \\([0-9][0-9]*\\)  *[0-9-]*%.*/\\1/')
    printf 'root %s %s %s %s\\n' $there $writable "$free" "$1"
}
plain() { for path in "$@"; do [ ! -L "$path" ] || printf 'link %s\\n' "$path"; done; }
have() { for path in "$@"; do [ ! -e "$path" ] && [ ! -L "$path" ] || printf 'have %s\\n' "$path"; done; }
digests() { for path in "$@"; do [ -L "$path" ] || [ ! -f "$path" ] || sha256sum "$path"; done | sed 's/^/digest /'; }
"""

_CLIENTS = """\
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -i ':0801 [0-9a-f]*:[0-9a-f]* 01' | sed 's/^/tcp /'
[ ! -r /var/lib/nfs/rmtab ] || sed 's/^/rmtab /' /var/lib/nfs/rmtab
"""
