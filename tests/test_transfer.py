"""Files and trees on their way to other machines: real ones behind SSH, by rsync, GNU tar and BusyBox' tar."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from buildlib import listing, merge, route, ssh, transfer, transfer_little, tree, way
from buildlib.errors import BuildError
from buildlib.shell import LocalShell, Shell
from buildlib.store import Output
from tests import sshlab

pytestmark = [pytest.mark.integration, sshlab.needed]

EPOCH = 2_000_000_000
WHEN = 1_700_000_000
NEW, OLD, OLDER = "20260103T000000Z-000000000003", "20260102T000000Z-000000000002", "20260101T000000Z-000000000001"

RSYNC = ("rsync", "rsync-attributes")


@dataclass(frozen=True)
class End:
    """A machine that is sent to, and a folder that both see."""

    way: transfer.Way
    folder: Path
    box: sshlab.Box | None = None

    def kill(self, *names: str) -> None:
        """End the programs of these names there, as a crash would."""
        assert self.box is not None
        for pid in self.box.pids:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() in names:
                    os.kill(pid, signal.SIGKILL)


WAYS = {
    "rsync": ("openssh", ()),
    "sudo": ("user", ()),
    "tar": ("openssh", RSYNC),
    "tar by sudo": ("user", RSYNC),
    "busybox": ("busybox", ()),
    "here": (None, ()),
    "tar here": (None, RSYNC),
}
"""Kind of machine, and what is not to be used there."""


@contextlib.contextmanager
def reached(made: sshlab.Box, *, sudo: bool) -> Iterator[transfer.Way]:
    to = route.route(made.name, made.config)
    shell = ssh.connect(to, sudo=sudo)
    try:
        yield transfer.Way(shell, tuple(route.program(to)), sudo, tools(shell))
    finally:
        shell.close()


def tools(shell: Shell) -> frozenset[str]:
    return frozenset(shell.run(transfer.tools_script()).out.decode().split())


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], End]]:
    """What gives the machine of a way; one of each kind for all tests."""
    with contextlib.ExitStack() as stack:
        kinds: dict[str | None, End] = {
            None: End(transfer.Way(LocalShell(), (), False, tools(LocalShell())), Path("/"))
        }

        def get(name: str) -> End:
            kind, without = WAYS[name]
            if kind not in kinds:
                assert kind is not None
                made = stack.enter_context(sshlab.box(kind))
                kinds[kind] = End(
                    stack.enter_context(reached(made, sudo=kind == "user")),
                    made.folder,
                    made,
                )
            found = kinds[kind]
            folder = found.folder if kind else tmp_path_factory.mktemp("here")
            number = len(list(folder.iterdir()))
            own = folder / f"it's {number}"
            own.mkdir()
            return End(replace(found.way, tools=found.way.tools.difference(without)), own, found.box)

        yield get


@pytest.fixture(params=[name for name in WAYS if "tar" not in name])
def end(request: pytest.FixtureRequest, ends: Callable[[str], End]) -> End:
    """Each kind of machine."""
    return ends(request.param)


@pytest.fixture(params=[name for name in WAYS if "tar" not in name and "here" not in name])
def far(request: pytest.FixtureRequest, ends: Callable[[str], End]) -> End:
    """Each kind of machine but this one, whose processes are the tests' own."""
    return ends(request.param)


@pytest.fixture(params=[name for name in WAYS if "here" not in name])
def far_tree(request: pytest.FixtureRequest, ends: Callable[[str], End]) -> End:
    """Each way of trees to another machine."""
    return ends(request.param)


@pytest.fixture(params=WAYS)
def tree_end(request: pytest.FixtureRequest, ends: Callable[[str], End]) -> End:
    """Each way of trees."""
    return ends(request.param)


def silent(_sent: int, _total: int) -> None:
    """Nobody looks."""


