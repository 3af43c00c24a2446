"""Releases on a target's folders: whole or not there, switched by one link, and each left alone by the others."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buildlib import atomic, bootloaders, publish, serverside
from buildlib.errors import BuildError
from buildlib.place import Place, boot_menu, live
from buildlib.release import CHECKSUMS, MANIFEST, PROOF, Release
from buildlib.site import Dhcp, Entry, Host, Http, Loaders, Nfs, Target
from buildlib.store import describe

A, B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
FOLDER_A = "01-52-54-00-00-00-0a"
NFS = "boot=nfs root=/dev/nfs nfsroot=${nfs_server}:${nfs_root}"
HTTP = "boot=live fetch=${http}/rootfs.squashfs"


def release(folder: Path, name: str, word: str, cmdline: str = "quiet", **content: Any) -> Release:
    """A release of files that are words."""
    out = folder / "images" / name / f"20260101T000000Z-{word:0>12}"
    out.mkdir(parents=True)
    for file in ("vmlinuz", "initrd", "live/extra"):
        (out / file).parent.mkdir(exist_ok=True)
        (out / file).write_text(f"{file} {word}")
        (out / file).chmod(0o444)
    files = ("vmlinuz", "initrd", "live/extra")
    artifacts = {file: {"sha256": describe(out / file).digest, "size": describe(out / file).size} for file in files}
    said = {
        "name": name,
        "arch": "amd64",
        "description": f"a test of {name}",
        "clients": "volatile",
        "root": {"kind": "ram", "layers": []},
        "cmdline": cmdline,
        "artifacts": artifacts,
        **content,
    }
    (out / MANIFEST).write_text(json.dumps({"id": out.name, "content": said}))
    sums = "".join(f"{describe(out / file).digest}  {file}\n" for file in (*files, MANIFEST))
    (out / CHECKSUMS).write_text(sums)
    return Release(name, out.name, out)


def place(folder: Path, hosts: Mapping[str, Host] | None = None, **settings: Any) -> Place:
    boot = str(folder / "srv/boot")
    target = Target("10.0.0.1", "10.0.0.0/24", tftp=boot, http=Http(boot), nfs=Nfs(str(folder / "srv/nfs")))
    return Place("lab", replace(target, **settings), hosts or {})


def push(where: Place, *releases: Release, layers: tuple[Path, ...] = ()) -> None:
    for each in releases:
        publish.upload(where, each, layers)
        publish.switch(where, each.name, each.id)
        publish.refresh(where)


def shot(folder: Path, *without: str) -> dict[str, tuple[int, bytes | str]]:
    """All files and links of a folder: inode and content."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name.startswith(without) and without:
            continue
        if path.is_symlink():
            found[name] = (path.lstat().st_ino, os.readlink(path))
        elif path.is_file():
            found[name] = (path.stat().st_ino, path.read_bytes())
    return found


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


def text(where: Place, name: str) -> str:
    return (where.boot / "entries" / name / "boot.ipxe").read_text()


