"""NixOS images by a real nix, built for arm64 on a real second machine, up to a machine that boots one."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildlib.builder import Builder
from buildlib.distros.nixos import Options, builders, failures, flake, realise
from buildlib.errors import BuildError
from buildlib.house import House
from buildlib.schema import SchemaError
from buildlib.site import load as load_site
from tests import nixlab, sshlab
from tests.checkout import PROJECT
from tests.nixlab import Nix

pytestmark = sshlab.needed

RECIPE = """\
arch: arm64
root: ram
cmdline: console=ttyAMA0
nixos:
  flake: flake
  {what}
"""


def site(*boxes: sshlab.Box, **changed: Any) -> str:
    """A site file whose builders are these machines."""
    said = {}
    for number, box in enumerate(boxes):
        key = " ".join((box.state / "host_ed25519.pub").read_text().split()[:2])
        known = {"ssh": f"{box.user}@{box.address}:22", "key": str(box.key), "host-key": key}
        one = {**known, "systems": ["aarch64-linux"], "jobs": 2, **changed}
        said[f"b{number}"] = {word: value for word, value in one.items() if value is not None}
    return json.dumps({"builders": said})


def recipe(nix: Nix, name: str = "one", what: str = "configuration: test", *more: str) -> Path:
    """A recipe of the lab's flake; its folder."""
    folder = nix.recipe(name, "\n".join([RECIPE.format(what=what), *more]))
    nixlab.flake(folder / "flake")
    return folder


@pytest.fixture(scope="module")
def box() -> Iterator[sshlab.Box]:
    with nixlab.builder() as made:
        yield made


@pytest.fixture
def nix(tmp_path: Path, box: sshlab.Box) -> Iterator[Nix]:
    """A checkout with a builder, and the recipe `one`."""
    made = nixlab.checkout(tmp_path)
    (made.folder / "site.yaml").write_text(site(box))
    recipe(made)
    yield made
    shutil.rmtree(tmp_path / "nix", ignore_errors=True)


def outputs(nix: Nix, name: str = "one") -> dict[str, str]:
    found: dict[str, str] = nix.manifest(name)["build"]["facts"]["build"]["outputs"]
    return found


def derivations(nix: Nix, name: str = "one") -> dict[str, str]:
    found: dict[str, str] = json.loads((nix.folder / "recipes" / name / "recipe.lock").read_bytes())["derivations"]
    return found


def without_nix(nix: Nix, folder: Path, *arguments: str) -> str:
    """What doit prints where no program of nix can be run."""
    folder.mkdir()
    for program in ("nix", "nix-store"):
        (folder / program).write_text(f"#!/bin/sh\necho {program} >>{folder}/ran\nexit 1\n")
        (folder / program).chmod(0o755)
    line = ["env", f"PATH={folder}:{os.environ['PATH']}", *nix.command(*arguments)]
    said = subprocess.run(line, cwd=nix.folder, env=nix.environment, stdout=subprocess.PIPE, text=True, check=True)
    assert not (folder / "ran").exists()
    return said.stdout


def test_a_release_is_built_on_another_machine(nix: Nix, box: sshlab.Box, tmp_path: Path) -> None:
    nix.doit("build:one")
    log = (nix.folder / "out/log/one/build.log").read_text()
    assert f"on 'ssh-ng://root@{box.address}'" in log
    found = outputs(nix)
    release = nix.release("one")
    for file, path in {"vmlinuz": f"{found['kernel']}/Image", "initrd": f"{found['netbootRamdisk']}/initrd"}.items():
        there = Path(str(nix.store) + path.removeprefix("/nix"))
        assert (release / file).read_bytes() == there.read_bytes()
        assert (box.folder / path[1:]).read_bytes() == there.read_bytes()
    assert nix.manifest("one")["content"]["cmdline"] == (
        f"init={found['toplevel']}/init nohibernate root=fstab loglevel=4 console=ttyAMA0"
    )
    assert "nixos-system-test\t26.11\tarm64\n" in (release / "packages.tsv").read_text()
    # A store's closure says nothing of licenses.
    assert nix.licenses("one")["nixos-system-test"] == ""
    for name in ("build:one", "why:one"):
        said = without_nix(nix, tmp_path / name.partition(":")[0], name)
        assert "cached" in said or "nothing would run" in said

    nix.doit("push:local/one")
    entry = (nix.folder / "out/srv/boot/entries/one").resolve()
    assert f"init={found['toplevel']}/init" in "".join(path.read_text() for path in entry.iterdir())

    # nix keeps what the release is of, and no longer.
    nix.nix("nix-store", "--gc")
    assert all((nix.store / path.removeprefix("/nix/")).exists() for path in found.values())
    (nix.folder / "recipes/one/flake/init").write_text(nixlab.INIT + "# other\n")
    nix.doit("build:one")
    nix.doit("gc", "--keep=1")
    nix.nix("nix-store", "--gc")
    assert not (nix.store / found["netbootRamdisk"].removeprefix("/nix/")).exists()
    assert (nix.store / found["kernel"].removeprefix("/nix/")).exists()


