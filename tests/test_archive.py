"""Archives: the names that apt gives its lists, and where packages are fetched from. No network."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from buildlib import sandbox
from buildlib.distros import debian
from buildlib.distros.debian import archive
from buildlib.distros.debian.archive import Source
from buildlib.errors import BuildError

URIS = [
    "http://apt.lab/debian",
    "http://apt.lab/debian/",
    "http://apt.lab",
    "http://apt.lab/",
    "https://apt.lab/debian",
    "http://apt.lab:8080/debian",
    "http://192.0.2.1:3142/apt.lab/debian",
    "http://apt.lab/~ops/debian",
    "http://apt.lab/my_mirror/debian-security",
    "http://apt.lab/a%20b/debian",
    "http://apt.lab/debian/20261101T000000Z",
    "http://apt.lab/a=b,c/debian+more",
    "http://apt.lab/deb@ian",
    "http://user@apt.lab/debian",
    "http://user:word@apt.lab:80/debian",
    "http://apt.lab/a'b(c)!/debian",
    "http://apt.lab/a$b&c*d/debian",
    "http://apt.lab/a//b/debian",
]


def configured(folder: Path, *sources: Source) -> dict[str, str]:
    """An environment in which apt knows these sources alone."""
    for name in ("parts", "lists/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text("".join(f"{source.line()}\n" for source in sources))
    lines = [
        f'Dir::Etc::main "{os.devnull}";',
        f'Dir::Etc::parts "{folder / "parts"}";',
        f'Dir::Etc::sourcelist "{folder / "sources.list"}";',
        f'Dir::Etc::sourceparts "{folder / "parts"}";',
        f'Dir::State::lists "{folder / "lists"}";',
        f'Dir::State::status "{folder / "status"}";',
        'Dir::Cache::pkgcache "";',
        'Dir::Cache::srcpkgcache "";',
    ]
    (folder / "apt.conf").write_text("\n".join(lines) + "\n")
    return {**os.environ, "APT_CONFIG": str(folder / "apt.conf"), "LC_ALL": "C.UTF-8"}


def apts_name(folder: Path, source: Source) -> str:
    """How apt calls the InRelease file of a source."""
    line = ["apt-get", "update", "--print-uris"]
    told = subprocess.run(line, env=configured(folder, source), stdout=subprocess.PIPE, text=True, check=True).stdout
    (found,) = (line for line in told.splitlines() if "/InRelease'" in line)
    return found.split("' ")[1].split(" ")[0]


@pytest.mark.parametrize("uri", URIS)
def test_lists_are_named_as_apt_names_them(uri: str, tmp_path: Path) -> None:
    source = Source(uri, "bookworm", ("main",))
    assert f"{source.list_prefix}InRelease" == apts_name(tmp_path, source)


@pytest.mark.parametrize("suite", ["bookworm-updates", "bookworm/updates", "jammy-security"])
def test_lists_of_a_suite_are_named_as_apt_names_them(suite: str, tmp_path: Path) -> None:
    source = Source("http://apt.lab/debian", suite, ("main",))
    assert f"{source.list_prefix}InRelease" == apts_name(tmp_path, source)


def test_a_line_of_sources() -> None:
    source = Source("http://apt.lab/debian", "bookworm", ("main", "contrib"))
    assert source.line("/keys.gpg") == "deb [signed-by=/keys.gpg] http://apt.lab/debian bookworm main contrib"


# Mirrors


def options(distribution: str = "debian", **changes: Any) -> dict[str, Any]:
    suite = {"debian": "bookworm", "ubuntu": "jammy"}[distribution]
    return {
        "distribution": distribution,
        "suites": [suite, f"{suite}-updates", f"{suite}-security"],
        "components": ["main"],
        "arch": "amd64",
        "mirror": None,
        "security_mirror": None,
        "snapshot": None,
        **changes,
    }


TIME = "20261101T000000Z"

IMAGE: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "a mirror": (
        options(mirror="http://apt.lab/debian"),
        ("http://apt.lab/debian", "http://apt.lab/debian-security"),
    ),
    "a mirror with a slash": (
        options(mirror="http://apt.lab/debian/"),
        ("http://apt.lab/debian", "http://apt.lab/debian-security"),
    ),
    "a mirror and its companion": (
        options(mirror="http://apt.lab/debian", security_mirror="http://sec.lab/s/"),
        ("http://apt.lab/debian", "http://sec.lab/s"),
    ),
    "a mirror of Ubuntu": (
        options("ubuntu", mirror="http://apt.lab/ubuntu"),
        ("http://apt.lab/ubuntu", "http://apt.lab/ubuntu"),
    ),
    "a snapshot": (
        options(snapshot=TIME),
        (
            f"http://snapshot.debian.org/archive/debian/{TIME}",
            f"http://snapshot.debian.org/archive/debian-security/{TIME}",
        ),
    ),
    "a snapshot of Ubuntu": (
        options("ubuntu", snapshot=TIME),
        (f"http://snapshot.ubuntu.com/ubuntu/{TIME}", f"http://snapshot.ubuntu.com/ubuntu/{TIME}"),
    ),
    "a snapshot of a mirror": (
        options(snapshot=TIME, mirror="http://snap.lab/debian/"),
        (f"http://snap.lab/debian/{TIME}", f"http://snap.lab/debian-security/{TIME}"),
    ),
}


@pytest.mark.parametrize("case", IMAGE)
def test_an_images_mirrors(case: str) -> None:
    given, (main, security) = IMAGE[case]
    assert archive.image_mirrors(given) == {"archive": main, "security": security}


@pytest.mark.parametrize("case", IMAGE)
def test_a_build_fetches_from_where_the_recipe_says(case: str) -> None:
    """Whatever the site and the machine have."""
    given, (main, security) = IMAGE[case]
    site = {"archive": "http://site.lab/debian", "security": None}
    assert archive.build_mirrors(given, site) == {"archive": main, "security": security}


SITES: dict[str, tuple[str, Mapping[str, str | None], tuple[str, str]]] = {
    "Debian": (
        "debian",
        {"archive": "http://site.lab/debian", "security": None},
        ("http://site.lab/debian", "http://site.lab/debian-security"),
    ),
    "Debian with a companion": (
        "debian",
        {"archive": "http://site.lab/debian/", "security": "http://sec.lab/s/"},
        ("http://site.lab/debian", "http://sec.lab/s"),
    ),
    "Ubuntu": (
        "ubuntu",
        {"archive": "http://site.lab/ubuntu", "security": None},
        ("http://site.lab/ubuntu", "http://site.lab/ubuntu"),
    ),
}


@pytest.mark.parametrize("case", SITES)
def test_a_build_fetches_from_the_sites_mirrors(case: str) -> None:
    distribution, site, (main, security) = SITES[case]
    assert archive.build_mirrors(options(distribution), site) == {"archive": main, "security": security}


def test_a_sites_mirror_is_not_the_images() -> None:
    assert "site.lab" not in str(archive.image_mirrors(options()))


def release(folder: Path, source: Source, label: str) -> None:
    """What apt keeps of a suite that it fetched once."""
    arch = sandbox.host_arch()
    text = f"""\
