"""Packages as pacman's repositories have them: resolved by pacman, pinned by the lock, verified by their signatures."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from buildlib import command, fetch
from buildlib.errors import BuildError
from buildlib.plan import Json

ARCH = "x86_64"

DATABASE = "var/lib/pacman/local"
"""Below a root: a folder a package that is installed."""

Packages = Mapping[str, Mapping[str, Json]]
"""A lock's packages by name: version, repository, file, sha256, size, built; `signature` (base64) of some."""


def urls(mirrors: Sequence[str], repository: str, file: str) -> tuple[str, ...]:
    """Where a repository's file is."""
    return tuple(f"{mirror.rstrip('/')}/{repository}/os/{ARCH}/{file}" for mirror in mirrors)


def resolve(
    mirrors: Sequence[str], repositories: Sequence[str], wanted: Sequence[str], scratch: Path
) -> dict[str, Json]:
    """What pacman makes of the wanted: `{"indexes": {NAME: SHA-256}, "packages": Packages}`. Raises BuildError."""
    (scratch / "db/sync").mkdir(parents=True)
    (scratch / "root").mkdir()
    known: dict[tuple[str, str], dict[str, Json]] = {}
    digests = {}
    for name in repositories:
        where, data = fetch.read(urls(mirrors, name, f"{name}.db"))
        digests[name] = hashlib.sha256(data).hexdigest()
        (scratch / f"db/sync/{name}.db").write_bytes(data)
        try:
            known |= {(name, said["name"]): said for said in parse(data, name)}
        except (tarfile.TarError, zlib.error, EOFError, KeyError, UnicodeDecodeError) as error:
            raise BuildError(f"{where}: can't be read: {error}", hint="another mirror") from None
    config = scratch / "pacman.conf"
    config.write_text(configuration(repositories))
    line = [*program(config, scratch / "root", scratch / "db"), "-S", "--print", "--print-format", "%r %n", *wanted]
    said: list[str] = []
    try:
        command.run(line, on_line=said.append)
    except command.CommandError as error:
        lacking = sorted({match[1] for text in said if (match := re.search(r"target not found: (\S+)", text))})
        if lacking:
            hint = f"is it in another repository than {', '.join(repositories)}, or has it another name now?"
            raise BuildError(f"no package {', '.join(lacking)}", hint=hint) from None
        wrong = [text for text in said if text.startswith(("error:", ":: "))]
        raise BuildError("pacman: " + "\n".join(wrong or said[-5:]), hint=error.hint) from None
    chosen = [text.split() for text in said if re.fullmatch(r"\S+ \S+", text) and tuple(text.split()) in known]
    packages = {}
    for repository, name in chosen:
        packages[name] = {**known[repository, name], "repository": repository}
        del packages[name]["name"]
    return {"indexes": digests, "packages": packages}


def parse(index: bytes, repository: str) -> Iterator[dict[str, Json]]:
    """The packages of an index: name, version, file, sha256, size, and `signature` if it has it."""
    with tarfile.open(fileobj=io.BytesIO(index)) as archive:
        for member in archive:
            source = archive.extractfile(member) if member.name.endswith("/desc") else None
            if source is None:
                continue
            fields = dict(re.findall(r"^%(\w+)%\n(.*)$", source.read().decode(), re.M))
            said = {name: fields[word] for name, word in _FIELDS.items()}
            signature = {"signature": fields["PGPSIG"]} if "PGPSIG" in fields else {}
            yield {**said, "size": int(fields["CSIZE"]), "built": int(fields["BUILDDATE"]), **signature}


def listed(root: Path) -> str:
    """packages.tsv of what is installed in a root, by pacman's own database."""
    lines = []
    for path in (root / DATABASE).glob("*/desc"):
        fields = dict(re.findall(r"^%(\w+)%\n((?:.+\n)*)", path.read_text(errors="replace") + "\n", re.M))
        said = {name: "; ".join(value.splitlines()) for name, value in fields.items()}
        name, version = said["NAME"], said["VERSION"]
        source = f"{said.get('BASE', name)}@{version}"
        lines.append(f"{name}\t{version}\t{said.get('ARCH', ARCH)}\t{source}\t{said.get('LICENSE', '')}\n")
    return "".join(sorted(lines))


_FIELDS = {"name": "NAME", "version": "VERSION", "file": "FILENAME", "sha256": "SHA256SUM"}


def configuration(repositories: Sequence[str]) -> str:
    """pacman's: signatures were checked when packages came."""
    # Nobody is asked: all is in the database, or in the files that are named.
    servers = "".join(f"\n[{name}]\nServer = file:///dev/null\n" for name in repositories)
    return f"[options]\nArchitecture = {ARCH}\nSigLevel = Never\nLocalFileSigLevel = Never\n{servers}"


def program(config: Path, root: Path, database: Path) -> list[str]:
    """pacman on another root than this machine's."""
    line = [
        "pacman",
        "--config",
        str(config.absolute()),
        "--root",
        str(root.absolute()),
        "--noconfirm",
        "--noprogressbar",
    ]
    return [*line, "--dbpath", str(database.absolute()), "--logfile", "/dev/null", "--cachedir", "/nonexistent"]


def fetched(
    mirrors: Sequence[str], packages: Packages, keyring: Path, cache: Path, scratch: Path, tell: fetch.Tells
) -> list[Path]:
    """The files of a lock's packages, each signed by a key of the keyring. Raises BuildError."""
    paths = {name: cache / "downloads" / said["sha256"] for name, said in packages.items()}
    jobs = [
        fetch.Job(
            urls(mirrors, said["repository"], said["file"]),
            paths[name],
            fetch.Digest("sha256", said["sha256"]),
            said["size"],
        )
        for name, said in packages.items()
    ]
    try:
        fetch.get_all(jobs, tell)
    except BuildError as error:
        gone = re.search(r"/([^/\s]+): is not there", error.message)
        if gone is None:
            raise
        raise BuildError(
            f"recipe.lock wants {gone[1]}, which the mirror has no more:\n{error.message}",
            hint="./doit lock:NAME takes what is there now; archive.archlinux.org keeps what was",
        ) from None
    folder = scratch / "signatures"
    folder.mkdir()

    def check(name: str) -> None:
        said = packages[name]
        signature = folder / f"{name}.sig"
        signature.write_bytes(_signature(mirrors, said))
        try:
            command.run(["gpgv", "--keyring", str(keyring.absolute()), str(signature), str(paths[name])])
        except command.CommandError:
            raise BuildError(
                f"{said['file']}: is not signed by a key of {keyring.name}",
                hint="is the keyring older than the packages? Take a newer archlinux-keyring, or name one by `keyring`",
            ) from None

    with ThreadPoolExecutor() as pool:
        list(pool.map(check, packages))
    return [paths[name] for name in sorted(packages)]


def _signature(mirrors: Sequence[str], said: Mapping[str, Json]) -> bytes:
    if "signature" in said:
        try:
            return base64.b64decode(said["signature"], validate=True)
        except binascii.Error:
            return b""
    return fetch.read(urls(mirrors, said["repository"], f"{said['file']}.sig"), limit=1 << 16)[1]