def test_what_evaluates_to_the_same_is_not_built(nix: Nix) -> None:
    nix.doit("build:one")
    before, known = nix.release("one"), derivations(nix)
    path = nix.folder / "recipes/one/flake/flake.nix"
    path.write_text(path.read_text() + "# a remark\n")
    said = nix.doit("build:one")
    assert "one                  build       cached" in said
    assert (nix.release("one"), derivations(nix)) == (before, known)

    (path.parent / "init").write_text(nixlab.INIT + "# other\n")
    assert "nothing is locked yet" in nix.doit("why:one")
    nix.doit("_lock:one")
    why = nix.doit("why:one")
    assert "lock: derivations/netbootRamdisk" in why
    assert "derivations/kernel" not in why
    nix.doit("build:one")
    assert nix.release("one") != before


@pytest.mark.parametrize("attribute", ["netboot", "script"])
def test_one_attribute_may_join_all(nix: Nix, attribute: str) -> None:
    recipe(nix, "joined", f"netboot: packages.aarch64-linux.{attribute}")
    nix.doit("build:joined")
    nix.doit("build:one")
    cmdline = nix.manifest("joined")["content"]["cmdline"]
    assert cmdline.startswith(f"init={outputs(nix)['toplevel']}/init ")
    assert cmdline.endswith("nohibernate root=fstab loglevel=4 console=ttyAMA0"[-15:])
    for file in ("vmlinuz", "initrd"):
        assert (nix.release("joined") / file).read_bytes() == (nix.release("one") / file).read_bytes()


@pytest.mark.parametrize("what", ["configuration: test", "netboot: packages.aarch64-linux.netboot"])
def test_all_may_stay_in_a_builders_store(nix: Nix, box: sshlab.Box, what: str) -> None:
    recipe(nix, "far", what, "  store: b0")
    nix.doit("build:far")
    nix.doit("build:one")
    for file in ("vmlinuz", "initrd"):
        assert (nix.release("far") / file).read_bytes() == (nix.release("one") / file).read_bytes()
    assert nix.manifest("far")["content"]["cmdline"] == nix.manifest("one")["content"]["cmdline"]


def test_nothing_is_copied_here_from_such_a_store(nix: Nix, box: sshlab.Box) -> None:
    recipe(nix, "far", "configuration: test", "  store: b0")
    nix.doit("build:far")
    for path in outputs(nix, "far").values():
        assert (box.folder / path[1:]).exists()
        assert not (nix.store / path.removeprefix("/nix/")).exists()


def test_a_lock_from_elsewhere_is_evaluated_again(nix: Nix) -> None:
    nix.doit("_lock:one")
    shutil.rmtree(nix.store / "store")
    shutil.rmtree(nix.store / "var")
    nix.doit("build:one")

    path = nix.folder / "recipes/one/recipe.lock"
    odd = json.loads(path.read_bytes())
    odd["derivations"]["kernel"] = odd["derivations"]["kernel"].replace("/store/", "/store/0")[:-5] + ".drv"
    path.write_text(json.dumps(odd))
    said = nix.doit("build:one", status=1)
    assert "kernel evaluates to" in said
    assert "./doit lock:one" in said


