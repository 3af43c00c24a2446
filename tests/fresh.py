"""A fresh Debian root with nothing but git and Python, in the project's own sandbox: do the README's commands pass?

    python -m tests.fresh bookworm|trixie [--user] [COMMAND ...]

Needs root. Packages come from where this machine's own come from, by apt and by pip. What is made stays in
`out/fresh/SUITE/`; a second run goes on with a root that is as fresh as the first one's, and with the same downloads.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from buildlib import host
from buildlib.distros.debian import archive
from buildlib.sandbox import Bind, Sandbox

PROJECT = Path(__file__).parents[1]

CLONE = "/srv/netboot"

TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
"""Who this machine trusts, which may have a mirror of its own."""

USER = "anyone"

README = ("./doit build:debian-nfs", "./doit test")

_PASSED = ("PIP_", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Beginnings of what a shell on this machine has in its environment to reach its mirrors."""


@dataclass(frozen=True)
class Fresh:
    """A root.

    layers -- as it was made
    folder -- of what commands change, its clone, its /home and its /tmp
    """

    suite: str
    layers: tuple[Path, ...]
    folder: Path

    def run(self, script: str, *, user: str = "root", tell: Callable[[str], None] | None = None) -> tuple[int, str]:
        """The status of a script of sh, in the clone if there is one, and what it has said."""
        for name in ("upper", "srv", "home", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "upper").chmod(0o755)
        (self.folder / "tmp").chmod(0o1777)
        # On a file system of which layers can be: a root of layers is none.
        own = [Bind(self.folder / name, f"/{name}", writable=True) for name in ("srv", "home", "tmp")]
        # QEMU's network cards.
        devices = [Bind(path, str(path), writable=True) for path in (Path("/dev/net/tun"),) if path.exists()]
        sandbox = Sandbox(
            work=self.folder / "work",
            layers=self.layers,
            upper=self.folder / "upper",
            binds=(*own, *devices, *_settings()),
            network=True,
            # Servers of NFS need a root that is one.
            user=False,
            env={**_environment(), "HOME": f"/home/{user}" if user != "root" else "/root"},
        )
        said: list[str] = []

        def on_line(line: str) -> None:
            said.append(line)
            if tell:
                tell(line)

        line = ["sh", "-c", f"cd {CLONE} 2>/dev/null; {script}"]
        status = sandbox.run(
            [*(["runuser", "-u", user, "--"] if user != "root" else []), *line], on_line=on_line, accept=range(256)
        )
        return status, "\n".join(said)

    def clone(self, user: str = "root") -> None:
        """Clone the project's last commit, as that user, who is made if need be."""
        source = self.folder / "tmp/source.git"
        subprocess.run(["git", "clone", "-q", "--bare", f"file://{PROJECT}", source], check=True)
        made = f"useradd --create-home --shell /bin/sh {user}; " if user != "root" else ""
        status, said = self.run(f"{made}install -d -o {user} {CLONE}; chown -R {user} /tmp/source.git")
        assert status == 0, said
        status, said = self.run(f"git clone -q /tmp/source.git {CLONE}", user=user)
        assert status == 0, said


def of_debian(suite: str, home: Path) -> Path:
    """A minimal root with git and Python; made once."""
    root = home / "root"
    if not root.exists():
        home.mkdir(parents=True, exist_ok=True)
        line = ["mmdebstrap", "--variant=minbase", "--include=git,python3", "--format=directory", suite]
        subprocess.run([*line, root.with_suffix(".new"), *sources(suite)], check=True)
        root.with_suffix(".new").rename(root)
    return root


def sources(suite: str) -> list[str]:
    """Lines of sources.list, of this machine's own mirrors."""
    wanted = {"distribution": "debian", "mirror": None, "snapshot": None, "security_mirror": None, "arch": "amd64"}
    mirrors = archive.build_mirrors(wanted, {})
    suites = {"archive": [suite, f"{suite}-updates"], "security": [f"{suite}-security"]}
    return [f"deb {mirrors[name]} {one} main" for name in suites for one in suites[name]]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_PASSED)}


def _settings() -> tuple[Bind, ...]:
    """pip's configuration on this machine, and the files that it and the environment name."""
    files = [Path(name) for name in ("/etc/pip.conf", "/etc/xdg/pip")]
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    words = " ".join([said.stdout, *_environment().values()]).replace("'", " ").replace("file://", " ").split()
    named = {Path(word.split("=")[-1]) for word in words if "/" in word}
    # The root makes its own list of certificates, as soon as it has the program.
    named -= {TRUSTED}
    found = sorted({path for path in (*files, *named) if path.is_absolute() and path.exists()})
    trusted = (Bind(TRUSTED, "/usr/local/share/ca-certificates/here.crt"),) if TRUSTED.exists() else ()
    # What lies in another one of them comes with it.
    return (*trusted, *(Bind(path, str(path)) for path in found if not any(one in path.parents for one in found)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the README's commands in a fresh Debian root.")
    parser.add_argument("suite", choices=("bookworm", "trixie"))
    parser.add_argument("--user", action="store_true", help="as an ordinary user")
    parser.add_argument("command", nargs="*", default=README)
    wanted = parser.parse_args()
    host.install(host.missing(["mmdebstrap", "git"]))
    home = PROJECT / "out/fresh" / wanted.suite
    root = of_debian(wanted.suite, home)
    folder = home / ("user" if wanted.user else "run")
    shutil.rmtree(folder, ignore_errors=True)
    fresh = Fresh(wanted.suite, (root,), folder)
    user = USER if wanted.user else "root"
    fresh.clone(user)
    for command in wanted.command:
        print(f"$ {command}", flush=True)
        status, _ = fresh.run(command, user=user, tell=lambda line: print(line, flush=True))
        if status:
            print(f"{wanted.suite}: {shlex.quote(command)} ended with {status}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
