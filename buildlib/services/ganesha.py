"""nfs-ganesha: NFSv3 and v4 from user space."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from buildlib.services import Export, Wiring, sayable

FILE = "ganesha.conf"
TOOL = None

# Graceless: clients keep no locks that would have to be claimed back after a restart. Only_Numeric_Owners: an initramfs
# maps no names to users, and would see nobody as the owner of everything.
_CORE = """\
# Target {name}.
NFS_CORE_PARAM {{
    Protocols = 3, 4;
    NFS_Port = 2049;
    MNT_Port = 20048;
    Enable_NLM = false;
    Enable_RQUOTA = false;
{names}}}
NFSv4 {{
    Graceless = true;
    Only_Numeric_Owners = true;
}}
"""

_EXPORT = """
EXPORT {{
    Export_Id = {number};
    Path = "{path}";
    Pseudo = "{pseudo}";
    Access_Type = None;
    Squash = No_Root_Squash;
    SecType = sys;
    Protocols = 3, 4;
    FSAL {{ Name = VFS; }}
    CLIENT {{
        Clients = {network};
        Access_Type = {access};
        Squash = No_Root_Squash;
    }}
}}
"""

# Also for clients of NFSv3, which otherwise mount by path.
_BY_PSEUDO = "    mount_path_pseudo = true;\n"


def render(wiring: Wiring) -> str | None:
    if wiring.target.nfs is None or not wiring.exports:
        return None
    by_pseudo = any(export.pseudo != export.path for export in wiring.exports)
    blocks = [
        _EXPORT.format(
            number=number,
            path=sayable("ganesha", export.path, '"\\'),
            pseudo=sayable("ganesha", export.pseudo, '"\\'),
            # It takes a prefix of no bits for a file's name.
            network="*" if wiring.target.network == "0.0.0.0/0" else wiring.target.network,
            access="RW" if export.writable else "RO",
        )
        for number, export in numbered(wiring.exports)
    ]
    return _CORE.format(name=wiring.name, names=_BY_PSEUDO if by_pseudo else "") + "".join(blocks)


def check(path: Path) -> list[str] | None:
    return None


def numbered(exports: Iterable[Export]) -> list[tuple[int, Export]]:
    """Exports with their ids, 1 to 65535. An id is part of the file handles that clients hold: it comes from the name
    and not from the place in the list, so that another export doesn't make them stale."""
    taken: dict[int, Export] = {}
    for export in sorted(exports, key=lambda export: export.pseudo):
        number = int.from_bytes(hashlib.sha256(export.pseudo.encode()).digest()[:8], "big") % 65535
        while number + 1 in taken:
            number = (number + 1) % 65535
        taken[number + 1] = export
    return list(taken.items())
