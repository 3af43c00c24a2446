"""What boot loaders get to read: the texts themselves, and that each hands a kernel the words that somebody wrote."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from buildlib import bootloaders
from buildlib.bootloaders import grub, ipxe, pxelinux
from buildlib.bootmenu import BootEntry, BootHost, BootMenu, UnquotableError, words

GOLDEN = Path(__file__).with_name("golden") / "boot"
"""All files of the menus below. `UPDATE_GOLDEN=1 pytest tests/test_bootloaders.py` writes them; read the diff."""

HTTP = "http://192.0.2.1:8080"

ENTRIES = (
    BootEntry(
        "debian.nfs",
        "Debian 12 \u2013 \u201cNFS\u201d, it's {here}; ^1 $x ${y} #",
        "amd64",
        "images/debian.nfs/1/vmlinuz",
        ("images/debian.nfs/1/initrd", "images/debian.nfs/1/more"),
        'root=/dev/nfs ip=dhcp overlay={MAC};x a="b c" $HOME h#i -- --quiet',
    ),
    BootEntry("arm", "For arm64", "arm64", "images/arm/1/vmlinuz", ("images/arm/1/initrd",), "console=ttyS0"),
    BootEntry("42", "-minus", None, "http://boot.lab/vmlinuz", ("http://boot.lab/a,b",), "q"),
    BootEntry("tls", "Over HTTPS", "amd64", "https://boot.lab/vmlinuz"),
    BootEntry("script", "A script", chain="https://boot.netboot.xyz"),
    BootEntry("efi", "Another", "amd64", chain="http://boot.lab/x.efi?a=1&b={2}"),
    BootEntry("lkrn", "Another BIOS", "amd64", chain="http://boot.lab/ipxe.lkrn"),
    BootEntry("disk", "The disk", local=True),
)

HOSTS = (
    BootHost("52:54:00:12:34:56", "node-01", "disk", ("debian.nfs",)),
    BootHost("52:54:00:12:34:57", "node-02", "script"),
)

MENUS = {
    "http": BootMenu("The lab's ^menu", ENTRIES, {"amd64": "debian.nfs", "arm64": "arm"}, 5, HOSTS, HTTP),
    "tftp": BootMenu("The lab", ENTRIES, {"amd64": "debian.nfs"}, 0),
}


def rendered(menu: BootMenu) -> dict[str, str]:
    entries = {
        f"entries/{entry.id}/{name}": text
        for entry in menu.entries
        for name, text in bootloaders.entry_files(entry, menu.http).items()
    }
    return bootloaders.menu_files(menu) | entries


def release(cmdline: str) -> BootEntry:
    return BootEntry("x", "x", "amd64", "images/x/1/vmlinuz", ("images/x/1/initrd",), cmdline)


@pytest.mark.parametrize("name", MENUS)
def test_the_texts_are_as_they_were(name: str) -> None:
    folder = GOLDEN / name
    found = rendered(MENUS[name])
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.rmtree(folder, ignore_errors=True)
        for path, text in found.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    assert found == {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_boot_loaders_are_found_by_looking() -> None:
    assert bootloaders.names() == ["cmdline", "grub", "ipxe", "pxelinux"]
    assert len({module.FRAGMENT for module in bootloaders.all().values()}) == 4


def check_script(text: str, tmp_path: Path) -> None:
    path = tmp_path / "grub.cfg"
    path.write_text(text)
    result = subprocess.run(["grub-script-check", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", MENUS)
def test_grub_reads_its_files(name: str, tmp_path: Path) -> None:
    for path, text in rendered(MENUS[name]).items():
        if path.startswith("grub/") or path.endswith("/grub.cfg"):
            check_script(text, tmp_path)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("server", ["192.0.2.1", HTTP])
def test_the_way_from_a_disk_is_a_script_of_grub_d(server: str, hidden: bool, tmp_path: Path) -> None:
    path = tmp_path / "42_netboot"
    path.write_text(grub.disk_snippet(server=server, hidden=hidden))
    out = subprocess.run(["sh", path], capture_output=True, text=True, check=True).stdout
    assert f"set root={'http,192.0.2.1:8080' if server == HTTP else 'tftp,192.0.2.1'}\n" in out
    assert "--id netboot {" in out
    assert ("save_env netboot_once" in out) == hidden
    assert "@" not in out
    check_script(out, tmp_path)


@pytest.mark.parametrize(
    ("entry", "server"), [("1st", "192.0.2.1"), ("a b", "192.0.2.1"), ("netboot", "x y"), ("netboot", "https://x")]
)
def test_the_way_from_a_disk_takes_no_strange_names(entry: str, server: str) -> None:
    with pytest.raises(UnquotableError, match="grub: expects"):
        grub.disk_snippet(entry, server=server, hidden=False)


def by_grub(text: str) -> list[str]:
    """The kernel's command line as GRUB makes it: its script's words, then grub_create_loader_cmdline."""
    (command,) = re.findall(r"^\tlinux (.*)$", text, re.MULTILINE)
    found: list[str] = []
    # What GRUB's lexer would take apart, expand or match is in single quotes, or it is not taken here.
    for word in re.findall(r"(?:'[^']*'|\\'|[^\s'\\])+", command):
        parts = re.findall(r"'([^']*)'|\\(')|([^'\\]+)", word)
        assert all(re.fullmatch(r"[A-Za-z0-9_./:,=@%+-]*", bare) for _, _, bare in parts) or word == "$netboot_bootif"
        plain = "".join(map("".join, parts)).replace("$netboot_bootif", "BOOTIF=01-aa")
        escaped = re.sub(r"([\\'\"])", r"\\\1", plain)
        found.append(f'"{escaped}"' if " " in escaped else escaped)
    return words(" ".join(found))[1:]


def by_pxelinux(text: str) -> list[str]:
    """APPEND to the line's end without blanks around it, then SYSAPPEND."""
    found = re.findall(r"^\tAPPEND (.*)$", text, re.MULTILINE)
    return [*words(found[0].strip() if found else ""), *(["BOOTIF=01-aa"] if "\tSYSAPPEND 2\n" in text else [])]


