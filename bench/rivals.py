"""Other tools at the same image, each used as its manual says: what it takes to build, to change, to publish."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from bench.image import ARCH, SUITE, Image, keyring, sources
from bench.measure import Cost, FailedError, run

QUIET = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "INITRD": "No"}
"""`INITRD=No`: a kernel's package makes no initrd by itself, as it is to be made once, at the end."""


class Peer(ABC):
    """A tool in a folder of its own.

    name -- as the table calls it
    same -- rows that need no measurement, and the row whose command line and work are theirs too
    slow -- whether it takes part in the first round alone
    note -- what the page says of how it ran
    """

    name: str
    same: ClassVar[Mapping[str, str]] = {}
    slow = False
    note = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    @abstractmethod
    def version(self) -> str:
        """What `--version` says. Raises FailedError where the tool isn't there, with what to install."""

    @abstractmethod
    def write(self, image: Image) -> None:
        """Say what the image is to be, as a user of the tool does."""

    @abstractmethod
    def forget(self) -> None:
        """Remove all that it has, downloads too."""

    @abstractmethod
    def drop(self) -> None:
        """Remove all that it has but for downloads."""

    @abstractmethod
    def build(self, row: str) -> Cost:
        """Build, for one of the table's rows. Raises FailedError."""

    @abstractmethod
    def outcome(self) -> Sequence[Path]:
        """Files to be published; a folder's content, where it is one."""

    def run(self, *line: str | Path, env: Mapping[str, str] = QUIET) -> Cost:
        return run(line, self.folder, self.folder / "log", env=env)

    def remove(self, *names: str) -> None:
        """Parts of the folder."""
        for name in names:
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)
            else:
                path.unlink(missing_ok=True)


def asked(package: str, *line: str) -> str:
    """The first version that a program names. Raises FailedError without the program."""
    if not shutil.which(line[0]):
        raise FailedError(f"not installed here: apt-get install {package}")
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    found = re.search(r"\d[\w.:+~-]*", done.stdout + done.stderr)
    return found[0] if found else installed(package)


def installed(package: str) -> str:
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Version}", package], capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout:
        raise FailedError(f"not installed here: apt-get install {package}")
    return done.stdout


ANEW = dict.fromkeys(("nothing", "file", "key", "cmdline", "module", "package", "group"), "warm")
"""Of a tool that keeps nothing of a build: each change is a build with downloads cached."""


class Mmdebstrap(Peer):
    """One mmdebstrap, with downloads kept as its manual shows."""

    name = "mmdebstrap"
    same: ClassVar = ANEW

    def version(self) -> str:
        return asked("mmdebstrap", "mmdebstrap", "--version")

    def write(self, image: Image) -> None:
        self.remove("overlay")
        image.files(self.folder / "overlay")
        (self.folder / "initrd").write_text(image.initrd)
        (self.folder / "packages").write_text(",".join(image.all_packages))

    def forget(self) -> None:
        self.remove("debs", "root")

    def drop(self) -> None:
        self.remove("root")

    def build(self, row: str) -> Cost:
        self.remove("root")
        (self.folder / "debs").mkdir(exist_ok=True)
        kept = shlex.quote(str(self.folder / "debs"))
        return self.run(
            "mmdebstrap",
            "--mode=root",
            "--format=directory",
            "--variant=minbase",
            f"--include={(self.folder / 'packages').read_text()}",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            "--skip=download/empty,essential/unlink",
            f'--setup-hook=mkdir -p "$1/var/cache/apt/archives" && '
            f'find {kept} -name "*.deb" -exec ln -t "$1/var/cache/apt/archives/" {{}} +',
            f"--customize-hook=copy-in {self.folder}/overlay/etc {self.folder}/overlay/root /",
            f"--customize-hook=copy-in {self.folder}/initrd /tmp",
            '--customize-hook=chroot "$1" sh /tmp/initrd',
            f'--customize-hook=find "$1/var/cache/apt/archives" -name "*.deb" -exec cp -ln -t {kept} {{}} +',
            SUITE,
            self.folder / "root",
            *(source.line(keyring()) for source in sources()),
        )

    def outcome(self) -> Sequence[Path]:
        return [self.folder / "root"]


class Wiki(Peer):
    """As wikis tell it: debootstrap, chroot, tar and gzip. debootstrap knows one suite: no updates come."""

    name = "debootstrap, tar, gzip"
    same: ClassVar = ANEW

    def version(self) -> str:
        return installed("debootstrap")

    def write(self, image: Image) -> None:
        self.remove("overlay")
        image.files(self.folder / "overlay")
        main = sources()[0]
        (self.folder / "debs").mkdir(exist_ok=True)
        packages = [name for name in image.all_packages if name != "usr-is-merged"]
        line = [
            "debootstrap",
            "--variant=minbase",
            f"--arch={ARCH}",
            f"--keyring={keyring()}",
            f"--cache-dir={self.folder / 'debs'}",
            f"--include={','.join(packages)}",
            SUITE,
            "root",
            main.uri,
        ]
        (self.folder / "script").write_text(
            f"set -e\n{shlex.join(line)}\ncp -r overlay/. root/\ncp initrd root/tmp/\n"
            "mount -t proc proc root/proc\nchroot root sh /tmp/initrd\numount root/proc\n"
            "cp root/boot/vmlinuz-* vmlinuz\ncp root/boot/initrd.img-* initrd.img\n"
            "tar --one-file-system -C root -c . | gzip > root.tar.gz\n"
        )
        (self.folder / "initrd").write_text(image.initrd)

    def forget(self) -> None:
        self.drop()
        self.remove("debs")
        (self.folder / "debs").mkdir()

    def drop(self) -> None:
        self.remove("root", "root.tar.gz", "vmlinuz", "initrd.img")

    def build(self, row: str) -> Cost:
        self.drop()
        return self.run("unshare", "--mount", "--", "sh", "script")

    def outcome(self) -> Sequence[Path]:
        return [self.folder / name for name in ("root.tar.gz", "vmlinuz", "initrd.img")]