Origin: Debian
Label: {label}
Codename: {source.suite}
Date: {DATE}
Architectures: {arch}
Components: main
SHA256:
 {"0" * 64} 5 main/binary-{arch}/Packages
"""
    (folder / "lists" / f"{source.list_prefix}InRelease").write_text(text)
    (folder / "lists" / f"{source.list_prefix}main_binary-{arch}_Packages").touch()


DATE = "Sat, 21 Nov 2026 08:00:00 UTC"


def test_a_build_fetches_from_where_this_machine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = Source("http://own.lab/debian", "bookworm", ("main",))
    security = Source("http://own.lab/secure", "bookworm-security", ("main",))
    monkeypatch.setenv("APT_CONFIG", configured(tmp_path, main, security)["APT_CONFIG"])
    release(tmp_path, main, "Debian")
    release(tmp_path, security, "Debian-Security")
    assert archive.build_mirrors(options(), {}) == {"archive": main.uri, "security": security.uri}


def test_a_machine_of_another_distribution_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = Source("http://own.lab/debian", "bookworm", ("main",))
    monkeypatch.setenv("APT_CONFIG", configured(tmp_path, main)["APT_CONFIG"])
    release(tmp_path, main, "Debian")
    assert "own.lab" not in str(archive.build_mirrors(options("ubuntu"), {}))


@pytest.mark.parametrize(
    ("suite", "arch", "endings"),
    [
        *((suite, "amd64", ["debian", "debian-security"]) for suite in debian.options.DEBIAN),
        *((suite, "amd64", ["ubuntu", "ubuntu"]) for suite in debian.options.UBUNTU),
        ("bookworm", "arm64", ["debian", "debian-security"]),
        # The main archive of Ubuntu has amd64 alone.
        ("jammy", "arm64", ["ubuntu-ports", "ubuntu-ports"]),
    ],
)
def test_without_any_mirror_the_public_one_serves(suite: str, arch: str, endings: list[str]) -> None:
    found = archive.image_mirrors(options(debian.Options(suite).distribution, suites=[suite], arch=arch))
    assert [uri.rpartition("/")[2] for uri in found.values()] == endings


@pytest.mark.parametrize("distribution", ["debian", "ubuntu"])
def test_the_public_mirror_needs_no_certificates(distribution: str) -> None:
    """A root that is being made has none yet; signatures protect the packages."""
    assert all(uri.startswith("http://") for uri in archive.image_mirrors(options(distribution)).values())


def test_security_comes_from_its_own_archive() -> None:
    found = archive.sources(options(), {"archive": "http://a.lab/debian", "security": "http://s.lab/debian-security"})
    assert [(source.suite, source.uri) for source in found] == [
        ("bookworm", "http://a.lab/debian"),
        ("bookworm-updates", "http://a.lab/debian"),
        ("bookworm-security", "http://s.lab/debian-security"),
    ]


# Lists


@pytest.fixture
def fetched(tmp_path: Path) -> tuple[Path, list[Source]]:
    """apt's lists of three suites, and where they came from."""
    wanted = archive.sources(options(), archive.image_mirrors(options(mirror="http://apt.lab/debian")))
    (tmp_path / "lists/partial").mkdir(parents=True)
    for source in wanted:
        release(tmp_path, source, "Debian")
    (tmp_path / "lists/lock").touch()
    return tmp_path / "lists", wanted


