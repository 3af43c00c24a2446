"""What servers are told: golden files, the programs that read them, and signs that mean something to them.

SERVICES_GOLDEN=write rewrites the golden files.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from buildlib import services, site
from buildlib.bootmenu import BootEntry
from buildlib.services import Export, Wiring, dnsmasq, exports, ganesha, nbd, nginx, pixiecore

GOLDEN = Path(__file__).with_name("golden") / "services"

HOSTS = {"52:54:00:12:34:57": site.Host("node-02.lab"), "52:54:00:12:34:56": site.Host("node-01", recipe="rescue")}

LAB = site.Target(
    address="192.168.7.1",
    network="192.168.7.0/24",
    tftp="/srv/netboot",
    http=site.Http("/srv/netboot"),
    nfs=site.Nfs("/srv/nfs", persist="/srv/keep"),
    interface="eth1",
)

FULL = site.Dhcp("full", "192.168.7.100", "192.168.7.200", "192.168.7.254", ("192.168.7.254", "9.9.9.9"))

TARGETS = {
    "proxy": LAB,
    "proxy-ipxe-tftp": dataclasses.replace(LAB, http=None, loaders=site.Loaders("ipxe", "ipxe")),
    "full": dataclasses.replace(LAB, dhcp=FULL, loaders=site.Loaders("pxelinux", "shim")),
    "full-ipxe": dataclasses.replace(
        LAB, dhcp=dataclasses.replace(FULL, router=None, dns=()), loaders=site.Loaders("ipxe", "ipxe"), interface=None
    ),
    "full-big-files": dataclasses.replace(
        LAB, dhcp=FULL, http=site.Http("/srv/big", 8080), loaders=site.Loaders("lpxelinux", "ipxe")
    ),
    "tftp-alone": dataclasses.replace(LAB, dhcp=site.Dhcp("none"), http=None, nfs=None),
    "http-alone": site.Target("192.168.7.1", "192.168.7.0/24", http=site.Http("/srv/netboot", 8080), dhcp=FULL),
}

ODD = """/srv/a b;#{}'`,=:x("é")\\"""


def wiring(target: site.Target, **more: object) -> Wiring:
    made = Wiring(
        "lab",
        target,
        HOSTS,
        services.exports_of(target),
        {"live": "/srv/images/live.img", "debian-nfs": "/srv/images/my root.img"},
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def rooted(folder: str) -> site.Target:
    return dataclasses.replace(LAB, tftp=folder, http=site.Http(folder), nfs=site.Nfs(folder))


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# All of them


def test_a_target_can_name_each_service_that_there_is() -> None:
    keys = get_args(get_args(get_type_hints(site.Target, include_extras=True)["services"])[0])[0]
    assert services.names() == sorted(get_args(keys))


def test_what_writes_no_file_is_no_service() -> None:
    assert "pixiecore" not in services.names()


@pytest.mark.parametrize("name", TARGETS)
def test_golden_files(name: str) -> None:
    texts = {
        f"{name}/{services.get(service).FILE}": text
        for service, text in services.render_all(wiring(TARGETS[name])).items()
    }
    if os.environ.get("SERVICES_GOLDEN") == "write":
        for file, text in texts.items():
            (GOLDEN / file).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / file).write_text(text, encoding="utf-8")
    found = {str(path.relative_to(GOLDEN)): path.read_text("utf-8") for path in (GOLDEN / name).iterdir()}
    assert found == texts


@pytest.mark.parametrize("name", TARGETS)
def test_the_programs_accept_their_files(name: str) -> None:
    for service in map(services.get, services.names()):
        path = GOLDEN / name / service.FILE
        if path.exists() and (command := service.check(path)):
            run(command)