def test_a_lock_moves_when_it_is_asked_to(nix: Nix, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input/text").write_text("one\n")
    folder = nix.folder / "recipes/one/flake"
    text = nixlab.FLAKE.replace(
        "outputs = { self }:",
        f'inputs.x = {{ url = "path:{tmp_path}/input"; flake = false; }};\n  outputs = {{ self, x }}:',
    ).replace("echo 26.11 >", "${busybox} cp ${x}/text $out/text; echo 26.11 >")
    (folder / "flake.nix").write_text(text)
    said = nix.doit("build:one", status=1)
    assert "flake.lock does not fit flake.nix" in said
    assert "./doit lock:one" in said
    assert not (folder / "flake.lock").exists()

    assert "is not locked yet" in nix.doit("lock:one", "--check", status=1)
    assert not (folder / "flake.lock").exists()
    nix.doit("lock:one")
    pinned = (folder / "flake.lock").read_bytes()
    nix.doit("build:one")
    before = nix.release("one")

    (tmp_path / "input/text").write_text("two\n")
    assert "nothing would run" in nix.doit("why:one")
    said = nix.doit("lock:one", "--check", status=1)
    assert "flake/inputs/x" in said
    assert (folder / "flake.lock").read_bytes() == pinned
    said = nix.doit("lock:one")
    assert "derivations/toplevel" in said
    assert (folder / "flake.lock").read_bytes() != pinned
    nix.doit("build:one")
    assert nix.release("one") != before
    assert "same" in nix.doit("lock:one")


def test_a_flake_of_another_repository(nix: Nix, tmp_path: Path) -> None:
    repository = nixlab.flake(tmp_path / "repository")
    git = ["git", "-C", str(repository), "-c", "user.name=x", "-c", "user.email=x@x"]
    for line in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *line], check=True)
    text = RECIPE.format(what="configuration: test").replace("flake: flake", f"reference: git+file://{repository}")
    nix.recipe("far", text)
    nix.doit("build:far")
    nix.doit("build:one")
    # The same content is the same image, wherever it comes from.
    assert (nix.release("far") / "initrd").read_bytes() == (nix.release("one") / "initrd").read_bytes()
    before = nix.release("far")
    (repository / "init").write_text(nixlab.INIT + "# other\n")
    subprocess.run([*git, "commit", "-q", "-a", "-m", "two"], check=True)
    assert "nothing would run" in nix.doit("why:far")
    # As on another machine, which has the lock alone.
    shutil.rmtree(nix.store / "store")
    shutil.rmtree(nix.store / "var")
    shutil.rmtree(nix.folder / "out")
    nix.doit("build:far")
    assert nix.release("far").name.partition("-")[2] == before.name.partition("-")[2]
    assert "flake/reference" in nix.doit("lock:far")
    nix.doit("build:far")
    assert nix.release("far").name.partition("-")[2] != before.name.partition("-")[2]


def test_nix_own_builders_count_where_the_site_file_has_none(nix: Nix, box: sshlab.Box) -> None:
    (nix.folder / "site.yaml").unlink()
    said = nix.doit("build:one", status=1)
    assert "aarch64-linux is to be built on a x86_64-linux: nobody else does it" in said
    (box.state / "line").write_text(f"ssh-ng://{box.name} aarch64-linux - 2 1 big-parallel\n")
    (nix.store / "conf/nix.conf").write_text(f"{nixlab.CONF}builders = @{box.state}/line\n")
    os.environ["NIX_SSHOPTS"] = f"-F {box.config}"
    try:
        nix.doit("build:one")
    finally:
        del os.environ["NIX_SSHOPTS"]


