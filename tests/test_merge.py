"""A stack of layers as one tree: what the kernel's overlayfs shows, as plain files."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buildlib import merge, tree
from buildlib.sandbox import Sandbox

EPOCH = 2**31
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
ACL = bytes.fromhex("0200000001000700ffffffff020007000100000004000500ffffffff10000700ffffffff20000500ffffffff")
"""rwx for user 1 beside owner, group and mask."""


class Stack:
    """Layers by hand, lowest first, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layers: list[Path] = []

    def layer(self) -> Path:
        path = self.folder / f"layer{len(self.layers)}"
        path.mkdir(mode=0o755)
        self.layers.append(path)
        return path

    def merged(self, *, link: bool = False) -> Path:
        target = self.folder / f"merged-{link}"
        merge.write({"layers": [str(layer) for layer in self.layers], "target": str(target), "link": link})
        return target


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


def put(path: Path, text: str = "text", *, mode: int = 0o644, owner: int = 0, mtime: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.chown(path, owner, owner)
    path.chmod(mode)
    os.utime(path, (mtime, mtime))
    return path


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, 0)


def opaque(path: Path) -> Path:
    path.mkdir(parents=True)
    os.setxattr(path, "user.overlay.opaque", b"y")
    return path


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Stacks that hold everything a build can make. The same ones are compared with the kernel's own overlay below.


def _plain(stack: Stack) -> None:
    lower, upper = stack.layer(), stack.layer()
    put(lower / "etc/kept", "lower")
    put(lower / "etc/changed", "lower")
    put(upper / "etc/changed", "upper", mtime=9)
    put(upper / "etc/new/file", "upper")
    upper.chmod(0o750)
    os.utime(upper / "etc", (11, 11))
    os.utime(upper, (12, 12))


def _whiteouts(stack: Stack) -> None:
    lower, upper, top = stack.layer(), stack.layer(), stack.layer()
    put(lower / "file")
    put(lower / "again", "lower")
    put(lower / "folder/sub/file")
    for name in ("file", "again", "folder"):
        whiteout(upper / name)
    put(top / "again", "top")


def _opaque(stack: Stack) -> None:
    lower, upper, top = stack.layer(), stack.layer(), stack.layer()
    put(lower / "folder/old")
    put(lower / "folder/sub/old")
    put(opaque(upper / "folder") / "new")
    put(opaque(upper / "only/here") / "new")
    put(top / "folder/newer")


def _links(stack: Stack) -> None:
    lower, upper = stack.layer(), stack.layer()
    for layer, names in ((lower, ("a", "b", "folder/c")), (upper, ("x", "y"))):
        first = put(layer / names[0], layer.name)
        for name in names[1:]:
            (layer / name).parent.mkdir(exist_ok=True)
            os.link(first, layer / name)
    put(upper / "b", "alone now")


def _symlinks(stack: Stack) -> None:
    lower, upper = stack.layer(), stack.layer()
    (lower / "dangling").symlink_to("/no/such")
    (lower / "loop").symlink_to("loop")
    (lower / "changed").symlink_to("old")
    (upper / "changed").symlink_to("new")
    os.lchown(lower / "loop", 5, 6)
    put(lower / "was-file")
    (upper / "was-file").symlink_to("changed")
    (lower / "was-link").symlink_to("/etc")
    put(upper / "was-link/file")
    for path in (*lower.iterdir(), *upper.iterdir()):
        os.utime(path, (8, 8), follow_symlinks=False)


def _modes(stack: Stack) -> None:
    layer = stack.layer()
    put(layer / "setuid", mode=0o4755, owner=1)
    put(layer / "setgid", mode=0o2755, owner=2)
    put(layer / "secret", mode=0o0, owner=3)
    put(layer / "sticky/file").parent.chmod(0o1777)
    put(layer / "setgid-folder/file", owner=0).parent.chmod(0o2775)
    os.chown(layer / "setgid-folder", 0, 50)
    (layer / "setgid-folder").chmod(0o2775)
    os.mkfifo(layer / "pipe", 0o600)
    os.mknod(layer / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(layer / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 0))


def _attributes(stack: Stack) -> None:
    lower, upper = stack.layer(), stack.layer()
    put(lower / "ping", mode=0o755)
    os.setxattr(lower / "ping", "security.capability", CAPABILITY)
    put(lower / "noted/file")
    os.setxattr(lower / "noted", "user.lower", b"1")
    os.setxattr(lower / "noted/file", "user.file", b"2")
    (upper / "noted").mkdir()
    os.setxattr(upper / "noted", "user.upper", b"3")
    os.setxattr(upper / "noted", "user.overlay.impure", b"y")


def _acls(stack: Stack) -> None:
    """A default one is for what is made in the folder later, which a merge is not."""
    lower, upper = stack.layer(), stack.layer()
    put(lower / "journal/old", mode=0o640)
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        os.setxattr(lower / "journal", name, ACL)
    put(upper / "journal/new", mode=0o640)
    (upper / "journal/folder").mkdir()
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        os.setxattr(upper / "journal", name, ACL)


def _kinds(stack: Stack) -> None:
    lower, upper = stack.layer(), stack.layer()
    put(lower / "file-first")
    put(upper / "file-first/now/folder")
    put(lower / "folder-first/with/files")
    put(upper / "folder-first")
    put(lower / "usr/lib/systemd/unit")
    os.utime(lower / "usr/lib/systemd", (100, 100))
    put(lower / "lib/systemd/unit")
    os.utime(lower / "lib/systemd", (200, 200))
    (upper / "lib").symlink_to("usr/lib")


def _names(stack: Stack) -> None:
    layer = stack.layer()
    for name in ("a b", "new\nline", "-rf", "back\\slash", "ünï", "\udcff", ".wh.file", ".hidden"):
        put(layer / name)