@pytest.mark.parametrize("service", ["dnsmasq", "nginx"])
def test_the_programs_refuse_a_broken_file(service: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.conf"
    path.write_text("nonsense here;\n", encoding="utf-8")
    command = services.get(service).check(path)
    assert command is not None
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a b.conf"
    path.write_text(nginx.render(wiring(LAB)) or "", encoding="utf-8")
    run(nginx.check(path) or [])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("service", services.names())
def test_a_line_break_is_refused(service: str) -> None:
    made = wiring(rooted("/srv/x\ny"), exports=(Export("/srv/x\ny", "/srv/x\ny"),), images={"live": "/srv/x\ny"})
    with pytest.raises(ValueError, match=rf"{service}: '/srv/x\\ny'"):
        services.get(service).render(made)


def test_what_a_target_does_not_have_is_not_served() -> None:
    bare = dataclasses.replace(LAB, tftp=None, http=None, dhcp=site.Dhcp("none"), nfs=None)
    assert services.render_all(wiring(bare, images={})) == {}


def test_the_usual_exports_are_roots_and_what_clients_keep() -> None:
    assert services.exports_of(LAB) == (
        Export("/srv/nfs", "/srv/nfs"),
        Export("/srv/keep", "/srv/keep", writable=True),
    )
    assert services.exports_of(dataclasses.replace(LAB, nfs=None)) == ()


# dnsmasq


def lines(target: site.Target) -> list[str]:
    return (dnsmasq.render(wiring(target)) or "").splitlines()


def test_dnsmasq_is_a_drop_in(tmp_path: Path) -> None:
    (tmp_path / "netboot.conf").write_text("\n".join(lines(LAB)), encoding="utf-8")
    (tmp_path / "other.conf").write_text("bind-interfaces\nexcept-interface=virbr0\n", encoding="utf-8")
    main = tmp_path / "main"
    main.write_text(f"conf-dir={tmp_path},*.conf\n", encoding="utf-8")
    run(["dnsmasq", "--test", "-C", str(main)])


@pytest.mark.parametrize("folder", ["/srv/a b", ODD])
def test_dnsmasq_reads_odd_paths(folder: str, tmp_path: Path) -> None:
    root = tmp_path / folder.removeprefix("/")
    root.mkdir(parents=True)
    target = dataclasses.replace(LAB, tftp=str(root), interface=None, dhcp=site.Dhcp("none"))
    text = (dnsmasq.render(wiring(target)) or "").replace("tftp-no-fail\n", "")
    config = tmp_path / "dnsmasq.conf"
    config.write_text(text, encoding="utf-8")
    command = ["dnsmasq", "-k", "-C", str(config), "--user=root", "--pid-file=", "--log-facility=-"]
    # It says where its root is only when it has found it.
    with started(["unshare", "--net", *command], tmp_path / "log") as process:
        wait(process, lambda: "TFTP root is" in (tmp_path / "log").read_text("utf-8"))
    assert f"TFTP root is {root}" in (tmp_path / "log").read_text("utf-8")


def test_ipxe_gets_its_script_and_not_itself_again() -> None:
    text = lines(TARGETS["proxy-ipxe-tftp"])
    assert "pxe-service=tag:!ipxe,0,Boot undionly.kpxe,undionly.kpxe" in text
    assert "dhcp-boot=tag:ipxe,tag:arch0,boot.ipxe,,192.168.7.1" in text


def test_a_rom_that_is_ipxe_gets_the_loader_of_its_firmware() -> None:
    assert not any("boot.ipxe" in line for line in lines(LAB))
    mixed = lines(dataclasses.replace(LAB, loaders=site.Loaders("lpxelinux", "ipxe")))
    assert "pxe-service=0,Boot lpxelinux.0,lpxelinux.0" in mixed
    assert [line for line in mixed if "boot.ipxe" in line] == [
        f"dhcp-boot=tag:ipxe,tag:arch{number},http://192.168.7.1/boot.ipxe" for number in (7, 9, 11)
    ]


def test_http_serves_boot_loaders_only_where_it_serves_the_boot_root() -> None:
    text = lines(TARGETS["full-big-files"])
    assert "dhcp-boot=tag:ipxe,tag:arch7,boot.ipxe,,192.168.7.1" in text
    assert not any("http" in line.lower() for line in text)


def test_http_boot_needs_full_dhcp() -> None:
    assert not any("HTTPClient" in line for line in lines(LAB))
    assert "dhcp-boot=tag:httpclient,tag:arch19,http://192.168.7.1/shimaa64.efi" in lines(TARGETS["full"])


def test_full_dhcp_gives_addresses_where_nothing_boots_by_it() -> None:
    text = lines(dataclasses.replace(LAB, tftp=None, http=None, dhcp=FULL))
    assert "dhcp-range=192.168.7.100,192.168.7.200,255.255.255.0" in text
    assert not any("dhcp-boot" in line or "tftp" in line for line in text)


@pytest.mark.parametrize("name", ["12", "12h", "infinite", "ignore", "10.0.0.1"])
def test_a_host_name_that_dnsmasq_takes_for_something_else(name: str) -> None:
    made = wiring(TARGETS["full"], hosts={"52:54:00:12:34:56": site.Host(name)})
    with pytest.raises(ValueError, match=f"dnsmasq: 52:54:00:12:34:56 cannot be called '{name}'"):
        dnsmasq.render(made)


# NFS


def test_exports_escapes_what_ends_a_path() -> None:
    text = exports.render(wiring(LAB, exports=(Export('/srv/a b#"\\', '/srv/a b#"\\'),))) or ""
    assert text.splitlines()[1] == (r"/srv/a\040b\043\042\134 192.168.7.0/24(ro,sync,no_root_squash,no_subtree_check)")


def test_exports_refuses_another_name_than_the_path() -> None:
    with pytest.raises(ValueError, match="exports: /srv/x cannot be mounted as /x"):
        exports.render(wiring(LAB, exports=(Export("/srv/x", "/x"),)))


def test_ganesha_mounts_by_name_only_where_names_differ() -> None:
    assert "mount_path_pseudo" not in (ganesha.render(wiring(LAB)) or "")
    assert "mount_path_pseudo = true" in (ganesha.render(wiring(LAB, exports=(Export("/srv/x", "/x"),))) or "")


@pytest.mark.parametrize("sign", ['"', "\\"])
def test_ganesha_refuses_what_ends_a_string(sign: str) -> None:
    with pytest.raises(ValueError, match=r"ganesha: .* because of"):
        ganesha.render(wiring(LAB, exports=(Export(f"/srv/{sign}", "/x"),)))


def test_an_export_keeps_its_id_when_others_come() -> None:
    many = [Export(f"/srv/{number}", f"/srv/{number}") for number in range(2000)]
    some = {export: number for number, export in ganesha.numbered(many[:100])}
    all_of_them = {export: number for number, export in ganesha.numbered(many)}
    assert len(set(all_of_them.values())) == 2000
    assert set(all_of_them.values()) <= set(range(1, 65536))
    assert sum(all_of_them[export] == number for export, number in some.items()) >= 98


# nbd-server


def test_nbd_server_offers_the_exports(tmp_path: Path) -> None:
    image = tmp_path / f"{ODD.rpartition('/')[2]}.img"
    image.write_bytes(b"\0" * 8192)
    config = tmp_path / "nbd.conf"
    text = nbd.render(wiring(LAB, images={"live": str(image)})) or ""
    port = free_port()
    config.write_text(text.replace(f"port = {nbd.PORT}\n", f"port = {port}\nlistenaddr = 127.0.0.1\n"), "utf-8")
    with started(["nbd-server", "-d", "-C", str(config), "-p", str(tmp_path / "pid")], tmp_path / "log") as process:
        # With -d it serves a single client and ends, so nobody may knock first.
        wait(process, lambda: listens(port))
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client, client.makefile("rwb") as stream:
            assert stream.read(18)[:16] == b"NBDMAGICIHAVEOPT"
            # Fixed newstyle without padding, then NBD_OPT_EXPORT_NAME: size and flags of what it opened.
            stream.write(b"\0\0\0\3" + b"IHAVEOPT" + b"\0\0\0\1" + b"\0\0\0\4" + b"live")
            stream.flush()
            answer = stream.read(10)
    assert int.from_bytes(answer[:8], "big") == 8192
    assert int.from_bytes(answer[8:], "big") & 2, "it is read-only"


@pytest.mark.parametrize("name", ["generic", "a]b", "a b", "", "#x"])
def test_nbd_refuses_export_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"nbd: /srv/x\.img cannot be exported as"):
        nbd.render(wiring(LAB, images={name: "/srv/x.img"}))