class _Ordinary(Nix):
    """The checkout of a user whom the nix daemon trusts."""

    def command(self, *arguments: str) -> list[str]:
        user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
        return [*self.within, *user, self.python, "-m", "doit", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        packages = f"{self.folder}:{self.folder / '.packages'}"
        own = {"HOME": str(self.folder.parent), "LOGNAME": USER, "PYTHONPATH": packages}
        return {"PATH": os.environ["PATH"], "NIX_CONF_DIR": super().environment["NIX_CONF_DIR"], **own}


USER = "netboot-nix"


@pytest.fixture
def ordinary(nix: Nix) -> Iterator[Nix]:
    subprocess.run(["userdel", "--remove", USER], check=False, capture_output=True)
    subprocess.run(["useradd", "--system", "--create-home", USER], check=True, capture_output=True)
    subprocess.run(["usermod", "--add-subuids", "800000-865535", "--add-subgids", "800000-865535", USER], check=True)
    home = Path(pwd.getpwnam(USER).pw_dir)
    made = _Ordinary(home / "checkout", python="/usr/bin/python3", store=nix.store)
    without = shutil.ignore_patterns("__pycache__", "mypy*", "ruff*")
    shutil.copytree(nix.folder, made.folder)
    shutil.copytree(PROJECT / "buildlib", made.folder / "buildlib", ignore=without)
    shutil.copytree(nix.packages, made.folder / ".packages", ignore=without)
    subprocess.run(["chown", "-R", f"{USER}:", str(home)], check=True)
    with (nix.store / "conf/nix.conf").open("a") as file:
        file.write(f"trusted-users = root {USER}\n")
    for path in (nix.store, nix.store / "conf"):
        path.chmod(0o755)
    # Only inside its namespace: what is above it is root's alone.
    daemon = subprocess.Popen([*nix.within, "nix-daemon"], env=nix.environment)
    try:
        while not (nix.store / "var/nix/daemon-socket/socket").exists():
            assert daemon.poll() is None
            time.sleep(0.05)
        yield made
    finally:
        daemon.kill()
        daemon.wait()
        subprocess.run(["userdel", "--remove", USER], check=False, capture_output=True)


def test_a_daemon_builds_for_an_ordinary_user(ordinary: Nix, box: sshlab.Box) -> None:
    (ordinary.folder / "site.yaml").write_text(site(box, ssh=f"root@{box.address}"))
    ordinary.doit("build:one")
    log = (ordinary.folder / "out/log/one/build.log").read_text()
    assert f"on 'ssh-ng://root@{box.address}'" in log
    assert ordinary.manifest("one")["content"]["cmdline"].startswith(f"init={outputs(ordinary)['toplevel']}/init ")
    nix_roots = ordinary.nix("nix-store", "--gc", "--print-roots")
    assert f"{ordinary.folder}/out/cache/nix-roots/" in nix_roots


def fails(nix: Nix, text: str, *, log: str = "") -> str:
    """A build fails before or in nix, saying `text`, and publishes nothing."""
    said = nix.doit("build:one", status=1)
    assert text in said, said
    assert "Traceback" not in said
    assert not (nix.folder / "out/images/one").exists()
    if log:
        assert log in (nix.folder / "out/log/one/build.log").read_text()
    return said


def test_a_builder_that_is_down(nix: Nix, box: sshlab.Box) -> None:
    (nix.folder / "site.yaml").write_text(site(box, ssh=f"root@{box.address}:23"))
    fails(nix, "builder b0: ")
    (nix.folder / "site.yaml").write_text(site(box, ssh="root@nowhere.invalid"))
    fails(nix, "nowhere.invalid")


def test_a_builder_whose_key_is_unknown(nix: Nix, box: sshlab.Box) -> None:
    (nix.folder / "site.yaml").write_text(site(box, **{"host-key": None}))
    fails(nix, f"host key of {box.address} is not known")


def test_a_builder_whose_key_changed(nix: Nix, box: sshlab.Box) -> None:
    other = (box.state / "key.pub").read_text().split()
    (nix.folder / "site.yaml").write_text(site(box, **{"host-key": " ".join(other[:2])}))
    fails(nix, "host key of builder-b0 changed")


def test_a_builder_that_refuses_our_key(nix: Nix, box: sshlab.Box, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "k"], check=True)
    (nix.folder / "site.yaml").write_text(site(box, key=str(tmp_path / "k")))
    fails(nix, "accepts none of our keys")
    (nix.folder / "site.yaml").write_text(site(box, key=str(tmp_path / "none")))
    fails(nix, "there is no key")


def test_a_builder_of_another_system(nix: Nix, box: sshlab.Box) -> None:
    (nix.folder / "site.yaml").write_text(site(box, systems=["aarch64-linux", "riscv64-linux"]))
    fails(nix, "site.yaml says riscv64-linux, but it builds for aarch64-linux")
    (nix.folder / "site.yaml").write_text(site(box, systems=["x86_64-linux"]))
    fails(nix, "no builder is for aarch64-linux")
    (nix.folder / "site.yaml").write_text(site(box, features=["quantum"]))
    fails(nix, "has no feature quantum")


def test_a_builder_without_nix(nix: Nix) -> None:
    hidden = ["mkdir {data}/none", "for f in nix nix-store nix-daemon; do mount --bind /dev/null /usr/bin/$f; done"]
    with sshlab.box("openssh", before=["mount -t overlay -o lowerdir={data}:/usr/bin x /usr/bin", *hidden[1:]]) as bare:
        (nix.folder / "site.yaml").write_text(site(bare))
        fails(nix, "no nix in the PATH")


