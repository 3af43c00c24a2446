"""Real Debian roots, built by doit's command line from the real archive."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildlib import tree as trees
from buildlib.initrd.scan import scan
from tests.checkout import SHARED, Checkout
from tests.conftest import HASH

pytestmark = pytest.mark.integration


def states(printed: str) -> dict[str, str]:
    """The last state of each stage by its name."""
    found = re.findall(r"^\S+ +([\w-]+) +(running|built|cached|FAILED|current|will run)\b", printed, re.MULTILINE)
    return dict(found)


@pytest.fixture
def other(small: Checkout, tmp_path: Path) -> Iterator[Checkout]:
    """A checkout of the test's own, with the shared one's downloads and locks but nothing built."""
    small.doit("build:small-volatile")
    checkout = Checkout.alone(tmp_path / "checkout", "small-volatile")
    checkout.lock("small-volatile")
    yield checkout
    shutil.rmtree(checkout.folder)


def test_nothing_changed_runs_nothing(small: Checkout) -> None:
    small.doit("build:small-volatile")
    assert set(states(small.doit("build:small-volatile")).values()) == {"cached"}
    assert "nothing would run" in small.doit("why:small-volatile")


def test_a_changed_file_runs_the_last_stage_and_says_why(small: Checkout, tmp_path: Path) -> None:
    small.doit("build:small-volatile")
    checkout = Checkout.beside(tmp_path, "small-volatile")
    text = (tmp_path / "recipes/small-volatile/recipe.yaml").read_text() + "overlay: [files]\n"
    checkout.recipe("small-changed", text, {"files/etc/issue": "one\n"})
    checkout.lock("small-changed")
    checkout.doit("build:small-changed")
    checkout.recipe("small-changed", text, {"files/etc/issue": f"{time.time()}\n"})
    told = checkout.doit("info", "build:small-changed", status=1)
    assert re.search(r"customise +will run +files/etc/issue changed", told)
    assert {stage for stage, state in states(told).items() if state == "will run"} == {"customise", "release"}
    built = states(checkout.doit("build:small-changed"))
    assert {stage for stage, state in built.items() if state == "built"} == {"customise", "release"}


def test_one_more_package_costs_its_group_alone(small: Checkout, tmp_path: Path) -> None:
    small.doit("build:small-volatile")
    checkout = Checkout.beside(tmp_path, "small-volatile")

    def write(packages: str) -> None:
        groups = f"debian: {{package-groups: {{tools: [{packages}]}}}}\n"
        checkout.recipe("small-grouped", f"extends: ../small-volatile/recipe.yaml\n{groups}")

    def build() -> dict[str, Any]:
        checkout.doit("build:small-grouped")
        return checkout.manifest("small-grouped")

    write("less")
    checkout.lock("small-grouped")
    first = build()
    assert first["content"]["artifacts"] == small.manifest("small-volatile")["content"]["artifacts"]
    # What was taken as it is would have been made anew to the same bytes.
    epoch = max(suite["date"] for suite in first["build"]["lock"]["suites"].values())
    made = f"SOURCE_DATE_EPOCH={epoch} mkinitramfs -o /tmp/initrd $(ls /usr/lib/modules); sha256sum /tmp/initrd\n"
    assert first["content"]["artifacts"]["initrd"]["sha256"] in checkout.doit("shell:small-grouped", text=made)
    write("less, nbd-client")
    told = checkout.doit("why:small-grouped")
    assert re.search(r"packages-tools +will run +option packages: \+nbd-client", told)
    after = {"packages-tools", "initramfs-final", "system", "customise", "release"}
    assert {stage for stage, state in states(told).items() if state == "will run"} == after
    second = build()
    assert second["build"]["facts"]["initramfs-final"]["again"][0] == "a package has called update-initramfs"
    paths = {entry.member.path for entry in scan(checkout.release("small-grouped") / "initrd").entries}
    assert "scripts/local-top/nbd" in paths
    for stage in ("packages-tools", "initramfs-final"):
        shutil.rmtree(SHARED / "out/store" / second["build"]["keys"][stage])
    assert re.search(r"packages-tools +built", checkout.doit("build:small-grouped"))
    assert build()["content"] == second["content"]
    # The next run in this store is to see it as new.
    for stage in after - {"release"}:
        shutil.rmtree(SHARED / "out/store" / second["build"]["keys"][stage], ignore_errors=True)


def test_a_squashfs_is_compressed_where_it_changed_and_is_the_tree(small: Checkout, tmp_path: Path, tree: Path) -> None:
    small.doit("build:small-squashfs")
    checkout = Checkout.beside(tmp_path, "small-squashfs")

    def write(packages: str) -> None:
        groups = f"debian: {{package-groups: {{tools: [less], more: [{packages}]}}}}\n"
        checkout.recipe("small-packed", f"extends: ../small-squashfs/recipe.yaml\n{groups}")

    made: list[dict[str, str]] = []
    for packages in ("iputils-ping", "iputils-ping, jq"):
        write(packages)
        if not made:
            checkout.lock("small-packed")
        checkout.doit("build:small-packed")
        made.append(checkout.manifest("small-packed")["build"]["keys"])
    packed = [name for name in made[0] if "squashfs" in name and made[0][name] != made[1][name]]
    assert packed == ["squashfs", "squashfs-packages-more"]
    release = checkout.release("small-packed")
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tree, release / "rootfs.squashfs"], check=True)
    epoch = max(suite["date"] for suite in checkout.manifest("small-packed")["build"]["lock"]["suites"].values())
    listed = (release / "tree.list").read_bytes().decode(errors="surrogateescape")
    # The format has no access control lists.
    wanted = re.sub(r" system\.posix_acl_\w+=\w+", "", listed).splitlines(keepends=True)
    found = [line for line, _ in trees.lines(tree, epoch)]
    assert found == [line for line in wanted if not line.startswith("boot/")]
    assert any("security.capability=" in line for line in found)


def test_the_initrd_of_before_is_taken_where_it_would_be_the_same(small: Checkout, tmp_path: Path) -> None:
    small.doit("build:small-volatile")
    checkout = Checkout.beside(tmp_path, "small-volatile")

    def build(*packages: str) -> str:
        """As if these packages had never been built; what the log says, and that the initrd is the one of these."""
        named = ", ".join(["dbus", "openssh-server", *packages])
        checkout.recipe("small-more", f"extends: ../small-volatile/recipe.yaml\ndebian: {{packages: [{named}]}}\n")
        checkout.lock("small-more")
        checkout.doit("build:small-more")
        key = checkout.manifest("small-more")["build"]["keys"]["initramfs"]
        for folder in ("store", "kept"):
            shutil.rmtree(SHARED / "out" / folder / key, ignore_errors=True)
        checkout.doit("build:small-more")
        made = checkout.manifest("small-more")
        epoch = max(suite["date"] for suite in made["build"]["lock"]["suites"].values())
        truth = f"SOURCE_DATE_EPOCH={epoch} mkinitramfs -o /tmp/initrd $(ls /usr/lib/modules); sha256sum /tmp/initrd\n"
        assert made["content"]["artifacts"]["initrd"]["sha256"] in checkout.doit("shell:small-more", text=truth)
        return (checkout.folder / "out/log/small-more/initramfs.log").read_text()

    build("jq")
    assert "the initrd is that of an earlier build" in build("jq", "tree")
    assert "the initrd is made: " in build("jq", "nbd-client")


def test_both_engines_give_the_same_packages(small: Checkout, tmp_path: Path) -> None:
    small.doit("build:small-volatile")
    Checkout.beside(tmp_path, "small-classic").doit("build:small-classic")
    packages = [(small.release(name) / "packages.tsv").read_text() for name in ("small-volatile", "small-classic")]
    assert packages[0] == packages[1]
    licenses = small.licenses("small-volatile")
    assert licenses["dpkg"].startswith("BSD-2-Clause, GPL-2.0-only, GPL-2.0-or-later")
    assert sum(bool(said) for said in licenses.values()) > len(licenses) // 2
    assert "\tglibc@2." in packages[0]


OWN = ("manifest.json", "SHA256SUMS", "proof.json")
"""Files of a release that say how it was built and proven."""


def _files(release: Path) -> dict[str, str]:
    """Digests of what a release holds, but for its manifest, which also says how it was built."""
    names = [path for path in release.rglob("*") if path.is_file() and path.name not in OWN]
    return {str(path.relative_to(release)): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


@pytest.mark.parametrize(
    ("order", "stage", "mark"),
    [
        (signal.SIGKILL, "bootstrap", "I: extracting"),
        (signal.SIGTERM, "packages", "Unpacking "),
        (signal.SIGINT, "initramfs", "mkinitramfs"),
    ],
)
def test_a_build_that_is_stopped_leaves_nothing_and_resumes(
    other: Checkout, order: signal.Signals, stage: str, mark: str
) -> None:
    log = other.folder / f"out/log/small-volatile/{stage}.log"
    build = subprocess.Popen(
        other.command("build:small-volatile"), cwd=other.folder, env=other.environment, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (log.exists() and (mark in log.read_text(errors="replace") or stage == "initramfs")):
        assert build.poll() is None, "the build ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    build.send_signal(order)
    assert build.wait(30) != 0
    _until(lambda: not _processes(other.folder), "processes")
    _until(lambda: [path.name for path in (other.folder / "out/tmp").iterdir()] == ["locks"], "half-written output")
    assert str(other.folder) not in Path("/proc/self/mountinfo").read_text()
    assert not (other.folder / "out/images").exists()
    told = states(other.doit("build:small-volatile"))
    assert told["release"] == "built"
    assert told["index"] == "cached"
    assert (stage == "bootstrap") or told["bootstrap"] == "cached"
    built, expected = (_files(place.release("small-volatile")) for place in (other, Checkout(SHARED)))
    assert built == expected


def _processes(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in line and entry.name != str(os.getpid()):
                found.append(line)
    return found


def _until(true, what: str) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, f"{what} left behind"
        time.sleep(0.1)


def test_two_builds_at_once_share_the_work(other: Checkout) -> None:
    builds = [
        subprocess.Popen(
            other.command("build:small-volatile"),
            cwd=other.folder,
            env=other.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [build.communicate()[0] is not None and build.returncode for build in builds] == [0, 0]
    assert len(list((other.folder / "out/images/small-volatile").glob("2*"))) == 1


def test_a_recipe_can_say_all_of_a_system(small: Checkout, tmp_path: Path) -> None:
    small.doit("build:small-volatile")
    checkout = Checkout.beside(tmp_path, "small-full")
    checkout.doit("build:small-full")
    commands = """
        cat /etc/hostname; readlink /etc/localtime; cat /etc/default/locale; LC_ALL=de_DE.UTF-8 locale charmap 2>&1
        id ops; stat -c '%U:%G %a %n' /home/ops/.ssh /home/ops/.ssh/authorized_keys /etc/app/secret /etc/app
        readlink /etc/app/link /lib; cat /usr/lib/app/data; cat /etc/sudoers.d/ops; grep ^ops: /etc/shadow
        readlink /etc/systemd/system/getty@tty1.service; systemctl is-enabled systemd-timesyncd
        cat /srv/interfaces-offline; [ "$(cat /srv/interfaces-online)" -gt 1 ] && echo online
        ls /boot /etc/ssh; echo changed > /etc/hostname
    """
    told = checkout.doit("shell:small-full", text=commands)
    assert "thrown away" in told
    for expected in (
        "node-1.lab",
        "/usr/share/zoneinfo/Europe/Berlin",
        "LANG=de_DE.UTF-8",
        "UTF-8",
        "uid=2000(ops)",
        "(adm)",
        "(systemd-journal)",
        "(sudo)",
        "ops:ops 700 /home/ops/.ssh",
        "ops:ops 600 /home/ops/.ssh/authorized_keys",
        "ops:adm 640 /etc/app/secret",
        "root:root 755 /etc/app",
        "secret",
        "usr/lib",
        "lib",
        "ops ALL=(ALL:ALL) NOPASSWD: ALL",
        "ops:!:",
        "/dev/null",
        "enabled",
        "1",
        "online",
    ):
        assert expected in told
    assert "ssh_host" not in told
    assert "initrd" not in told
    assert "changed" not in checkout.doit("shell:small-full", text="cat /etc/hostname\n")


def test_no_secret_in_what_is_kept_or_said(small: Checkout) -> None:
    small.doit("build:small-volatile")
    kept = [SHARED / "out" / name for name in ("log", "state", "images")]
    kept += (SHARED / "out/store").glob("*/receipt.json")
    found = subprocess.run(["grep", "-rlF", HASH, *map(str, kept)], capture_output=True, text=True, check=False)
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("files", "text", "stage", "said"),
    [
        ({}, "debian: {packages: [no-such-package]}", "packages", "no package no-such-package"),
        ({"hook": "#!/bin/sh\necho the last words\nexit 3\n"}, "hooks: [hook]", "customise", "the last words"),
        (
            {"hook": "#!/bin/sh\necho '/dev/sda1 / ext4 defaults 0 1' > /etc/fstab\n"},
            "hooks: [hook]",
            "customise",
            "/etc/fstab mounts a root of its own",
        ),
        (
            {},
            "debian: {package-groups: {old: [sysvinit-core]}}",
            "packages-old",
            "would change what an earlier one has installed: systemd-sysv ",
        ),
        ({}, "timezone: Europe/Nowhere", "system", "timezone: Europe/Nowhere is not known"),
        ({}, "users: [{name: ops, groups: [docker]}]", "system", "no group docker"),
        ({}, "services: {enable: [nothing.service]}", "system", "cannot enable nothing.service"),
        (
            {},
            "debian: {kernel: linux-image-cloud-amd64, packages: [linux-image-rt-amd64]}",
            "initramfs",
            "several kernels",
        ),
    ],
)
def test_a_failure_explains_itself(
    small: Checkout, tmp_path: Path, files: dict[str, str], text: str, stage: str, said: str
) -> None:
    small.doit("build:small-volatile")
    checkout = Checkout.beside(tmp_path)
    folder = checkout.recipe("small-fails", f"extends: ../_parts/base.yaml\n{text}\n", files)
    checkout.lock("small-fails")
    for file in files:
        (folder / file).chmod(0o755)
    told = checkout.doit("build:small-fails", status=1)
    assert states(told)[stage] == "FAILED"
    assert said in told
    assert f"log: out/log/small-fails/{stage}.log" in told
    assert "Traceback" not in told


def test_nothing_is_downloaded_twice(other: Checkout) -> None:
    cache = other.folder / "out/cache/debs"
    before = {path.name: path.stat().st_ino for path in cache.iterdir()}
    other.doit("build:small-volatile")
    for stage in ("bootstrap", "packages"):
        assert "Get:" not in (other.folder / f"out/log/small-volatile/{stage}.log").read_text()
    assert {path.name: path.stat().st_ino for path in cache.iterdir() if path.is_file()} == before


def test_what_moved_on_upstream_is_not_taken_silently(other: Checkout) -> None:
    lock = other.folder / "recipes/small-volatile/recipe.lock"
    facts = json.loads(lock.read_bytes())
    facts["suites"]["bookworm-security"]["inrelease"] = "0" * 64
    lock.write_text(json.dumps(facts))
    told = other.doit("build:small-volatile", status=1)
    assert "bookworm-security moved on since the lock was written" in told
    assert "./doit lock:NAME" in told
    assert json.loads(lock.read_bytes()) == facts
    told = other.doit("lock:small-volatile", "--check", status=1)
    assert re.search(r"lock +moved +.*bookworm-security/inrelease: 0+\.\.\. -> ", told)
    assert "upstream has moved" in told
    assert json.loads(lock.read_bytes()) == facts
    assert re.search(r"bookworm-security/inrelease: 0+\.\.\. -> ", other.doit("lock:small-volatile"))
    assert re.search(r"lock +same", other.doit("lock:small-volatile", "--check"))


def test_another_architecture_runs_by_an_emulator_of_the_sandbox(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path, "small-arm")
    (tmp_path / "out").symlink_to(SHARED / "out")
    registered = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
    before = registered.exists()
    checkout.doit("_stage:small-arm/bootstrap")
    key = json.loads((SHARED / "out/state/small-arm.json").read_bytes())["stages"]["bootstrap"]
    root = SHARED / "out/store" / key / "tree"
    assert (root / "usr/bin/dpkg").read_bytes()[18] == 183, "an ELF for AArch64"
    assert "install ok installed" in (root / "var/lib/dpkg/status").read_text()
    assert "half-configured" not in (root / "var/lib/dpkg/status").read_text()
    assert registered.exists() == before
