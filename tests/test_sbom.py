"""The document of a release's packages, by its format's own validator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from buildlib import sbom

LINES = "apt\t2.6.1\tamd64\nlibc6\t1:2.36-9+deb12u14\tamd64\nno-version\t\t\n"


@pytest.mark.parametrize(
    ("distro", "url"),
    [
        ("debian", "pkg:deb/debian/libc6@1:2.36-9%2Bdeb12u14?arch=amd64"),
        ("alpine", "pkg:apk/alpine/libc6@1:2.36-9%2Bdeb12u14?arch=amd64"),
        ("archlinux", "pkg:alpm/arch/libc6@1:2.36-9%2Bdeb12u14?arch=amd64"),
        ("nixos", "pkg:nix/libc6@1:2.36-9%2Bdeb12u14?arch=amd64"),
    ],
)
def test_it_is_one(distro: str, url: str) -> None:
    text = sbom.document("one", distro, LINES)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    said = json.loads(text)
    assert [part["name"] for part in said["components"]] == ["apt", "libc6", "no-version"]
    assert said["components"][1]["purl"] == url
    assert "version" not in said["components"][2]
    assert said["metadata"]["component"]["name"] == "one"
    assert sbom.document("one", distro, LINES) == text
    assert sbom.document("two", distro, LINES) != text


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
