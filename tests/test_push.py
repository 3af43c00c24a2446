"""Publishing on real machines over SSH: OpenSSH as root, as a user with sudo, and BusyBox with dropbear."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from buildlib import back, history, inspection, push, survey
from buildlib import reach as reaching
from buildlib.errors import BuildError
from buildlib.place import live
from buildlib.site import Host, Http, Nfs, Target
from tests import pushlab, sshlab
from tests.pushlab import Made, booted, make, publish
from tests.sshlab import Box

pytestmark = pytest.mark.integration

A = "52:54:00:00:00:0a"
FOLDER_A = "01-52-54-00-00-00-0a"
KINDS = ("openssh", "user", "busybox")


@pytest.fixture(scope="module", params=KINDS)
def machine(request: pytest.FixtureRequest) -> Iterator[Box]:
    with sshlab.box(request.param) as box:
        yield box


@pytest.fixture(scope="module")
def plain() -> Iterator[Box]:
    with sshlab.box("openssh") as box:
        yield box


@pytest.fixture
def where(machine: Box, tmp_path: Path) -> Target:
    return own(machine, tmp_path)


def own(box: Box, tmp_path: Path) -> Target:
    """A target on a machine, in a folder of this test alone."""
    folder = box.folder / tmp_path.name
    folder.mkdir()
    os.chown(folder, box.folder.stat().st_uid, box.folder.stat().st_gid)
    return pushlab.target(replace(box, folder=folder), sudo=box.user != "root")


def shot(where: Target) -> dict[str, tuple[int, int, str]]:
    """Everything of a target: inode, mode and, of links, where they point."""
    root = Path(str(where.boot_root)).parent
    return {
        str(path.relative_to(root)): (
            path.lstat().st_ino,
            path.lstat().st_mode,
            os.readlink(path) if path.is_symlink() else "",
        )
        for path in root.rglob("*")
        if not path.name.startswith(survey.LOCK)
    }


def test_a_release_is_published_and_another_one_after_it(machine: Box, where: Target, tmp_path: Path) -> None:
    made = [make(tmp_path, "one", number) for number in (1, 2)]
    for each in made:
        publish(tmp_path, where, each, config=machine.config)
        assert booted(where, "one", made) == each.id
    tree = Path(where.nfs.path if where.nfs else "") / "one"
    same = [tree / each.id / "usr/lower/1" for each in made]
    assert same[0].samefile(same[1])
    assert not (tree / made[0].id / "usr/lower/0").samefile(tree / made[1].id / "usr/lower/0")
    assert not [path for path in shot(where) if "/." in path]


def test_files_of_a_release_are_read_only(machine: Box, where: Target, tmp_path: Path) -> None:
    made = make(tmp_path, "one", 1)
    publish(tmp_path, where, made, config=machine.config)
    folder = Path(str(where.boot_root)) / "images/one" / made.id
    assert {path.stat().st_mode & 0o7777 for path in folder.iterdir()} == {0o444}


def test_nothing_to_push_takes_two_scripts_and_changes_nothing(
    machine: Box, where: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path, "one", 1)
    publish(tmp_path, where, made, config=machine.config)
    before = shot(where)
    scripts: list[str] = []
    from buildlib import ssh

    for name in ("run", "hold"):
        real = getattr(ssh.Connection, name)

        def counted(self: object, script: str, real: object = real) -> object:
            scripts.append(script)
            assert callable(real)
            return real(self, script)

        monkeypatch.setattr(ssh.Connection, name, counted)
    publish(tmp_path, where, made, config=machine.config)
    # The first one sees that a shell runs there, and by sudo root's.
    assert len(scripts) == 2
    assert shot(where) == before


def test_the_way_back_and_forth(machine: Box, where: Target, tmp_path: Path) -> None:
    made = [make(tmp_path, "one", number) for number in (1, 2, 3)]
    publish(tmp_path, where, made[0], config=machine.config)
    publish(tmp_path, where, made[1], config=machine.config)
    publish(tmp_path, where, made[2], config=machine.config)
    assert pushlab.rollback(where, "one", config=machine.config) == made[1].id
    assert booted(where, "one", made) == made[1].id
    assert pushlab.rollback(where, "one", config=machine.config) == made[0].id
    with pytest.raises(BuildError, match=f"no release that was live before {made[0].id} is still there"):
        pushlab.rollback(where, "one", config=machine.config)
    assert pushlab.rollback(where, "one", made[2].id[:18], config=machine.config) == made[2].id
    assert booted(where, "one", made) == made[2].id
    with pytest.raises(BuildError, match="no release 2031 is there"):
        pushlab.rollback(where, "one", "2031", config=machine.config)


def test_a_canary_boots_alone_until_all_do(machine: Box, where: Target, tmp_path: Path) -> None:
    hosts = {A: Host("node-07")}
    made = [make(tmp_path, "one", number) for number in (1, 2)]
    publish(tmp_path, where, made[0], config=machine.config, hosts=hosts)
    publish(tmp_path, where, made[1], config=machine.config, hosts=hosts, host="node-07")
    assert booted(where, "one", made) == made[0].id
    assert booted(where, "one", made, FOLDER_A) == made[1].id
    menu = (Path(str(where.boot_root)) / f"pxelinux.cfg/{FOLDER_A}").read_text()
    assert f"entries/one/hosts/{FOLDER_A}" in menu
    with reaching.reach("lab", where, hosts, config=machine.config, lock=True) as reached:
        now, who, _done = back.promote(reached, "one")
    assert (now, who) == (made[1].id, ["node-07"])
    assert booted(where, "one", made) == made[1].id
    # A machine that read its menu before the promotion goes on by it.
    assert booted(where, "one", made, FOLDER_A) == made[1].id
    with (
        reaching.reach("lab", where, hosts, config=machine.config) as reached,
        pytest.raises(BuildError, match="no host boots a release of its own"),
    ):
        back.promote(reached, "one")


def test_what_lies_there_is_read_again(machine: Box, where: Target, tmp_path: Path) -> None:
    made = make(tmp_path, "one", 1)
    publish(tmp_path, where, made, config=machine.config)

    def wrong() -> list[str]:
        with reaching.reach("lab", where, {}, config=machine.config) as reached:
            found = dict(inspection.verify(reached, "one", None))
        return [line for line in found[made.id] if line.startswith("!")]

    assert wrong() == []
    image = Path(str(where.boot_root)) / "images/one" / made.id
    assert where.nfs is not None
    tree = Path(where.nfs.path) / "one" / made.id
    data = (image / "initrd").read_bytes()
    (image / "initrd").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    (tree / "usr/lower/2").chmod(0o4755)
    (tree / "etc/planted").write_text("planted")
    said = " ".join(wrong())
    assert "initrd" in said
    assert "usr/lower/2" in said
    assert "etc/planted" in said


def test_a_dry_run_touches_nothing_and_tells_everything(machine: Box, where: Target, tmp_path: Path) -> None:
    made = [make(tmp_path, "one", number) for number in (1, 2)]
    publish(tmp_path, where, made[0], config=machine.config)
    before = shot(where)
    with reaching.reach("lab", where, {}, config=machine.config) as reached:
        jobs = [push.Job(made[1].release, made[1].layers)]
        push.check(reached, jobs)
        lines = list(push.plan(reached, jobs, pushlab.bench(tmp_path)))
    assert shot(where) == before
    assert any(line.startswith("send") and made[1].id in line and made[0].id in line for line in lines)
    assert any(line.startswith(f"point {where.boot_root}/entries/one -> ../menus/one/") for line in lines)


def test_status_tells_what_is_where(machine: Box, where: Target, tmp_path: Path) -> None:
    hosts = {A: Host("node-07"), A[:-1] + "b": Host("node-08", recipe="one", release="20260101T000001Z-000000000000")}
    made = [make(tmp_path, "one", number) for number in (1, 2, 3)]
    plain_hosts = {A: hosts[A]}
    publish(tmp_path, where, made[0], config=machine.config)
    publish(tmp_path, where, made[1], config=machine.config)
    publish(tmp_path, where, made[2], config=machine.config, hosts=plain_hosts, host="node-07")
    with reaching.reach("lab", where, hosts, config=machine.config) as reached:
        built = {"one": made[2].release}
        text = "\n".join(inspection.status(reached, ["one", "two"], built.get, tmp_path / "images"))
    assert f"live {made[1].id} since 20" in text
    assert f"newer here: {made[2].id}" in text
    assert f"back to {made[0].id}" in text
    assert f"node-07 boots {made[2].id} (canary)" in text
    assert "node-08 keeps 20260101T000001Z-000000000000 (site.yaml)" in text
    assert f"GB free on {machine.user}@{machine.address}" in text


def test_prune_keeps_what_is_needed(machine: Box, where: Target, tmp_path: Path) -> None:
    made = [make(tmp_path, "one", number) for number in range(1, 7)]
    where = replace(where, keep=1)
    hosts = {A: Host("node-07", recipe="one", release=made[0].id)}
    for each in made:
        publish(tmp_path, where, each, config=machine.config, hosts=hosts)
    part = Path(str(where.boot_root)) / f"images/one/.{made[3].id}.part"
    part.mkdir()
    (part / "initrd").write_text("half")
    lines = pushlab.prune(where, config=machine.config, hosts=hosts)
    said = {line.split()[1].partition("/")[2]: line for line in lines if " one/" in line}
    assert [said[each.id].startswith("keep") for each in made] == [True, False, False, False, True, True]
    assert "node-07 keeps" in said[made[0].id]
    assert sorted(path.name for path in part.parent.iterdir()) == [made[n].id for n in (0, 4, 5)]
    assert sorted(path.name for path in Path(where.nfs.path if where.nfs else "", "one").iterdir()) == [
        made[n].id for n in (0, 4, 5)
    ]
    assert booted(where, "one", made) == made[5].id
    assert booted(where, "one", made, FOLDER_A) == made[0].id
    assert pushlab.rollback(where, "one", config=machine.config, hosts=hosts) == made[4].id


# Before the first byte


def refused(box: Box, where: Target, made: Made, tmp_path: Path, **more: object) -> str:
    """The error of a push that changes nothing."""
    before = shot(where)
    with pytest.raises(BuildError) as caught:
        publish(tmp_path, where, made, config=box.config, **more)  # type: ignore[arg-type]
    assert shot(where) == before
    return str(caught.value)


def test_a_folder_that_is_not_there(plain: Box, tmp_path: Path) -> None:
    where = own(plain, tmp_path)
    bad = replace(where, nfs=Nfs("/srv/no/such"), http=Http("/srv/none"))
    said = refused(plain, bad, make(tmp_path, "one", 1), tmp_path)
    assert "there is no folder /srv/no/such" in said
    assert "there is no folder /srv/none" in said


def test_a_user_who_may_not_write(tmp_path: Path) -> None:
    with sshlab.box("user") as box:
        where = replace(own(box, tmp_path), sudo=False)
        os.chown(str(where.boot_root), 0, 0)
        said = refused(box, where, make(tmp_path, "one", 1, files=0), tmp_path)
        assert "may not be written to" in said
        assert "sudo: yes" in said


def test_a_root_for_nfs_by_somebody_who_is_not_root(tmp_path: Path) -> None:
    with sshlab.box("user") as box:
        where = replace(own(box, tmp_path), sudo=False)
        assert "only root can make those" in refused(box, where, make(tmp_path, "one", 1), tmp_path)


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    with sshlab.box("openssh", disk="8m") as box:
        where = own(box, tmp_path)
        box.run("mount", "-o", "remount,ro", str(box.folder))
        try:
            assert "mounted read-only" in refused(box, where, make(tmp_path, "one", 1), tmp_path)
        finally:
            box.run("mount", "-o", "remount,rw", str(box.folder))


def test_no_space_is_known_before(tmp_path: Path) -> None:
    with sshlab.box("openssh", disk="4m") as box:
        where = own(box, tmp_path)
        said = refused(box, where, make(tmp_path, "one", 1, size=3_000_000), tmp_path)
        assert "no space in" in said
        assert "6 MB are to be sent" in said


OURS = ("images", "images/one", "menus", "entries", "menus/one", "pxelinux.cfg", "grub/hosts")


@pytest.mark.parametrize("menu", ["pxelinux.cfg/default", f"pxelinux.cfg/{FOLDER_A}", "grub/grub.cfg", "boot.ipxe"])
def test_the_menus_of_somebody_else_stay(menu: str, plain: Box, tmp_path: Path) -> None:
    where = own(plain, tmp_path)
    made = make(tmp_path, "one", 1)
    path = Path(str(where.boot_root)) / menu
    path.parent.mkdir(exist_ok=True)
    path.write_text("# theirs\n")
    before = shot(where)
    with pytest.raises(BuildError, match=f"has menus that are not ours: {menu}"):
        publish(tmp_path, where, made, config=plain.config)
    assert shot(where) == before
    path.unlink()
    publish(tmp_path, where, made, config=plain.config)
    # Now they are ours.
    publish(tmp_path, where, make(tmp_path, "one", 2), config=plain.config)


@pytest.mark.parametrize("name", OURS)
def test_a_planted_link_is_not_written_through(name: str, plain: Box, tmp_path: Path) -> None:
    where = own(plain, tmp_path)
    target = tmp_path / "elsewhere"
    target.mkdir()
    path = Path(str(where.boot_root)) / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.symlink_to(target)
    said = refused(plain, where, make(tmp_path, "one", 1), tmp_path)
    assert f"{path} is a symbolic link that nobody here made" in said
    assert list(target.iterdir()) == []


def test_an_entry_that_leads_astray_is_refused(plain: Box, tmp_path: Path) -> None:
    where = own(plain, tmp_path)
    made = make(tmp_path, "one", 1)
    publish(tmp_path, where, made, config=plain.config)
    entry = Path(str(where.boot_root)) / "entries/one"
    entry.unlink()
    entry.symlink_to("../../../../etc")
    assert f"{entry} is a symbolic link that nobody here made" in refused(
        plain, where, make(tmp_path, "one", 2), tmp_path
    )


@pytest.mark.parametrize("tree", ["one", "ID"])
def test_a_planted_link_among_root_trees(tree: str, plain: Box, tmp_path: Path) -> None:
    where = own(plain, tmp_path)
    made = make(tmp_path, "one", 1)
    assert where.nfs is not None
    path = Path(where.nfs.path) / ("one" if tree == "one" else f"one/{made.id}")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path)
    assert f"{path} is a symbolic link" in refused(plain, where, made, tmp_path)


def test_a_host_that_nobody_knows(plain: Box, tmp_path: Path) -> None:
    where = own(plain, tmp_path)
    hosts = {A: Host("node-07", recipe="one", release="20260101T000001Z-000000000000")}
    made = make(tmp_path, "one", 1)
    assert "there is no host node-70 (did you mean 'node-07'?)" in refused(
        plain, where, made, tmp_path, hosts=hosts, host="node-70"
    )
    assert "node-07 keeps 20260101T000001Z-000000000000" in refused(
        plain, where, made, tmp_path, hosts=hosts, host="node-07"
    )
    assert "nothing is live yet" in refused(plain, where, made, tmp_path, hosts={A: Host("node-07")}, host="node-07")


# Several machines


@pytest.fixture(scope="module")
def three() -> Iterator[tuple[Box, Box, Box]]:
    with sshlab.box("openssh") as tftp, sshlab.box("busybox") as web, sshlab.box("user") as nas:
        yield tftp, web, nas


def spread(boxes: tuple[Box, Box, Box], tmp_path: Path) -> tuple[Target, Path]:
    """A target on three machines, and the configuration that leads to all of them."""
    config = tmp_path / "config"
    config.write_text("".join(box.config.read_text() for box in boxes))
    folders = [box.folder / tmp_path.name for box in boxes]
    for folder in folders:
        folder.mkdir()
    tftp, web, nas = boxes
    made = Target(
        "10.0.0.1",
        "10.0.0.0/24",
        ssh=tftp.name,
        tftp=str(folders[0]),
        http=Http(str(folders[1]), url="http://10.0.0.2", ssh=web.name),
        nfs=Nfs(str(folders[2]), address="10.0.0.3", ssh=nas.name, sudo=True),
    )
    return made, config


def test_a_target_may_be_three_machines(three: tuple[Box, Box, Box], tmp_path: Path) -> None:
    where, config = spread(three, tmp_path)
    made = make(tmp_path, "one", 1)
    publish(tmp_path, where, made, config=config)
    text = (Path(str(where.tftp)) / "entries/one/boot.ipxe").read_text()
    assert f"http://10.0.0.2/images/one/{made.id}/vmlinuz" in text
    assert where.http and where.nfs
    assert f"nfsroot=10.0.0.3:{where.nfs.path}/one/{made.id}" in text
    assert (Path(where.http.path) / "images/one" / made.id / "vmlinuz").exists()
    assert pushlab.content(Path(where.nfs.path) / "one" / made.id) == pushlab.content_of(made)
    assert not (Path(str(where.tftp)) / "images").exists()


def test_nothing_is_switched_unless_all_machines_have_it(three: tuple[Box, Box, Box], tmp_path: Path) -> None:
    where, config = spread(three, tmp_path)
    made = [make(tmp_path, "one", number) for number in (1, 2)]
    publish(tmp_path, where, made[0], config=config)
    link = os.readlink(Path(str(where.tftp)) / "entries/one")
    assert where.nfs is not None
    Path(where.nfs.path, "one").rename(Path(where.nfs.path, "two"))
    Path(where.nfs.path, "one").write_text("in the way")
    with pytest.raises(BuildError):
        publish(tmp_path, where, made[1], config=config)
    assert os.readlink(Path(str(where.tftp)) / "entries/one") == link
    Path(where.nfs.path, "one").unlink()
    Path(where.nfs.path, "two").rename(Path(where.nfs.path, "one"))
    publish(tmp_path, where, made[1], config=config)
    assert made[1].id in (Path(str(where.tftp)) / "entries/one/boot.ipxe").read_text()


def test_all_that_is_wrong_with_any_machine_is_said_at_once(three: tuple[Box, Box, Box], tmp_path: Path) -> None:
    where, config = spread(three, tmp_path)
    assert where.http and where.nfs
    Path(where.http.path).rmdir()
    bad = replace(where, nfs=replace(where.nfs, sudo=False))
    with pytest.raises(BuildError) as caught:
        publish(tmp_path, bad, make(tmp_path, "one", 1), config=config)
    assert f"there is no folder {where.http.path}" in str(caught.value)
    assert f"{where.nfs.path} may not be written to" in str(caught.value)


# One at a time


def test_a_second_push_waits_for_the_first(machine: Box, where: Target, tmp_path: Path) -> None:
    made = make(tmp_path, "one", 1)
    lines: list[str] = []
    with reaching.reach("lab", where, {}, config=machine.config, lock=True):
        second = pushlab.apart(publish, tmp_path, where, made, config=machine.config)
        time.sleep(3)
        assert second.is_alive()
        assert not (Path(str(where.boot_root)) / "images").exists()
    second.join(60)
    assert second.exitcode == 0
    assert booted(where, "one", [made]) == made.id
    assert not list(Path(str(where.boot_root)).glob(f"{survey.LOCK}*"))
    assert lines == []


def test_a_lock_whose_owner_is_gone_is_taken_over(machine: Box, where: Target, tmp_path: Path) -> None:
    made = make(tmp_path, "one", 1)
    root = Path(str(where.boot_root))
    (root / survey.LOCK).symlink_to("999999 12345 1700000000 alice@old")
    lines: list[str] = []
    publish(tmp_path, where, made, config=machine.config, lines=lines)
    assert lines == ["lab: took over the lock of alice@old, who is gone"]
    assert booted(where, "one", [made]) == made.id
    assert not list(root.glob(f"{survey.LOCK}*"))


def test_a_lock_without_a_sign_of_life_is_taken_over(plain: Box, tmp_path: Path) -> None:
    """Its shell still runs there, since the connection was cut and nobody told it."""
    where = own(plain, tmp_path)
    root = Path(str(where.boot_root))
    process = subprocess.Popen(["sleep", "1000"])
    started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()[19]
    # The box has process numbers of its own: this one is looked at from outside.
    with reaching.reach("lab", replace(where, ssh=None), {}) as reached:
        assert reached.boot is not None
    (root / survey.LOCK).symlink_to(f"{process.pid} {started} {int(time.time()) - 100} bob@cut")
    lines: list[str] = []
    publish(tmp_path, replace(where, ssh=None), make(tmp_path, "one", 1), lines=lines)
    assert lines == ["lab: took over the lock of bob@cut, who is gone"]
    assert process.wait(10) == -9


# What is remembered


def test_the_log_tells_what_was_live_when(plain: Box, tmp_path: Path) -> None:
    where = own(plain, tmp_path)
    made = [make(tmp_path, "one", number) for number in (1, 2)]
    for each in made:
        publish(tmp_path, where, each, config=plain.config)
    pushlab.rollback(where, "one", config=plain.config)
    with reaching.reach("lab", where, {}, config=plain.config) as reached:
        assert [words[1:] for words in history.entries(reached.place, "one")] == [
            ["push", made[0].id],
            ["push", made[1].id],
            ["rollback", made[0].id],
        ]
        assert live(reached.place)["one"]["release"] == made[0].id


def test_a_diff_needs_no_copy_of_what_is_live(plain: Box, tmp_path: Path) -> None:
    where = own(plain, tmp_path)
    made = [make(tmp_path, "one", number) for number in (1, 2)]
    publish(tmp_path, where, made[0], config=plain.config)

    def side(images: Path) -> object:
        with reaching.reach("lab", where, {}, config=plain.config) as reached:
            return inspection.side(reached, "one", images)

    assert side(tmp_path / "images") == side(tmp_path / "none")


def test_a_target_of_this_machine_is_published_to_by_the_same_way(tmp_path: Path, plain: Box) -> None:
    where = replace(own(plain, tmp_path), ssh=None)
    made = [make(tmp_path, "one", number) for number in (1, 2)]
    for each in made:
        publish(tmp_path, where, each)
        assert booted(where, "one", made) == each.id
    assert pushlab.rollback(where, "one") == made[0].id


def test_a_push_leaves_the_roots_of_another_one_alone(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for number in (1, os.getpid(), gone.pid):
        (tmp_path / "trees" / str(number) / "one").mkdir(parents=True)
    push.clear(push.Bench(tmp_path / "trees" / str(os.getpid()), tmp_path / "images", tmp_path / "loaders"))
    assert [path.name for path in (tmp_path / "trees").iterdir()] == ["1"]
