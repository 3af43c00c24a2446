"""The servers themselves: real ones in a network of their own, what clients get of them, and what is told of it.

What runs within the namespaces is a function of this module whose name begins with `_in_`; it gives what JSON can say.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buildlib import command, lab, publish, serve, serverside, serving, site
from buildlib.errors import BuildError
from buildlib.place import Place
from buildlib.sandbox import Sandbox
from buildlib.serve import Event, Servers, dnsmasq_steps, ganesha_steps
from buildlib.site import Dhcp, Http, Nfs, Target
from tests.checkout import SHARED, Checkout
from tests.stage_helper import wait_until
from tests.test_publish import release

MAC = "52:54:00:e6:30:9f"
ADDRESS, NETWORK = "10.9.0.1", "10.9.0.0/24"

# What the servers' logs say


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        (f"dnsmasq-dhcp[35]: 581636449 DHCPDISCOVER(br0) {MAC} ", [("dhcp", MAC, "asks for an address", True)]),
        (f"dnsmasq-dhcp[35]: 581636449 DHCPOFFER(br0) 10.77.0.95 {MAC} ", []),
        (f"dnsmasq-dhcp[35]: 581636449 DHCPREQUEST(br0) 10.77.0.95 {MAC} ", []),
        (
            f"dnsmasq-dhcp[35]: 581636449 DHCPACK(br0) 10.77.0.95 {MAC} proof",
            [("dhcp", MAC, "has address 10.77.0.95", True)],
        ),
        (f"dnsmasq-dhcp: DHCPACK(br0) 10.77.0.95 {MAC}", [("dhcp", MAC, "has address 10.77.0.95", True)]),
        (
            f"dnsmasq-dhcp[35]: 1 PXE(br0) 10.77.0.95 {MAC} grubx64.efi",
            [("dhcp", MAC, "is told what to boot: grubx64.efi", True)],
        ),
        (
            f"dnsmasq-dhcp[35]: 1 DHCPNAK(br0) 10.77.0.95 {MAC} wrong network",
            [("dhcp", MAC, f"DHCPNAK: 10.77.0.95 {MAC} wrong network", False)],
        ),
        ("dnsmasq-dhcp[35]: 8665042 DHCPINFORMATION-REQUEST(br0) 00:04:00:00:00:00:00:00:00 proof", []),
        (f"dnsmasq-dhcp[35]: RTR-SOLICIT(br0) {MAC}", []),
        (f"dnsmasq-dhcp[35]: 8665042 client MAC address: {MAC}", []),
        ("dnsmasq-dhcp[35]: DHCP, IP range 10.77.0.50 -- 10.77.0.99, lease time 1h", []),
        ("dnsmasq-dhcp[35]: 581636449 next server: 10.77.0.1", []),
        ("dnsmasq-tftp[35]: TFTP root is /srv/boot  ", []),
        (
            "dnsmasq-tftp[35]: sent /srv/a b/grubx64.efi to 10.77.0.65",
            [("tftp", "10.77.0.65", "sent /srv/a b/grubx64.efi", True)],
        ),
        (
            "dnsmasq-tftp[35]: file /srv/fs.lst not found for 10.77.0.65",
            [("tftp", "10.77.0.65", "/srv/fs.lst: no such file", False)],
        ),
        (
            "dnsmasq-tftp[35]: error 8 User aborted the transfer received from 10.77.0.65",
            [("tftp", "10.77.0.65", "client stopped: User aborted the transfer", True)],
        ),
        (
            "dnsmasq-tftp[35]: failed sending /srv/initrd to 10.77.0.65",
            [("tftp", "10.77.0.65", "failed sending /srv/initrd to 10.77.0.65", False)],
        ),
        (
            "dnsmasq-tftp[35]: cannot access /srv/initrd: Permission denied",
            [("tftp", "-", "cannot access /srv/initrd: Permission denied", False)],
        ),
        (
            "dnsmasq-tftp[35]: cannot read /srv/initrd: Input/output error",
            [("tftp", "-", "cannot read /srv/initrd: Input/output error", False)],
        ),
        ("dnsmasq[35]: started, version 2.90 DNS disabled", []),
        ("$ dnsmasq --keep-in-foreground", []),
        ("", []),
    ],
)
def test_a_line_of_dnsmasq(line: str, steps: list[tuple[str, str, str, bool]]) -> None:
    assert list(dnsmasq_steps(line, {})) == steps


def test_dnsmasq_says_who_has_which_address() -> None:
    macs: dict[str, str] = {}
    list(dnsmasq_steps(f"dnsmasq-dhcp[1]: 2 DHCPACK(br0) 10.77.0.95 {MAC} proof", macs))
    assert macs == {"10.77.0.95": MAC}


GANESHA = "25/11/2026 08:33:29 : epoch 6b069d3e : localhost : nfs-ganesha-13[svc_7] mnt_Mnt :NFS3 :DEBUG :"
ASKED = f"{GANESHA}REQUEST PROCESSING: Calling MNT_MNT path=/srv/nfs/a b"


@pytest.mark.parametrize(
    ("line", "step"),
    [
        (
            "MOUNT: Entry supports 1 different flavours handle=0x4300ff for client ::ffff:10.77.0.95",
            ("nfs", "10.77.0.95", "mounted /srv/nfs/a b", True),
        ),
        (
            "MOUNT: Export entry / does not allow access for client ::ffff:10.77.0.95",
            (
                "nfs",
                "10.77.0.95",
                "mount of /srv/nfs/a b refused: "
                "MOUNT: Export entry / does not allow access for client ::ffff:10.77.0.95",
                False,
            ),
        ),
        (
            "MOUNT: Export entry for /srv/nfs/a b not found",
            ("nfs", "-", "mount of /srv/nfs/a b refused: MOUNT: Export entry for /srv/nfs/a b not found", False),
        ),
    ],
)
def test_what_becomes_of_a_mount(line: str, step: tuple[str, str, str, bool]) -> None:
    mounts: dict[str, str] = {}
    assert list(ganesha_steps(ASKED, mounts)) == [("nfs", "-", "asked to mount /srv/nfs/a b", True)]
    assert list(ganesha_steps(GANESHA + line, mounts)) == [step]


def test_mounts_of_several_threads_are_told_apart() -> None:
    mounts: dict[str, str] = {}
    for thread, path in (("svc_7", "/one"), ("svc_8", "/two")):
        list(
            ganesha_steps(f"x[{thread}] mnt_Mnt :NFS3 :DEBUG :REQUEST PROCESSING: Calling MNT_MNT path={path}", mounts)
        )
    line = "x[svc_7] mnt_Mnt :NFS3 :DEBUG :MOUNT: Entry supports 1 different flavours handle=0x1 for client 10.0.0.5"
    assert [step[2] for step in ganesha_steps(line, mounts)] == ["mounted /one"]


@pytest.mark.parametrize(
    "line",
    [
        "x : nfs-ganesha-13[main] nfs_start :NFS STARTUP :EVENT :             NFS SERVER INITIALIZED",
        "x : nfs-ganesha-13[svc_7] nfs_access_op :NFS3 :DEBUG :Granted ACCESS=READ,LOOKUP,-,-,-,-",
    ],
)
def test_other_lines_of_ganesha_are_no_steps(line: str) -> None:
    assert list(ganesha_steps(line, {})) == []


def test_an_event_is_a_line() -> None:
    spare = "grub/x86_64-efi/command.lst: no such file"
    assert str(Event(1.0, "tftp", "10.0.0.5", spare, False)).endswith(f"{spare}  as usual")
    assert str(Event(1.0, "tftp", "10.0.0.5", "grub.cfg: no such file", False)) == (
        "10.0.0.5          tftp  grub.cfg: no such file  FAILED"
    )


# Within a network of its own


def inside(function: Callable[[Path], Any], folder: Path) -> Any:
    """Run a function of this module in namespaces with an interface `lab0`; what it gave."""
    assert function.__name__.startswith("_in_")
    said, log = folder / "said.json", folder / "inside.log"
    code = f"from tests import test_serve as module; module._call({function.__name__!r}, {str(folder)!r})"
    box = Sandbox(work=folder / "sandbox", chroot=False, user=False, env={"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        box.run([sys.executable, "-c", code], log=log)
    except command.CommandError as error:
        raise AssertionError(log.read_text()) from error
    return json.loads(said.read_text())


def _call(name: str, folder: str) -> None:
    lab.isolate()
    for line in (
        "ip link add lab0 type veth peer name lab1",
        f"ip address add {ADDRESS}/24 dev lab0",
        "ip link set lab0 up",
        "ip link set lab1 up",
    ):
        subprocess.run(line.split(), check=True)
    said = globals()[name](Path(folder))
    Path(folder, "said.json").write_text(json.dumps(said))


def tftp(name: str) -> bytes:
    """A file by TFTP, in 512-byte blocks. Raises FileNotFoundError with what the server says."""
    data = b""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(struct.pack("!H", 1) + name.encode() + b"\0octet\0", (ADDRESS, 69))
        while True:
            packet, server = client.recvfrom(1024)
            kind, number = struct.unpack("!HH", packet[:4])
            if kind == 5:
                raise FileNotFoundError(packet[4:-1].decode())
            data += packet[4:]
            client.sendto(struct.pack("!HH", 4, number), server)
            if len(packet) < 516:
                return data


def http(path: str, *, part: str = "", port: int = 80) -> bytes:
    headers = {"Range": f"bytes={part}"} if part else {}
    with urllib.request.urlopen(urllib.request.Request(f"http://{ADDRESS}:{port}{path}", headers=headers)) as answer:
        found: bytes = answer.read()
        return found


def servers_running() -> list[str]:
    """Names of all processes of the namespace that are servers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return [name for name in found if name.startswith(("dnsmasq", "nginx", "ganesha", "rpcbind"))]


