"""What nix says when it fails, and what that means. The last line of its output is mostly the misleading one."""

from __future__ import annotations

import re
from typing import NamedTuple

from buildlib.errors import BuildError


class Failure(NamedTuple):
    """pattern -- regular expression; its groups fill in what is wrong and what to do"""

    pattern: str
    wrong: str
    todo: str


FAILURES = (
    Failure(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "a builder's host key changed",
        "somebody may be between. If it was set up anew, put its new key into `host-key` or known_hosts",
    ),
    Failure(
        r"No (?P<kind>\S+) host key is known for (?P<host>\S+)|Host key verification failed",
        "a builder's host key is not known",
        "say `host-key` of the builder in site.yaml, or log in there once by hand",
    ),
    Failure(
        r"Could not resolve hostname (?P<host>[^:\s]+)",
        "no address is known of the builder {host}",
        "see `builders` in site.yaml; an older nix daemon knows no ports: give it an alias in root's ~/.ssh/config",
    ),
    Failure(
        r"[Cc]onnect to (?:host|address) (?P<host>\S+) port (?P<port>\d+): "
        r"(?P<why>Connection refused|Connection timed out|No route to host|Network is unreachable)",
        "the builder {host} port {port} can't be reached: {why}",
        "is it on, and its SSH server?",
    ),
    Failure(
        r"(?:(?P<host>[^\s:']+): )?Permission denied \(",
        "a builder accepts none of our keys",
        "say `key` of the builder in site.yaml, and add the public key there; nix' daemon logs in as root's user",
    ),
    Failure(
        r"no such identity: (?P<file>[^\s:]+)",
        "there is no key {file}",
        "see `key` of the builder in site.yaml",
    ),
    Failure(
        r"(?:nix-store|nix-daemon|nix): (?:command )?not found",
        "a builder has no nix that a login without a terminal finds",
        "install nix there, and have it in the PATH of such logins (/etc/environment, or BASH_ENV)",
    ),
    Failure(
        r"a '(?P<system>[^']+)' with features \{(?P<features>[^}]*)\} is required to build .*"
        r"but I am a '(?P<other>[^']+)'",
        "{system} is to be built on a {other}: nobody else does it",
        "name a builder for {system} under `builders` in site.yaml; one that emulates it needs `extra-platforms` too",
    ),
    Failure(
        r"Exec format error",
        "a builder can't run programs of the system that it offers",
        "register an emulator there (boot.binfmt.emulatedSystems, or Debian's qemu-user-static), or correct `systems`",
    ),
    Failure(
        r"No space left on device|database or disk is full|may have been caused by lack of free disk space",
        "a disk is full: this machine's or a builder's",
        "nix-collect-garbage there, or give it more room",
    ),
    Failure(
        r"not privileged to build|is not a trusted user|lacks a (?:valid )?signature|is untrusted"
        r"|restricted setting and you are not a trusted user",
        "a nix daemon doesn't trust who asks it",
        "add the user to `trusted-users` in its nix.conf",
    ),
    Failure(
        r"unexpected end-of-file|Nix daemon disconnected unexpectedly|[Bb]roken pipe|lost connection",
        "the connection to a builder was cut, or its nix ended",
        "run it again: what was finished stays; with an untrusted login take `protocol: ssh-ng`",
    ),
    Failure(
        r"build of '[^']+' on '[^']+' failed|builder for '[^']+' failed with exit code \d+",
        "a build failed; its last lines are below",
        "see the log",
    ),
    Failure(
        r"required \(system, features\): \((?P<system>[^,]+), \[(?P<features>[^\]]*)\]\)",
        "no builder is for {system} with the features [{features}]",
        "see `systems` and `features` in site.yaml; kernels ask for big-parallel",
    ),
    Failure(
        r"Unable to start any build|remote machines may not have all required system features",
        "nobody builds what is needed",
        "name a builder with its `systems` under `builders` in site.yaml",
    ),
    Failure(
        r"couldn't find remote ref (?:refs/heads/)?(?P<branch>\S+)",
        "the flake's repository has no branch {branch}",
        "name it in `reference`: git+ssh://...?ref=main",
    ),
    Failure(
        r"does not provide attribute (?P<attribute>.+)",
        "the flake has no such attribute: {attribute}",
        "see `configuration` or `netboot` in the recipe",
    ),
    Failure(
        r"attribute '(?P<attribute>[^']+)' missing",
        "the flake's configuration has no {attribute}",
        "import nixpkgs' installer/netboot module in it, or name what joins kernel and initrd by `netboot`",
    ),
    Failure(
        r"requires lock file changes but they're not allowed|cannot update unlocked flake input"
        r"|cannot write modified lock",
        "flake.lock does not fit flake.nix",
        "./doit lock:{name} writes it",
    ),
    Failure(
        r"unable to download '(?P<url>[^']+)'",
        "can't be downloaded: {url}",
        "is it there, and does this machine reach it?",
    ),
    Failure(
        r"the group '(?P<group>[^']+)' specified in 'build-users-group' does not exist",
        "nix is not set up here: there is no group {group}",
        "apt-get install nix-setup-systemd, or `build-users-group =` in /etc/nix/nix.conf",
    ),
    Failure(
        r"Nix version (?P<version>\S+) or later|requires Nix (?:version )?>= ?(?P<other>\S+)",
        "this flake needs a newer nix than this machine has",
        "install a newer one; Debian's newer releases have it",
    ),
    Failure(
        r"(?:opening|creating directory|cannot (?:open|connect)).*'/nix/var/nix[^']*'.*"
        r"(?:Permission denied|refused|No such file)",
        "nix' store may not be written, and no daemon answers",
        "start nix-daemon, or run ./doit as root",
    ),
)
"""The first that fits counts: what caused another stands before it."""


def explain(text: str, name: str) -> BuildError | None:
    """What nix' output means; None where nothing of it is known. `name`: of the recipe."""
    for failure in FAILURES:
        found = re.search(failure.pattern, text)
        if found:
            words = {key: value or "?" for key, value in found.groupdict().items()} | {"name": name}
            return BuildError(failure.wrong.format(**words), hint=failure.todo.format(**words))
    return None
