"""The commands of README and docs/, typed one after the other: in a checkout with its recipes small, a server behind
SSH, and a home. What takes a boot, another system or a server of its own is run by the tests that ELSEWHERE names.
"""

from __future__ import annotations

import ast
import contextlib
import ipaddress
import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import documents, sshlab
from tests.checkout import PROJECT, SHARED, Checkout
from tests.documents import Command
from tests.test_documents import PAGES, general, words_of

pytestmark = [pytest.mark.integration, sshlab.needed]

RECIPES = {"debian-nfs": "small-volatile", "debian-squashfs": "small-squashfs", "debian-ram": "small-ram"}
"""What stands for the recipes that documents name: the same roots, in small."""

ELSEWHERE = {
    "./doit test": ".ci/run",
    "./doit boot:debian-nfs -f uefi-grub": "tests/test_proof.py::test_a_release_boots",
    "./doit console:debian-nfs": "tests/test_documented.py::test_a_console_is_left_by_its_key",
    "./doit serve -i eth1": "tests/test_serve.py::test_doit_serve",
    "./doit nightly": "tests/test_nightly.py::test_what_is_new_is_booted_and_what_passed_is_published",
    "./doit build:lab": "tests/test_release.py::test_an_initrd_that_would_not_boot_is_no_release",
    "./doit lock:lab --check": "tests/test_apk.py::test_packages_are_those_of_the_lock",
    "./doit lock:spark-netboot": "tests/test_nixos.py::test_a_lock_moves_when_it_is_asked_to",
    "./doit build:spark-netboot": "tests/test_nixos.py::test_a_release_is_built_on_another_machine",
    "./doit boot:spark-netboot": "tests/test_tutorials.py::test_a_rack_of_sparks",
    "./doit push:lab/spark-netboot": "tests/test_nixos.py::test_a_release_is_built_on_another_machine",
}
"""Which test runs a command, with a recipe and a machine of its own."""

FAILS = frozenset({"./doit doctor"})
"""What may find something wrong, as the test's machine may lack something."""


@dataclass
class Reader:
    """Who types what the documents say."""

    checkout: Checkout
    home: Path
    server: sshlab.Box

    def type(self, line: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **self.checkout.environment,
            "HOME": str(self.home),
            "PATH": f"{Path(self.checkout.python).parent}:{os.environ['PATH']}",
        }
        return subprocess.run(
            ["bash", "-euc", self.here(line)],
            cwd=self.checkout.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def here(self, line: str) -> str:
        """With this machine's folders and the release that there is."""
        line = line.replace("/srv/nfs/debian", f"{self.home}/srv")
        tars = list((self.checkout.folder / "out/tar").glob("debian-nfs-*.tar"))
        return line.replace("debian-nfs-ID.tar", str(tars[0])) if tars else line


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Where the store of the shared checkout can be linked from."""
    SHARED.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="documents-", dir=SHARED.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _site(box: sshlab.Box) -> str:
    network = ipaddress.ip_interface(f"{box.address}/30").network
    target = {"ssh": box.name, "address": box.address, "network": network, "keep": 1}
    folders = {name: f"{box.folder}/{path}" for name, path in (("tftp", "boot"), ("http", "boot"), ("nfs", "nfs"))}
    lines = "".join(f"    {name}: {value}\n" for name, value in {**target, **folders}.items())
    host = '  "52:54:00:12:34:56": {name: node-07, target: lab}\n'
    return f"targets:\n  lab:\n{lines}hosts:\n{host}"


@pytest.fixture(scope="module")
def reader(small: Checkout) -> Iterator[Reader]:
    small.doit("build:small-volatile", "build:small-squashfs", "bootloaders")
    with _folder() as folder, sshlab.box("openssh") as box:
        checkout = Checkout.make(folder / "checkout")
        (checkout.folder / "docs").mkdir()
        (checkout.folder / "doit").write_text(f'#!/bin/sh\nexec {Path(checkout.python).parent}/doit "$@"\n')
        (checkout.folder / "doit").chmod(0o755)
        (checkout.folder / "out").mkdir()
        for name in ("store", "tmp", "cache"):
            (checkout.folder / "out" / name).symlink_to(SHARED / "out" / name)
        for name, of in RECIPES.items():
            shutil.copytree(PROJECT / "tests/recipes" / of, checkout.folder / "recipes" / name)
            shutil.copytree(PROJECT / "recipes/debian-nfs/overlay", checkout.folder / "recipes" / name / "overlay")
            with (checkout.folder / "recipes" / name / "recipe.yaml").open("a") as file:
                file.write("overlay: [overlay]\n")
            checkout.lock(name)
        shutil.copy(SHARED / "recipes/bootloaders.lock", checkout.folder / "recipes")
        shutil.copytree(PROJECT / "recipes/spark-netboot", checkout.folder / "recipes/spark-netboot")
        for name in ("boot", "nfs"):
            (box.folder / name).mkdir()
        home = folder / "home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        shutil.copy(box.config, home / ".ssh/config")
        (home / ".ssh/id_ed25519.pub").write_text("ssh-ed25519 AAAA me\n")
        (checkout.folder / "site.yaml").write_text(f"ssh-config: {box.config}\n{_site(box)}")
        yield Reader(checkout, home, box)


def commands() -> list[Command]:
    return [command for path in PAGES for command in documents.commands(path)]


def bare(command: Command) -> str:
    """Without the remark behind it."""
    words = words_of(command.text)
    return f"./doit {' '.join(words)}" if words is not None else command.text


def test_what_the_documents_say_is_typed(reader: Reader) -> None:
    ran = 0
    for command in commands():
        line = bare(command)
        if line not in ELSEWHERE:
            done = reader.type(command.text)
            assert done.returncode == 0 or line in FAILS, f"{command.where}\n{done.stdout}"
            assert "Traceback" not in done.stdout
            ran += 1
    assert ran > 15


def test_what_is_run_elsewhere_is_run_there() -> None:
    said = {bare(command) for command in commands()}
    assert set(ELSEWHERE) <= said, "no document says it any more"
    for line, where in ELSEWHERE.items():
        file, _, name = where.partition("::")
        text = (PROJECT / file).read_text()
        if name:
            names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
            assert name in names, where
            verb = line.split()[1].partition(":")[0]
            assert verb in text, f"{where} does not {verb}"
        else:
            assert line in text


def test_the_readme_names_every_verb(reader: Reader) -> None:
    listed = reader.type("./doit list").stdout.partition("tasks:\n")[2].splitlines()
    verbs = {line.split()[0].partition(":")[0] for line in listed}
    lines = [general(text) for _, text in documents.inline(PROJECT / "README.md")]
    named = {words[0].partition(":")[0] for line in lines if (words := words_of(line))}
    assert len(verbs) > 20
    assert verbs <= named


def test_completion_completes_verbs(reader: Reader) -> None:
    script = reader.type("./doit tabcompletion --shell bash").stdout
    assert re.search(r"(?m)^complete .*\bdoit$", script)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_console_is_left_by_its_key(reader: Reader) -> None:
    """Ctrl-] as soon as the firmware shows something."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(reader.checkout.folder)
        os.execvpe("./doit", ["./doit", "console:debian-nfs", "-f", "bios-ipxe"], reader.checkout.environment)
    shown = b""
    with contextlib.suppress(OSError):
        while b"iPXE" not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, b"\x1d")
        while data := os.read(terminal, 4096):
            shown += data
    for _ in range(1200):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(pid, signal.SIGTERM)
        raise AssertionError(shown.decode(errors="replace"))
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, shown.decode(errors="replace")
    assert b"iPXE" in shown