def target(folder: Path) -> Target:
    boot = folder / "a boot"
    boot.mkdir(exist_ok=True)
    return Target(ADDRESS, NETWORK, tftp=str(boot), http=Http(str(boot)), interface="lab0", dhcp=Dhcp("none"))


def served(where: Target, folder: Path, events: list[Event]) -> Servers:
    texts = serverside.rendered(Place("lab", where))
    configs = {name: text for name, text in texts.items() if name in ("dnsmasq", "nginx", "ganesha")}
    return Servers(configs, folder / "servers", events.append, port=where.http.port if where.http else 80)


def told(events: list[Event], *parts: str) -> bool:
    """Whether each of these comes to be told."""
    return wait_until(lambda: all(any(part in str(event) for event in events) for part in parts), 60)


def _in_http_and_tftp(folder: Path) -> dict[str, Any]:
    where = target(folder)
    boot = folder / "a boot"
    (boot / "file").write_bytes(b"0123456789")
    (boot / "big").write_bytes(bytes(range(256)) * 2000)
    with (boot / "huge").open("wb") as file:
        file.truncate(100_000_000)
    events: list[Event] = []
    with served(where, folder, events) as servers:
        during = sorted(servers_running())
        said = {
            "whole": http("/file").decode(),
            "part": http("/file", part="2-5").decode(),
            "tftp": tftp("big") == http("/big"),
        }
        with contextlib.suppress(FileNotFoundError):
            tftp("nope")
        with contextlib.suppress(urllib.error.HTTPError):
            http("/nope")
        with urllib.request.urlopen(f"http://{ADDRESS}/huge") as answer:
            answer.read(1000)
        said["cut"] = told(events, "GET /huge: ended after")
        with ThreadPoolExecutor(8) as pool:
            files = [*pool.map(lambda n: http("/big") if n % 2 else tftp("big"), range(24))]
        said |= {
            "together": all(data == (boot / "big").read_bytes() for data in files),
            "ended": servers.ended(),
            "told": told(events, "sent big", "nope: no such file", "GET /file, 10 bytes", "/nope: status 404"),
        }
    return {**said, "during": during, "after": servers_running(), "events": [str(event) for event in events]}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    said: dict[str, Any] = inside(_in_http_and_tftp, tmp_path_factory.mktemp("first"))
    return said