class Mkosi(Peer):
    """A folder as output, incremental, with the initrd made in the part that is cached."""

    name = "mkosi"
    same: ClassVar = {"group": "package"}

    def version(self) -> str:
        found = asked("mkosi", "mkosi", "--version")
        if int(found.partition(".")[0]) < 25:
            raise FailedError(f"mkosi {found} has other configuration files; take the package of Debian 13 or newer")
        return found

    def write(self, image: Image) -> None:
        scripts = self.folder / "mkosi.sandbox/etc/apt/sources.list.d"
        scripts.mkdir(parents=True, exist_ok=True)
        # mkosi's own sources want debug packages, which mirrors don't have.
        (scripts / "mkosi.sources").write_text(
            "\n".join(
                f"Types: deb\nURIs: {source.uri}\nSuites: {source.suite}\nComponents: main\nSigned-By: {keyring()}\n"
                for source in sources()
            )
        )
        for name in ("cache", "packages", "work"):
            (self.folder.parent / f"mkosi.{name}").mkdir(exist_ok=True)
        (self.folder / "mkosi.conf").write_text(
            f"[Distribution]\nDistribution=debian\nRelease={SUITE}\n"
            "[Output]\nFormat=directory\nOutputDirectory=out\nOutput=image\n"
            f"[Content]\nBootable=no\nKernelCommandLine={image.cmdline}\n"
            f"Packages={','.join(('apt', *image.all_packages))}\n"
            "[Build]\nIncremental=yes\nBuildSources=\n"
            f"CacheDirectory={self.folder.parent}/mkosi.cache\n"
            f"PackageCacheDirectory={self.folder.parent}/mkosi.packages\n"
            f"WorkspaceDirectory={self.folder.parent}/mkosi.work\n"
        )
        self.remove("mkosi.extra")
        image.files(self.folder / "mkosi.extra")
        script = self.folder / "mkosi.prepare.chroot"
        script.write_text(image.initrd)
        script.chmod(0o755)

    def forget(self) -> None:
        self.drop()
        self.remove("../mkosi.packages")

    def drop(self) -> None:
        self.remove("out", "../mkosi.cache", "../mkosi.work")

    def build(self, row: str) -> Cost:
        # Without `--force` it takes an output that is there as it is, whatever changed.
        return self.run("mkosi", *([] if row == "nothing" else ["--force"]), "build")

    def outcome(self) -> Sequence[Path]:
        return [self.folder / "out/image"]


class Debos(Peer):
    """debootstrap, apt, overlay and pack as a recipe of debos; it keeps nothing, downloads neither."""

    name = "debos"
    same: ClassVar = {**dict.fromkeys(ANEW, "cold"), "warm": "cold"}
    slow = True

    def version(self) -> str:
        return installed("debos")

    def write(self, image: Image) -> None:
        self.remove("overlay")
        image.files(self.folder / "overlay")
        (self.folder / "initrd").write_text(image.initrd)
        packages = [name for name in image.all_packages if name != "usr-is-merged"]
        recipe = {
            "architecture": ARCH,
            "actions": [
                {
                    "action": "debootstrap",
                    "suite": SUITE,
                    "variant": "minbase",
                    "components": ["main"],
                    "mirror": sources()[0].uri,
                },
                {"action": "apt", "recommends": False, "packages": packages},
                {"action": "overlay", "source": "overlay"},
                {"action": "run", "chroot": True, "script": "initrd"},
                {"action": "pack", "file": "image.tar.gz", "compression": "gz"},
            ],
        }
        (self.folder / "image.yaml").write_text(json.dumps(recipe))

    def forget(self) -> None:
        self.remove("image.tar.gz", ".debos-tmp")

    def drop(self) -> None:
        self.forget()

    def build(self, row: str) -> Cost:
        self.forget()
        try:
            return self.run("debos", "image.yaml")
        except FailedError as first:
            try:
                cost = self.run("debos", "--disable-fakemachine", "image.yaml")
                self.note = f"with `--disable-fakemachine`, as its virtual machine doesn't start: {first}"
                return cost
            except FailedError as second:
                raise FailedError(f"{first}; without fakemachine: {second}") from None

    def outcome(self) -> Sequence[Path]:
        return [self.folder / "image.tar.gz"]
