"""New recipes: small, with remarks, and such that they build as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from buildlib.errors import BuildError
from buildlib.recipe import FILE

_HEAD = """\
# yaml-language-server: $schema=../../docs/schema/recipe.schema.json
# Its words: docs/{doc}.md.
description: {name}
"""

_DEBIAN = """\
arch: amd64                 # or arm64, also on a PC
root: nfs                   # or squashfs (over HTTP into RAM), or ram (all in the initrd)
clients: volatile           # many share the root, and what they write is gone at power-off; rw: one owns it

debian:
  suite: bookworm           # or trixie, noble, ...
  packages: [openssh-server]

users:
  - name: root
    # password-env: ROOT_HASH # the variable that has what `mkpasswd --method=yescrypt` gave
    # authorized-keys: [keys/admin.pub]

# overlay: [overlay]        # a folder whose files lie over the root
# cmdline: console=ttyS0,115200
"""

_ALPINE = """\
arch: amd64                 # or arm64
root: ram
# hostname: box
# overlay: [overlay]        # a folder whose files lie over the root; etc/local.d/*.start are run

alpine:
  branch: latest-stable     # its newest release as of the last `./doit lock:{name}`
  flavor: lts               # or virt
  packages: [openssh]
  services:
    default: [sshd]

# users:
#   - {{name: root, authorized-keys: [keys/admin.pub]}}
"""

_ARCHLINUX = """\
arch: amd64
root: squashfs              # over HTTP into RAM; {{kind: squashfs, over: nfs}}: it stays on the NFS server

archlinux:
  release: latest           # as of the last `./doit lock:{name}`; or an ISO: `iso: archlinux.iso`
  # script: setup.sh        # run as root when it has booted

boot:
  memory: 4096              # MiB; the root is held in memory twice
"""

_NIXOS = """\
arch: arm64                 # or amd64
root: ram

nixos:
  flake: flake              # `./doit lock:{name}` writes and moves its flake.lock
  configuration: {name}

boot:
  memory: 4096
"""

_FLAKE = """\
{{
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    {{ nixpkgs, ... }}:
    {{
      nixosConfigurations.{name} = nixpkgs.lib.nixosSystem {{
        modules = [
          "${{nixpkgs}}/nixos/modules/installer/netboot/netboot.nix"
          {{
            nixpkgs.hostPlatform = "aarch64-linux";
            system.stateVersion = "26.05";
            services.openssh.enable = true;
            # users.users.root.openssh.authorizedKeys.keys = [ "ssh-ed25519 ..." ];
          }}
        ];
      }};
    }};
}}
"""

FILES: Mapping[str, Mapping[str, str]] = {
    "alpine": {FILE: _ALPINE},
    "archlinux": {FILE: _ARCHLINUX},
    "debian": {FILE: _DEBIAN},
    "nixos": {FILE: _NIXOS, "flake/flake.nix": _FLAKE},
}
"""Files of a new recipe by distribution."""

_DOCS = {"debian": "recipes"}


def write(recipes: Path, name: str, distro: str) -> list[Path]:
    """Write a new recipe; its files. Raises BuildError, and writes nothing then."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise BuildError(f"{name!r} is no name of a recipe", hint="small letters, digits and dashes, like lab-nodes")
    if distro not in FILES:
        raise BuildError(f"--distro: there is no {distro}", hint=f"there are: {', '.join(FILES)}")
    home = recipes / name
    if home.exists():
        raise BuildError(f"{home} is there already", hint="another name")
    made = []
    for path, text in FILES[distro].items():
        head = _HEAD.format(name=name, doc=_DOCS.get(distro, distro)) if path == FILE else ""
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(head + text.format(name=name))
        made.append(home / path)
    return made
