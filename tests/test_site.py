"""The site file: what it may say, and how each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildlib import site
from buildlib.schema import SchemaError

TARGET = """
targets:
  lab:
    address: 192.168.7.1
    network: 192.168.7.0/24
    tftp: /srv/tftp
"""


def load(folder: Path, text: str) -> site.Site:
    (folder / site.FILE).write_text(text)
    return site.load(folder)


def test_a_site_without_a_file_is_empty(tmp_path: Path) -> None:
    assert site.load(tmp_path) == site.Site()


def test_defaults_and_spellings(tmp_path: Path) -> None:
    text = TARGET + "    http: /srv/http\n    nfs: /srv/nfs\n    dhcp: none\n"
    loaded = load(tmp_path, text + "hosts:\n  52-54-00-AA-00-0A: {name: a, recipe: one}\n")
    lab = loaded.targets["lab"]
    assert lab.http == site.Http("/srv/http", 80)
    assert lab.url == "http://192.168.7.1"
    assert lab.persist == "/srv/nfs/persist"
    assert (lab.boot_root, lab.files_root) == ("/srv/tftp", "/srv/http")
    assert lab.dhcp.mode == "none"
    assert list(loaded.hosts_of("lab")) == ["52:54:00:aa:00:0a"]
    assert loaded.hosts_of("lab") == loaded.hosts_of("local")


def test_a_port_is_part_of_the_url(tmp_path: Path) -> None:
    lab = load(tmp_path, TARGET + "    http: {path: /srv/http, port: 8080}\n").targets["lab"]
    assert lab.url == "http://192.168.7.1:8080"


@pytest.mark.parametrize(
    ("more", "where", "what"),
    [
        ("    dhcp: full\n", "7:11", "full DHCP needs `first`"),
        (
            "    dhcp: {mode: full, first: 192.168.8.1, last: 192.168.7.9}\n",
            "7:31",
            "192.168.8.1 is not in the network",
        ),
        ("    dhcp: {mode: proxy, router: 192.168.7.1}\n", "7:11", "by `mode: full` only"),
        ("    timeout: -1\n", "7:14", "a whole number from 0"),
        ("    default: two\n    recipes: [one]\n", "7:14", "neither among `recipes` nor among `entries`"),
        ("    entries: [{id: x, title: X}]\n", "7:20", "one of `chain`, `local: yes` and `kernel`"),
        ("    entries: [{id: x, title: X, local: yes, cmdline: quiet}]\n", "7:54", "goes with `kernel`"),
        ("    services: {apache: /etc/x}\n", "7:16", "expects one of"),
        ("hosts: {52:54:00: {name: a}}\n", "7:9", "expects a MAC"),
        ("hosts: {'52:54:00:00:00:01': {name: a, target: lob}}\n", "7:48", "there is no target lob"),
        ("hosts: {'52:54:00:00:00:01': {name: a, cmdline: 'x=\"'}}\n", "7:49", "not closed"),
        ("hosts: {'52:54:00:00:00:01': {name: a, cmdline: 'ü'}}\n", "7:49", "single line of ASCII"),
        (
            "hosts: {'52:54:00:00:00:01': {name: a, release: 20260101T000000Z-0123456789ab}}\n",
            "7:49",
            "goes with `recipe`",
        ),
    ],
)
def test_mistakes_are_placed(more: str, where: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError) as caught:
        load(tmp_path, TARGET + more)
    said = str(caught.value)
    assert what in said
    assert f"{site.FILE}:{where}:" in said


def test_two_hosts_of_one_name_and_a_target_called_local(tmp_path: Path) -> None:
    text = TARGET.replace("lab:", "local:") + "hosts:\n  52:54:00:00:00:01: {name: a}\n  52:54:00:00:00:02: {name: a}\n"
    with pytest.raises(SchemaError) as caught:
        load(tmp_path, text)
    assert "every site has this target already" in str(caught.value)
    assert "a is also 52:54:00:00:00:01" in str(caught.value)