def test_a_builder_that_trusts_nobody(nix: Nix) -> None:
    with nixlab.builder(kind="user") as other:
        (nix.folder / "site.yaml").write_text(site(other))
        fails(nix, "its nix doesn't trust pusher")


def test_a_builder_whose_disk_is_full(nix: Nix) -> None:
    with nixlab.builder(disk="60m") as small:
        (nix.folder / "site.yaml").write_text(site(small))
        fails(nix, "MB are free in /nix/store")


def test_a_disk_that_fills_up(nix: Nix, monkeypatch: pytest.MonkeyPatch) -> None:
    with nixlab.builder(disk="1200m") as small:
        (nix.folder / "site.yaml").write_text(site(small))
        recipe(nix, "one", "netboot: packages.aarch64-linux.fills")
        small.run("dd", "if=/dev/zero", f"of={small.folder}/ballast", "bs=1M", "count=50")
        (nix.folder / "recipes/one/flake/flake.nix").write_text(nixlab.FLAKE.replace("count=500", "count=1500"))
        fails(nix, "a disk is full", log="No space left")


def test_a_build_that_fails(nix: Nix) -> None:
    recipe(nix, "one", "netboot: packages.aarch64-linux.broken")
    said = fails(nix, "a build failed")
    assert "this is why" in said


def test_what_holds_no_kernel(nix: Nix) -> None:
    recipe(nix, "one", "netboot: packages.aarch64-linux.empty")
    fails(nix, "has no kernel (Image or vmlinuz or bzImage), but nothing")


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("configuration: none", "the flake has no such attribute"),
        ("configuration: bare", "the flake's configuration has no netbootRamdisk"),
        ("netboot: packages.x86_64-linux.other", "is for x86_64-linux, but the recipe's arch is aarch64-linux"),
        ("configuration: test\n  store: b9", "site.yaml has no builder b9"),
    ],
)
def test_a_recipe_that_asks_for_what_is_not_there(nix: Nix, what: str, text: str) -> None:
    recipe(nix, "one", what)
    fails(nix, text)