# nginx


def test_nginx_serves_links_and_ranges_from_an_odd_folder(tmp_path: Path) -> None:
    folder = tmp_path / ODD.removeprefix("/")
    (folder / "images").mkdir(parents=True)
    (folder / "images/vmlinuz").write_bytes(b"0123456789")
    (folder / "entry").symlink_to("images")
    port = free_port()
    server, config = tmp_path / "server.conf", tmp_path / "nginx.conf"
    text = nginx.render(wiring(dataclasses.replace(LAB, http=site.Http(str(folder), port)))) or ""
    server.write_text(text, encoding="utf-8")
    run(nginx.check(server) or [])
    config.write_text(f"daemon off;\nmaster_process off;\nuser root;\n{nginx.wrapper(server)}", encoding="utf-8")
    command = ["nginx", "-p", str(tmp_path), "-c", str(config), "-e", "stderr"]
    with started(command, tmp_path / "log") as process:
        wait(process, lambda: listens(port))
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client, client.makefile("rwb") as stream:
            request = (
                "GET /entry/vmlinuz HTTP/1.1\r\nHost: 192.168.7.1\r\nRange: bytes=2-4\r\nConnection: close\r\n\r\n"
            )
            stream.write(request.encode())
            stream.flush()
            answer = stream.read()
    assert answer.startswith(b"HTTP/1.1 206 ")
    assert answer.endswith(b"\r\n\r\n234")


