"""Licenses as distributions name them, as SPDX names them where it can."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclonedx.model.license import License

_OTHERWISE = {
    "apache-2": "Apache-2.0",
    "artistic": "Artistic-1.0-Perl",
    "artistic-2": "Artistic-2.0",
    "cc0": "CC0-1.0",
    "expat": "MIT",
    "gpl+": "GPL-1.0-or-later",
    "lgpl+": "LGPL-2.0-or-later",
    "mpl-2": "MPL-2.0",
    "openldap": "OLDAP-2.8",
    "python-2": "Python-2.0",
}
"""Short names of Debian's copyright files (DEP-5) that SPDX calls otherwise."""

_GNU = re.compile(r"(?P<family>A?GPL|LGPL|GFDL)(?:-|(?=v))(?P<niv>NIV-)?v?(?P<number>\d(?:\.\d+)?)(?P<later>\+?)", re.I)
_WORDS = re.compile(r"(\s+(?:and|or|with)\s+|[()])", re.I)
_COMMA = re.compile(r",\s*(and|or)?\s+", re.I)


@cache
def expression(said: str) -> str | None:
    """An SPDX identifier or expression that says the same; None where there is none."""
    from cyclonedx import spdx

    parts = _COMMA.split(said)
    if len(parts) > 1:
        # In Debian's form a comma binds less than `and` and `or`.
        made = [expression(part) for part in parts[::2]]
        joints = [f" {(joint or 'and').upper()} " for joint in parts[1::2]]
        if None in made or len(set(joints)) > 1:
            return None
        return joints[0].join(_bracketed(part or "") for part in made)
    words = [_word(word) for word in _WORDS.split(said) if word.strip()]
    text = " ".join(word or "?" for word in words).replace("( ", "(").replace(" )", ")")
    if "?" not in text and spdx.is_expression(text):
        return text
    # With an exception, which has an identifier of its own.
    return said if " WITH " in said and spdx.is_expression(said) else None


def licenses(said: str) -> list[License]:
    """As CycloneDX has the licenses of a package; said -- names, `; ` between them, as packages.tsv has them.

    One expression if all of it is one; else one by one, with names where SPDX has no identifier.
    """
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression

    names = [name for name in said.split("; ") if name]
    found = {name: expression(name) for name in names}
    known = sorted({one for one in found.values() if one})
    if all(found.values()) and any(" " in one for one in known):
        return [LicenseExpression(" AND ".join(_bracketed(one) for one in known) if len(known) > 1 else known[0])]
    return [
        *(DisjunctiveLicense(id=one) for one in known if " " not in one),
        *(DisjunctiveLicense(name=name) for name, one in found.items() if one is None or " " in one),
    ]


def _bracketed(text: str) -> str:
    return f"({text})" if " OR " in text else text


def _word(word: str) -> str | None:
    from cyclonedx import spdx

    word = word.strip()
    if word in "()" or word.lower() in ("and", "or", "with"):
        return word.upper()
    gnu = _GNU.fullmatch(word)
    if gnu:
        number = gnu["number"] if "." in gnu["number"] else f"{gnu['number']}.0"
        which = "-no-invariants" if gnu["niv"] else ""
        made = f"{gnu['family'].upper()}-{number}{which}-{'or-later' if gnu['later'] else 'only'}"
        # GFDL has no 1.0.
        return made if spdx.is_supported_id(made) else None
    return _OTHERWISE.get(word.lower()) or spdx.fixup_id(word)
