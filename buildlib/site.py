"""The site file: what is of this place, and not of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from buildlib import schema
from buildlib.schema import Doc, Text

FILE = "site.yaml"

Url = Annotated[str, Text(r"https?://\S+", what="a URL", example="http://apt.lab/debian")]


@dataclass(frozen=True)
class Mirror:
    """Where this site fetches a distribution's packages. They are verified all the same."""

    archive: Annotated[Url, Doc("The main archive.")]
    security: Annotated[Url | None, Doc("The security archive, where it isn't beside the main one.")] = None


@dataclass(frozen=True)
class Site:
    """All of a site file; there may be none."""

    mirrors: Annotated[Mapping[str, Mirror], Doc("Mirrors by distribution: debian, ubuntu.")] = field(
        default_factory=dict
    )

    def mirror_urls(self) -> dict[str, dict[str, str | None]]:
        """As plain data: distribution -> archive and security."""
        return {name: {"archive": mirror.archive, "security": mirror.security} for name, mirror in self.mirrors.items()}


def load(folder: Path) -> Site:
    """The site file in `folder`, or an empty site. Raises SchemaError, all errors at once."""
    path = folder / FILE
    return schema.load(path, Site, root=folder) if path.exists() else Site()
