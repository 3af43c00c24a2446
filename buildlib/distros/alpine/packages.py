"""Packages and indexes in apk's format (version 2, which Alpine's repositories have): read, verified, indexed, signed.

A package is three gzip streams, one after the other: a tar with a signature of the second, a tar of control data
(`.PKGINFO`, scripts), a tar of the files. An index has two: a signature, and a tar with `APKINDEX`. It names each
package by the SHA-1 of its second stream, which in turn names the third by its SHA-256. (apk-tools, abuild.)
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from buildlib.distros.alpine import signing

INDEX = "APKINDEX.tar.gz"

_FIELDS = (
    ("P", "pkgname"),
    ("V", "pkgver"),
    ("A", "arch"),
    ("S", ""),
    ("I", "size"),
    ("T", "pkgdesc"),
    ("U", "url"),
    ("L", "license"),
    ("o", "origin"),
    ("m", "maintainer"),
    ("t", "builddate"),
    ("c", "commit"),
    ("k", "provider_priority"),
    ("D", "depend"),
    ("p", "provides"),
    ("i", "install_if"),
)
"""An index's fields in its own order, and what `.PKGINFO` calls them."""

_PIECE = 1 << 14

_MANY = ("depend", "provides", "install_if")


@dataclass(frozen=True)
class Package:
    """A package of an index.

    checksum -- SHA-1 of its control data, hex
    size     -- bytes of the file
    license  -- as the index has it
    origin   -- name of what it was built from
    """

    name: str
    version: str
    checksum: str
    size: int
    license: str = ""
    origin: str = ""

    @property
    def file(self) -> str:
        return f"{self.name}-{self.version}.apk"


def parse(text: str) -> Iterator[Package]:
    """The packages of an APKINDEX. Raises ValueError."""
    for record in text.split("\n\n"):
        fields = dict(line.split(":", 1) for line in record.splitlines() if ":" in line)
        if not fields:
            continue
        try:
            checksum = base64.b64decode(fields["C"].removeprefix("Q1"), validate=True).hex()
            more = fields.get("L", ""), fields.get("o", "")
            yield Package(fields["P"], fields["V"], checksum, int(fields["S"]), *more)
        except KeyError as error:
            raise ValueError(f"a record has no {error}") from None


def streams(data: bytes | memoryview, count: int) -> list[memoryview]:
    """The gzip streams of a file, still packed: the first `count` - 1, and the rest as the last. Raises ValueError."""
    view = memoryview(data)
    found: list[memoryview] = []
    begin = 0
    while len(found) < count - 1:
        end = _end(view, begin)
        found.append(view[begin:end])
        begin = end
    return [*found, view[begin:]]


def _end(view: memoryview, begin: int) -> int:
    """Where a gzip stream ends. Raises ValueError."""
    unpacker = zlib.decompressobj(31)
    for at in range(begin, len(view), _PIECE):
        try:
            unpacker.decompress(view[at : at + _PIECE])
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if unpacker.eof:
            return min(at + _PIECE, len(view)) - len(unpacker.unused_data)
    raise ValueError("it ends in the middle")


def members(stream: bytes | memoryview) -> dict[str, bytes]:
    """Files of a gzipped tar, which may lack its end. Raises ValueError."""
    try:
        raw = zlib.decompress(stream, 31)
        with tarfile.open(fileobj=io.BytesIO(raw + bytes(1024))) as archive:
            found = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
            return {name: file.read() for name, file in found.items() if file is not None}
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise ValueError(str(error)) from None


def verified_index(data: bytes, keys: Mapping[str, bytes]) -> str:
    """The text of an index that one of `keys` (PEM by file name) has signed. Raises ValueError with what is wrong."""
    signature, index = streams(data, 2)
    signed = {name: sign for name, sign in members(signature).items() if name.startswith(".SIGN.")}
    if not signed:
        raise ValueError("it is not signed")
    known = [name for name in signed if _key_of(name) in keys]
    if not known:
        raise ValueError(f"it is signed by a key that nobody trusts: {', '.join(_key_of(name) for name in signed)}")
    if not any(signing.verify(bytes(index), signed[name], keys[_key_of(name)], name.split(".")[2]) for name in known):
        raise ValueError(f"its signature by {_key_of(known[0])} is wrong")
    return members(index).get("APKINDEX", b"").decode()


def check(data: bytes | memoryview, package: Package) -> str | None:
    """What is wrong with a package, if anything."""
    try:
        _, control, content = streams(data, 3)
        datahash = re.search(rb"^datahash = ([0-9a-f]{64})$", zlib.decompress(control, 31), re.M)
    except (ValueError, zlib.error) as error:
        return f"is no package: {error}"
    found = hashlib.sha1(control, usedforsecurity=False).hexdigest()
    if found != package.checksum:
        return f"is not what the index names: sha1 {found}, not {package.checksum}"
    if datahash is None or hashlib.sha256(content).hexdigest() != datahash[1].decode():
        return "its files are not those that it was made with"
    return None


def fields(control: bytes | memoryview) -> dict[str, list[str]]:
    """`.PKGINFO` of a control stream. Raises ValueError."""
    found: dict[str, list[str]] = {}
    for line in members(control).get(".PKGINFO", b"").decode().splitlines():
        name, equals, value = line.partition(" = ")
        if equals and not line.startswith("#"):
            found[name] = [*found.get(name, []), value] if name in _MANY else [value]
    return found


def services(path: Path) -> list[str]:
    """Services that a package brings."""
    raw = zlib.decompressobj(31)
    text = raw.decompress(streams(path.read_bytes(), 3)[2])
    with tarfile.open(fileobj=io.BytesIO(text)) as archive:
        return [
            found[1] for name in archive.getnames() if (found := re.fullmatch(r"(?:\./)?etc/init\.d/([^/]+)", name))
        ]


def index(paths: Iterable[Path]) -> bytes:
    """APKINDEX.tar.gz of packages, not yet signed; the same for the same."""
    records = []
    for path in paths:
        data = path.read_bytes()
        control = streams(data, 3)[1]
        info = {**fields(control), "": [str(len(data))]}
        checksum = base64.b64encode(hashlib.sha1(control, usedforsecurity=False).digest()).decode()
        lines = [f"{short}:{' '.join(info[name])}" for short, name in _FIELDS if info.get(name)]
        records.append("\n".join([f"C:Q1{checksum}", *lines]))
    files = {"DESCRIPTION": b"netboot", "APKINDEX": "".join(f"{record}\n\n" for record in records).encode()}
    return _packed(files, whole=True)


def signed(data: bytes, key: str) -> bytes:
    """A stream, after one with its signature by the private key."""
    name, _ = signing.public(key)
    return _packed({f".SIGN.RSA.{name}": signing.sign(data, key)}, whole=False) + data


def _key_of(name: str) -> str:
    """`x.rsa.pub` of `.SIGN.RSA256.x.rsa.pub`."""
    return name.split(".", 3)[3] if name.count(".") > 2 else name


def _packed(files: Mapping[str, bytes], *, whole: bool) -> bytes:
    """A gzipped tar; without its end unless it is `whole`, so that another stream can follow."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        end = archive.offset
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(raw.getvalue() if whole else raw.getvalue()[:end]) + packer.flush()