@pytest.mark.integration
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("whole", "0123456789"),
        ("part", "2345"),
        ("tftp", True),
        ("together", True),
        ("cut", True),
        ("during", ["dnsmasq", "nginx"]),
        ("ended", None),
        ("after", []),
    ],
)
def test_files_by_http_and_tftp(what: str, expected: object, first: dict[str, Any]) -> None:
    assert first[what] == expected


@pytest.mark.integration
def test_each_step_is_told_with_files_as_clients_call_them(first: dict[str, Any]) -> None:
    assert first["told"], first["events"]
    assert not any("a boot" in event for event in first["events"])


def _in_nfs(folder: Path) -> dict[str, Any]:
    for name in ("nfs/tree", "persist"):
        (folder / name).mkdir(parents=True)
    (folder / "nfs/tree/file").write_text("content")
    where = replace(target(folder), nfs=Nfs(str(folder / "nfs"), str(folder / "persist")))
    events: list[Event] = []
    with served(where, folder, events):

        def run(tool: str, path: str) -> str:
            line = [tool, f"nfs://{ADDRESS}{path}?version=3"]
            done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
            return done.stdout if done.returncode == 0 else "refused"

        said = {
            "list": run("nfs-ls", f"{folder}/nfs/tree").split()[-1],
            "cat": run("nfs-cat", f"{folder}/nfs/tree/file"),
            "nope": run("nfs-ls", "/nope"),
            "told": told(events, f"mounted {folder}/nfs/tree", "mount of /nope refused"),
        }
    return {**said, "after": servers_running(), "events": [str(event) for event in events]}


