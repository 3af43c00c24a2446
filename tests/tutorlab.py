"""Tutorials, read from their Markdown and run: their files are written and their commands typed, in their order.

Each block is either a console or a file, so that nothing of a tutorial goes unrun. A file's block says which one of the
checkout it is by its first line, or its second after `#!`: `# PATH`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import documents
from tests.checkout import PROJECT, SHARED, Checkout
from tests.documents import Command
from tests.sshlab import Box

FOLDER = PROJECT / "docs" / "tutorials"

_LOOSE = (
    (re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}"), "RELEASE"),
    (re.compile(r"\d{4}-\d\d-\d\dT[0-9:]+Z"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (B|kB|MB|GB)\b"), "SIZE"),
    (re.compile(r"\b\d[\d,]* bytes"), "SIZE"),
    (re.compile(r"\b\d+\.\d+( s\b)?"), "SECONDS"),
    (re.compile(r"\b(built|cached)\b( SECONDS)?"), "made"),
    (re.compile(r"\b(tcg|kvm)\b"), "ACCELERATOR"),
    (re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"), "MAC"),
    (re.compile(r"SHA256:\S+"), "DIGEST"),
    (re.compile(r"/nix/store/\w+"), "STORE"),
    (re.compile(r"/\S*/out/(?=images|boot|srv|services)"), "out/"),
)
"""What differs between runs: two lines that agree but for these are the same line."""


@dataclass(frozen=True)
class Written:
    """A file of the checkout."""

    path: str
    text: str


def read(path: Path) -> list[Command | Written]:
    """A tutorial's commands and files in their order."""
    found: list[tuple[int, Command | Written]] = []
    for block in documents.blocks(path):
        if block.language == "console":
            continue
        head = re.match(r"(?:#!.*\n)?# ([\w./-]+)\n", block.text)
        assert head, f"{path.name}:{block.line}: a block that is no console says which file it is"
        found.append((block.line, Written(head[1], block.text)))
    found += [(command.line, command) for command in documents.commands(path)]
    return [step for _, step in sorted(found, key=lambda each: each[0])]


def plain(command: str) -> str:
    """A command without its remark."""
    return re.sub(r"\s+#.*", "", command)


def same(line: str) -> str:
    """A line without what differs between runs."""
    for pattern, word in _LOOSE:
        line = pattern.sub(word, line)
    return " ".join(line.split())


def missing(said: str, printed: str) -> str | None:
    """The first line of what is said to be printed that was not, in that order; `...` stands for any lines."""
    there = iter([same(line) for line in printed.splitlines()])
    return next((line for line in said.splitlines() if line.strip() != "..." and same(line) not in there), None)


@dataclass
class Desk:
    """Where somebody sits who works through a tutorial: a fresh checkout, a home, and names of machines.

    home      -- what is ~ there
    addresses -- of the machines, by the names that the tutorial calls them
    instead   -- text by the text of the tutorial that it stands for here, in files and commands
    within    -- a command line that runs the rest of itself
    """

    checkout: Checkout
    home: Path
    addresses: dict[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    within: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, *, shared: bool = True) -> Desk:
        """Without a recipe. shared -- with what tests have built already, but for boot loaders' packages"""
        made = Checkout.alone(folder / "checkout")
        shutil.rmtree(made.folder / "recipes/_parts")
        if shared:
            shutil.rmtree(made.folder / "out", ignore_errors=True)
            (made.folder / "out").symlink_to(SHARED / "out")
        # As ./doit without its set-up, which has a test of its own.
        script = f'#!/bin/sh\nexec {shlex.quote(made.python)} -m doit "$@"\n'
        (made.folder / "doit").write_text(script)
        (made.folder / "doit").chmod(0o755)
        home = folder / "home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        key = home / ".ssh/id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@desk", "-f", key], check=True)
        return cls(made, home)

    def knows(self, name: str, box: Box) -> None:
        """The machine is called so, has our key, and its host key is known."""
        self.addresses[name] = box.address
        public = (self.home / ".ssh/id_ed25519.pub").read_text()
        with (box.state / "authorized").open("a") as file:
            file.write(public)
        with (self.home / ".ssh/known_hosts").open("a") as file:
            file.write(box.known_hosts.read_text().replace(f"{box.address} ", f"{name} "))

    def work_through(self, name: str, before: Mapping[str, Callable[[], object]] | None = None) -> dict[str, str]:
        """Do all that a tutorial says. Gives what each command printed; fails where that is not what it says.

        before -- what happens in the world right before a command
        """
        told: dict[str, str] = {}
        events = dict(before or {})
        for step in read(FOLDER / name):
            if isinstance(step, Written):
                path = self.checkout.folder / step.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self.here(step.text))
                path.chmod(0o755 if step.text.startswith("#!") else 0o644)
                continue
            command = plain(step.text)
            if command in events:
                events.pop(command)()
            told[command] = said = self.type(step.text)
            lost = missing(self.here(step.output), said)
            assert lost is None, f"{step.where}\ndoes not print: {lost}\nbut:\n{said}"
        assert not events, f"{name} has no such command: {list(events)}"
        return told

    def type(self, command: str) -> str:
        """Run a line; what it printed. It must succeed unless it ends with `# exit code 1`."""
        etc = self.home / "etc"
        etc.mkdir(exist_ok=True)
        names = "".join(f"{address} {name}\n" for name, address in self.addresses.items())
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        # OpenSSH asks for no $HOME.
        users = Path("/etc/passwd").read_text().splitlines()[1:]
        (etc / "passwd").write_text("\n".join([f"root:x:0:0:root:{self.home}:/bin/bash", *users, ""]))
        over = 'mount -t overlay -o "lowerdir=$0:/etc" desk /etc && exec "$@"'
        line = ["unshare", "--mount", "sh", "-c", over, str(etc), *self.within]
        done = subprocess.run(
            [*line, "bash", "-ec", self.here(command)],
            cwd=self.checkout.folder,
            env={**self.checkout.environment, "HOME": str(self.home), **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        with (self.home / "session").open("a") as file:
            file.write(f"$ {command}\n{done.stdout}")
        fails = command.endswith("# exit code 1")
        assert (done.returncode != 0) == fails, f"$ {command}\n{done.stdout}"
        return done.stdout

    def here(self, text: str) -> str:
        for said, instead in self.instead.items():
            text = text.replace(said, instead)
        return text
