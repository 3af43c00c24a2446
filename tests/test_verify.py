"""What is found on a target: everything that was done to it, nothing else, by whatever tools it has."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildlib import tree, verify
from buildlib.errors import BuildError
from buildlib.shell import Answer, Held, LocalShell, wrap
from buildlib.verify import Finding

EPOCH = 2**31
ODD = (
    "a b",
    "new\nline",
    "\n",
    "back\\slash",
    "\\n",
    "return\r",
    "'quoted'",
    "' -> '",
    '"$HOME"',
    "*",
    "-rf",
    "ünï",
    "\udcff",
    ".hidden",
    "=",
    "e" * 255,
)


@dataclass
class Machine:
    """A shell by this machine's programs, or by other ones only. Counts what it was asked."""

    argv: tuple[str, ...]
    env: dict[str, str]
    where: str = "some machine"
    asked: list[str] = field(default_factory=list)

    def run(self, script: str) -> Answer:
        self.asked.append(script)
        done = subprocess.run(self.argv, input=wrap(script, empty=True), env=self.env, capture_output=True, check=False)
        return Answer(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def hold(self, script: str) -> Held:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


def program(name: str) -> str:
    """The path of a program that these tests need."""
    found = shutil.which(name)
    assert found is not None, f"{name} is missing: apt install {name}"
    return found


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By kind of machine, a folder with all programs that it has."""
    found = {kind: tmp_path_factory.mktemp(kind) for kind in ("gnu", "openssl", "busybox")}
    for kind in ("gnu", "openssl"):
        for name in ("sh", "find", "sha256sum", "stat", "cat", *(["openssl"] if kind == "openssl" else [])):
            (found[kind] / name).symlink_to(program(name))
    subprocess.run([program("busybox"), "--install", "-s", str(found["busybox"])], check=True)
    return found


@pytest.fixture(params=["gnu", "openssl", "busybox"])
def machine(request: pytest.FixtureRequest, programs: dict[str, Path]) -> Machine:
    folder = programs[request.param]
    return Machine((f"{folder}/sh",), {"PATH": str(folder), "LANG": "C.UTF-8"})


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, errors="surrogateescape")
    return path


# digests


@pytest.fixture
def sent(tmp_path: Path) -> dict[str, str]:
    """Files with odd names in odd folders, below `there`; their digests."""
    wanted = {f"{name}/{name}": sha256(name) for name in ODD} | {"empty": sha256("")}
    for path in wanted:
        put(tmp_path / "there" / path, "" if path == "empty" else path.rpartition("/")[2])
    return wanted


def test_files_that_are_as_they_should_are_not_named(machine: Machine, sent: dict[str, str], tmp_path: Path) -> None:
    assert verify.digests(machine, str(tmp_path / "there"), sent) == []


@pytest.mark.parametrize("name", ODD)
def test_a_file_of_another_content_is_named(name: str, machine: Machine, sent: dict[str, str], tmp_path: Path) -> None:
    put(tmp_path / "there" / name / name, "another")
    assert verify.digests(machine, str(tmp_path / "there"), sent) == [f"{name}/{name}"]


@pytest.mark.parametrize("name", ODD)
def test_a_file_that_is_missing_is_named(name: str, machine: Machine, sent: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "there" / name / name).unlink()
    assert verify.digests(machine, str(tmp_path / "there"), sent) == [f"{name}/{name}"]


def test_what_a_link_leads_to_does_not_count(machine: Machine, tmp_path: Path) -> None:
    put(tmp_path / "there/file", "text")
    (tmp_path / "there/link").symlink_to("file")
    wanted = {"file": sha256("text"), "link": sha256("text")}
    assert verify.digests(machine, str(tmp_path / "there"), wanted) == ["link"]


def test_a_folder_and_a_pipe_are_no_file(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "there/folder").mkdir(parents=True)
    os.mkfifo(tmp_path / "there/pipe")
    wanted = {"folder": sha256(""), "pipe": sha256("")}
    assert verify.digests(machine, str(tmp_path / "there"), wanted) == ["folder", "pipe"]


def test_only_what_is_asked_for_is_read(machine: Machine, sent: dict[str, str], tmp_path: Path) -> None:
    put(tmp_path / "there/other", "other")
    assert verify.digests(machine, str(tmp_path / "there"), {"empty": sha256("")}) == []


def test_of_a_folder_that_is_missing_all_is_wrong(machine: Machine, sent: dict[str, str], tmp_path: Path) -> None:
    assert verify.digests(machine, str(tmp_path / "nowhere"), sent) == list(sent)


def test_nothing_is_asked_of_nothing(machine: Machine, tmp_path: Path) -> None:
    assert verify.digests(machine, str(tmp_path), {}) == []


def test_a_folder_with_an_odd_name(machine: Machine, tmp_path: Path) -> None:
    put(tmp_path / "it's\n$(x)/file", "text")
    assert verify.digests(machine, str(tmp_path / "it's\n$(x)"), {"file": sha256("text")}) == []


def test_many_files_are_asked_for_at_once(machine: Machine, tmp_path: Path) -> None:
    """More than the kernel lets one command have."""
    deep = "/".join("d" * 250 for _ in range(4))
    wanted = {f"{deep}/{number}": sha256(str(number)) for number in range(2500)}
    (tmp_path / "there" / deep).mkdir(parents=True)
    for path in wanted:
        (tmp_path / "there" / path).write_text(path.rpartition("/")[2])
    put(tmp_path / "there" / deep / "2499", "another")
    assert verify.digests(machine, str(tmp_path / "there"), wanted) == [f"{deep}/2499"]
    assert len(machine.asked) == 1


def test_without_the_program_it_is_an_error_and_no_finding(tmp_path: Path) -> None:
    machine = Machine(("/bin/sh",), {"PATH": str(tmp_path)})
    with pytest.raises(BuildError, match=r"some machine: .* there is no program sha256sum"):
        verify.digests(machine, str(tmp_path), {"few": sha256("")})


# Releases


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "images/one/20260101T000000Z-0123456789ab"
    for path in ("vmlinuz", "initrd", "live/deep/rootfs.squashfs", "manifest.json"):
        put(folder / path, path)
    line = "sha256sum $(find -type f -printf '%P\\n' | sort)"
    sums = subprocess.run(["sh", "-c", line], cwd=folder, stdout=subprocess.PIPE, check=True).stdout
    (folder / "SHA256SUMS").write_bytes(sums)
    return folder


def _check(machine: Machine, folder: Path) -> list[str]:
    return [str(finding) for finding in verify.release(machine, str(folder), (folder / "SHA256SUMS").read_text())]


def test_nothing_is_wrong_with_a_release(machine: Machine, release: Path) -> None:
    assert _check(machine, release) == []


def test_what_comes_beside_a_release_is_no_finding(machine: Machine, release: Path) -> None:
    put(release / "SHA256SUMS.sig", "signed")
    put(release / "proof.json", "{}")
    assert _check(machine, release) == []


def _swap(path: Path, *, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


RELEASE_CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "content": (lambda folder: put(folder / "vmlinuz", "another"), ["vmlinuz: has another content"]),
    "same size": (lambda folder: put(folder / "vmlinuz", "vmlinuX"), ["vmlinuz: has another content"]),
    "missing": (lambda folder: (folder / "vmlinuz").unlink(), ["vmlinuz: is missing"]),
    "missing folder": (
        lambda folder: shutil.rmtree(folder / "live"),
        ["live/deep/rootfs.squashfs: is missing"],
    ),
    "extra": (lambda folder: put(folder / "extra", ""), ["extra: is not of the release"]),
    "extra beside": (
        lambda folder: put(folder / "live/SHA256SUMS", ""),
        ["live/SHA256SUMS: is not of the release"],
    ),
    "extra folder": (
        lambda folder: (folder / "live/new").mkdir(),
        ["live/new: is a folder that is not of the release"],
    ),
    "odd extra": (
        lambda folder: put(folder / "new\nline\x1b", ""),
        ["new\\012line\\033: is not of the release"],
    ),
    "link": (
        lambda folder: _swap(folder / "vmlinuz", target="initrd"),
        ["vmlinuz: is no file"],
    ),
    "pipe": (lambda folder: os.mkfifo(folder / "pipe"), ["pipe: is no file"]),
    "hidden": (lambda folder: put(folder / ".part", ""), [".part: is not of the release"]),
    "several": (
        lambda folder: [put(folder / name, "") for name in ("b", "a", "initrd")],
        ["a: is not of the release", "b: is not of the release", "initrd: has another content"],
    ),
}


@pytest.mark.parametrize("case", RELEASE_CHANGES)
def test_what_was_done_to_a_release_is_told(case: str, machine: Machine, release: Path) -> None:
    change, told = RELEASE_CHANGES[case]
    change(release)
    assert _check(machine, release) == told
    assert len(machine.asked) == 1


def test_checksums_that_can_not_be_read_are_told(machine: Machine, release: Path) -> None:
    sums = (release / "SHA256SUMS").read_text() + "no checksum\n"
    assert verify.release(machine, str(release), sums) == [Finding("SHA256SUMS", "line 5 can't be read")]


def test_a_release_that_is_gone_is_told(machine: Machine, tmp_path: Path) -> None:
    assert verify.release(machine, str(tmp_path / "gone"), "") == [Finding(".", "is missing")]


def test_a_file_is_no_release(machine: Machine, tmp_path: Path) -> None:
    put(tmp_path / "file", "")
    assert verify.release(machine, str(tmp_path / "file"), "") == [Finding(".", "is missing")]


# Trees


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    for path in ("etc/shadow", "usr/bin/tool", "usr/bin/other", "var/log/a/b"):
        put(folder / path, path).chmod(0o755)
    os.link(folder / "usr/bin/tool", folder / "usr/bin/second")
    for name in ODD:
        put(folder / "odd" / name / name, name)
    (folder / "odd/link\nhere").symlink_to("to\n' -> 'there")
    (folder / "odd/\udcfe").symlink_to("\udcfe\\\n")
    (folder / "lib").symlink_to("usr/lib")
    (folder / "dev").mkdir()
    os.mknod(folder / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "dev/loop", stat.S_IFBLK | 0o660, os.makedev(7, 300))
    os.mkfifo(folder / "dev/pipe")
    os.chown(folder / "var/log", 7, 8)
    (folder / "var/log").chmod(0o2775)
    (folder / "usr/bin/tool").chmod(0o4755)
    return folder


def _listing(folder: Path) -> str:
    return "".join(line for line, _ in tree.lines(folder, EPOCH))


def test_nothing_is_wrong_with_a_tree(machine: Machine, root: Path) -> None:
    assert verify.tree(machine, str(root), _listing(root)) == []
    assert len(machine.asked) == 1


def _become(path: Path) -> None:
    put(path, "").chmod(0)
    os.chown(path, 1, 1)


def _without(path: Path) -> Path:
    path.unlink()
    return path


def _node(path: Path, kind: int, minor: int) -> None:
    path.unlink()
    os.mknod(path, kind | 0o666, os.makedev(1, minor))


TREE_CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "content": (lambda root: put(root / "etc/shadow", "etc/shadoX"), ["etc/shadow: another content"]),
    "mode": (lambda root: (root / "etc/shadow").chmod(0o644), ["etc/shadow: mode 0644, not 0755"]),
    "setuid": (
        lambda root: (root / "usr/bin/tool").chmod(0o755),
        ["usr/bin/second: mode 0755, not 4755", "usr/bin/tool: mode 0755, not 4755"],
    ),
    "owner": (lambda root: os.chown(root / "etc/shadow", 0, 42), ["etc/shadow: owner 0:42, not 0:0"]),
    "owner of a link": (lambda root: os.lchown(root / "lib", 5, 6), ["lib: owner 5:6, not 0:0"]),
    "folder": (lambda root: (root / "var/log").chmod(0o2777), ["var/log: mode 2777, not 2775"]),
    "the tree itself": (lambda root: root.chmod(0o700), [".: mode 0700, not 0755"]),
    "several": (
        lambda root: _become(root / "etc/shadow"),
        ["etc/shadow: mode 0000, not 0755, owner 1:1, not 0:0, another content"],
    ),
    "link": (lambda root: _swap(root / "lib", target="usr/lib\n"), ["lib: points to usr/lib\\012, not usr/lib"]),
    "kind": (
        lambda root: _swap(root / "etc/shadow", target="x"),
        ["etc/shadow: is a symbolic link, not a file"],
    ),
    "device": (
        lambda root: _node(root / "dev/null", stat.S_IFCHR, 5),
        ["dev/null: is device 1,5, not 1,3"],
    ),
    "kind of device": (
        lambda root: _node(root / "dev/null", stat.S_IFBLK, 3),
        ["dev/null: is a block device, not a character device"],
    ),
    "missing": (lambda root: (root / "etc/shadow").unlink(), ["etc/shadow: is missing"]),
    "missing folder": (lambda root: shutil.rmtree(root / "var/log"), ["var/log: is missing"]),
    "extra": (lambda root: put(root / "etc/extra", ""), ["etc/extra: is not of the tree"]),
    "extra folder": (lambda root: put(root / "etc/extra/and/more", ""), ["etc/extra: is not of the tree"]),
    "folder for a file": (
        lambda root: put(_without(root / "etc/shadow") / "file", ""),
        ["etc/shadow: is a folder, not a file"],
    ),
    "odd": (
        lambda root: put(root / "odd/new\nline/new\nline", "x"),
        ["odd/new\\012line/new\\012line: another content"],
    ),
}


@pytest.mark.parametrize("case", TREE_CHANGES)
def test_what_was_done_to_a_tree_is_told(case: str, machine: Machine, root: Path) -> None:
    before = _listing(root)
    change, told = TREE_CHANGES[case]
    change(root)
    assert [str(finding) for finding in verify.tree(machine, str(root), before)] == told


@pytest.mark.parametrize("name", ODD)
def test_what_was_done_to_an_odd_name_is_told(name: str, machine: Machine, root: Path) -> None:
    before = _listing(root)
    put(root / "odd" / name / name, "another")
    (root / "odd" / name).chmod(0o700)
    found = [(finding.path, finding.problem) for finding in verify.tree(machine, str(root), before)]
    assert found == [(f"odd/{name}", "mode 0700, not 0755"), (f"odd/{name}/{name}", "another content")]


def test_this_machine_checks_itself(root: Path, release: Path, sent: dict[str, str]) -> None:
    shell = LocalShell()
    before = _listing(root)
    put(root / "etc/shadow", "another")
    put(release / "vmlinuz", "another")
    assert verify.tree(shell, str(root), before) == [Finding("etc/shadow", "another content")]
    sums = (release / "SHA256SUMS").read_text()
    assert verify.release(shell, str(release), sums) == [Finding("vmlinuz", "has another content")]
    assert verify.digests(shell, str(root.parent / "there"), {**sent, "empty": sha256("x")}) == ["empty"]


def test_a_tree_that_is_gone_is_told(machine: Machine, tmp_path: Path) -> None:
    assert verify.tree(machine, str(tmp_path / "gone"), "") == [Finding(".", "is missing")]


def test_an_answer_that_was_cut_off_is_an_error(machine: Machine, root: Path) -> None:
    class Cut(Machine):
        def run(self, script: str) -> Answer:
            answer = super().run(script)
            return Answer(0, answer.out[: answer.out.index(b"shadow")], "")

    with pytest.raises(BuildError, match="an answer can't be read"):
        verify.tree(Cut(machine.argv, machine.env), str(root), _listing(root))


NAMES = st.binary(min_size=1, max_size=6).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(NAMES, st.binary(max_size=4), min_size=1, max_size=5), links=st.lists(NAMES, max_size=2))
def test_any_names_are_told_right(
    files: dict[bytes, bytes], links: list[bytes], machine: Machine, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    (tmp_path / "any").mkdir()
    for name, content in files.items():
        (tmp_path / "any" / os.fsdecode(name)).write_bytes(content)
    for name in set(links) - files.keys():
        (tmp_path / "any" / os.fsdecode(name)).symlink_to(os.fsdecode(name[::-1]))
    before = _listing(tmp_path / "any")
    assert verify.tree(machine, str(tmp_path / "any"), before) == []
    changed = min(files)
    (tmp_path / "any" / os.fsdecode(changed)).write_bytes(b"other")
    found = [finding.path for finding in verify.tree(machine, str(tmp_path / "any"), before)]
    assert found == [os.fsdecode(changed)]
    wanted = {os.fsdecode(name): hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert verify.digests(machine, str(tmp_path / "any"), wanted) == [os.fsdecode(changed)]
