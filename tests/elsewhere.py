"""A build in another place: another user, folder, time, mask, locale, time zone, host name and number of cores."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from tests.checkout import PROJECT, SHARED, Checkout
from tests.fresh import sources
from tests.otherwise import CLOCK, LIBRARY, RUN

USER = "netboot-elsewhere"


@dataclass(frozen=True)
class Elsewhere(Checkout):
    """A checkout whose builds find another surrounding.

    user    -- an ordinary user with subordinate ids; root without one
    network -- whether there is any
    plain   -- another user and folder, but nothing else
    """

    user: str | None = None
    network: bool = True
    plain: bool = False

    def command(self, *arguments: str) -> list[str]:
        user = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--init-groups"] if self.user else []
        if self.plain:
            return [*user, *super().command(*arguments)]
        # Only here: the clock is shared with what a process starts, of the same user.
        line = [*user, "env", *(f"{name}={word}" for name, word in CLOCK.items()), *super().command(*arguments)]
        spaces = ["unshare", "--uts", *([] if self.network else ["--net"])]
        core = str(min(os.sched_getaffinity(0)))
        return [*spaces, "sh", "-c", 'hostname elsewhere; umask 077; exec "$@"', "sh", "taskset", "-c", core, *line]

    @property
    def environment(self) -> dict[str, str]:
        known = super().environment
        if self.user:
            packages = f"{self.folder}:{self.folder.parent / 'packages'}"
            own = {"HOME": str(self.folder.parent), "LOGNAME": self.user, "USER": self.user}
            kept = {"PATH": known.get("PATH", os.defpath), "NETBOOT_TEST_HASH": known["NETBOOT_TEST_HASH"]}
            known = {**kept, "PYTHONPATH": packages, **own}
        if self.plain:
            return known
        words = {"TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "LOCPATH": "/run/netboot-test/locale"}
        return {**known, **words, "SOURCE_DATE_EPOCH": "1"}


def otherwise(folder: Path) -> None:
    """Let the builds of a checkout have another clock in their sandboxes too."""
    shutil.copy(PROJECT / "tests/otherwise.py", folder)
    text = (PROJECT / "dodo.py").read_text()
    text = text.replace("\nfrom pathlib", "\nimport otherwise\nfrom pathlib", 1)
    (folder / "dodo.py").write_text(f"{text}\notherwise.begin()\n")


def _clock() -> str:
    """A libfaketime that loads here and in roots of Debian 12: where this machine's is newer, that of Debian 12."""
    pattern = "usr/lib/*/faketime/libfaketimeMT.so.1"
    if tuple(map(int, platform.libc_ver()[1].split("."))) <= (2, 36):
        return glob(f"/{pattern}")[0]
    folder = SHARED / "faketime"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not glob(f"{folder}/{pattern}"):
            (folder / "lists").mkdir(exist_ok=True)
            (folder / "sources.list").write_text("".join(f"{line}\n" for line in sources("bookworm")))
            words = {
                "Etc::sourcelist": "sources.list",
                "Etc::sourceparts": "none",
                "State::lists": "lists",
                "Cache": ".",
            }
            apt = ["apt-get", "-q", *(f"-oDir::{name}={folder / word}" for name, word in words.items())]
            subprocess.run([*apt, "update"], check=True)
            subprocess.run([*apt, "download", "libfaketime/bookworm"], cwd=folder, check=True)
            subprocess.run(["dpkg-deb", "-x", *glob(f"{folder}/*.deb"), folder], check=True)
    return glob(f"{folder}/{pattern}")[0]


@contextmanager
def surrounding() -> Iterator[None]:
    """What `Elsewhere` needs on this machine: a clock, and a locale that sorts and counts otherwise."""
    home = Path(LIBRARY).parent
    (home / "locale").mkdir(parents=True, exist_ok=True)
    shutil.copy(_clock(), LIBRARY)
    in_root = RUN / Path(LIBRARY).relative_to("/run")
    in_root.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(LIBRARY, in_root)
    line = ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(home / "locale/tr_TR.UTF-8")]
    subprocess.run(line, check=True)
    try:
        yield
    finally:
        shutil.rmtree(home)


@contextmanager
def stranger() -> Iterator[Path]:
    """The home of a user without any rights, who has subordinate ids, and this project's packages."""
    _forget()
    subprocess.run(["useradd", "--system", "--create-home", USER], check=True, capture_output=True)
    subprocess.run(
        ["usermod", "--add-subuids", "1000000-1065535", "--add-subgids", "1000000-1065535", USER], check=True
    )
    home = Path(pwd.getpwnam(USER).pw_dir)
    home.chmod(0o755)
    # The project may lie where only root may look.
    without = shutil.ignore_patterns("mypy*", "ruff*", "__pycache__")
    shutil.copytree(Checkout(home).packages, home / "packages", ignore=without)
    try:
        yield home
    finally:
        _forget()


def _forget() -> None:
    subprocess.run(["userdel", "--remove", USER], check=False, capture_output=True)


def moved(home: Path, checkout: Checkout, *recipes: str, network: bool = True) -> Elsewhere:
    """The same recipes, locks and downloads in another folder, of the user whose home that is; nothing is built."""
    folder = home / "another-checkout"
    shutil.rmtree(folder, ignore_errors=True)
    Checkout.make(folder)
    for name in recipes:
        shutil.copytree(checkout.folder / "recipes" / name, folder / "recipes" / name, symlinks=True)
    if not network:
        for name in ("debs", "lists"):
            # Other tests may download into these.
            half = shutil.ignore_patterns(".*", "partial")
            shutil.copytree(SHARED / "out/cache" / name, folder / "out/cache" / name, ignore=half)
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "buildlib", folder / "buildlib", symlinks=True, ignore=without)
    otherwise(folder)
    subprocess.run(["chown", "-R", f"{USER}:", str(folder)], check=True)
    return Elsewhere(folder, python="/usr/bin/python3", user=USER, network=network)


def year() -> str:
    """Which year it is there."""
    line = ["date", "--date", "400 days", "+%Y"]
    return subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def digests(release: Path) -> dict[str, str]:
    """What a release consists of, but for how it has booted since."""
    names = [path for path in release.rglob("*") if path.is_file() and path.name != "proof.json"]
    return {str(path.relative_to(release)): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}