def test_lists_are_kept_by_suite(fetched: tuple[Path, list[Source]], tmp_path: Path) -> None:
    archive.keep(*fetched, tmp_path / "kept")
    assert {str(path.relative_to(tmp_path / "kept")) for path in tmp_path.glob("kept/*/*")} == {
        f"{suite}/{name}"
        for suite in ("bookworm", "bookworm-security", "bookworm-updates")
        for name in ("InRelease", f"main_binary-{sandbox.host_arch()}_Packages")
    }


def test_a_suite_keeps_its_own_lists(fetched: tuple[Path, list[Source]], tmp_path: Path) -> None:
    archive.keep(*fetched, tmp_path / "kept")
    texts = {path.parent.name: path.read_text() for path in tmp_path.glob("kept/*/InRelease")}
    assert all(f"Codename: {suite}\n" in text for suite, text in texts.items())


def test_kept_lists_name_no_mirror(fetched: tuple[Path, list[Source]], tmp_path: Path) -> None:
    archive.keep(*fetched, tmp_path / "kept")
    assert not [path for path in tmp_path.glob("kept/**/*") if "apt.lab" in path.name]


def test_a_lock_says_when_a_suite_was_published(fetched: tuple[Path, list[Source]]) -> None:
    assert archive.releases(*fetched)["bookworm"]["date"] == 1795248000


def test_suites_are_told_apart_by_their_releases(fetched: tuple[Path, list[Source]]) -> None:
    assert len({facts["inrelease"] for facts in archive.releases(*fetched).values()}) == 3


def test_a_release_without_date_is_an_error(fetched: tuple[Path, list[Source]]) -> None:
    lists, wanted = fetched
    (lists / f"{wanted[0].list_prefix}InRelease").write_text("Origin: Debian\n")
    with pytest.raises(BuildError, match="bookworm: InRelease has no date"):
        archive.releases(lists, wanted)


def test_lists_that_cannot_be_had_are_explained_by_apt(tmp_path: Path) -> None:
    """Port 1 of this machine: nobody listens."""
    wanted = [Source("http://127.0.0.1:1/debian", "bookworm", ("main",))]
    keys = tmp_path / "keys.gpg"
    keys.touch()
    with pytest.raises(BuildError) as caught:
        archive.update(
            tmp_path / "lists", wanted, "amd64", keys, tmp_path / "apt", tmp_path / "log", ['Acquire::Retries "0";']
        )
    assert caught.value.message.startswith("the package lists of bookworm cannot be had: ")
    assert "127.0.0.1" in caught.value.message


# Settings


def test_of_the_machines_apt_only_proxies_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APT_CONFIG", configured(tmp_path)["APT_CONFIG"])
    before = archive.apt_settings()
    with (tmp_path / "apt.conf").open("a") as file:
        file.write('Acquire::http::Proxy "http://proxy.lab:3128";\nAcquire::http::Timeout "7";\n')
    assert [line for line in archive.apt_settings() if line not in before] == [
        'Acquire::http::Proxy "http://proxy.lab:3128";'
    ]


def test_an_unset_proxy_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APT_CONFIG", configured(tmp_path)["APT_CONFIG"])
    with (tmp_path / "apt.conf").open("a") as file:
        file.write('Acquire::http::Proxy "";\n')
    assert not [line for line in archive.apt_settings() if "Proxy" in line]


def test_what_fetches_gets_the_callers_proxies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy.lab:3128")
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    assert archive.proxy_environment() == {"http_proxy": "http://proxy.lab:3128"}