def by_ipxe(text: str) -> list[str]:
    """Words of a line up to `#`, `&&`, `||` or `;`, settings filled in, joined by one blank."""
    (command,) = re.findall(r"^kernel (.*)$", text, re.MULTILINE)
    assert not command.endswith("\\")
    found: list[str] = []
    for word in command.split()[1:]:
        if word[0] == "#" or word in ("&&", "||", ";"):
            break
        found.append(word.replace("${netX/mac:hexhyp}", "aa"))
    assert "${" not in " ".join(found)
    return words(" ".join(found))


def by_cmdline(text: str) -> list[str]:
    (found,) = re.findall(r"^cmdline=(.*)$", text, re.MULTILINE)
    return [*words(found), "BOOTIF=01-aa"]


READ = {"grub": by_grub, "pxelinux": by_pxelinux, "ipxe": by_ipxe, "cmdline": by_cmdline}

PRINTABLE = st.characters(min_codepoint=32, max_codepoint=126)
LINES = st.one_of(
    st.text(PRINTABLE),
    st.lists(st.sampled_from(["a", "=", " ", '"', "'", "$", "{", "}", "\\", ";", "#", "&&", "||", "-", "*"])).map(
        "".join
    ),
)


@pytest.mark.parametrize("loader", READ)
@given(LINES)
def test_a_kernel_gets_the_words_or_it_is_said(loader: str, cmdline: str) -> None:
    try:
        text = bootloaders.get(loader).fragment(release(cmdline), None)
    except UnquotableError as error:
        assert str(error).startswith(f"{loader}: ")
        return
    assert text is not None
    bootif = [] if any(word.startswith("BOOTIF=") for word in words(cmdline)) else ["BOOTIF=01-aa"]
    assert READ[loader](text) == [*filter(None, words(cmdline)), *bootif]


@pytest.mark.parametrize("loader", READ)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\"'\\$&|;#="), min_size=1))
def test_ordinary_words_pass_everywhere(loader: str, word: str) -> None:
    assume("  " not in word)
    assert bootloaders.get(loader).fragment(release(f'a="{word}"'), HTTP)


@given(st.text())
def test_any_title_is_one_line(title: str) -> None:
    entry = BootEntry("x", title, "amd64", "images/x/1/vmlinuz")
    texts = bootloaders.entry_files(entry, HTTP)
    assert [len(text.splitlines()) for text in texts.values()] == [
        len(text.splitlines())
        for text in bootloaders.entry_files(BootEntry("x", "x", "amd64", entry.kernel), HTTP).values()
    ]
    assert "${" not in texts["boot.ipxe"].splitlines()[1]
    assert "^" not in texts["pxelinux.cfg"]
    (shown,) = re.findall(r"^menuentry (.*) --id netboot-x \{$", texts["grub.cfg"], re.MULTILINE)
    assert re.fullmatch(r"('[^']*'|\\'|[A-Za-z0-9_./:,=@%+-])+", shown)


