"""The documents say what is so: their commands are run, or at least taken by doit; their links lead somewhere; their
recipes and site files load."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from buildlib import distros, recipe, schema, shape
from buildlib.site import Site
from tests import documents
from tests.checkout import Checkout
from tests.documents import PROJECT, Block

DOCUMENTS = documents.all_of_them()
NAMES = [str(path.relative_to(PROJECT)) for path in DOCUMENTS]
TUTORIALS = PROJECT / "docs/tutorials"
"""Their commands and files have tests of their own, each with the machines that it is about."""

PAGES = [path for path in DOCUMENTS if TUTORIALS not in path.parents]


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    lost = []
    for line, target in documents.links(path):
        file, _, anchor = target.partition("#")
        if re.match("[a-z]+:", target):
            continue
        found = path.parent / file if file else path
        if not found.exists() or (anchor and anchor not in documents.anchors(found)):
            lost.append(f"{line}: {target}")
    assert not lost


def test_how_it_works_names_every_module() -> None:
    package = PROJECT / "buildlib"
    modules = {path.stem for path in package.glob("[a-z]*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    named = {text.rstrip("/") for _, text in documents.inline(PROJECT / "docs/how-it-works.md")}
    assert {name for name in modules - named if not name.endswith("_tasks")} == set()


# Recipes and site files.

SITE_KEYS = frozenset(shape.keys(Site))
REST = {
    "debian": "arch: amd64\ndebian: {suite: bookworm}",
    "alpine": "arch: amd64\nroot: ram",
    "archlinux": "arch: amd64\nroot: squashfs",
    "nixos": "arch: arm64\nroot: ram",
}
"""What a block of such a section leaves out; Debian's also that of a block without any."""

ABSENT = re.compile(r"expects (a file|a folder), but there is no '([^']+)'")


def yaml_blocks() -> Iterator[Block]:
    for path in PAGES:
        yield from documents.blocks(path, "yaml")


@pytest.mark.parametrize("block", list(yaml_blocks()), ids=lambda block: f"{block.path.name}:{block.line}")
def test_recipes_and_site_files_load(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = set(yaml.load(block.text, _Loader))
    if keys == {"entries"}:
        text = "targets:\n  lab:\n" + re.sub("(?m)^", "    ", block.text)
        load(tmp_path, text, Site, "targets: {lab: {address: 10.0.0.1, network: 10.0.0.0/24, tftp: /srv/tftp}}")
    elif keys <= SITE_KEYS:
        load(tmp_path, block.text, Site, "mirrors: {}")
    else:
        own = next((name for name in REST if name in keys), "debian")
        load(tmp_path, block.text, recipe.file_type(distros.sections()), REST[own])


class _Loader(yaml.SafeLoader):
    """What a block's keys are, whatever its tags say."""


_Loader.add_multi_constructor("", lambda loader, _suffix, node: loader.construct_yaml_str(node))


def load(folder: Path, text: str, kind: type, rest: str) -> None:
    """By the real loader, with what the block leaves out as a file that it extends, and the files that it names."""
    home = folder / "recipes/lab"
    (home / "flake").mkdir(parents=True)
    (home / "flake/flake.nix").touch()
    (home / "rest.yaml").write_text(rest)
    (home / "block.yaml").write_text(f"extends: rest.yaml\n{text}")
    for _ in range(10):
        try:
            schema.load(home / "block.yaml", kind)
            return
        except schema.SchemaError as error:
            absent = [ABSENT.search(finding.message) for finding in error.findings]
            if None in absent:
                raise
            for found in filter(None, absent):
                path = Path(found[2])
                path.parent.mkdir(parents=True, exist_ok=True)
                if found[1] == "a folder":
                    path.mkdir()
                else:
                    path.touch(0o755)
    raise AssertionError("files are missing without end")


# Commands.

NAMES_OF = {
    "NAME": "debian-nfs",
    "RECIPE": "debian-nfs",
    "TARGET": "lab",
    "HOST": "node-07",
    "DISTRO": "alpine",
    "INTERFACE": "eth1",
    "ID": "20261121T074324Z-d1342f7fcb78",
    "EXPRESSION": "sandbox",
    "N": "3",
    "ONE,TWO": "debian-nfs,debian-ram",
}
"""What the words in capital letters of a general form stand for."""

SITE = """\
targets:
  lab: {ssh: boot.lab, address: 192.168.7.1, network: 192.168.7.0/24, tftp: /srv/tftp, http: /srv/tftp, nfs: /srv/nfs}
hosts:
  "52:54:00:12:34:56": {name: node-07, target: lab}
"""

PARSER = """\
import json, sys
from doit.cmd_base import DodoTaskLoader
from doit.cmd_run import Run
from doit.control import TaskControl
from doit.doit_cmd import DoitMain
from doit.exceptions import InvalidCommand
from doit.cmdparse import CmdParseError

main = DoitMain()
commands = main.get_cmds()
loader = DodoTaskLoader()
loader.setup({"dodoFile": "dodo.py", "cwdPath": None, "seek_file": False})
loader.load_doit_config()
tasks = loader.load_tasks(Run(task_loader=loader), [])
parser = Run(task_loader=loader).cmdparser
for words in json.load(sys.stdin):
    try:
        if words and words[0] in commands:
            kind = commands.get_plugin(words[0])
            kind(task_loader=loader, config=main.config, bin_name="doit", cmds=commands).cmdparser.parse(words[1:])
        else:
            for task in tasks:
                task.options = None
            TaskControl(tasks).process(parser.parse(words)[1])
    except (InvalidCommand, CmdParseError) as error:
        print(f"{' '.join(words)}: {' '.join(str(error).split())}")
"""
"""What doit does with a command line before it runs anything."""


def doit_lines(path: Path) -> Iterator[str]:
    """Command lines of ./doit in a document: those of its blocks, and those in its text with something for their
    words in capital letters."""
    yield from (command.text for command in documents.commands(path))
    yield from (general(text) for _, text in documents.inline(path) if text.startswith("./doit "))


def general(text: str) -> str:
    """`push:TARGET/NAME [--host HOST]` as somebody types it."""
    whole = re.sub(r"[\[\]]", "", text)
    return re.sub(r"[A-Z]+(,[A-Z]+)*", lambda word: NAMES_OF.get(word[0], word[0]), whole)


def words_of(line: str) -> list[str] | None:
    """What doit gets; nothing if it is another program's line."""
    words = shlex.split(line, comments=True)
    words = words[: next((at for at, word in enumerate(words) if word in (">", "|", "&&", "||")), None)]
    return words[1:] if words[:1] == ["./doit"] else None


def test_doit_takes_every_command(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path / "checkout")
    shutil.copytree(PROJECT / "recipes", checkout.folder / "recipes", dirs_exist_ok=True)
    shutil.copytree(PROJECT / "recipes/debian-ram", checkout.folder / "recipes/lab")
    (checkout.folder / "site.yaml").write_text(SITE)
    lines = [line for path in PAGES for line in doit_lines(path)]
    asked = [words for line in lines if (words := words_of(line)) is not None]
    assert len(asked) > 60
    done = subprocess.run(
        [checkout.python, "-c", PARSER],
        cwd=checkout.folder,
        env=checkout.environment,
        input=json.dumps([*asked, ["push:lab/debian-nfs", "--no-such"], ["bake"]]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    refused = done.stdout.splitlines()
    assert not refused[:-2]
    assert [line.split()[0] for line in refused[-2:]] == ["push:lab/debian-nfs", "bake:"], "what is wrong is refused"