@pytest.mark.integration
def test_a_tree_by_nfs(tmp_path: Path) -> None:
    said = inside(_in_nfs, tmp_path)
    assert said.pop("told"), said["events"]
    said.pop("events")
    assert said == {"list": "file", "cat": "content", "nope": "refused", "after": []}


def _error(where: Target, folder: Path) -> list[str | None]:
    try:
        with served(where, folder, []):
            return ["it started", None]
    except BuildError as error:
        return [error.message, error.hint]


def _in_taken(folder: Path) -> dict[str, Any]:
    (folder / "nfs").mkdir()
    where = target(folder)
    said: dict[str, Any] = {}
    with socket.create_server(("0.0.0.0", 80)):
        said["nginx"] = _error(where, folder)
    nfs = replace(where, nfs=Nfs(str(folder / "nfs"), str(folder / "nfs")))
    with socket.create_server(("0.0.0.0", 2049)):
        said["ganesha"] = _error(nfs, folder)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 69))
        said["dnsmasq"] = _error(where, folder)
    said["after"] = servers_running()
    said["then"] = _error(where, folder)
    return said


@pytest.mark.integration
def test_a_port_that_is_taken_is_a_clear_error(tmp_path: Path) -> None:
    said = inside(_in_taken, tmp_path)
    assert said["nginx"] == ["nginx: something else answers on port 80 already", "ss -tlnp sport = :80"]
    assert said["ganesha"][0] == "ganesha.nfsd: something else answers on port 2049 already"
    assert said["dnsmasq"][0].startswith("dnsmasq did not start: dnsmasq: failed to create listening socket")
    assert said["dnsmasq"][0].endswith("Address already in use")
    assert (said["after"], said["then"][0]) == ([], "it started")