def test_a_killed_build_leaves_nothing_and_goes_on(nix: Nix) -> None:
    recipe(nix, "one", "netboot: packages.aarch64-linux.slow")
    process = subprocess.Popen(nix.command("build:one"), cwd=nix.folder, env=nix.environment, start_new_session=True)
    log = nix.folder / "out/log/one/build.log"
    while not (log.exists() and "building '" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    recipe(nix)
    nix.doit("build:one")
    assert not list(Path(f"/tmp/netboot-ssh-{os.geteuid()}").glob(f"config-{process.pid}-*"))
    assert sorted(path.name for path in (nix.folder / "out/tmp").iterdir()) == ["locks"]


SAYINGS = {
    "aarch64-linux is to be built on a x86_64-linux": "error: a 'aarch64-linux' with features {} is "
    "required to build '/nix/store/x.drv', but I am a 'x86_64-linux' with features {benchmark}",
    "host key changed": "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
    "host key is not known": "No ED25519 host key is known for spark and you have requested strict checking.",
    "no address is known of the builder spark": "ssh: Could not resolve hostname spark: Name or service not known",
    "spark port 22 can't be reached: Connection refused": "ssh: connect to host spark port 22: Connection refused",
    "accepts none of our keys": "nix@spark: Permission denied (publickey).",
    "has no nix": "bash: line 1: nix-store: command not found",
    "doesn't trust": "error: you are not privileged to build input-addressed derivations",
    "was cut": "error: unexpected end-of-file",
    "no builder is for aarch64-linux with the features [big-parallel]": "Failed to find a machine for remote build!\n"
    "derivation: x.drv\nrequired (system, features): (aarch64-linux, [big-parallel])",
    "nobody builds": "error: Unable to start any build; either increase '--max-jobs' or enable remote builds.",
    "newer nix": "error: This version of Nixpkgs requires Nix >= 2.18, please upgrade",
    "can't be downloaded: https://x/y": "error: unable to download 'https://x/y': Couldn't resolve host name (6)",
    "repository has no branch master": "fatal: couldn't find remote ref refs/heads/master\n"
    "error: program 'git' failed with exit code 128",
    "there is no group nixbld": "error: the group 'nixbld' specified in 'build-users-group' does not exist",
}


@pytest.mark.parametrize("meaning", SAYINGS)
def test_what_nix_says_is_said_in_words(meaning: str) -> None:
    error = failures.explain(SAYINGS[meaning], "one")
    assert error is not None
    assert meaning in error.message
    assert error.hint


def test_what_nobody_knows_is_left_to_the_log() -> None:
    assert failures.explain("error: stack overflow", "one") is None


def test_the_line_for_nix() -> None:
    whole = Builder(
        ssh="nix@spark.lab:2222",
        systems=("aarch64-linux", "armv7l-linux"),
        key="/root/key",
        host_key="ssh-ed25519 AAAA",
        jobs=8,
        speed=2,
        features=("big-parallel", "kvm"),
        mandatory_features=("benchmark",),
    )
    assert builders.line(whole, direct=False) == (
        "ssh-ng://nix@spark.lab:2222 aarch64-linux,armv7l-linux /root/key 8 2 big-parallel,kvm,benchmark benchmark "
        "c3NoLWVkMjU1MTkgQUFBQQ=="
    )
    bare = Builder(ssh="spark", systems=("aarch64-linux",), features=())
    assert builders.line(bare, direct=False) == "ssh-ng://spark aarch64-linux - 1 1 - - -"
    assert builders.line(whole, direct=True).startswith("ssh-ng://nix@spark.lab aarch64-linux,armv7l-linux - 8 2 ")


def test_ssh_takes_the_site_files_word_before_the_users(tmp_path: Path) -> None:
    own = tmp_path / "own config"
    own.write_text("Host spark\n  HostName 192.0.2.7\n  Port 23\n  User me\nHost *\n  StrictHostKeyChecking no\n")
    found = {
        "one": Builder(ssh="spark", systems=("aarch64-linux",)),
        "two": Builder(ssh="nix@other:2222", systems=("aarch64-linux",), key="/k", host_key="ssh-ed25519 AAAA"),
    }

    def asked(host: str) -> dict[str, str]:
        said = subprocess.run(["ssh", "-G", "-F", config, host], stdout=subprocess.PIPE, text=True, check=True).stdout
        return dict(line.partition(" ")[::2] for line in said.splitlines())

    with builders.ssh_config(found, own) as config:
        spark, other = asked("spark"), asked("other")
    assert (spark["hostname"], spark["port"], spark["user"]) == ("192.0.2.7", "23", "me")
    assert (other["port"], other["user"], other["identityfile"]) == ("2222", "nix", "/k")
    assert spark["stricthostkeychecking"] == other["stricthostkeychecking"] == "true"
    assert other["hostkeyalias"] == "builder-two"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/nix/store/gziz2qka06xggjjv52j6jriimllazk56-openssh-9.9p1", "openssh\t9.9p1\tarm64\n"),
        ("/nix/store/gziz2qka06xggjjv52j6jriimllazk56-unit-dbus.service", "unit-dbus.service\t\tarm64\n"),
        (
            "/nix/store/gziz2qka06xggjjv52j6jriimllazk56-nixos-system-a-26.11.2026",
            "nixos-system-a\t26.11.2026\tarm64\n",
        ),
    ],
)
def test_a_store_path_is_a_package(path: str, line: str) -> None:
    assert realise.packaged(path, "arm64") == line


def test_the_command_line_of_nixpkgs_script() -> None:
    text = "#!ipxe\n# words\nkernel bzImage init=/nix/store/x/init initrd=initrd a=b ${cmdline}\ninitrd initrd\n"
    assert realise.of_script(text) == "init=/nix/store/x/init a=b"
    with pytest.raises(BuildError, match="no line for the kernel"):
        realise.of_script("#!ipxe\n")


def test_a_lock_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "flake.lock").write_text("{")
    with pytest.raises(BuildError, match=r"flake\.lock: can't be read"):
        flake.inputs(tmp_path)


NIXOS = RECIPE.format(what="configuration: test")

OTHER_WORDS = {
    "flake": ("flake: flake", "flake: other", None),
    "reference": ("flake: flake", "reference: github:lab/images", None),
    "configuration": ("configuration: test", "configuration: other", None),
    "netboot": ("configuration: test", "netboot: packages.x", None),
    "store": ("flake: flake", "flake: flake\n  store: b0", ()),
    "arch": ("arch: arm64", "arch: amd64", None),
    "cmdline": ("console=ttyAMA0", "quiet", ("release",)),
}
"""Old and new text, and which keys change; None: what is built must be found out anew."""


