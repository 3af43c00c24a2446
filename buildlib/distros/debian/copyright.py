"""In the root: what licenses a package's copyright file names.

Standard library only: it runs inside the sandbox. Form: Debian's machine-readable copyright file (DEP-5), version 1.0.
"""

from __future__ import annotations

import re
from pathlib import Path

DOC = Path("/usr/share/doc")

_HEAD = re.compile(r"\AFormat:\s*https?://\S*copyright-format/", re.I)
_LICENSE = re.compile(r"^License:[ \t]*(\S.*?)[ \t]*$", re.M | re.I)


def licenses(package: str, doc: Path = DOC) -> str:
    """The short names, `; ` between them; nothing where the file isn't there or is of another form."""
    try:
        text = (doc / package / "copyright").read_text(errors="replace")
    except OSError:
        # Recipes may leave out all documentation.
        return ""
    if not _HEAD.match(text.lstrip()):
        return ""
    return "; ".join(sorted({name.replace(";", ",") for name in _LICENSE.findall(text)}))
