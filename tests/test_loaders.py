"""Boot loaders: what is locked, fetched and put into a boot root."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from buildlib import bootmenu, build, host, loaders, plan
from buildlib.errors import BuildError
from buildlib.files import Here
from buildlib.identity import HostIdentity
from buildlib.loaders import FILES, Deb
from buildlib.store import Receipt, Store
from tests.checkout import PROJECT, SHARED

CACHE = SHARED / "out" / "cache"
Lock = dict[str, Any]


def made_up() -> Lock:
    """A lock of packages that nobody has."""
    found: dict[str, dict[str, Any]] = {}
    for source in FILES.values():
        filename = f"pool/{source.package}_1.0_{source.arch}.deb"
        facts = {"version": "2:1.0", "sha256": "0" * 64, "size": 3, "filename": filename}
        found.setdefault(source.arch, {})[source.package] = facts
    return {"suite": loaders.SUITE, "packages": found}


def changed(lock: Lock, **facts: object) -> Lock:
    """The lock with other facts of GRUB."""
    copied: Lock = json.loads(json.dumps(lock))
    copied["packages"]["amd64"]["grub-efi-amd64-signed"].update(facts)
    return copied


def key(lock: Lock, folder: Path) -> str:
    return keyed(lock, folder).key


def keyed(lock: Lock, folder: Path) -> plan.Keyed:
    return plan.keyed([loaders.stage(lock)], HostIdentity(folder / "digests.json", host.PACKAGES))["bootloaders"]


def test_every_first_stage_has_a_source() -> None:
    assert {*bootmenu.FIRST_STAGE.values()} <= {*FILES}


def test_what_is_not_locked_has_no_facts() -> None:
    assert loaders.stage({}).facts is None
    lacking = made_up()
    del lacking["packages"]["arm64"]["shim-signed"]
    assert loaders.stage(lacking).facts is None
    assert loaders.stage({**made_up(), "suite": "forky"}).facts is None


def test_the_key_follows_what_is_locked_but_not_where_it_lies(tmp_path: Path) -> None:
    lock = made_up()
    assert key(changed(lock, sha256="1" * 64), tmp_path) != key(lock, tmp_path)
    assert key(changed(lock, filename="pool/updates/grub_1.0_amd64.deb"), tmp_path) == key(lock, tmp_path)
    lock["packages"]["amd64"]["another"] = {}
    assert key(lock, tmp_path) == key(made_up(), tmp_path)


def test_what_apt_shows_becomes_a_lock() -> None:
    told = """\
Package: ipxe
Version: 1.21.1-1
Architecture: all
Filename: pool/main/i/ipxe/ipxe_1.21.1-1_all.deb
Size: 2480284
SHA256: eeac
Description: PXE boot firmware
 iPXE: a boot loader
 Size: 1

Package: shim-signed
Architecture: arm64
Version: 1:1.51
SHA256: e228
Size: 318328
Filename: pool/main/s/shim-signed/shim-signed_1.51_arm64.deb
"""
    found = loaders.parse(told)
    assert found["amd64"]["ipxe"]["size"] == 2480284
    assert found["arm64"]["shim-signed"] == {
        "version": "1:1.51",
        "sha256": "e228",
        "size": 318328,
        "filename": "pool/main/s/shim-signed/shim-signed_1.51_arm64.deb",
    }
    assert loaders.parse("") == {}


GRUB = Deb("grub", "amd64", "1:2+3", "0" * 64, 3, "pool/main/g/grub_2+3_amd64.deb")
FAILED = "E: Failed to fetch http://apt.lab/debian/pool/main/g/grub_2%2b3_amd64.deb "


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([f"{FAILED} 404  Not Found [IP: 192.0.2.1 80]"], "upstream no longer has grub 1:2+3 for amd64"),
        ([f"{FAILED} Hash Sum mismatch"], "upstream no longer has grub 1:2+3 for amd64"),
        ([f"{FAILED} 404  Not Found", f"{FAILED} Connection timed out"], "cannot be had: Failed to fetch http://apt"),
        ([FAILED.replace("grub_", "ipxe_") + " Connection timed out", f"{FAILED} 404  Not Found"], "no longer has"),
        (["E: Write error"], "grub 1:2+3 for amd64 cannot be had: Write error"),
        ([], "apt does not say why"),
    ],
)
def test_a_package_that_is_gone_is_told_from_a_mirror_that_is(said: list[str], told: str) -> None:
    error = loaders.unavailable(GRUB, said)
    assert told in error.message
    assert ("./doit bootloaders:lock" in str(error)) == ("no longer has" in told)


def test_downloads_are_named_as_apt_names_them() -> None:
    assert GRUB.cache_name == "grub_1%3a2+3_amd64.deb"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something of every name, as a store's entry has it."""
    made = tmp_path / "entry"
    (made / "copyright").mkdir(parents=True)
    for name in (*FILES, "receipt.json", "copyright/ipxe"):
        (made / name).write_text(name)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "boot"
    made.mkdir()
    return made