def keys_of(folder: Path, text: str) -> dict[str, str]:
    """Keys of a recipe whose lock is of `NIXOS`."""
    home = folder / "recipes/one"
    for name in ("flake", "other"):
        (home / name).mkdir(parents=True, exist_ok=True)
        (home / name / "flake.nix").write_text(f"{{ }} # {name}\n")
    (home / "recipe.yaml").write_text(NIXOS)
    found = House(folder).recipes["one"]
    state = flake.state(found, None, home / "flake")
    lock = {"flake": {"state": state, "asked": None, "reference": None}, "derivations": {"kernel": "/nix/store/x.drv"}}
    (home / "recipe.lock").write_text(json.dumps(lock))
    (home / "recipe.yaml").write_text(text)
    house = House(folder)
    made = {stage: keyed.key for stage, keyed in house.keys("one").items()}
    return {**made, "release": house.release_key("one", house.keys("one"))} if made else {}


@pytest.mark.parametrize("word", OTHER_WORDS)
def test_what_a_word_changes(word: str, tmp_path: Path) -> None:
    old, new, changes = OTHER_WORDS[word]
    before = keys_of(tmp_path, NIXOS)
    after = keys_of(tmp_path, NIXOS.replace(old, new))
    assert set(before) == {"build", "release"}
    if changes is None:
        assert not after
    else:
        assert [name for name in before if before[name] != after[name]] == [*changes]


def test_every_word_is_in_the_table() -> None:
    assert {field.name for field in dataclasses.fields(Options)} <= set(OTHER_WORDS)


def test_who_builds_is_no_part_of_what(tmp_path: Path) -> None:
    before = keys_of(tmp_path, NIXOS)
    (tmp_path / "site.yaml").write_text("builders: {b0: {ssh: spark, systems: [aarch64-linux]}}\n")
    assert keys_of(tmp_path, NIXOS) == before


WRONG = [
    ("  flake: flake\n", "", "5:3: a recipe has one of `flake` and `reference`"),
    ("  configuration: test\n", "", "5:3: a recipe has one of `configuration` and `netboot`"),
    ("flake: flake", "flake: empty", "5:10: there is no flake.nix in empty"),
    ("flake: flake", "flake: whole", "5:10: is to be a folder of its own"),
    ("flake: flake", "reference: lab/images", "5:14: expects a flake reference"),
    ("root: ram", "root: squashfs", "2:7: the whole of a NixOS netboot image is in its initrd"),
    ("root: ram", "root: ram\nusers: [{name: ops}]", "3:8: NixOS takes it from the flake"),
    ("root: ram", "root: ram\nhostname: x", "3:11: NixOS takes it from the flake"),
    ("root: ram", "root: ram\ntimezone: Europe/Berlin", "3:11: NixOS takes it from the flake"),
    ("root: ram", "root: ram\nservices: {enable: [a.service]}", "3:11: NixOS takes them from the flake"),
]


@pytest.mark.parametrize(("old", "new", "text"), WRONG)
def test_a_recipe_that_cannot_be_right(old: str, new: str, text: str, tmp_path: Path) -> None:
    home = tmp_path / "recipes/one"
    for name in ("flake", "empty", "whole"):
        (home / name).mkdir(parents=True)
    for name in ("flake/flake.nix", "whole/flake.nix", "whole/recipe.yaml"):
        (home / name).write_text("")
    (home / "recipe.yaml").write_text(NIXOS.replace(old, new))
    with pytest.raises(SchemaError) as error:
        _ = House(tmp_path).recipes
    assert text in str(error.value)


def test_builders_of_a_site_file(tmp_path: Path) -> None:
    def wrong(text: str) -> str:
        (tmp_path / "site.yaml").write_text(text)
        with pytest.raises(SchemaError) as error:
            load_site(tmp_path)
        return str(error.value)

    assert "builds for at least one system" in wrong("builders: {a: {ssh: x, systems: []}}")
    assert "x is a already" in wrong("builders: {a: {ssh: x, systems: [s-l]}, b: {ssh: 'u@x:23', systems: [s-l]}}")
    assert "expects a public key" in wrong("builders: {a: {ssh: x, systems: [s-l], host-key: /etc/ssh/key.pub}}")


def test_the_shipped_flake_is_nix(nix: Nix) -> None:
    for path in sorted((PROJECT / "recipes/spark-netboot/flake").glob("*.nix")):
        nix.nix("nix-instantiate", "--parse", str(path))
