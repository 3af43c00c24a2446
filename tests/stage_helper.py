"""Functions that tests run as a stage or inside a sandbox, where nothing but the standard library is at hand."""

from __future__ import annotations

import os
import random
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildlib.errors import BuildError

if TYPE_CHECKING:
    from buildlib.work import Work


def make(work: Work) -> None:
    """A stage: notes in `runs` that it ran, takes its time, makes a file and a layer."""
    with open(work.options["runs"], "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(work.options.get("seconds", 0))
    (work.out / "made").write_text(work.options.get("text", "made\n"))
    (work.tree / "etc").mkdir()
    (work.tree / "etc/made").write_text("layer\n")
    work.facts["say"] = "so"


def look(work: Work) -> None:
    """A stage that says which layers are below it."""
    work.facts["layers"] = [str(layer) for layer in work.layers]


def grow(work: Work) -> None:
    """A stage that writes files here and in its sandbox; the same each time."""
    text, count = work.options["text"], work.options["files"]
    for name in ("proc", "dev", "run", "tmp", "var/tmp", "etc"):
        (work.tree / name).mkdir(parents=True, exist_ok=True)
    for number in range(count // 2):
        (work.tree / f"{text}-{number}").write_bytes(random.Random(f"{text} {number}").randbytes(6000))
    work.sandbox().call(write_many, {"text": text, "from": count // 2, "to": count}, log=work.log)
    (work.out / "vmlinuz").write_text(f"kernel of {text}\n" * 2000)
    (work.out / "packages.tsv").write_text(f"{text}\t1\tamd64\n")


def write_many(arguments: dict[str, Any]) -> None:
    for number in range(arguments["from"], arguments["to"]):
        text = f"{arguments['text']} {number}"
        Path(f"/{text.replace(' ', '-')}").write_bytes(random.Random(text).randbytes(6000))


def fail(work: Work) -> None:
    """A stage that a user's mistake ends, after it made half of what it makes."""
    (work.out / "made").write_text("half\n")
    raise BuildError("it cannot be", hint="make it possible")


def stop(work: Work) -> None:
    """A stage that says that it runs, and goes on until it is killed."""
    Path(work.options["runs"]).write_text("running\n")
    time.sleep(60)


def echo(arguments: dict[str, Any]) -> Any:
    return arguments


def write(arguments: dict[str, Any]) -> None:
    """Write `text` to `path`; `owner` and `mode` where stated."""
    path = Path(arguments["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(arguments["text"])
    if "owner" in arguments:
        os.chown(path, arguments["owner"], arguments["owner"])
    if "mode" in arguments:
        path.chmod(arguments["mode"])


def read(arguments: dict[str, Any]) -> str:
    return Path(arguments["path"]).read_text()


def names(arguments: dict[str, Any]) -> list[str]:
    return sorted(os.listdir(arguments["path"]))


def remove(arguments: dict[str, Any]) -> None:
    Path(arguments["path"]).unlink()


def replace_folder(arguments: dict[str, Any]) -> None:
    """Delete a folder of one file, and make it again."""
    path = Path(arguments["path"])
    for entry in path.iterdir():
        entry.unlink()
    path.rmdir()
    path.mkdir()


def make_device(arguments: dict[str, Any]) -> None:
    os.mknod(arguments["path"], stat.S_IFBLK | 0o600, os.makedev(7, 0))


def break_out(_arguments: dict[str, Any]) -> list[str]:
    """Names in the outermost folder that root reaches; chroot(2) called twice leaves the first one."""
    os.mkdir("/tmp/jail")
    outside = os.open("/", os.O_RDONLY)
    os.chroot("/tmp/jail")
    os.fchdir(outside)
    for _ in range(100):
        os.chdir("..")
    return sorted(os.listdir("."))


def facts(_arguments: dict[str, Any]) -> dict[str, Any]:
    """What a process sees of the machine."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return {
        "environment": dict(os.environ),
        "hostname": socket.gethostname(),
        "interfaces": [line.partition(":")[0].strip() for line in lines],
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "pid": os.getpid(),
        "ids": [os.getuid(), os.getgid(), os.getgroups()],
    }


def talk_to_itself(_arguments: dict[str, Any]) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        accepted.sendall(b"hello")
        accepted.close()
        return client.recv(5).decode()


def refuse(_arguments: dict[str, Any]) -> None:
    raise BuildError("it cannot be", hint="make it possible")


def break_down(_arguments: dict[str, Any]) -> None:
    raise ZeroDivisionError("a bug")


def kill_itself(_arguments: dict[str, Any]) -> None:
    os.kill(os.getpid(), 9)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether it comes true within `seconds`; looks often, so that a passing test is a fast one."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def processes(word: str) -> list[int]:
    """Processes that have an argument which starts with `word`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(argument.startswith(word.encode()) for argument in arguments):
            found.append(int(entry.name))
    return found


def running(word: str) -> bool:
    """Whether a process has an argument that starts with `word`."""
    return bool(processes(word))


def mounted(text: str) -> bool:
    """Whether any process' mounts name `text`."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if text in (entry / "mountinfo").read_text():
                return True
        except OSError:
            continue
    return False