def test_only_what_differs_is_written(folder: Path, root: Path) -> None:
    assert sorted(loaders.install(folder, str(root), Here())) == sorted(FILES)
    assert {path.name: path.read_text() for path in root.iterdir()} == {name: name for name in FILES}
    assert {path.stat().st_mode & 0o7777 for path in root.iterdir()} == {0o644}
    before = {path.name: path.stat().st_ino for path in root.iterdir()}
    assert loaders.install(folder, str(root), Here()) == []
    (root / "menu.c32").write_text("menu.c3X")
    assert sorted(loaders.install(folder, str(root), Here())) == ["menu.c32"]
    now = {path.name: path.stat().st_ino for path in root.iterdir()}
    assert {name for name in now if now[name] != before[name]} == {"menu.c32"}


def test_who_is_reading_a_file_reads_it_to_its_end(folder: Path, root: Path) -> None:
    (root / "pxelinux.0").write_text("an older one")
    with (root / "pxelinux.0").open() as file:
        assert "pxelinux.0" in loaders.install(folder, str(root), Here())
        assert file.read() == "an older one"
    assert (root / "pxelinux.0").read_text() == "pxelinux.0"


def test_neither_a_link_nor_the_store_is_written_through(folder: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("pxelinux.0")
    (root / "pxelinux.0").symlink_to(tmp_path / "other")
    loaders.install(folder, str(root), Here())
    assert not (root / "pxelinux.0").is_symlink()
    assert not [name for name in FILES if (root / name).samefile(folder / name)]


@pytest.fixture(scope="module")
def lock(tmp_path_factory: pytest.TempPathFactory) -> Lock:
    """What upstream offers today."""
    scratch = tmp_path_factory.mktemp("lock")
    return loaders.take_lock({}, scratch, scratch / "log")


def run(lock: Lock, folder: Path, cache: Path, mirror: str | None = None) -> tuple[Receipt, Path]:
    """Run the stage into a store in `folder`; its receipt, and the outcome."""
    mirrors: Mapping[str, Mapping[str, str | None]] = {"debian": {"archive": mirror}} if mirror else {}
    store = Store(folder / "out")
    receipt = build.run(
        keyed(lock, folder),
        {},
        store,
        cache=cache,
        log=folder / "log",
        epoch=0,
        progress=lambda _part, _what: None,
        mirrors=mirrors,
    )
    return receipt, store.path(receipt.key)


@pytest.fixture
def cache(lock: Lock, tmp_path: Path) -> Path:
    """A cache of the test's own that has everything."""
    run(lock, tmp_path / "first", CACHE)
    made = tmp_path / "cache"
    (made / "debs").mkdir(parents=True)
    for path in debs(lock):
        shutil.copy(CACHE / "debs" / path, made / "debs")
    return made


def debs(lock: Lock) -> list[str]:
    """Names of the downloads."""
    found = [
        Deb(package, arch, **facts)
        for arch, packages in lock["packages"].items()
        for package, facts in packages.items()
    ]
    return [deb.cache_name for deb in found]


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """A mirror that answers, and has nothing."""
    (tmp_path / "mirror").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "mirror"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/debian"
        server.shutdown()


@pytest.mark.integration
def test_the_files_are_what_firmware_loads(lock: Lock, tmp_path: Path) -> None:
    receipt, made = run(lock, tmp_path, CACHE)
    assert {name for name in receipt.outputs if "/" not in name} == {*FILES}
    assert {name for name in receipt.outputs if "/" in name} == {f"copyright/{of.package}" for of in FILES.values()}
    assert receipt.layer is None
    for name in FILES:
        data = (made / name).read_bytes()
        assert len(data) > (500_000 if name.endswith(".efi") else 20_000)
        if name.endswith(".efi"):
            start = struct.unpack_from("<I", data, 0x3C)[0]
            arm = "aa64" in name or "arm64" in name
            assert struct.unpack_from("<4sH", data, start) == (b"PE\0\0", 0xAA64 if arm else 0x8664)
            # The certificate table, fifth of PE32+'s directories: where the signature is.
            signed = struct.unpack_from("<II", data, start + 24 + 112 + 4 * 8)[1] > 0
            assert signed == ("ipxe" not in name)
        elif name.endswith(".c32"):
            assert data.startswith(b"\x7fELF")
    assert b"(memdisk)/grub.cfg" in (made / "grubx64.efi").read_bytes()


@pytest.mark.integration
def test_a_second_store_needs_no_network(lock: Lock, cache: Path, mirror: str, tmp_path: Path) -> None:
    receipt, _ = run(lock, tmp_path, cache, mirror)
    assert len(receipt.outputs) > len(FILES)
    assert "apt-helper" not in (tmp_path / "log").read_text()


@pytest.mark.integration
def test_a_kept_download_that_is_damaged_is_fetched_anew(lock: Lock, cache: Path, tmp_path: Path) -> None:
    victim = cache / "debs" / debs(lock)[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    run(lock, tmp_path, cache)
    assert victim.read_bytes() == whole
    assert {path.name for path in (cache / "debs").iterdir()} == {*debs(lock)}


@pytest.mark.integration
def test_what_a_mirror_alters_is_refused(lock: Lock, cache: Path, mirror: str, tmp_path: Path) -> None:
    facts = lock["packages"]["arm64"]["shim-signed"]
    served = tmp_path / "mirror" / "debian" / facts["filename"]
    served.parent.mkdir(parents=True)
    served.write_bytes(b"0" * facts["size"])
    (name,) = (name for name in debs(lock) if name.startswith("shim-signed") and name.endswith("_arm64.deb"))
    (cache / "debs" / name).unlink()
    with pytest.raises(BuildError, match=r"no longer has shim-signed .* for arm64"):
        run(lock, tmp_path, cache, mirror)
    assert "Hash Sum mismatch" in (tmp_path / "log").read_text()
    assert not (cache / "debs" / name).exists()
    assert not list((tmp_path / "out").glob("store/*"))


@pytest.mark.integration
def test_an_update_is_found_in_the_security_archive(lock: Lock, cache: Path, mirror: str, tmp_path: Path) -> None:
    (name,) = (name for name in debs(lock) if name.startswith("pxelinux"))
    served = tmp_path / "mirror" / "debian-security" / lock["packages"]["amd64"]["pxelinux"]["filename"]
    served.parent.mkdir(parents=True)
    (cache / "debs" / name).rename(served)
    run(lock, tmp_path, cache, mirror)
    assert (cache / "debs" / name).read_bytes() == served.read_bytes()


@pytest.mark.integration
def test_what_is_gone_upstream_asks_for_a_new_lock(lock: Lock, cache: Path, mirror: str, tmp_path: Path) -> None:
    (name,) = (name for name in debs(lock) if name.startswith("pxelinux"))
    (cache / "debs" / name).unlink()
    version = lock["packages"]["amd64"]["pxelinux"]["version"]
    with pytest.raises(BuildError) as caught:
        run(lock, tmp_path, cache, mirror)
    assert f"no longer has pxelinux {version} for amd64" in caught.value.message
    assert caught.value.hint is not None
    assert "./doit bootloaders:lock" in caught.value.hint


@pytest.mark.integration
def test_a_mirror_that_is_away_is_no_reason_for_a_new_lock(lock: Lock, cache: Path, tmp_path: Path) -> None:
    (name,) = (name for name in debs(lock) if name.startswith("pxelinux"))
    (cache / "debs" / name).unlink()
    with pytest.raises(BuildError, match=r"cannot be had: .*127\.0\.0\.1:9"):
        run(lock, tmp_path, cache, "http://127.0.0.1:9/debian")


AS_USER = """
import json, sys
from pathlib import Path
from buildlib import loaders
from buildlib.work import Work

base = Path(sys.argv[1])
lock = loaders.take_lock({}, base / "lock", base / "log")
for name in ("work", "work/out", "work/scratch"):
    (base / name).mkdir()
loaders.run(
    Work(
        stage=loaders.stage(lock),
        key="0",
        out=base / "work/out",
        inputs={},
        layers=(),
        scratch=base / "work/scratch",
        cache=base / "cache",
        kept=base / "kept",
        alike="0",
        log=base / "log",
        progress=lambda part, what: None,
        epoch=0,
    )
)
print(json.dumps(lock))
"""


@pytest.mark.integration
def test_a_user_without_any_rights_gets_the_same(lock: Lock, tmp_path: Path) -> None:
    """Lock and files, with nothing kept from before."""
    import yaml

    _, expected = run(lock, tmp_path, CACHE)
    with tempfile.TemporaryDirectory(prefix="netboot-") as base:
        # The project may lie where only root may look.
        shutil.copytree(PROJECT / "buildlib", f"{base}/code/buildlib", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(Path(yaml.__file__).parent, f"{base}/code/yaml")
        made = Path(base, "made")
        made.mkdir()
        os.chown(made, 65534, 65534)
        Path(base).chmod(0o755)
        line = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", AS_USER]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{base}/code", "HOME": str(made)}
        done = subprocess.run([*line, str(made)], env=env, cwd=base, stdout=subprocess.PIPE, check=True)
        assert json.loads(done.stdout) == lock
        for name in FILES:
            assert (made / "work/out" / name).read_bytes() == (expected / name).read_bytes()
