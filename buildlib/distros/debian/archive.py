"""The archives that a suite's packages come from: mirrors, keyrings, and the package lists as locked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote

from buildlib import command
from buildlib.errors import BuildError
from buildlib.plan import Json
from buildlib.sandbox import Bind, Sandbox, remove
from buildlib.store import describe
from buildlib.work import Work

SNAPSHOTS = {
    "debian": "http://snapshot.debian.org/archive/debian",
    "ubuntu": "http://snapshot.ubuntu.com/ubuntu",
}

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_DEFAULTS = {
    "debian": (Path("/usr/sbin/debootstrap"), r"DEF_MIRROR=\"https?://([^\s\"]+)"),
    "ubuntu": (Path("/usr/share/debootstrap/scripts/gutsy"), r"default_mirror https?://(\S+)"),
}
"""Where debootstrap says which mirror it takes, and how."""


@dataclass(frozen=True)
class Source:
    """A line of sources.list: where a suite's packages are fetched from."""

    uri: str
    suite: str
    components: tuple[str, ...]

    def line(self, keyring: Path | str | None = None) -> str:
        signed = f"[signed-by={keyring}] " if keyring else ""
        return f"deb {signed}{self.uri} {self.suite} {' '.join(self.components)}"

    @property
    def list_prefix(self) -> str:
        """How apt begins the names of this suite's files in its lists: apt-pkg's URItoFileName."""
        host, slash, path = self.uri.partition("://")[2].partition("/")
        name = host.rpartition("@")[2] + slash + unquote(path)
        quoted = "".join(_quote(sign) for sign in name.rstrip("/"))
        return f"{quoted}_dists_{self.suite.replace('/', '_')}_"


def _quote(sign: str) -> str:
    if sign == "/":
        return "_"
    if sign in '\\|{}[]<>"^~_=!@#$%&*' or not "!" <= sign <= "~":
        return "".join(f"%{byte:02x}" for byte in sign.encode())
    return sign


def sources(options: Mapping[str, Json], mirrors: Mapping[str, str]) -> list[Source]:
    """Where the suites come from. `mirrors`: URLs of `archive` and `security`."""
    return [
        Source(mirrors["security" if suite.endswith("-security") else "archive"], suite, tuple(options["components"]))
        for suite in options["suites"]
    ]


def build_mirrors(options: Mapping[str, Json], site: Mapping[str, str | None]) -> dict[str, str]:
    """Where this machine fetches from: what the recipe says, else the site file, else this machine's own apt
    configuration, else the distribution's default."""
    if options["mirror"] or options["snapshot"]:
        return image_mirrors(options)
    if site.get("archive"):
        return _pair(options["distribution"], str(site["archive"]), site.get("security"))
    own = _apt_mirrors(options["distribution"])
    return own if own is not None else image_mirrors(options)


def image_mirrors(options: Mapping[str, Json]) -> dict[str, str]:
    """What the image's own sources.list names: never a mirror that only the building machine knows."""
    distribution = options["distribution"]
    archive, security = options["mirror"], options["security_mirror"]
    if options["snapshot"]:
        archive = archive or SNAPSHOTS[distribution]
        found = _pair(distribution, archive, security)
        return {name: f"{uri.rstrip('/')}/{options['snapshot']}" for name, uri in found.items()}
    return _pair(distribution, archive or _default(distribution, options["arch"]), security)


def _pair(distribution: str, archive: str, security: str | None) -> dict[str, str]:
    """Debian keeps security updates in an archive of its own, beside the main one; Ubuntu in the same."""
    archive = archive.rstrip("/")
    if security:
        return {"archive": archive, "security": security.rstrip("/")}
    if distribution != "debian":
        return {"archive": archive, "security": archive}
    return {"archive": archive, "security": re.sub(r"debian$", "debian-security", archive)}