def test_nginx_refuses_a_variable() -> None:
    with pytest.raises(ValueError, match=r"nginx: '/srv/\$x' cannot be written"):
        nginx.render(wiring(rooted("/srv/$x")))


# Pixiecore

ENTRY = BootEntry("live", "Live", "amd64", "images/live/1/vmlinuz", ("images/live/1/initrd",), 'a={{x}} b="c d"')


def test_pixiecore_boots_an_entry() -> None:
    assert pixiecore.flags(ENTRY, "http://192.168.7.1") == [
        *("pixiecore", "boot", "http://192.168.7.1/images/live/1/vmlinuz", "http://192.168.7.1/images/live/1/initrd"),
        '--cmdline=a={{"{{"}}x}} b="c d"',
    ]


def test_pixiecore_api() -> None:
    assert pixiecore.api(ENTRY, "http://192.168.7.1") == {
        "kernel": "http://192.168.7.1/images/live/1/vmlinuz",
        "initrd": ["http://192.168.7.1/images/live/1/initrd"],
        "cmdline": 'a={{"{{"}}x}} b="c d"',
    }


def test_pixiecore_goes_on_with_a_url() -> None:
    entry = BootEntry("more", "More", chain="http://boot.lab/menu.ipxe")
    script = {"ipxe-script": "#!ipxe\nchain --autofree http://boot.lab/menu.ipxe\n"}
    assert pixiecore.api(entry, "http://192.168.7.1") == script


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (dataclasses.replace(ENTRY, arch="arm64"), "live is for arm64"),
        (BootEntry("disk", "Disk", local=True), "disk has n"),
    ],
)
def test_pixiecore_refuses(entry: BootEntry, text: str) -> None:
    for answer in (pixiecore.flags, pixiecore.api):
        with pytest.raises(ValueError, match=f"pixiecore: {text}"):
            answer(entry, "http://192.168.7.1")


# Servers


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def listens(port: int) -> bool:
    fields = (line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines())
    return any(f[1].endswith(f":{port:04X}") and f[3] == "0A" for f in fields)


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield process
    except AssertionError as error:
        error.add_note(log.read_text("utf-8", "replace"))
        raise
    finally:
        process.kill()
        process.wait()


def wait(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
