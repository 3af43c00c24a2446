"""In the root: files written so that what is just so already stays in the layer below.

Standard library only: it runs inside the sandbox. Paths are the image's own.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

from buildlib.errors import BuildError


def write(path: str, text: str, *, mode: int = 0o644) -> None:
    """Write a file unless it is just so already: an unchanged file stays in the layer below."""
    data = text.encode()
    if os.path.lexists(path) and not os.path.islink(path):
        facts = os.stat(path)
        if facts.st_size == len(data) and stat.S_IMODE(facts.st_mode) == mode and Path(path).read_bytes() == data:
            return
    remove(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_bytes(data)
    os.chmod(path, mode)


def link(path: str, points_to: str) -> None:
    """Make a symbolic link unless it is there already."""
    if os.path.islink(path) and os.readlink(path) == points_to:
        return
    remove(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(points_to, path)


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def copy_tree(source: str, target: str = "/") -> None:
    """Copy a tree over the root. Root owns everything, 0755 what is executable and 0644 the rest: of a file's mode git
    keeps no more."""
    for folder, folders, names in os.walk(source):
        inside = os.path.join(target, os.path.relpath(folder, source))
        for name in sorted((*folders, *names)):
            _copy(os.path.join(folder, name), os.path.normpath(os.path.join(inside, name)))


def _copy(source: str, target: str) -> None:
    if os.path.islink(source):
        link(target, os.readlink(source))
    elif os.path.isdir(source):
        # /lib and others are links in the image: a folder of the overlay means what the link points to.
        if not os.path.isdir(target):
            os.mkdir(target, 0o755)
    else:
        if os.path.isdir(target) and not os.path.islink(target):
            raise BuildError(f"{target} is a folder in the root, and a file in what is copied over it")
        remove(target)
        shutil.copyfile(source, target)
        os.chmod(target, 0o755 if os.stat(source).st_mode & 0o100 else 0o644)


def timezone(zone: str) -> None:
    """Set the time zone. Raises BuildError."""
    if not os.path.isfile(f"/usr/share/zoneinfo/{zone}"):
        raise BuildError(f"timezone: {zone} is not known to this suite", hint="like Europe/Berlin")
    link("/etc/localtime", f"/usr/share/zoneinfo/{zone}")
    write("/etc/timezone", f"{zone}\n")


def user(user: dict[str, Any], password: str | None, keys: str, *, admins: str = "sudo") -> None:
    """Make or change an account, by the root's own programs. Raises BuildError.

    user   -- name, uid, groups, sudo, shell, and `keys`: files of public keys in the folder `keys`
    admins -- the group of those who may become root
    """
    name = user["name"]
    home = "/root" if name == "root" else f"/home/{name}"
    groups = [*user["groups"], *([admins] if user["sudo"] != "no" else [])]
    lacking = [group for group in groups if run("getent", "group", group, check=False).returncode]
    if lacking:
        raise BuildError(f"users: {name}: no group {', '.join(lacking)} in the root", hint="which package makes it?")
    if name != "root":
        known = run("getent", "passwd", name, check=False).returncode == 0
        line = ["usermod"] if known else ["useradd", "--create-home"]
        uid = [] if user["uid"] is None else ["--uid", str(user["uid"])]
        run(*line, "--shell", user["shell"], *uid, name)
    if groups:
        run("usermod", "--append", "--groups", ",".join(groups), name)
    # Through standard input: on the command line every process could read the hash.
    if password is not None:
        run("chpasswd", "--encrypted", text=f"{name}:{password}\n")
    elif name != "root":
        run("passwd", "--lock", name)
    if user["sudo"] == "nopasswd":
        write(f"/etc/sudoers.d/{name}", f"{name} ALL=(ALL:ALL) NOPASSWD: ALL\n", mode=0o440)
    if user["keys"]:
        text = "".join(Path(f"{keys}/{key}").read_text().rstrip("\n") + "\n" for key in user["keys"])
        run("install", "-d", "-m", "0700", "-o", name, "-g", name, f"{home}/.ssh")
        write(f"{home}/.ssh/authorized_keys", text, mode=0o600)
        run("chown", f"{name}:", f"{home}/.ssh/authorized_keys")


def services(units: dict[str, list[str]]) -> None:
    """Enable, disable and mask systemd units. Raises BuildError."""
    for verb in ("enable", "disable", "mask"):
        for unit in units[verb]:
            systemctl(verb, unit)


def systemctl(verb: str, unit: str) -> None:
    """Raises BuildError with its words."""
    # Not the root's own systemctl for a missing unit: it only says that it failed.
    done = run("systemctl", verb, unit, check=False)
    if done.returncode:
        raise BuildError(f"services: cannot {verb} {unit}", hint=done.stdout.strip() or "which package brings it?")


def run(*argv: str, check: bool = True, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program of the root. Raises BuildError with its words when it fails, if that is to be checked."""
    done = subprocess.run(argv, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(f"$ {' '.join(argv)}\n{done.stdout}", end="")
    if check and done.returncode:
        raise BuildError(f"{argv[0]}: {done.stdout.strip() or f'exit status {done.returncode}'}")
    return done


def copy_overlays(arguments: dict[str, Any]) -> None:
    """In the root: copy the recipe's trees over it; `owners` states what isn't root's own and 0755 or 0644."""
    for tree in arguments["overlays"]:
        copy_tree(tree)
    for rule in arguments["owners"]:
        path = rule["path"]
        if not os.path.lexists(path):
            raise BuildError(f"owners: no {path} in the root")
        if rule["owner"]:
            # The root's own program: this process still has the host's idea of users.
            owner = rule["owner"] if ":" in rule["owner"] else f"{rule['owner']}:"
            run("chown", "--no-dereference", owner, path)
        if rule["mode"]:
            os.chmod(path, int(rule["mode"], 8))