def noise(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def told(line: list[str], folder: Path) -> bytes:
    return subprocess.run(line, cwd=folder, stdout=subprocess.PIPE, check=True).stdout


def facts(folder: Path) -> dict[str, object]:
    """All that other programs than ours tell of a tree."""
    form = r"%P\0%y %m %U:%G %T@ %l\0"
    words = told(["find", ".", "-printf", form], folder).decode(errors="surrogateescape").split("\0")
    found: dict[str, object] = dict(zip(words[::2], words[1::2], strict=False))
    found["sizes"] = sorted(told(["find", ".", "-type", "f", "-printf", r"%s %P\0"], folder).split(b"\0"))
    found["content"] = sorted(
        told(["find", ".", "-type", "f", "-exec", "sha256sum", "-z", "{}", "+"], folder).split(b"\0")
    )
    devices = ["find", ".", "(", "-type", "b", "-o", "-type", "c", ")", "-exec", "stat", "-c", "%n %t %T", "{}", "+"]
    found["devices"] = sorted(told(devices, folder).split(b"\n"))
    attributes = told(["getfattr", "-R", "-P", "-h", "-d", "-m", "-", "-e", "hex", "."], folder).split(b"\n\n")
    kept = (re.sub(rb"(user|trusted)\.overlay\..*\n?", b"", one).strip() for one in attributes)
    found["attributes"] = sorted(one for one in kept if b"=" in one)
    found["links"] = links(folder)
    return found


def links(folder: Path) -> set[frozenset[str]]:
    words = told(["find", ".", "!", "-type", "d", "-printf", r"%i\0%P\0"], folder).decode(errors="surrogateescape")
    groups: dict[str, set[str]] = {}
    for inode, path in zip(words.split("\0")[::2], words.split("\0")[1::2], strict=False):
        groups.setdefault(inode, set()).add(path)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def overlays(folder: Path) -> bytes:
    return told(["getfattr", "-R", "-P", "-h", "-m", r"overlay\.", "."], folder)


# Files of releases


def release(folder: Path, contents: Mapping[str, bytes]) -> dict[str, Output]:
    """A release's folder, and what is said of its files."""
    found = {}
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        found[name] = Output(hashlib.sha256(data).hexdigest(), len(data))
    sums = "".join(f"{output.digest}  {name}\n" for name, output in found.items()).encode()
    (folder / "SHA256SUMS").write_bytes(sums)
    return {**found, "SHA256SUMS": Output(hashlib.sha256(sums).hexdigest(), len(sums))}


BIG = {
    "vmlinuz": noise(3_000_000, 1),
    "live/rootfs.squashfs": noise(5_000_001, 2),
    "manifest.json": b"{}",
    "empty": b"",
    "live/it's [a] $(name)*": b"odd",
}


def same_files(there: Path, source: Path) -> None:
    assert told(["diff", "-r", str(source), str(there)], source) == b""
    assert {path.relative_to(there) for path in there.rglob("*")} == {
        path.relative_to(source) for path in source.rglob("*")
    }


def test_files_arrive(end: End, tmp_path: Path) -> None:
    wanted = release(tmp_path / "r", BIG)
    seen: list[tuple[int, int]] = []
    to = end.folder / "images/some" / NEW
    sent = transfer.files(
        end.way, tmp_path / "r", wanted, str(to), previous=None, progress=lambda *said: seen.append(said)
    )
    same_files(to, tmp_path / "r")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in to.rglob("*") if path.is_file()}
    assert modes == {0o444}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (to, to / "live")} == {0o755}
    assert os.listdir(to.parent) == [NEW]
    total = sum(output.size for output in wanted.values())
    assert sent == total
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert len(seen) > 20


def test_files_that_are_there_are_left_alone(end: End, tmp_path: Path) -> None:
    wanted = release(tmp_path / "r", {"vmlinuz": b"kernel"})
    (end.folder / NEW).mkdir()
    assert transfer.files(end.way, tmp_path / "r", wanted, str(end.folder / NEW), previous=None, progress=silent) == 0
    assert os.listdir(end.folder / NEW) == []


def test_files_are_shared_with_a_predecessor(end: End, tmp_path: Path) -> None:
    """By their content, whatever their name was."""
    send_files(end, tmp_path / "old", BIG, OLD)
    before = facts(end.folder / OLD)
    new = {**BIG, "manifest.json": b"{1}", "kernel": BIG["vmlinuz"]}
    del new["vmlinuz"]
    sent = send_files(end, tmp_path / "new", new, NEW, previous=OLD)
    assert sent < 1000
    same_files(end.folder / NEW, tmp_path / "new")
    assert (end.folder / NEW / "kernel").samefile(end.folder / OLD / "vmlinuz")
    assert facts(end.folder / OLD) == before


