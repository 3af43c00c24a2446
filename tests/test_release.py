"""Releases: named by what is in them, whole or not there, and verified by the usual tools."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from buildlib import release
from buildlib.errors import BuildError
from buildlib.plan import Keyed, Plan, Stage
from buildlib.release import LATEST, Release
from buildlib.store import Output, Receipt, Store, describe
from tests import initrdlab

BASE = Stage("base", "some.module:base")
TOP = Stage("top", "some.module:top", inputs=(BASE,))
PACK = Stage("pack", "some.module:pack", inputs=(TOP,))

INITRD = (initrdlab.program("init", initrdlab.elf(62)) + initrdlab.TRAILER).decode()
"""As small as it can be."""

FILES = {
    "base": {"vmlinuz": "kernel", "initrd": INITRD},
    "top": {"packages.tsv": "less\t590\tamd64\n"},
    "pack": {"rootfs.squashfs": "squashfs"},
}
LAYERS = {"base": Output("a" * 64, 1000), "top": Output("b" * 64, 100), "pack": None}
LISTINGS = {
    "base": b". d 0755 0:0 7 0 -\n\xff f 0644 0:0 7 3 " + b"c" * 64 + b"\ngone f 0644 0:0 7 3 " + b"c" * 64 + b"\n",
    "top": b". d 0700 0:0 8 0 -\na\\040b l 0777 0:0 8 0 to\ngone w 0000 0:0 8 0 0,0\n",
}
ABOUT = {"distro": "debian", "arch": "amd64", "description": "", "root": {"kind": "nfs", "over": "http"}}


def plan(**changes: Any) -> Plan:
    given: dict[str, Any] = {
        "stages": (BASE, TOP, PACK),
        "artifacts": {
            "vmlinuz": (BASE, "vmlinuz"),
            "initrd": (BASE, "initrd"),
            "live/filesystem.squashfs": (PACK, "rootfs.squashfs"),
        },
        "root": (BASE, TOP),
        "cmdline": "boot=nfs root=${nfs_root}",
        "packages": (TOP, "packages.tsv"),
        "facts": {"suites": {"bookworm": {"date": 1}}},
    }
    return Plan("one", **{**given, **changes})


class Place:
    """A store with what three stages made, and the releases of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "out")
        self.images = folder / "out/images"
        self.keys: dict[str, Keyed] = {}
        for stage in (BASE, TOP, PACK):
            self.make(stage)

    def make(self, stage: Stage, key: str = "", seconds: float = 1.0, **files: str) -> None:
        """Put the outcome of a stage under a key of its own."""
        key = key or stage.name.ljust(64, "0")
        folder = self.store.begin(key)
        for name, text in {
            **FILES[stage.name],
            **{name.replace("_", "."): text for name, text in files.items()},
        }.items():
            (folder / name).write_text(text)
        outputs = {path.name: describe(path) for path in folder.iterdir()}
        if stage.name in LISTINGS:
            (folder / "tree.list").write_bytes(LISTINGS[stage.name])
        document = {"stage": stage.name, "tools": {"mksquashfs": "4.5"} if stage is PACK else {}}
        self.store.put(Receipt(key, document, outputs, LAYERS[stage.name], seconds, {"kernel": "6.1"}), folder)
        self.keys[stage.name] = Keyed(stage, key, document)

    def assemble(self, made: Plan | None = None, about: Mapping[str, Any] = ABOUT) -> Release:
        return release.assemble(made or plan(), self.keys, self.store, self.images, about)

    def latest(self) -> str:
        return os.readlink(self.images / "one" / LATEST)

    def folders(self) -> set[str]:
        return set(os.listdir(self.images / "one"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def content(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_release_holds_what_belongs_together(place: Place) -> None:
    made = place.assemble()
    assert content(made.folder) == {
        "SHA256SUMS",
        "initrd",
        "live/filesystem.squashfs",
        "manifest.json",
        "packages.tsv",
        "sbom.cdx.json",
        "tree.list",
        "vmlinuz",
    }


def test_a_release_lists_what_its_whole_root_holds(place: Place) -> None:
    assert (place.assemble().folder / "tree.list").read_bytes() == (
        b". d 0700 0:0 8 0 -\na\\040b l 0777 0:0 8 0 to\n\xff f 0644 0:0 7 3 " + b"c" * 64 + b"\n"
    )


def test_without_layers_there_is_nothing_to_list(place: Place) -> None:
    assert "tree.list" not in content(place.assemble(plan(root=())).folder)


def test_a_stage_without_a_layer_lists_nothing(place: Place) -> None:
    made = place.assemble(plan(root=(BASE, PACK)))
    assert [line.split(b" ")[0] for line in (made.folder / "tree.list").read_bytes().splitlines()] == [
        b".",
        b"gone",
        b"\xff",
    ]


def test_the_listing_makes_no_other_release(place: Place) -> None:
    """Layers are told by their digests already: a release that is there stays what it is."""
    assert "listing" not in json.dumps(place.assemble().manifest["content"])
    assert "tree.list" not in place.assemble().manifest["content"]["artifacts"]


def test_all_files_are_known_with_digest_and_size(place: Place) -> None:
    made = place.assemble()
    (made.folder / "proof.json").write_text("{}")
    assert made.files() == {name: describe(made.folder / name) for name in content(made.folder) - {"proof.json"}}


def test_a_signature_is_one_of_the_files(place: Place) -> None:
    made = place.assemble()
    (made.folder / "SHA256SUMS.sig").write_text("signed")
    assert made.files()["SHA256SUMS.sig"] == describe(made.folder / "SHA256SUMS.sig")


def test_an_id_is_a_time_and_the_contents_digest(place: Place) -> None:
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{12}", place.assemble().id)


def test_a_release_lies_in_a_folder_of_its_id(place: Place) -> None:
    made = place.assemble()
    assert made.folder == place.images / "one" / made.id


def test_sha256sum_verifies_a_release(place: Place) -> None:
    made = place.assemble()
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=made.folder, check=True)


def test_sha256sum_finds_a_changed_file(place: Place) -> None:
    made = place.assemble()
    (made.folder / "vmlinuz").write_text("another")
    line = ["sha256sum", "--check", "--strict", "--status", "SHA256SUMS"]
    assert subprocess.run(line, cwd=made.folder, check=False).returncode == 1


def test_the_checksums_are_of_all_files_but_themselves(place: Place) -> None:
    made = place.assemble()
    lines = (made.folder / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == content(made.folder) - {"SHA256SUMS"}


def test_files_are_shared_with_the_store(place: Place) -> None:
    made = place.assemble()
    assert (made.folder / "vmlinuz").samefile(place.store.path(place.keys["base"].key, "vmlinuz"))


def test_shared_files_are_read_only(place: Place) -> None:
    made = place.assemble()
    assert (made.folder / "vmlinuz").stat().st_mode & 0o222 == 0


# What makes a release another one


def test_the_same_content_is_the_same_release(place: Place) -> None:
    first = place.assemble()
    assert place.assemble() == first


def test_the_same_content_under_other_keys_is_the_same_release(place: Place) -> None:
    first = place.assemble()
    place.make(BASE, "f" * 64, seconds=99.0)
    assert place.assemble() == first


def test_the_same_content_elsewhere_has_the_same_digest(place: Place, tmp_path: Path) -> None:
    ids = [where.assemble().id for where in (place, Place(tmp_path / "elsewhere"))]
    assert ids[0].partition("-")[2] == ids[1].partition("-")[2]


def _kernel(place: Place) -> Release:
    place.make(BASE, "f" * 64, vmlinuz="another")
    return place.assemble()


def _packages(place: Place) -> Release:
    place.make(TOP, "f" * 64, packages_tsv="nano\t7\tamd64\n")
    return place.assemble()


OTHERS: dict[str, Callable[[Place], Release]] = {
    "kernel": _kernel,
    "packages": _packages,
    "command line": lambda place: place.assemble(plan(cmdline="quiet")),
    "artifacts": lambda place: place.assemble(plan(artifacts={"vmlinuz": (BASE, "vmlinuz")})),
    "layers": lambda place: place.assemble(plan(root=(BASE,))),
    "order of layers": lambda place: place.assemble(plan(root=(TOP, BASE))),
    "what it is": lambda place: place.assemble(about={**ABOUT, "description": "another"}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_content_is_another_release(case: str, place: Place) -> None:
    first = place.assemble()
    assert OTHERS[case](place).id.partition("-")[2] != first.id.partition("-")[2]


def test_the_lock_alone_makes_no_other_release(place: Place) -> None:
    first = place.assemble()
    assert place.assemble(plan(facts={"suites": {}})) == first


def test_content_names_nothing_of_the_machine(place: Place) -> None:
    """No key, path or time: two machines that build the same must agree."""
    text = json.dumps(place.assemble().manifest["content"])
    unwanted = [str(place.folder), "seconds", 'kernel": "6.1', *(keyed.key for keyed in place.keys.values())]
    assert [word for word in unwanted if word in text] == []


def test_the_manifest_says_how_it_was_built(place: Place) -> None:
    assert place.assemble().manifest["build"] == {
        "facts": {name: {"kernel": "6.1"} for name in FILES},
        "keys": {name: name.ljust(64, "0") for name in FILES},
        "lock": {"suites": {"bookworm": {"date": 1}}},
        "tools": {"pack": {"mksquashfs": "4.5"}},
    }


def test_the_files_know_nothing_of_when_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Place(tmp_path / "one").assemble()]
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2030, 1, 1, 0, 0, 0, 1, 1, 0)))
    made.append(Place(tmp_path / "other").assemble())
    assert made[1].id.startswith("20300101T000000Z-")
    assert made[0].id.partition("-")[2] == made[1].id.partition("-")[2]
    assert made[1].manifest["id"] == made[1].id
    files = [{path.name: path.read_bytes() for path in one.folder.iterdir() if path.is_file()} for one in made]
    assert files[0] == files[1]


def test_a_tree_is_told_by_its_layers(place: Place) -> None:
    root = place.assemble().manifest["content"]["root"]
    assert (root["tree"], [layer["stage"] for layer in root["layers"]]) == (
        release.tree_digest([{"digest": "a" * 64}, {"digest": "b" * 64}]),
        ["base", "top"],
    )


ARTIFACTS = len("kernel") + len(INITRD) + len("squashfs")


@pytest.mark.parametrize(("kind", "size"), [("nfs", ARTIFACTS + 1100), ("squashfs", ARTIFACTS), ("ram", ARTIFACTS)])
def test_a_releases_size_is_what_clients_take(kind: str, size: int, place: Place) -> None:
    assert place.assemble(about={**ABOUT, "root": {"kind": kind}}).size == size


# The newest one


def test_latest_is_the_new_one(place: Place) -> None:
    place.assemble()
    assert _kernel(place).id == place.latest()


def test_latest_goes_back_when_the_content_does(place: Place) -> None:
    first = place.assemble()
    _kernel(place)
    place.make(BASE)
    place.assemble()
    assert place.latest() == first.id


def test_an_older_release_stays(place: Place) -> None:
    first = place.assemble()
    second = _kernel(place)
    assert place.folders() == {first.id, second.id, LATEST}


def test_latest_is_found(place: Place) -> None:
    made = place.assemble()
    assert release.latest(place.images, "one") == made


def test_there_may_be_no_latest(tmp_path: Path) -> None:
    assert release.latest(tmp_path, "one") is None


def test_a_latest_that_leads_nowhere_is_none(place: Place) -> None:
    made = place.assemble()
    (made.folder / "manifest.json").unlink()
    assert release.latest(place.images, "one") is None


# Failures


@pytest.fixture
def failed(place: Place) -> Place:
    """After a release, another one failed half-way: its initrd would not boot."""
    place.assemble()
    place.make(BASE, "f" * 64, vmlinuz="another", initrd=INITRD.replace("init", "Init"))
    with pytest.raises(BuildError, match="would not boot"):
        place.assemble()
    return place


def test_a_failure_leaves_nothing(failed: Place) -> None:
    assert len(failed.folders()) == 2


def test_a_failure_leaves_the_latest_one(failed: Place) -> None:
    assert (failed.images / "one" / LATEST / "manifest.json").exists()


def test_a_folder_without_manifest_is_no_release(place: Place) -> None:
    made = place.assemble()
    (made.folder / "manifest.json").unlink()
    made.folder.rename(made.folder.with_name(f"20200101T000000Z-{made.id.partition('-')[2]}"))
    assert (place.assemble().folder / "manifest.json").exists()


def test_an_initrd_is_looked_into_once_but_for_another_start(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.assemble()
    with monkeypatch.context() as patched:
        patched.setattr("buildlib.initrd.scan.scan", lambda _path: pytest.fail("looked into again"))
        place.assemble(about={**ABOUT, "description": "another"})
    with pytest.raises(BuildError, match="would not boot"):
        place.assemble(plan(cmdline="rdinit=/other"))
    place.make(BASE, initrd=INITRD.replace("init", "Init"))
    with pytest.raises(BuildError, match="would not boot"):
        place.assemble()


def test_an_initrd_that_would_not_boot_is_no_release(place: Place) -> None:
    place.make(BASE, initrd=INITRD.replace("init", "Init"))
    with pytest.raises(BuildError, match=r"would not boot:\ninit: is not there\n.*VFS: Unable to mount root fs"):
        place.assemble()
    assert not place.images.joinpath("one").exists() or not place.folders()
    with pytest.raises(BuildError, match=r"AArch64"):
        Place(place.folder / "other").assemble(about={**ABOUT, "arch": "arm64"})


def test_what_the_kernel_runs_may_have_another_name(place: Place) -> None:
    place.make(BASE, initrd=INITRD.replace("init", "Init"))
    place.assemble(plan(cmdline="rdinit=/Init boot=nfs"))
