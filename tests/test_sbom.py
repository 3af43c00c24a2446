"""The document of a release's packages, by its format's own validator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as some

from buildlib import sbom, spdx
from buildlib.distros.debian import copyright

LINES = (
    "apt\t2.6.1\tamd64\tapt@2.6.1\tExpat; GPL-2+; public-domain\n"
    "libc6\t1:2.36-9+deb12u14\tamd64\tglibc@2.36-9+deb12u14\tGPL-2+ or Artistic; ISC\n"
    "no-version\t\t\n"
)


@pytest.mark.parametrize(
    ("distro", "url"),
    [
        ("debian", "pkg:deb/debian/libc6@1:2.36-9%2Bdeb12u14"),
        ("alpine", "pkg:apk/alpine/libc6@1:2.36-9%2Bdeb12u14"),
        ("archlinux", "pkg:alpm/arch/libc6@1:2.36-9%2Bdeb12u14"),
        ("nixos", "pkg:nix/libc6@1:2.36-9%2Bdeb12u14"),
    ],
)
def test_it_is_one(distro: str, url: str) -> None:
    text = sbom.document("one", distro, LINES)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    said = json.loads(text)
    assert [part["name"] for part in said["components"]] == ["apt", "libc6", "no-version"]
    assert said["components"][1]["purl"] == f"{url}?arch=amd64&upstream=glibc%402.36-9%2Bdeb12u14"
    assert said["components"][0]["purl"].endswith("/apt@2.6.1?arch=amd64") or distro == "nixos"
    assert said["components"][0]["licenses"] == [
        {"license": {"id": "GPL-2.0-or-later"}},
        {"license": {"id": "MIT"}},
        {"license": {"name": "public-domain"}},
    ]
    assert said["components"][1]["licenses"] == [{"expression": "(GPL-2.0-or-later OR Artistic-1.0-Perl) AND ISC"}]
    assert "licenses" not in said["components"][2]
    assert "version" not in said["components"][2]
    assert said["metadata"]["component"]["name"] == "one"
    assert sbom.document("one", distro, LINES) == text
    assert sbom.document("two", distro, LINES) != text


@pytest.mark.parametrize(
    ("said", "expression"),
    [
        ("Expat", "MIT"),
        ("zlib", "Zlib"),
        ("GPL-2+", "GPL-2.0-or-later"),
        ("LGPL-2.1", "LGPL-2.1-only"),
        ("GPLv3", "GPL-3.0-only"),
        ("GFDL-NIV-1.3+", "GFDL-1.3-no-invariants-or-later"),
        ("GPL-1+ or Artistic", "GPL-1.0-or-later OR Artistic-1.0-Perl"),
        ("Apache-2.0 or Expat", "Apache-2.0 OR MIT"),
        ("GPL-2+ or Artistic, and BSD-3-clause", "(GPL-2.0-or-later OR Artistic-1.0-Perl) AND BSD-3-Clause"),
        ("(MIT OR Apache-2.0) AND Unicode-DFS-2016", "(MIT OR Apache-2.0) AND Unicode-DFS-2016"),
        ("GPL-2.0-only WITH Linux-syscall-note", "GPL-2.0-only WITH Linux-syscall-note"),
        # Of what these are, nothing more is known.
        ("GPL2", None),
        ("GPL-2+ with OpenSSL exception", None),
        ("public-domain", None),
        ("MIT BSD GPL2+", None),
        ("custom:made up", None),
        ("Expat, or ISC, and Zlib", None),
        ("(MIT", None),
    ],
)
def test_a_license_as_spdx_has_it(said: str, expression: str | None) -> None:
    assert spdx.expression(said) == expression


@settings(deadline=None, max_examples=5)
@given(some.lists(some.text(max_size=40), min_size=20))
def test_any_word_is_a_license_or_a_name(said: list[str]) -> None:
    lines = [f"p{number}\t1\tall\tapt@1\t{' '.join(text.split())}\n" for number, text in enumerate(said)]
    text = sbom.document("one", "debian", "".join(lines))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_what_a_copyright_file_names(tmp_path: Path) -> None:
    texts = {
        "one": "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
        "Files: *\nCopyright: x\nLicense: GPL-2+ or Artistic, and Expat\n text\nLicense:  ISC \nLicense: ISC\n",
        "two": "This package was debianized. License: GPL-2\n",
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "copyright").write_text(text)
    assert [copyright.licenses(name, tmp_path) for name in ("one", "two", "three")] == [
        "GPL-2+ or Artistic, and Expat; ISC",
        "",
        "",
    ]


def test_an_ubuntu_is_named() -> None:
    assert "pkg:deb/ubuntu/apt@2.7ubuntu1" in sbom.document("one", "debian", "apt\t2.7ubuntu1\tamd64\n")


def test_nothing_is_a_document_too() -> None:
    text = sbom.document("one", "archlinux", "")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_it_is_made_once(tmp_path: Path) -> None:
    path = sbom.kept(tmp_path / "sbom", "one", "debian", LINES)
    before = path.stat().st_mtime_ns
    assert sbom.kept(tmp_path / "sbom", "one", "debian", LINES) == path
    assert path.stat().st_mtime_ns == before
    assert sbom.kept(tmp_path / "sbom", "one", "debian", "apt\t2\tamd64\n") != path
    assert len(list((tmp_path / "sbom").iterdir())) == 2