def send_files(end: End, source: Path, contents: Mapping[str, bytes], name: str, *, previous: str | None = None) -> int:
    wanted = release(source, contents)
    old = str(end.folder / previous) if previous else None
    return transfer.files(end.way, source, wanted, str(end.folder / name), previous=old, progress=silent)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"short"),
        lambda file: file.write_bytes(bytes(len(BIG["vmlinuz"]))),
        lambda file: file.unlink(),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: (file.rename(file.with_name("x")), file.symlink_to("x")),
    ],
    ids=["short", "wrong", "gone", "a folder", "a link"],
)
def test_a_predecessor_that_was_damaged_is_not_trusted_nor_touched(
    ends: Callable[[str], End], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    end = ends("busybox")
    send_files(end, tmp_path / "old", BIG, OLD)
    damage(end.folder / OLD / "vmlinuz")
    before = facts(end.folder / OLD)
    send_files(end, tmp_path / "new", BIG, NEW, previous=OLD)
    same_files(end.folder / NEW, tmp_path / "new")
    assert facts(end.folder / OLD) == before


def test_files_that_may_be_written_to_are_copied(end: End, tmp_path: Path) -> None:
    """A link would take that from the predecessor."""
    send_files(end, tmp_path / "old", BIG, OLD)
    (end.folder / OLD / "vmlinuz").chmod(0o644)
    before = facts(end.folder / OLD)
    assert send_files(end, tmp_path / "new", BIG, NEW, previous=OLD) < 1000
    assert facts(end.folder / OLD) == before
    assert not (end.folder / NEW / "vmlinuz").samefile(end.folder / OLD / "vmlinuz")


def test_a_file_goes_on_where_it_ended(far: End, tmp_path: Path) -> None:
    data = noise(60_000_000, 5)
    wanted = release(tmp_path / "r", {"rootfs": data})
    to = far.folder / NEW

    def crash(sent: int, _total: int) -> None:
        if sent > 10_000_000:
            far.kill("cat")

    with pytest.raises(BuildError):
        transfer.files(far.way, tmp_path / "r", wanted, str(to), previous=None, progress=crash)
    assert os.listdir(far.folder) == [f".{NEW}.part"]
    (begun,) = (path for path in (far.folder / f".{NEW}.part").glob(".*") if path.stat().st_size > 1000)
    there = begun.stat().st_size
    assert data.startswith(begun.read_bytes())
    sent = transfer.files(far.way, tmp_path / "r", wanted, str(to), previous=None, progress=silent)
    assert sent <= len(data) - there + 1000
    same_files(to, tmp_path / "r")
    assert os.listdir(far.folder) == [NEW]


@pytest.mark.parametrize("left", [b"other bytes", noise(9_000_000, 9)], ids=["short", "too long"])
def test_what_an_earlier_try_left_is_not_trusted(ends: Callable[[str], End], tmp_path: Path, left: bytes) -> None:
    end = ends("busybox")
    wanted = release(tmp_path / "r", BIG)
    part = end.folder / f".{NEW}.part"
    part.mkdir()
    (part / f".{wanted['vmlinuz'].digest}").write_bytes(left)
    (part / "manifest.json").write_bytes(b"[]")
    (part / "of no release").write_bytes(b"")
    (part / f".{'0' * 64}").write_bytes(b"of another try")
    transfer.files(end.way, tmp_path / "r", wanted, str(end.folder / NEW), previous=None, progress=silent)
    same_files(end.folder / NEW, tmp_path / "r")


def test_a_file_of_another_content_is_an_error(end: End, tmp_path: Path) -> None:
    wanted = release(tmp_path / "r", BIG)
    (tmp_path / "r/vmlinuz").write_bytes(bytes(len(BIG["vmlinuz"])))
    with pytest.raises(BuildError, match=r"000003: arrived with another content, also when sent again: vmlinuz\n"):
        transfer.files(end.way, tmp_path / "r", wanted, str(end.folder / NEW), previous=None, progress=silent)
    assert not (end.folder / NEW).exists()


# Trees


def put(path: Path, data: bytes = b"", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


ODD = ("with blank", "new\nline", "-dash", "back\\slash", "\udcfe\udcff", "#hash", "it's", "$(x)", ".hidden", "a]b[*?")


def root(folder: Path) -> Path:
    """A tree with all that a root may have, but for attributes."""
    put(folder / "etc/shadow", b"secret", 0o600)
    put(folder / "usr/bin/sudo", b"elf" * 1000, 0o4755)
    put(folder / "usr/bin/perl", noise(200_000, 3), 0o755)
    os.link(folder / "usr/bin/perl", folder / "usr/bin/perl5.36")
    put(folder / "usr/lib/big", noise(3_000_000, 4))
    for number in range(300):
        put(folder / f"usr/share/doc/{number % 30}/{number}", noise(2000, number))
    for name in ODD:
        put(folder / "odd" / name / name, name.encode(errors="surrogateescape"))
        (folder / "odd" / f"{name}.link").symlink_to(name)
    (folder / "lib").symlink_to("usr/lib")
    os.link(folder / "lib", folder / "lib.too", follow_symlinks=False)
    (folder / "broken").symlink_to("/nowhere/it's")
    (folder / "dev").mkdir()
    os.mknod(folder / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "dev/loop", stat.S_IFBLK | 0o660, os.makedev(7, 300))
    os.mkfifo(folder / "dev/pipe")
    for name in ("empty/folder", "tmp", "var/log/journal"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    os.chown(folder / "var/log/journal", 7, 4321)
    (folder / "var/log/journal").chmod(0o2755)
    os.chown(folder / "etc/shadow", 0, 42)
    os.chown(folder / "broken", 12345, 65534, follow_symlinks=False)
    with put(folder / "sparse").open("wb") as file:
        file.truncate(5_000_000)
        file.write(b"start")
    (folder / ("x" * 120)).mkdir()
    put(folder / ("x" * 120) / ("y" * 200), b"long")
    return folder


def attributed(folder: Path) -> Path:
    for line in (
        "setcap cap_net_raw+ep usr/bin/perl",
        "setfattr -n user.some -v thing usr/lib/big",
        "setfattr -n user.folder -v thing var",
        "setfattr -n user.overlay.opaque -v y var/log",
        "setfattr -n trusted.overlay.origin -v y etc/shadow",
        "setfacl -m u:4321:rw,g:99:r etc/shadow",
        "setfacl -d -m u:77:rwx var/log/journal",
    ):
        subprocess.run(line.split(), cwd=folder, check=True)
    put(folder / "var/log/journal/inherits", b"x")
    subprocess.run(["setfacl", "-b", "var/log/journal/inherits"], cwd=folder, check=True)
    (folder / "var/log/journal/inherits").chmod(0o640)
    return folder


def timed(folder: Path) -> Path:
    """Times as a build sets them: whole seconds, none of now."""
    for path in sorted([folder, *folder.rglob("*")], key=lambda path: len(path.parts), reverse=True):
        if path.lstat().st_mtime > EPOCH or path.lstat().st_mtime_ns % 10**9:
            os.utime(path, (WHEN, WHEN + len(path.name)), follow_symlinks=False)
    return folder


def whole(folder: Path, end: End) -> Path:
    """A root with everything that can be made there."""
    made = root(folder)
    if end.way.tools & {"gnutar", "rsync-attributes"}:
        attributed(made)
    return timed(made)


class Plain:
    """A root that is a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.entries, self.groups = known(folder)

    def whole(self) -> Path:
        return self._folder

    def some(self, _paths: Collection[str]) -> Path:
        return self._folder


def known(folder: Path) -> tuple[dict[str, listing.Entry], listing.Groups]:
    """What it holds, and its files with several names."""
    said = "".join(line for line, _ in tree.lines(folder, EPOCH))
    return listing.read(said), listing.groups_of(said)


def send(
    end: End,
    source: Path,
    name: str,
    *,
    previous: tuple[str, Mapping[str, listing.Entry], listing.Groups] | None = None,
    progress: transfer.Progress = silent,
) -> int:
    old = transfer.Previous(str(end.folder / previous[0]), *previous[1:]) if previous else None
    return transfer.tree(end.way, Plain(source), str(end.folder / name), previous=old, progress=progress)


def copy(source: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", source, to], check=True)
    return to


def test_a_tree_arrives(tree_end: End, tmp_path: Path) -> None:
    source = whole(tmp_path / "root", tree_end)
    seen: list[tuple[int, int]] = []
    sent = send(tree_end, source, f"nfs/some/{NEW}", progress=lambda *said: seen.append(said))
    to = tree_end.folder / "nfs/some" / NEW
    assert facts(to) == facts(source)
    assert overlays(to) == b""
    assert os.listdir(to.parent) == [NEW]
    assert sent > 3_000_000
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert 3_000_000 < seen[-1][0] <= seen[-1][1]


def test_holes_arrive(ends: Callable[[str], End], tmp_path: Path) -> None:
    for name in ("rsync", "tar"):
        end = ends(name)
        send(end, timed(root(tmp_path / name)), NEW)
        assert (end.folder / NEW / "sparse").stat().st_blocks < 100


def test_a_tree_that_is_there_is_left_alone(tree_end: End, tmp_path: Path) -> None:
    (tree_end.folder / NEW).mkdir()
    put(tmp_path / "root/file", b"x")
    assert send(tree_end, tmp_path / "root", NEW) == 0
    assert os.listdir(tree_end.folder / NEW) == []


def changed(folder: Path) -> Path:
    """A root as the next release may have it."""
    stamp = (folder / "usr/share/doc/3/3").stat().st_mtime_ns
    put(folder / "usr/share/doc/3/3", noise(2000, 12345))
    os.utime(folder / "usr/share/doc/3/3", ns=(stamp, stamp))
    (folder / "etc/shadow").chmod(0o640)
    (folder / "usr/share/doc/4").chmod(0o700)
    os.chown(folder / "usr/share/doc/5/5", 5, 6)
    os.utime(folder / "usr/share/doc/6/6", (WHEN, WHEN - 77))
    os.utime(folder / "usr/share/doc/7", (WHEN, WHEN - 77))
    subprocess.run(["rm", "-r", folder / "usr/share/doc/8", folder / "odd/new\nline"], check=True)
    (folder / "usr/share/doc/9/9").unlink()
    put(folder / "usr/share/doc/9/9/now/a/folder", b"x")
    subprocess.run(["rm", "-r", folder / "usr/share/doc/10"], check=True)
    put(folder / "usr/share/doc/10", b"now a file")
    (folder / "broken").unlink()
    (folder / "broken").symlink_to("elsewhere")
    (folder / "odd/it's.link").unlink()
    put(folder / "odd/it's.link", b"now a file")
    (folder / "odd/$(x)/$(x)").unlink()
    (folder / "odd/$(x)/$(x)").symlink_to("now a link")
    put(folder / "odd/-dash/new", b"new")
    (folder / "dev/null").unlink()
    os.mknod(folder / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    # No more the same file, but like it; and the other way round.
    path = folder / "usr/bin/perl5.36"
    path.rename(folder / "x")
    subprocess.run(["cp", "-a", folder / "x", path], check=True)
    (folder / "x").unlink()
    for number in (41, 42):
        put(folder / f"twins/{number}", b"twins")
    return timed(folder)


def test_the_next_tree_takes_little(tree_end: End, tmp_path: Path) -> None:
    old = whole(tmp_path / "old", tree_end)
    put(old / "twins/41", b"twins")
    put(old / "twins/42", b"twins")
    timed(old)
    send(tree_end, old, OLD)
    before = facts(tree_end.folder / OLD)
    source = changed(copy(old, tmp_path / "new"))
    (source / "twins/42").unlink()
    os.link(source / "twins/41", source / "twins/42")
    timed(source)
    seen: list[int] = []
    sent = send(
        tree_end, source, NEW, previous=(OLD, *known(old)), progress=lambda done, total: seen.extend((done, total))
    )
    to = tree_end.folder / NEW
    assert facts(to) == facts(source)
    assert facts(tree_end.folder / OLD) == before == facts(old)
    assert sent < 700_000
    assert max(seen) < 700_000
    for path in ("usr/lib/big", "usr/share/doc/1/1", "sparse"):
        assert (to / path).samefile(tree_end.folder / OLD / path)
    for path in ("usr/share/doc/3/3", "etc/shadow", "usr/share/doc/5/5", "usr/share/doc/6/6"):
        assert not (to / path).samefile(tree_end.folder / OLD / path)
    assert sorted(os.listdir(tree_end.folder)) == [OLD, NEW]


def test_what_differs_in_attributes_alone_travels(ends: Callable[[str], End], tmp_path: Path) -> None:
    for name in ("rsync", "tar"):
        end = ends(name)
        old = whole(tmp_path / name, end)
        send(end, old, OLD)
        before = facts(end.folder / OLD)
        source = copy(old, tmp_path / f"{name}.new")
        subprocess.run(["setcap", "-r", source / "usr/bin/perl"], check=True)
        subprocess.run(["setfattr", "-n", "user.some", "-v", "other", source / "usr/lib/big"], check=True)
        subprocess.run(["setfattr", "-x", "user.folder", source / "var"], check=True)
        subprocess.run(["setfacl", "-k", source / "var/log/journal"], check=True)
        send(end, source, NEW, previous=(OLD, *known(old)))
        assert facts(end.folder / NEW) == facts(source)
        assert facts(end.folder / OLD) == before


def test_a_tree_goes_on_after_a_crash(far_tree: End, tmp_path: Path) -> None:
    """Begun like one predecessor, ended like another: what is there of the first is not taken for the second's."""
    older = whole(tmp_path / "older", far_tree)
    send(far_tree, older, OLDER)
    old = changed(copy(older, tmp_path / "old"))
    send(far_tree, old, OLD)
    before = facts(far_tree.folder / OLDER), facts(far_tree.folder / OLD)
    source = copy(old, tmp_path / "new")
    put(source / "usr/share/zzz", noise(60_000_000, 77))
    timed(source)

    def crash(sent: int, _total: int) -> None:
        if sent > 5_000_000:
            far_tree.kill("rsync", "tar")

    with pytest.raises(BuildError):
        send(far_tree, source, NEW, previous=(OLDER, *known(older)), progress=crash)
    (left,) = set(os.listdir(far_tree.folder)) - {OLDER, OLD}
    assert re.fullmatch(rf"\.{NEW}(\.tar)?\.part", left)
    send(far_tree, source, NEW, previous=(OLD, *known(old)))
    assert facts(far_tree.folder / NEW) == facts(source)
    assert (facts(far_tree.folder / OLDER), facts(far_tree.folder / OLD)) == before
    assert sorted(os.listdir(far_tree.folder)) == [OLDER, OLD, NEW]


def test_a_first_tree_goes_on_after_a_crash(far_tree: End, tmp_path: Path) -> None:
    source = whole(tmp_path / "root", far_tree)
    put(source / "usr/share/zzz", noise(60_000_000, 78))
    timed(source)

    def crash(sent: int, _total: int) -> None:
        if sent > 30_000_000:
            far_tree.kill("rsync", "tar")

    with pytest.raises(BuildError):
        send(far_tree, source, NEW, progress=crash)
    send(far_tree, source, NEW)
    assert facts(far_tree.folder / NEW) == facts(source)
    assert os.listdir(far_tree.folder) == [NEW]


def test_nothing_runs_on_after_an_interrupt(far_tree: End, tmp_path: Path) -> None:
    release(tmp_path / "root", {"usr/share/big": noise(60_000_000, 7)})

    def interrupt(sent: int, _total: int) -> None:
        if sent > 5_000_000:
            # Not raised here: rsync's progress is told by another thread.
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        send(far_tree, tmp_path / "root", NEW, progress=interrupt)
    assert far_tree.box is not None
    ours = [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if any(word in said(path) for word in (str(far_tree.box.config), str(tmp_path)))
    ]
    assert ours == []
    for _ in range(200):
        if not {"rsync", "tar"} & {said(Path(f"/proc/{pid}/comm")).strip() for pid in far_tree.box.pids}:
            break
        time.sleep(0.05)
    else:
        pytest.fail("still running there")
    assert not (far_tree.folder / NEW).exists()


def said(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_rsync_does_not_go_on_with_what_tar_began(ends: Callable[[str], End], tmp_path: Path) -> None:
    """There, files that are to be changed are links to the predecessor's."""
    old = timed(root(tmp_path / "old"))
    end = ends("tar")
    send(end, old, OLD)
    before = facts(end.folder / OLD)
    subprocess.run(["cp", "-al", end.folder / OLD, end.folder / f".{NEW}.tar.part"], check=True)
    source = changed(copy(old, tmp_path / "new"))
    send(replace(end, way=ends("rsync").way), source, NEW, previous=(OLD, *known(old)))
    assert facts(end.folder / NEW) == facts(source)
    assert facts(end.folder / OLD) == before


def test_a_tree_of_another_content_is_an_error(tree_end: End, tmp_path: Path) -> None:
    source = timed(root(tmp_path / "root"))
    said = Plain(source)
    said.entries["etc/shadow"] = said.entries["etc/shadow"]._replace(content="0" * 64)
    with pytest.raises(BuildError, match=r"000003: .* etc/shadow"):
        transfer.tree(tree_end.way, said, str(tree_end.folder / NEW), previous=None, progress=silent)
    assert not (tree_end.folder / NEW).exists()


def test_attributes_that_can_not_be_made_are_told_before_the_first_byte(
    ends: Callable[[str], End], tmp_path: Path
) -> None:
    end = ends("busybox")
    source = timed(attributed(root(tmp_path / "root")))
    with pytest.raises(BuildError, match=r"its tar can't make: etc/shadow, usr/bin/perl, .* more") as caught:
        send(end, source, f"nfs/{NEW}")
    assert caught.value.hint == "install rsync or GNU tar there"
    assert os.listdir(end.folder) == []


def test_without_its_tools_a_machine_is_refused(ends: Callable[[str], End], tmp_path: Path) -> None:
    end = ends("busybox")
    put(tmp_path / "root/file")
    bare = replace(end, way=replace(end.way, tools=frozenset({"tar"})))
    with pytest.raises(BuildError, match="has no rsync, and no stat and no touch"):
        send(bare, tmp_path / "root", NEW)
    assert os.listdir(end.folder) == []


def plant_link(tree: Path, elsewhere: Path) -> None:
    """What was a folder leads elsewhere."""
    subprocess.run(["rm", "-r", tree / "usr/share/doc/8"], check=True)
    (tree / "usr/share/doc/8").symlink_to(elsewhere)


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "gone": lambda tree, _: (tree / "usr/lib/big").unlink(),
    "content": lambda tree, _: (tree / "usr/lib/big").write_bytes(b"other"),
    "mode": lambda tree, _: (tree / "usr/lib/big").chmod(0o4777),
    "extra": lambda tree, _: put(tree / "usr/lib/extra", b"extra"),
    "link": plant_link,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_predecessor_that_was_changed_changes_nothing(tree_end: End, tmp_path: Path, damage: str) -> None:
    old = timed(root(tmp_path / "old"))
    send(tree_end, old, OLD)
    elsewhere = tree_end.folder / "elsewhere"
    for number in (8, 38):
        put(elsewhere / str(number), b"not of the tree")
    DAMAGE[damage](tree_end.folder / OLD, elsewhere)
    before = facts(tree_end.folder / OLD), facts(elsewhere)
    source = changed(copy(old, tmp_path / "new"))
    send(tree_end, source, NEW, previous=(OLD, *known(old)))
    assert facts(tree_end.folder / NEW) == facts(source)
    assert (facts(tree_end.folder / OLD), facts(elsewhere)) == before


def test_what_differs_little_is_all_that_is_read_and_sent(ends: Callable[[str], End], tmp_path: Path) -> None:
    end = ends("rsync")
    old = whole(tmp_path / "old", end)
    send(end, old, OLD)
    source = changed(copy(old, tmp_path / "new"))
    asked: list[Collection[str]] = []

    class Few(Plain):
        def whole(self) -> Path:
            raise AssertionError

        def some(self, paths: Collection[str]) -> Path:
            asked.append(paths)
            made = tmp_path / "some"
            merge.some([source], paths, made)
            return made

    transfer.tree(
        end.way,
        Few(source),
        str(end.folder / NEW),
        previous=transfer.Previous(str(end.folder / OLD), *known(old)),
        progress=silent,
    )
    assert facts(end.folder / NEW) == facts(source)
    assert len(asked[0]) < len(known(source)[0]) / 3


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_changed_predecessor_is_seen_before_what_is_made_of_it_counts(
    ends: Callable[[str], End], tmp_path: Path, damage: str
) -> None:
    end = ends("rsync")
    old = timed(root(tmp_path / "old"))
    send(end, old, OLD)
    (end.folder / "elsewhere").mkdir()
    part = end.folder / f".{NEW}.part"
    part.mkdir()
    previous = transfer.Previous(str(end.folder / OLD), *known(old))
    source = changed(copy(old, tmp_path / "new"))
    DAMAGE[damage](end.folder / OLD, end.folder / "elsewhere")
    to = str(end.folder / NEW)
    assert transfer_little.tree(end.way, Plain(source), to, str(part), previous, silent) is None
    assert os.listdir(part) == []
    assert os.listdir(end.folder / "elsewhere") == []


def test_a_predecessor_that_is_gone_is_no_error(tree_end: End, tmp_path: Path) -> None:
    source = timed(root(tmp_path / "new"))
    send(tree_end, source, NEW, previous=(OLD, *known(source)))
    assert facts(tree_end.folder / NEW) == facts(source)


# Machines that can't


@pytest.fixture(params=["openssh", "busybox"])
def small(request: pytest.FixtureRequest) -> Iterator[End]:
    """A machine with a small disk."""
    with sshlab.box(request.param, disk="4m") as made, reached(made, sudo=False) as found:
        yield End(found, made.folder, made)


def test_a_full_disk_is_told(small: End, tmp_path: Path) -> None:
    data = {"rootfs": noise(20_000_000)}
    with pytest.raises(BuildError, match=r"000003: no space is left there: .*No space left") as caught:
        send_files(small, tmp_path / "r", data, NEW)
    assert "prune" in str(caught.value.hint)
    assert not (small.folder / NEW).exists()
    subprocess.run(["rm", "-r", small.folder / f".{NEW}.part"], check=True)
    for without in ((), RSYNC):
        less = replace(small, way=replace(small.way, tools=small.way.tools.difference(without)))
        with pytest.raises(BuildError, match=r"000003: no space is left there: .*(No space left|Wrote only)"):
            send(less, timed(put(tmp_path / "root/file", noise(20_000_000)).parent), NEW)
        assert not (small.folder / NEW).exists()


def test_a_disk_that_is_mounted_read_only_is_told(small: End, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small.folder], check=True)
    with pytest.raises(BuildError, match="its file system is mounted read-only"):
        send_files(small, tmp_path / "r", BIG, NEW)
    with pytest.raises(BuildError, match="its file system is mounted read-only"):
        send(small, put(tmp_path / "root/file").parent, NEW)


def test_who_may_not_write_is_told(tmp_path: Path) -> None:
    with sshlab.box("user") as made, reached(made, sudo=False) as found:
        end = End(found, made.folder, made)
        with pytest.raises(BuildError, match=r"who logs in there may not write it: .*Permission denied") as caught:
            send_files(end, tmp_path / "r", BIG, NEW)
        assert "sudo: yes" in str(caught.value.hint)
        with pytest.raises(BuildError, match="who logs in there may not write it"):
            send(end, put(tmp_path / "root/file").parent, NEW)


def test_tools_are_found(ends: Callable[[str], End]) -> None:
    every = {"rsync", "rsync-attributes", "tar", "gnutar", "flock", "sha256sum", "stat", "touch", "find"}
    aes = {"aes"} if re.search(r"\baes\b", Path("/proc/cpuinfo").read_text()) else set()
    assert ends("rsync").way.tools == every | aes
    assert ends("busybox").way.tools == aes | {"tar", "sha256sum", "stat", "touch", "find"}


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        (["rsync: Connection closed by remote host"], 12, "the connection was lost"),
        ([], 255, "the connection was lost"),
        (["tar: what is this"], 2, "tar: what is this"),
        (["root@lab: Permission denied (publickey)."], 255, "root@lab: Permission denied (publickey)."),
        ([], 3, "exit status 3"),
    ],
)
def test_failures_in_words(said: list[str], status: int, told: str) -> None:
    found = way.failure(transfer.Way(LocalShell(), (), False, frozenset()), "/srv/x", said, status)
    assert found.message.startswith(f"this machine: /srv/x: {told}")