UNQUOTABLE = {
    "grub": [
        (r"a=\b", r"hands no \\ to a kernel"),
        ("a='b'", "hands no ' to a kernel"),
        ("a=\u00fc", "a single line of ASCII"),
        ("a\nb", "a single line of ASCII"),
        ('a="b', "not closed"),
    ],
    "pxelinux": [
        ("a\nb", "a single line of ASCII"),
        ("a=\x7f", "a single line of ASCII"),
        ("initrd=/x", "loads what initrd= names"),
        ("-", "as none"),
        ('a="b', "not closed"),
    ],
    "ipxe": [
        ("a=${x}", "in the place of ${"),
        ("a && b", "ends a command at &&"),
        ("a || b", "ends a command at ||"),
        ("a ; b", "ends a command at ;"),
        ("a #b", "ends a command at #b"),
        ('a="b #c"', "ends a command at #c"),
        ('a="b  c"', "one blank of several"),
        ("a\\", "next line after a backslash"),
        ("a\tb", "a single line of ASCII"),
    ],
    "cmdline": [("a\nb", "a single line of ASCII"), ('a="b', "not closed")],
}


@pytest.mark.parametrize(
    ("loader", "cmdline", "said"), [(loader, *case) for loader, cases in UNQUOTABLE.items() for case in cases]
)
def test_what_cannot_pass_is_said(loader: str, cmdline: str, said: str) -> None:
    with pytest.raises(UnquotableError, match=f"^{loader}: .*{re.escape(said) if said[0] != 'h' else said}"):
        bootloaders.get(loader).fragment(release(cmdline), None)


def test_ipxe_puts_no_setting_into_a_url() -> None:
    with pytest.raises(UnquotableError, match="ipxe: would put a setting"):
        ipxe.fragment(BootEntry("x", "x", chain="http://boot.lab/${mac}"), None)


def test_a_word_of_grub_is_one_line() -> None:
    with pytest.raises(UnquotableError, match="no line's end"):
        grub.quote("a\nb")


def test_loaders_leave_out_what_they_cannot_boot() -> None:
    of = {entry.id: set(bootloaders.entry_files(entry, HTTP)) for entry in ENTRIES}
    everything = {"boot.ipxe", "cmdline", "grub.cfg", "pxelinux.cfg"}
    assert of == {
        "debian.nfs": everything,
        "arm": everything - {"pxelinux.cfg"},
        "42": everything - {"pxelinux.cfg"},
        "tls": {"boot.ipxe", "cmdline"},
        "script": {"boot.ipxe"},
        "efi": {"boot.ipxe", "grub.cfg"},
        "lkrn": {"boot.ipxe", "pxelinux.cfg"},
        "disk": everything - {"cmdline"},
    }


def test_pxelinux_without_http_fetches_by_tftp() -> None:
    files = bootloaders.entry_files(ENTRIES[0], HTTP, by_tftp=["pxelinux"])
    assert "LINUX images/debian.nfs/1/vmlinuz\n" in files["pxelinux.cfg"]
    assert f"kernel {HTTP}/images" in files["boot.ipxe"]
    assert pxelinux.fragment(BootEntry("x", "x", kernel="http://boot.lab/vmlinuz"), None) is None
    menu = bootloaders.menu_files(MENUS["http"], by_tftp=["pxelinux"])["pxelinux.cfg/default"]
    assert "# lkrn is left out: PXELINUX knows TFTP alone." in menu


def test_without_a_default_that_boots_every_loader_waits() -> None:
    files = bootloaders.menu_files(BootMenu("x", ENTRIES, {"amd64": "tls"}, 3))
    assert "default=netboot" not in files["grub/grub.cfg"]
    assert "set timeout=-1\n" in files["grub/grub.cfg"]
    assert "DEFAULT" not in files["pxelinux.cfg/default"]
    assert "TIMEOUT 0\n" in files["pxelinux.cfg/default"]
    assert "set boot-default tls" in files["boot.ipxe"]
    assert "set boot-default" not in bootloaders.menu_files(BootMenu("x", ENTRIES, {}, 3))["boot.ipxe"]


@pytest.mark.parametrize("name", ["grub", "ipxe", "pxelinux"])
def test_one_who_says_bootif_gets_no_second(name: str) -> None:
    text = bootloaders.get(name).fragment(release("BOOTIF=01-aa"), None)
    assert text is not None
    assert (text.count("BOOTIF"), "SYSAPPEND" in text, "netboot_bootif" in text) == (1, False, False)


def test_a_foreign_kernel_gets_no_bootif() -> None:
    text = "".join(bootloaders.entry_files(BootEntry("x", "x", kernel="http://boot.lab/vmlinuz"), HTTP).values())
    assert not re.search("BOOTIF|bootif|SYSAPPEND", text)