def _in_broken(folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, text in (("dnsmasq", "no-such-option\n"), ("nginx", "nonsense;\n")):
        try:
            with Servers({name: text}, folder / name, print):
                said[name] = "it started"
        except BuildError as error:
            said[name] = error.message
    events: list[Event] = []
    with served(target(folder), folder, events) as servers:
        before = servers.ended()
        for path in Path("/proc").glob("[0-9]*/comm"):
            if path.read_text().strip() == "nginx":
                os.kill(int(path.parent.name), signal.SIGKILL)
        wait_until(lambda: servers.ended() is not None)
        said["died"] = [before, servers.ended()]
    return {**said, "after": servers_running()}


@pytest.mark.integration
def test_a_server_that_does_not_live_is_noticed(tmp_path: Path) -> None:
    said = inside(_in_broken, tmp_path)
    assert said["dnsmasq"].startswith("dnsmasq did not start: dnsmasq: bad option at line 1")
    assert said["nginx"].startswith("nginx did not start: ")
    assert 'unknown directive "nonsense"' in said["nginx"]
    assert (said["died"], said["after"]) == ([None, "nginx"], [])


# Where to serve


def _in_addresses(folder: Path) -> dict[str, Any]:
    subprocess.run(["ip", "address", "add", "10.9.1.1/22", "dev", "lab1"], check=True)
    said: dict[str, Any] = {name: serving.address_of(name) for name in ("lab0", "lab1")}
    for name in ("", "lo", "nope"):
        try:
            serving.address_of(name)
        except BuildError as error:
            said[name] = [error.message, error.hint]
    return said


@pytest.mark.integration
def test_the_address_is_the_interfaces(tmp_path: Path) -> None:
    said = inside(_in_addresses, tmp_path)
    hint = "--interface NAME; lab0 has 10.9.0.1/24; lab1 has 10.9.1.1/22"
    assert said["lab0"] == [ADDRESS, NETWORK]
    assert said["lab1"] == ["10.9.1.1", "10.9.0.0/22"]
    assert sorted(said[""][1].split("; ")) == sorted(hint.split("; "))
    assert said[""][0] == "on which interface are the machines?"
    assert said["nope"][0] == "interface nope has no IPv4 address"
    assert said["lo"][0] == "interface lo has no IPv4 address"


@pytest.mark.parametrize(
    ("network", "first", "last"),
    [
        ("10.0.0.0/24", "10.0.0.128", "10.0.0.254"),
        ("10.0.0.0/22", "10.0.2.0", "10.0.2.253"),
        ("10.0.0.0/8", "10.128.0.0", "10.128.0.253"),
        ("10.0.0.0/25", "10.0.0.64", "10.0.0.126"),
        ("10.0.0.0/29", "10.0.0.4", "10.0.0.6"),
    ],
)
def test_full_dhcp_gives_out_the_upper_half(network: str, first: str, last: str, tmp_path: Path) -> None:
    made = serving.target(tmp_path, "10.0.0.1", network, "eth0", "full")
    assert (made.dhcp.first, made.dhcp.last, list(made.check())) == (first, last, [])
    assert ipaddress.IPv4Address(first) < ipaddress.IPv4Address(last)


@pytest.mark.parametrize("network", ["10.0.0.0/30", "10.0.0.0/31", "10.0.0.1/32"])
def test_a_network_may_be_too_small(network: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="too small"):
        serving.target(tmp_path, "10.0.0.1", network, "eth0", "full")


def test_an_unknown_mode_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="unknown --dhcp half") as caught:
        serving.target(tmp_path, "10.0.0.1", NETWORK, "eth0", "half")
    assert caught.value.hint == "proxy, full or none"


# `doit serve` as a user runs it


