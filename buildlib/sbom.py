"""The packages of a release as a CycloneDX document, for whoever watches for vulnerabilities."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from buildlib import atomic, spdx

FILE = "sbom.cdx.json"

_TYPES = {"debian": "deb", "alpine": "apk", "archlinux": "alpm", "nixos": "nix"}
"""How package URLs call a distribution's packages."""

_VENDORS = {"deb": "debian", "apk": "alpine", "alpm": "arch"}


def kept(cache: Path, name: str, distro: str, packages: str) -> Path:
    """The document's file, made only when the packages are others than ever before: its library takes a while to load.

    packages -- lines of name, version, architecture, source package with its version, and licenses
    """
    key = hashlib.sha256(f"{_FORM} {name} {distro}\n{packages}".encode()).hexdigest()
    path = cache / f"{key}.json"
    if not path.exists():
        atomic.write(path, document(name, distro, packages))
    return path


_FORM = 2
"""Another number makes all documents anew."""


def document(name: str, distro: str, packages: str) -> str:
    """CycloneDX 1.6 as JSON, without a time: the same for the same."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    kind = _TYPES[distro]
    vendor = "ubuntu" if distro == "debian" and "ubuntu" in packages else _VENDORS.get(kind)
    whole = Component(name=name, type=ComponentType.OPERATING_SYSTEM, bom_ref="release")
    found = []
    for line in packages.splitlines():
        package, version, arch, source, licenses = [*line.split("\t"), "", ""][:5]
        # What vulnerabilities are reported of, where it is called otherwise: a qualifier that scanners know.
        upstream = source if source != f"{package}@{version}" else ""
        # An epoch's colon is a part of the version.
        url = PackageURL(kind, vendor, package, version or None, {"arch": arch, "upstream": upstream})
        found.append(
            Component(
                name=package,
                version=version or None,
                type=ComponentType.LIBRARY,
                purl=url,
                bom_ref=f"{package}:{arch}" if arch else package,
                licenses=spdx.licenses(licenses),
            )
        )
    bom = Bom(components=found, serial_number=uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {distro}\n{packages}"))
    bom.metadata.component = whole
    bom.metadata.timestamp = None  # type: ignore[assignment]
    bom.register_dependency(whole, found)
    text: str = JsonV1Dot6(bom).output_as_string(indent=1)
    return text + "\n"