def _apt_mirrors(distribution: str) -> dict[str, str] | None:
    """This machine's own mirrors of the distribution, by what apt knows of the archives that it uses."""
    form = "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)"
    try:
        told = command.output(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    except BuildError:
        return None
    found: dict[str, str] = {}
    for line in told.splitlines():
        origin, label, uri = line.split("\t")
        if origin.lower() == distribution:
            found.setdefault("security" if label.endswith("-Security") else "archive", uri.rstrip("/"))
    if "archive" not in found:
        return None
    return _pair(distribution, found["archive"], found.get("security"))


def _default(distribution: str, arch: str) -> str:
    """The distribution's public mirror, as the installed debootstrap knows it; Ubuntu has another for arm64."""
    place, form = _DEFAULTS[distribution]
    found = re.findall(form, place.read_text()) if place.exists() else []
    current = [uri for uri in found if "old-releases" not in uri and ("ports" in uri) == _in_ports(distribution, arch)]
    if not current:
        raise BuildError(
            f"no mirror of {distribution} is known here",
            hint=f"state `mirror:` in the recipe, or `mirrors: {{{distribution}: ...}}` in site.yaml",
        )
    # A fresh root has no certificates; the archive's signature is what protects the packages.
    return f"http://{current[0]}"


def _in_ports(distribution: str, arch: str) -> bool:
    return distribution == "ubuntu" and arch != "amd64"


def apt_settings(*, certificates: str = str(_CERTIFICATES)) -> list[str]:
    """Lines of apt.conf for every apt that works for a build; of the machine's own, only its proxies count."""
    lines = [
        'Acquire::Languages "none";',
        'Acquire::Retries "3";',
        # The lock says which InRelease is meant; a build from an older one must still be possible.
        'Acquire::Check-Valid-Until "false";',
        'APT::Sandbox::User "root";',
        'APT::Install-Recommends "false";',
        'APT::Get::Assume-Yes "true";',
        'APT::Keep-Downloaded-Packages "true";',
        'Dpkg::Use-Pty "false";',
    ]
    if _CERTIFICATES.exists():
        lines.append(f'Acquire::https::CaInfo "{certificates}";')
    dump = command.output(["apt-config", "dump", "Acquire"])
    proxies = re.compile(r"Acquire::https?::Proxy(::\S+)? \"")
    return lines + [line for line in dump.splitlines() if proxies.match(line) and not line.endswith('"";')]


def proxy_environment() -> dict[str, str]:
    """The caller's proxy variables, for what fetches; nothing else of its environment."""
    names = ("http_proxy", "https_proxy", "no_proxy")
    return {name: os.environ[name] for name in names if name in os.environ}


def update(
    lists: Path, wanted: Sequence[Source], arch: str, keys: Path, scratch: Path, log: Path, settings: Sequence[str] = ()
) -> None:
    """Fetch and verify package lists into the folder `lists`. Raises BuildError with apt's own words."""
    for folder in (lists / "partial", scratch / "parts"):
        folder.mkdir(parents=True, exist_ok=True)
    (scratch / "status").touch()
    (scratch / "sources.list").write_text("".join(source.line(keys) + "\n" for source in wanted))
    lines = [
        *apt_settings(),
        *settings,
        f'APT::Architecture "{arch}";',
        f'APT::Architectures {{ "{arch}"; }};',
        f'Dir::Etc::main "{os.devnull}";',
        f'Dir::Etc::parts "{scratch / "parts"}";',
        f'Dir::Etc::sourcelist "{scratch / "sources.list"}";',
        f'Dir::Etc::sourceparts "{scratch / "parts"}";',
        f'Dir::State::lists "{lists}";',
        f'Dir::State::status "{scratch / "status"}";',
        'Dir::Cache::pkgcache "";',
        'Dir::Cache::srcpkgcache "";',
        # A mirror that fails must not leave half of the lists: without this, apt only warns.
        'APT::Update::Error-Mode "any";',
    ]
    (scratch / "apt.conf").write_text("\n".join(lines) + "\n")
    env = {**os.environ, "APT_CONFIG": str(scratch / "apt.conf"), "LC_ALL": "C.UTF-8"}
    try:
        command.run(["apt-get", "update"], env=env, log=log)
    except command.CommandError as error:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(("E:", "W:"))]
        raise BuildError(
            f"the package lists of {', '.join(source.suite for source in wanted)} cannot be had: "
            + (said[0] if said else error.message),
            hint="is the mirror reachable, and the suite's name right?",
            log=log,
        ) from None
    failed = [source.suite for source in wanted if not (lists / f"{source.list_prefix}InRelease").exists()]
    if failed:
        raise BuildError(f"apt fetched no InRelease of {', '.join(failed)}", log=log)


def releases(lists: Path, wanted: Sequence[Source]) -> dict[str, dict[str, Json]]:
    """What a lock says of each suite: SHA-256 of its InRelease, and its date in seconds since 1970."""
    found: dict[str, dict[str, Json]] = {}
    for source in wanted:
        path = lists / f"{source.list_prefix}InRelease"
        date = re.search(rb"^Date: (.*)$", path.read_bytes(), re.MULTILINE)
        if date is None:
            raise BuildError(f"{source.uri} {source.suite}: InRelease has no date")
        stamp = parsedate_to_datetime(date[1].decode())
        found[source.suite] = {"inrelease": describe(path).digest, "date": int(stamp.timestamp())}
    return found