@contextlib.contextmanager
def _doit(checkout: Checkout, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`doit serve`, whose output goes to a file."""
    with (checkout.folder / "said").open("w") as file:
        process = subprocess.Popen(
            checkout.command("serve", *arguments),
            cwd=checkout.folder,
            env=checkout.environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _in_doit_serve(folder: Path) -> dict[str, Any]:
    checkout = Checkout(folder / "checkout")
    output = checkout.folder / "said"
    said: dict[str, Any] = {}
    with _doit(checkout, "--interface", "nope") as process:
        said["nope"] = [process.wait(60), output.read_text()]
    with _doit(checkout, "--interface", "lab0", "--dhcp", "full") as process:

        def up() -> bool:
            return "Ctrl-C ends it" in output.read_text() and "dnsmasq" in servers_running()

        wait_until(lambda: up() or process.poll() is not None, 60)
        said["up"] = up()
        if said["up"]:
            time.sleep(0.5)
            said["menu"] = http("/boot.ipxe").decode()
            said["entry"] = http("/entries/one/boot.ipxe").decode()
            said["loader"] = len(tftp("lpxelinux.0"))
            wait_until(lambda: "sent lpxelinux.0" in output.read_text(), 60)
        process.send_signal(signal.SIGINT)
        said["status"] = process.wait(60)
    return {**said, "text": output.read_text(), "after": servers_running()}


@pytest.mark.integration
def test_doit_serve(small: Checkout, tmp_path: Path) -> None:
    small.doit("bootloaders")
    checkout = Checkout.make(tmp_path / "checkout")
    shutil.copy(SHARED / "recipes/bootloaders.lock", checkout.folder / "recipes")
    (checkout.folder / "out").mkdir()
    (checkout.folder / "out/store").symlink_to(SHARED / "out/store")
    made = release(tmp_path, "one", "1")
    where = Place(site.LOCAL, site.local(checkout.folder / "out/srv", "127.0.0.1", "127.0.0.0/8"))
    publish.upload(where, made, ())
    publish.switch(where, "one", made.id)
    publish.refresh(where)
    said = inside(_in_doit_serve, tmp_path)
    assert said["nope"][0] == 1
    assert "interface nope has no IPv4 address" in said["nope"][1]
    assert "Traceback" not in said["nope"][1] + said["text"]
    assert said["up"], said["text"]
    assert f"serving one at {ADDRESS} on lab0 (DHCP: full); Ctrl-C ends it" in said["text"]
    assert "one" in said["menu"]
    assert f"http://{ADDRESS}/images/one/{made.id}/vmlinuz" in said["entry"]
    assert said["loader"] == (checkout.folder / "out/srv/boot/lpxelinux.0").stat().st_size
    assert "GET /boot.ipxe" in said["text"]
    assert "sent lpxelinux.0" in said["text"]
    assert (said["status"], said["after"]) == (128 + signal.SIGINT, [])


def test_serving_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BuildError, match="serving needs root"):
        serving.run(Place("lab", target(tmp_path)), tmp_path / "servers", print)


@pytest.mark.parametrize("knows", [True, False])
def test_ganesha_is_told_only_what_it_knows(knows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libganesha_nfsd.so"
    library.write_bytes(b"\0Allow_Set_Io_Flusher_Fail\0" if knows else b"\0Enable_NLM\0")
    monkeypatch.setattr(serve, "_GANESHA", library)
    config = "# Target lab.\nNFS_CORE_PARAM {\n    Protocols = 3, 4;\n}\n"
    more = "    Allow_Set_Io_Flusher_Fail = true;\n" if knows else ""
    assert serve.tolerant(config) == f"# Target lab.\nNFS_CORE_PARAM {{\n{more}    Protocols = 3, 4;\n}}\n"
    rendered = (Path(__file__).parent / "golden/services/full/ganesha.conf").read_text()
    assert serve.tolerant(rendered).count(more or rendered) == 1