@pytest.fixture
def shm() -> Iterator[Path]:
    """Another file system, to which no hard link leads."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


# Uploading


def test_files_are_the_releases_own(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1")
    where = place(tmp_path)
    publish.upload(where, made, ())
    folder = where.boot / "images/one" / made.id
    assert [(folder / name).samefile(made.folder / name) for name in ("vmlinuz", "live/extra", MANIFEST)] == [True] * 3


def test_files_are_copied_to_another_file_system(tmp_path: Path, shm: Path) -> None:
    made = release(tmp_path, "one", "1")
    where = place(shm)
    publish.upload(where, made, ())
    folder = where.boot / "images/one" / made.id
    assert (folder / "live/extra").read_text() == "live/extra 1"
    assert (folder / "vmlinuz").stat().st_mode & 0o777 == 0o444


def test_a_copy_that_differs_is_refused_and_nothing_stays(tmp_path: Path, shm: Path) -> None:
    made = release(tmp_path, "one", "1")
    (made.folder / "initrd").chmod(0o644)
    (made.folder / "initrd").write_text("bad disk")
    where = place(shm)
    with pytest.raises(BuildError, match="initrd: was not copied as it is in the release"):
        publish.upload(where, made, ())
    assert shot(shm / "srv") == {}
    assert list((where.boot / "images/one").iterdir()) == []


class Interrupt(BaseException):
    """Ctrl-C, or a full disk."""


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("error", [Interrupt(), OSError(28, "No space left on device")], ids=["interrupt", "full"])
def test_an_upload_that_ends_early_leaves_nothing(
    number: int, error: BaseException, tmp_path: Path, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(tmp_path, "one", "1")
    where = place(shm)
    copied: list[Path] = []
    real = shutil.copyfile

    def copyfile(source: Path, target: Path) -> None:
        if len(copied) == number:
            target.write_text("half")
            raise error
        real(source, target)
        copied.append(target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(type(error)):
        publish.upload(where, made, ())
    assert shot(shm / "srv") == {}
    monkeypatch.undo()
    push(where, made)
    assert (where.boot / "images/one" / made.id / MANIFEST).exists()


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1")
    where = place(tmp_path)
    assert publish.upload(where, made, ()) == [str(where.boot / "images/one" / made.id)]
    before = shot(where.boot)
    assert publish.upload(where, made, ()) == []
    assert shot(where.boot) == before


def test_big_files_go_where_they_are_fetched(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1")
    where = place(tmp_path, http=Http(str(tmp_path / "big")))
    push(where, made)
    assert (tmp_path / "big/images/one" / made.id / "vmlinuz").exists()
    assert not (where.boot / "images").exists()
    push(replace(where, target=replace(where.target, loaders=Loaders(bios="pxelinux"))), made)
    assert (where.boot / "images/one" / made.id / "vmlinuz").exists()


# NFS trees


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, ...]:
    for name in ("lower", "upper"):
        (tmp_path / name / "etc").mkdir(parents=True)
        (tmp_path / name / "etc" / name).write_text(name)
    return tmp_path / "lower", tmp_path / "upper"


@pytest.mark.integration
@pytest.mark.parametrize(("clients", "shared"), [("volatile", True), ("persist", True), ("rw", False)])
def test_only_a_tree_that_nobody_writes_to_is_shared(
    clients: str, shared: bool, tmp_path: Path, layers: tuple[Path, ...]
) -> None:
    made = release(tmp_path, "one", "1", NFS, clients=clients, root={"kind": "nfs", "layers": []})
    where = place(tmp_path)
    publish.upload(where, made, layers)
    tree = tmp_path / "srv/nfs/one" / made.id
    assert sorted(path.name for path in (tree / "etc").iterdir()) == ["lower", "upper"]
    assert (tree / "etc/lower").samefile(layers[0] / "etc/lower") == shared
    assert hidden(tmp_path / "srv/nfs") == []


@pytest.mark.integration
def test_a_tree_that_its_client_wrote_to_stays(tmp_path: Path, layers: tuple[Path, ...]) -> None:
    made = release(tmp_path, "one", "1", NFS, clients="rw", root={"kind": "nfs", "layers": []})
    where = place(tmp_path)
    publish.upload(where, made, layers)
    written = tmp_path / "srv/nfs/one" / made.id / "etc/lower"
    written.write_text("the client's")
    assert publish.upload(where, made, layers) == []
    assert written.read_text() == "the client's"


@pytest.mark.integration
def test_a_tree_that_fails_leaves_nothing(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1", NFS, root={"kind": "nfs", "layers": []})
    with pytest.raises(BuildError):
        publish.upload(place(tmp_path), made, (tmp_path / "missing",))
    assert [path.name for path in (tmp_path / "srv/nfs/one").iterdir()] == [".lock"]


def test_a_squashfs_is_read_over_nfs_from_a_folder_of_its_own(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1", NFS, root={"kind": "squashfs", "layers": []})
    publish.upload(place(tmp_path), made, ())
    assert (tmp_path / "srv/nfs/one" / made.id / "vmlinuz").exists()


def test_what_clients_keep_has_a_folder(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1", "keep=${nfs_server}:${nfs_persist}")
    publish.upload(place(tmp_path), made, ())
    assert (tmp_path / "srv/nfs/persist/one").is_dir()


# The switch


def test_an_entry_says_what_to_boot(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1", HTTP)
    where = place(tmp_path)
    push(where, made)
    assert f"http://10.0.0.1/images/one/{made.id}/vmlinuz boot=live" in text(where, "one")
    assert f"fetch=http://10.0.0.1/images/one/{made.id}/rootfs.squashfs" in text(where, "one")
    assert live(where)["one"]["release"] == made.id


def test_a_switch_tells_whether_it_is_one(tmp_path: Path) -> None:
    old, new = release(tmp_path, "one", "1"), release(tmp_path, "one", "2")
    where = place(tmp_path)
    for each in (old, new):
        publish.upload(where, each, ())
    said = [publish.switch(where, "one", each.id) for each in (old, old, new, old)]
    assert said == [True, False, True, True]


def test_the_way_back_needs_nothing_but_the_link(tmp_path: Path) -> None:
    old, new = release(tmp_path, "one", "1"), release(tmp_path, "one", "2")
    where = place(tmp_path, {A: Host("a", recipe="one", cmdline="debug")})
    push(where, old)
    before = shot(where.boot / "entries/one")
    link = os.readlink(where.boot / "entries/one")
    push(where, new)
    everything = shot(where.boot, "entries")
    shutil.rmtree(old.folder)
    assert publish.switch(where, "one", old.id)
    publish.refresh(where)
    assert os.readlink(where.boot / "entries/one") == link
    assert shot(where.boot / "entries/one") == before
    assert shot(where.boot, "entries") == everything


def test_a_push_leaves_others_alone(tmp_path: Path) -> None:
    where = place(tmp_path, {A: Host("a", recipe="two"), B: Host("b", cmdline="debug")})
    push(where, release(tmp_path, "one", "1"), release(tmp_path, "two", "2"))
    before = shot(tmp_path / "srv")
    push(where, release(tmp_path, "one", "3"))
    after = shot(tmp_path / "srv")
    assert [name for name in before if after.get(name) != before[name]] == ["boot/entries/one"]
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"images", "menus"}
    assert {name.split("/")[2] for name in after.keys() - before.keys()} == {"one"}


def test_the_same_push_changes_nothing(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1")
    where = place(tmp_path, {A: Host("a", cmdline="debug")}, entries=(Entry("disk", "Disk", local=True),))
    push(where, made)
    before = shot(tmp_path / "srv")
    push(where, made)
    assert shot(tmp_path / "srv") == before
    assert hidden(where.boot) == []


def test_what_a_killed_push_left_is_no_entry(tmp_path: Path) -> None:
    """Killed between making the new link and renaming it."""
    where = place(tmp_path)
    push(where, release(tmp_path, "one", "1"))
    (where.boot / "entries/.one.123").symlink_to(os.readlink(where.boot / "entries/one"))
    publish.refresh(where)
    assert list(live(where)) == ["one"]


def test_a_release_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    where = place(tmp_path)
    push(where, release(tmp_path, "one", "1"))
    before = shot(where.boot)
    with pytest.raises(BuildError, match="lab/one: release 20200101T000000Z-000000000000 is not there"):
        publish.switch(where, "one", "20200101T000000Z-000000000000")
    assert shot(where.boot) == before


@pytest.mark.parametrize("where_from", ["recipe", "host"])
def test_a_command_line_that_cannot_be_said_names_target_and_recipe(where_from: str, tmp_path: Path) -> None:
    bad = "say=${nope"
    made = release(tmp_path, "one", "1", "quiet" if where_from == "host" else "say=$${nope")
    where = place(tmp_path, {A: Host("a", cmdline=bad)} if where_from == "host" else {})
    publish.upload(where, made, ())
    with pytest.raises(BuildError, match=r"^lab/one: ipxe: .*say=\$\{nope"):
        publish.switch(where, "one", made.id)
    assert not (where.boot / "entries").exists()


# Hosts


def hosts_files(where: Place) -> list[str]:
    names = [str(path.relative_to(where.boot)) for path in where.boot.rglob("01-*")]
    return sorted(name for name in names if not name.startswith(("menus/", "images/")))


def test_a_host_has_its_own_entry_and_menu(tmp_path: Path) -> None:
    where = place(tmp_path, {A: Host("a", recipe="one", cmdline="debug", console="ttyS1")})
    push(where, release(tmp_path, "one", "1"))
    own = (where.boot / "entries/one/hosts" / FOLDER_A / "boot.ipxe").read_text()
    assert "quiet debug console=ttyS1" in own
    assert "debug" not in text(where, "one")
    assert [name for name in hosts_files(where) if "/hosts/" in name] == [
        f"grub/hosts/{FOLDER_A}.cfg",
        f"ipxe/hosts/{FOLDER_A}.ipxe",
    ]


@pytest.mark.parametrize("others", [{B: Host("b", recipe="one")}, {}], ids=["another stays", "the last one"])
def test_a_host_that_is_gone_is_in_no_menu(others: dict[str, Host], tmp_path: Path) -> None:
    where = place(tmp_path, {A: Host("a", recipe="one", cmdline="debug"), **others})
    push(where, release(tmp_path, "one", "1"))
    assert any(FOLDER_A in name for name in hosts_files(where))
    left = replace(where, hosts=others)
    changed = publish.refresh(left)
    assert not any(FOLDER_A in name for name in hosts_files(left))
    assert f"pxelinux.cfg/{FOLDER_A}" in changed
    assert len(hosts_files(left)) == 3 * len(others)
    # A machine that read its menu just before goes on to the variant that this named; it gets what all get.
    own = (where.boot / "entries/one/hosts" / FOLDER_A / "boot.ipxe").read_text()
    assert own == text(where, "one")
    publish.refresh(left)
    assert not (where.boot / "entries/one/hosts").exists()


def test_a_pinned_host_keeps_its_release(tmp_path: Path) -> None:
    old, new = release(tmp_path, "one", "1"), release(tmp_path, "one", "2")
    where = place(tmp_path, {A: Host("a", recipe="one", release=old.id)})
    push(where, old, new)
    own = (where.boot / "entries/one/hosts" / FOLDER_A / "boot.ipxe").read_text()
    assert (old.id in own, new.id in own, new.id in text(where, "one")) == (True, False, True)


def test_a_pinned_release_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1")
    where = place(tmp_path, {A: Host("node", recipe="one", release="20200101T000000Z-000000000000")})
    publish.upload(where, made, ())
    with pytest.raises(BuildError, match="lab/one: host node keeps release 20200101T000000Z-000000000000; ") as caught:
        publish.switch(where, "one", made.id)
    assert "\n" not in caught.value.message
    assert not (where.boot / "entries").exists()


# Entries that are no release


ENTRIES = (Entry("disk", "Own disk", local=True), Entry("netboot-xyz", "More", chain="https://boot.netboot.xyz"))


def test_entries_come_and_go(tmp_path: Path) -> None:
    with_entries = place(tmp_path, entries=ENTRIES)
    push(with_entries, release(tmp_path, "one", "1"))
    assert set(live(with_entries)) == {"disk", "netboot-xyz", "one"}
    assert "netboot-xyz" in (with_entries.boot / "boot.ipxe").read_text()
    without = place(tmp_path)
    publish.refresh(without)
    assert set(live(without)) == {"one"}
    assert "netboot-xyz" not in (without.boot / "boot.ipxe").read_text()


def test_releases_come_before_entries_and_are_the_default(tmp_path: Path) -> None:
    where = place(tmp_path, entries=ENTRIES, recipes=("two", "one"))
    push(where, release(tmp_path, "one", "1"), release(tmp_path, "two", "2"))
    menu = boot_menu(where)
    assert [entry.id for entry in menu.entries] == ["two", "one", "disk", "netboot-xyz"]
    assert menu.default == {"amd64": "two", "arm64": "disk"}


def test_the_menu_is_the_same_whichever_release_is_live(tmp_path: Path) -> None:
    where = place(tmp_path)
    push(where, release(tmp_path, "one", "1"))
    before = bootloaders.menu_files(boot_menu(where))
    push(where, release(tmp_path, "one", "2"))
    assert bootloaders.menu_files(boot_menu(where)) == before


# What is known before the first byte


def prove(made: Release, *firmware: str) -> None:
    proof = {"release": made.id, "digest": made.digest, "boots": [{"firmware": each} for each in firmware]}
    (made.folder / PROOF).write_text(json.dumps(proof))


BOTH = ("bios-pxelinux", "uefi-grub")


def test_the_gate_wants_a_proof_of_all_firmware(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1")
    where = place(tmp_path, gate="boot")
    with pytest.raises(BuildError, match="has not booted with bios-pxelinux and uefi-grub yet") as caught:
        publish.check(where, made, BOTH)
    assert caught.value.hint == "./doit boot:one"
    prove(made, "uefi-grub", "bios-ipxe")
    with pytest.raises(BuildError, match="has not booted with bios-pxelinux yet"):
        publish.check(where, made, BOTH)
    prove(made, *BOTH)
    publish.check(where, made, BOTH)


def test_without_a_gate_no_proof_is_wanted(tmp_path: Path) -> None:
    publish.check(place(tmp_path), release(tmp_path, "one", "1"), BOTH)


def test_a_proof_of_other_files_does_not_count(tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1")
    where = place(tmp_path, gate="boot")
    prove(made, *BOTH)
    (made.folder / CHECKSUMS).write_text(f"{'0' * 64}  vmlinuz\n")
    with pytest.raises(BuildError, match="has not booted"):
        publish.check(where, made, BOTH)


@pytest.mark.parametrize("proof", ["", "{", '{"digest": "0", "boots": []}'])
def test_a_broken_proof_is_none(proof: str, tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1")
    (made.folder / PROOF).write_text(proof)
    with pytest.raises(BuildError, match="has not booted"):
        publish.check(place(tmp_path, gate="boot"), made, BOTH)


@pytest.mark.parametrize(("cmdline", "lacks"), [(HTTP, "http"), (NFS, "nfs"), ("keep=${nfs_persist}", "nfs")])
def test_a_target_without_what_the_root_needs_is_refused(cmdline: str, lacks: str, tmp_path: Path) -> None:
    made = release(tmp_path, "one", "1", cmdline)
    settings: dict[str, Any] = {lacks: None}
    with pytest.raises(BuildError, match=f"lab/one: the root comes over {lacks}, which the target has not") as caught:
        publish.check(place(tmp_path, **settings), made)
    assert f"`{lacks}:`" in str(caught.value.hint)


def test_a_target_of_nfs_alone_has_no_menus(tmp_path: Path) -> None:
    where = place(tmp_path, tftp=None, http=None)
    with pytest.raises(BuildError, match="target lab: has neither `tftp` nor `http`"):
        publish.refresh(where)


# One release at a time


def test_who_boots_during_a_push_gets_one_release_whole(tmp_path: Path) -> None:
    """Reads as a boot loader does, while releases come and go."""
    where = place(tmp_path)
    made = [release(tmp_path, "one", word, f"word={word}") for word in ("1", "2")]
    push(where, *made)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_switch_often, args=(where, made))
    process.start()
    seen = set()
    while process.is_alive():
        said = text(where, "one")
        words = {word for word in ("1", "2") if f"word={word}" in said}
        ids = {each.id for each in made if each.id in said}
        seen.add((tuple(words), tuple(ids)))
    assert seen <= {((word,), (each.id,)) for word, each in zip(("1", "2"), made, strict=True)}


def _switch_often(where: Place, made: list[Release]) -> None:
    for number in range(60):
        publish.switch(where, "one", made[number % 2].id)


# The server side


def install(where: Place) -> list[tuple[str, str]]:
    return serverside.install_services(where, lambda _service: where.boot_files)


def test_services_follow_what_is_live(tmp_path: Path) -> None:
    where = place(tmp_path)
    push(where, release(tmp_path, "one", "1", NFS, clients="rw", root={"kind": "squashfs", "layers": []}))
    assert [export.writable for export in serverside.wiring(where).exports] == [False, True]


def test_configurations_are_written_where_the_site_wants_them(tmp_path: Path) -> None:
    where = place(tmp_path, services={"exports": str(tmp_path / "etc/netboot.exports")})
    push(where, release(tmp_path, "one", "1"))
    assert install(where) == [("exports", str(tmp_path / "etc/netboot.exports"))]
    assert install(where) == []


def test_a_service_that_has_nothing_to_say_yet_is_left_out(tmp_path: Path) -> None:
    where = place(tmp_path, nfs=None, services={"ganesha": str(tmp_path / "ganesha.conf")})
    assert install(where) == []
    assert not (tmp_path / "ganesha.conf").exists()


def _refused(call: Callable[[], object]) -> str:
    with pytest.raises(BuildError) as caught:
        call()
    return caught.value.message


def test_what_a_configuration_cannot_say_is_a_clear_error(tmp_path: Path) -> None:
    """dnsmasq takes such a name for a lease time."""
    dhcp = Dhcp("full", "10.0.0.100", "10.0.0.200")
    where = place(tmp_path, {A: Host("60m")}, dhcp=dhcp, services={"dnsmasq": str(tmp_path / "dnsmasq.conf")})
    push(where, release(tmp_path, "one", "1"))
    assert "lab: dnsmasq: " in _refused(lambda: install(where))
    assert "lab: dnsmasq: " in _refused(lambda: list(serverside.render_services(where, tmp_path / "services")))


def test_an_admins_own_file_beside_the_menus_stays(tmp_path: Path) -> None:
    """What is beside the menus in their folders is not ours to delete."""
    where = place(tmp_path, {A: Host("a", recipe="one")})
    push(where, release(tmp_path, "one", "1"))
    atomic.write(where.boot / "pxelinux.cfg/0A000001", "an admin's own")
    publish.refresh(where)
    assert (where.boot / "pxelinux.cfg/0A000001").exists()


def test_the_server_side_is_shown_and_installed_where_the_site_file_says(tmp_path: Path) -> None:
    wanted = {"exports": str(tmp_path / "etc/netboot.exports"), "nginx": str(tmp_path / "etc/netboot.conf")}
    where = place(tmp_path, services=wanted)
    push(where, release(tmp_path, "one", "1"))
    shown = {path.name: text for path, text, _ in serverside.render_services(where, tmp_path / "shown")}
    assert {"dnsmasq.conf", "netboot.exports", "pixiecore-one.json", "42_netboot", "42_netboot-once"} <= set(shown)
    assert json.loads(shown["pixiecore-one.json"])["kernel"].startswith("http://")
    assert shown["pixiecore-one.sh"].startswith("pixiecore boot http://")
    changed = install(where)
    assert {Path(path).name for _, path in changed} == {"netboot.exports", "netboot.conf"}
    assert (tmp_path / "etc/netboot.conf").read_text() == shown["netboot.conf"]
    assert install(where) == []
