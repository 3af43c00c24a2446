"""dnsmasq: DHCP beside a server that is there (proxy) or in its place (full), and TFTP."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

from buildlib.bootmenu import FIRST_STAGE, IPXE_SCRIPT
from buildlib.services import Wiring, sayable
from buildlib.site import Target

FILE = "dnsmasq.conf"
TOOL = "dnsmasq"

_PXE = {0: ("amd64", "bios"), 7: ("amd64", "uefi"), 9: ("amd64", "uefi"), 11: ("arm64", "uefi")}
"""Architecture and firmware by the number that PXE clients give in option 93. Numbers, because dnsmasq swapped its
names of 7 and 9 at some time."""

_HTTP = {16: ("amd64", "uefi"), 19: ("arm64", "uefi")}
"""The same of UEFI's HTTP boot."""

_NOT_A_NAME = re.compile(r"[0-9]+[smhdw]?|infinite|ignore|[0-9]+(\.[0-9]+){3}", re.IGNORECASE)
"""What `dhcp-host` takes for a lease time, a word of its own or an address."""


def render(wiring: Wiring) -> str | None:
    """A whole configuration that may also be one of several in `/etc/dnsmasq.d`. None if it had nothing to offer."""
    target = wiring.target
    boot = [*_pxe(target), *_ipxe(target), *_http(target)] if target.dhcp.mode != "none" else []
    if not boot and not target.tftp and target.dhcp.mode != "full":
        return None
    lines = [f"# Target {wiring.name}. No DNS.", "port=0"]
    if target.interface:
        # Not bind-dynamic: dnsmasq refuses both together, and packages put bind-interfaces into /etc/dnsmasq.d.
        lines += [f"interface={target.interface}", "bind-interfaces"]
    if target.dhcp.mode == "proxy" and boot:
        network = ipaddress.IPv4Network(target.network)
        lines += ["", f"dhcp-range={network.network_address},proxy,{network.netmask}"]
    elif target.dhcp.mode == "full":
        lines += ["", *_addresses(target), *_hosts(wiring)]
    if boot:
        lines += ["", *_tags(target), *boot]
    if target.tftp:
        # tftp-no-fail: a folder that isn't there yet must not keep the site from getting addresses.
        lines += ["", "enable-tftp", f"tftp-root={_quoted(target.tftp)}", "tftp-no-fail"]
    return "\n".join([*lines, ""])


def check(path: Path) -> list[str] | None:
    return [TOOL, "--test", "-C", str(path)]


def _loader(target: Target, firmware: str) -> str:
    return target.loaders.bios if firmware == "bios" else target.loaders.uefi


def _first_stage(target: Target, arch: str, firmware: str) -> str:
    return FIRST_STAGE[arch, firmware, _loader(target, firmware)]


def _addresses(target: Target) -> Iterator[str]:
    """What machines get, boot or not. Without a value an option is not sent; dnsmasq would name itself as router."""
    dhcp = target.dhcp
    yield "dhcp-authoritative"
    yield f"dhcp-range={dhcp.first},{dhcp.last},{ipaddress.IPv4Network(target.network).netmask}"
    yield ",".join(["dhcp-option=option:router", *([dhcp.router] if dhcp.router else [])])
    yield ",".join(["dhcp-option=option:dns-server", *dhcp.dns])


def _hosts(wiring: Wiring) -> Iterator[str]:
    for mac, host in sorted(wiring.hosts.items()):
        if _NOT_A_NAME.fullmatch(host.name):
            raise ValueError(f"dnsmasq: {mac} cannot be called {host.name!r}: that means something else to dhcp-host")
        yield f"dhcp-host={mac},{host.name}"


def _tags(target: Target) -> Iterator[str]:
    """Who asks: the number of the architecture, and whether it is iPXE (175 is its own option)."""
    numbers = [*_PXE, *(_HTTP if _http_boot(target) else {})]
    yield from (f"dhcp-match=set:arch{number},option:client-arch,{number}" for number in numbers)
    yield "dhcp-match=set:ipxe,175"
    yield "dhcp-userclass=set:ipxe,iPXE"


def _pxe(target: Target) -> Iterator[str]:
    """The first stage by TFTP. Firmware in proxy mode takes it from a `pxe-service` alone, and with one to choose from
    boots it at once; UEFI is given its file on port 4011. Where the first stage is iPXE, iPXE doesn't get it again."""
    if not target.tftp:
        return
    for number, (arch, firmware) in _PXE.items():
        file = _first_stage(target, arch, firmware)
        others = ["tag:!ipxe"] if _loader(target, firmware) == "ipxe" else []
        if target.dhcp.mode == "proxy":
            yield f"pxe-service={','.join([*others, str(number), f'Boot {file}', file])}"
        else:
            yield f"dhcp-boot={','.join([f'tag:arch{number}', *others, file])}"


def _ipxe(target: Target) -> Iterator[str]:
    """iPXE's script. With the address: dnsmasq gives iPXE in proxy mode no other to fetch it from."""
    if target.url and _serves_boot_root(target):
        script = f"{target.url}/{IPXE_SCRIPT}"
    elif target.tftp:
        script = f"{IPXE_SCRIPT},,{target.address}"
    else:
        return
    for number, (_, firmware) in _PXE.items():
        if _loader(target, firmware) == "ipxe":
            yield f"dhcp-boot=tag:ipxe,tag:arch{number},{script}"


def _http(target: Target) -> Iterator[str]:
    """UEFI's HTTP boot, which takes an answer only from a server that calls itself HTTPClient."""
    if not _http_boot(target):
        return
    yield "dhcp-vendorclass=set:httpclient,HTTPClient"
    for number, (arch, firmware) in _HTTP.items():
        who = f"tag:httpclient,tag:arch{number}"
        yield f"dhcp-option-force={who},option:vendor-class,HTTPClient"
        yield f"dhcp-boot={who},{target.url}/{_first_stage(target, arch, firmware)}"


def _http_boot(target: Target) -> bool:
    return target.dhcp.mode == "full" and _serves_boot_root(target)


def _serves_boot_root(target: Target) -> bool:
    """Whether boot loaders and menus are there by HTTP too, and not big files alone."""
    return target.http is not None and target.http.path == target.boot_root


def _quoted(path: str) -> str:
    """In double quotes no sign has a meaning but the quote and the backslash."""
    text = sayable("dnsmasq", path)
    return text if re.fullmatch(r"[A-Za-z0-9/._-]+", text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