def keep(lists: Path, wanted: Sequence[Source], out: Path) -> None:
    """Sort apt's lists into a folder a suite, so that they serve whatever mirror the packages come from later."""
    for source in wanted:
        (out / source.suite).mkdir(parents=True)
        for path in lists.glob("*"):
            if path.name.startswith(source.list_prefix):
                path.rename(out / source.suite / path.name.removeprefix(source.list_prefix))


def of_today(work: Work) -> list[Source]:
    """A stage's sources with the mirrors of today. The site's are how, not what, so they are no part of the key."""
    options = work.options
    return sources(options, build_mirrors(options, work.mirrors.get(options["distribution"], {})))


@dataclass(frozen=True)
class Archive:
    """Package lists and downloads as a stage offers them to apt.

    wanted -- the sources, with the mirrors of today
    lists  -- folder as apt wants it in /var/lib/apt/lists
    """

    wanted: tuple[Source, ...]
    lists: Path
    cache: Path
    scratch: Path

    @classmethod
    def of(cls, work: Work) -> Archive:
        """From the work of a stage that has `index` among its inputs."""
        wanted = of_today(work)
        lists = work.scratch / "lists"
        (lists / "partial").mkdir(parents=True)
        for source in wanted:
            for path in (work.inputs["index"] / "lists" / source.suite).iterdir():
                os.link(path, lists / f"{source.list_prefix}{path.name}")
        cache = work.cache / "debs"
        # Named after the key: what a killed run has downloaded is found by the next one.
        archive = cls(tuple(wanted), lists, cache, work.cache / "debs.new" / work.key[:16])
        archive.collect()
        return archive

    def binds(self, root: str = "") -> tuple[Bind, ...]:
        """Lists and downloads at their places in `root`; new downloads go to a folder of their own at first."""
        for name in ("upper/partial", "work"):
            (self.scratch / name).mkdir(parents=True, exist_ok=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        found = [
            Bind(self.lists, f"{root}/var/lib/apt/lists", writable=True),
            Bind(self.cache, f"{root}/var/cache/apt/archives", scratch=self.scratch),
        ]
        if not root and _CERTIFICATES.exists():
            found.append(Bind(_CERTIFICATES, "/run/netboot/certificates.crt"))
        return tuple(found)

    def collect(self) -> None:
        """Take finished downloads into the cache that all builds share. A deletion is none: apt and mmdebstrap delete
        what they have unpacked, which the overlay records as a device node."""
        self.cache.mkdir(parents=True, exist_ok=True)
        for path in (self.scratch / "upper").glob("*.deb"):
            if path.is_file():
                path.replace(self.cache / path.name)
        remove(self.scratch)


_SHOWN = 5
"""Most packages that an error names."""


def lost(log: Path) -> BuildError | None:
    """What a stage's log says of packages that could not be fetched: by apt, or by debootstrap."""
    text = log.read_text(errors="replace")
    apt = re.findall(r"^Err:\d+ \S+ \S+ \S+ (\S+) \S+ (\S+)$", text, re.MULTILINE)
    debootstrap = re.findall(r"^W: Couldn't download package (\S+) \(ver (\S+) arch", text, re.MULTILINE)
    packages = list(dict.fromkeys(f"{name} {version}" for name, version in (*apt, *debootstrap)))
    if not packages:
        return None
    named = ", ".join(packages[:_SHOWN]) + (f" and {len(packages) - _SHOWN} more" if packages[_SHOWN:] else "")
    reasons = re.findall(r"^E: Failed to fetch \S+  (.*)$", text, re.MULTILINE)
    if debootstrap or any(reason.startswith("404") for reason in reasons):
        return BuildError(
            f"the mirror no longer has {named}: locked, and not in the cache of downloads either",
            hint="take what upstream offers now with `./doit lock:NAME`, or name a `snapshot:` in the recipe",
            log=log,
        )
    return BuildError(
        f"{named} can't be fetched, and the cache of downloads has not got it",
        hint=reasons[0] if reasons else "is the mirror reachable?",
        log=log,
    )


def network_sandbox(work: Work, **settings: Json) -> Sandbox:
    """A sandbox for what downloads packages."""
    return work.sandbox(network=True, env=proxy_environment(), **settings)