STACKS: dict[str, Callable[[Stack], None]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _plain,
        _whiteouts,
        _opaque,
        _links,
        _symlinks,
        _modes,
        _attributes,
        _acls,
        _kinds,
        _names,
    )
}


def listing(arguments: dict[str, Any]) -> str:
    return "".join(line for line, _ in tree.lines(Path(arguments["tree"]), EPOCH))


@pytest.mark.integration
@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
@pytest.mark.parametrize("case", STACKS)
def test_it_is_what_the_kernel_shows(case: str, link: bool, stack: Stack) -> None:
    STACKS[case](stack)
    mine = stack.merged(link=link)
    box = Sandbox(work=stack.folder / "work", layers=tuple(stack.layers), chroot=False)
    told = box.call(
        tree.write_listing,
        {"tree": str(box.mount), "epoch": EPOCH, "listing": str(stack.folder / "kernel.list")},
    )
    own = tree.write_listing({"tree": str(mine), "epoch": EPOCH, "listing": str(stack.folder / "own.list")})
    lines = [(stack.folder / f"{name}.list").read_bytes().splitlines()[1:] for name in ("own", "kernel")]
    # The root's own line differs: the sandbox lays an empty layer over it.
    assert lines[0] == lines[1]
    assert (own["size"], own["entries"]) == (told["size"], told["entries"])


@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
@pytest.mark.parametrize("case", STACKS)
def test_no_mark_of_overlayfs_is_left(case: str, link: bool, stack: Stack) -> None:
    STACKS[case](stack)
    made = stack.merged(link=link)
    found = [path for path in (made, *made.rglob("*")) if not path.is_symlink()]
    assert [path for path in found if any("overlay" in name for name in os.listxattr(path))] == []
    assert [path for path in found if path.is_char_device() and path.stat().st_rdev == 0] == []


@pytest.mark.parametrize("case", STACKS)
def test_layers_are_left_alone(case: str, stack: Stack) -> None:
    STACKS[case](stack)
    before = [list(tree.lines(layer, EPOCH)) for layer in stack.layers]
    stack.merged(link=True)
    stack.merged(link=False)
    assert [list(tree.lines(layer, EPOCH)) for layer in stack.layers] == before


def test_the_trees_own_folder_is_the_topmost_layers(stack: Stack) -> None:
    _plain(stack)
    facts = stack.merged().stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_mtime) == (0o750, 12)


def test_a_whiteout_hides_and_a_later_layer_shows_again(stack: Stack) -> None:
    _whiteouts(stack)
    made = stack.merged()
    assert content(made) == ["again"]
    assert (made / "again").read_text() == "top"


def test_a_whiteout_over_nothing_hides_nothing(stack: Stack) -> None:
    whiteout(stack.layer() / "new/there")
    assert content(stack.merged()) == ["new"]


def test_an_opaque_folder_hides_what_is_below_and_not_what_is_above(stack: Stack) -> None:
    _opaque(stack)
    assert content(stack.merged() / "folder") == ["new", "newer"]


# Inodes


def test_linked_files_are_the_layers_own(stack: Stack) -> None:
    put(stack.layer() / "folder/file")
    assert (stack.merged(link=True) / "folder/file").samefile(stack.layers[0] / "folder/file")


def test_copied_files_are_not(stack: Stack) -> None:
    put(stack.layer() / "folder/file")
    made = stack.merged()
    assert not (made / "folder/file").samefile(stack.layers[0] / "folder/file")
    (made / "folder/file").write_text("a client's own")
    assert (stack.layers[0] / "folder/file").read_text() == "text"


def test_copied_links_are_links_among_themselves(stack: Stack) -> None:
    _links(stack)
    made = stack.merged()
    assert (made / "a").samefile(made / "folder/c")
    assert (made / "x").samefile(made / "y")
    assert (made / "a").stat().st_nlink == 2
    assert (made / "b").read_text() == "alone now"


def test_a_file_that_two_layers_share_is_what_the_upper_one_says(stack: Stack) -> None:
    """The same inode in both, its first copy replaced in between."""
    lower, middle, upper = stack.layer(), stack.layer(), stack.layer()
    put(lower / "one", "shared")
    put(middle / "one", "other")
    os.link(lower / "one", upper / "two")
    made = stack.merged()
    assert ((made / "one").read_text(), (made / "two").read_text()) == ("other", "shared")


def test_another_file_system_is_copied_to(stack: Stack) -> None:
    """/dev/shm: no hard link leads there."""
    _links(stack)
    made = Path(subprocess.check_output(["mktemp", "--directory", "/dev/shm/merge.XXXXXX"], text=True).strip())
    try:
        merge.write({"layers": [str(path) for path in stack.layers], "target": str(made / "tree"), "link": True})
        assert listing({"tree": str(made / "tree")}) == listing({"tree": str(stack.merged())})
    finally:
        subprocess.run(["rm", "-rf", str(made)], check=True)


def test_times_are_kept_out_of_where_a_link_leads(stack: Stack) -> None:
    """A folder below gave way to a link to a folder outside of the tree, whose times are nobody's business."""
    outside = stack.folder / "outside"
    (outside / "sub").mkdir(parents=True)
    os.utime(outside / "sub", (5, 5))
    lower, upper = stack.layer(), stack.layer()
    put(lower / "var/run/sub/file")
    (upper / "var").mkdir()
    (upper / "var/run").symlink_to(outside)
    stack.merged()
    assert (outside / "sub").stat().st_mtime == 5


def test_a_target_that_is_there_is_refused(stack: Stack) -> None:
    stack.layer()
    stack.merged()
    with pytest.raises(FileExistsError):
        stack.merged()
