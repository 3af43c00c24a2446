"""Has nix build what a flake evaluates to, here or on builders, and takes kernel and initrd out of it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from buildlib.builder import Builder
from buildlib.distros.nixos import builders, nix
from buildlib.distros.nixos.flake import Flake, are_there, evaluated
from buildlib.errors import BuildError
from buildlib.work import Work

ROOTS = "nix-roots"
"""Folder of the cache: a folder a key, with links that keep nix from collecting what was built."""

KERNELS = {"x86_64-linux": ("bzImage", "vmlinuz", "Image"), "aarch64-linux": ("Image", "vmlinuz", "bzImage")}
"""How a kernel's file may be called, by system."""

_MOST = 4 << 30
"""Bytes of an initrd: a file of a cpio archive can't be bigger, and neither can what a boot loader loads."""

_BUILDING = re.compile(
    r"building '/nix/store/[a-z0-9]{32}-(?P<name>[^']+)\.drv'(?: on '(?:ssh|ssh-ng)://(?P<on>[^']+)')?"
)
_COUNT = re.compile(r"these (\d+) derivations will be built|this derivation will be built")
_PATH = re.compile(r"/nix/store/[a-z0-9]{32}-\S+")


def run(work: Work) -> None:
    """Outputs `vmlinuz`, `initrd`, `cmdline`, `packages.tsv`."""
    name, options = work.options["recipe"], work.options
    known = {one: Builder(**said) for one, said in options["builders"].items()}
    user = Path(options["ssh_config"]) if options["ssh_config"] else None
    facts = work.stage.facts or {}
    derivations: dict[str, str] = facts["derivations"]
    flake = Flake(options["reference"], options["attribute"], tuple(options["parts"]), options["system"])
    _present(flake, derivations, name, work.log)
    store = known[options["store"]] if options["store"] else None
    with contextlib.ExitStack() as stack:
        own = nix.is_direct() and known
        env = nix.environment(stack.enter_context(builders.ssh_config(known, user)) if own else None)
        if store is None:
            outputs = _built(work, derivations, builders.arguments(known), env, name)
            _taken(work, outputs)
        else:
            outputs = _built_there(work, derivations, store, env, name)
            _fetched(work, outputs, store, user)
        root = outputs.get("toplevel") or outputs["netboot"]
        where = ["--store", builders.uri(store)] if store else []
        closure = nix.read(["nix-store", *where, "--query", "--requisites", root], name=name, log=work.log, env=env)
    lines = sorted({packaged(path, work.options["arch"]) for path in closure.split()})
    (work.out / "packages.tsv").write_text("".join(lines))
    if (work.out / "initrd").stat().st_size >= _MOST:
        raise BuildError(
            f"the initrd has {(work.out / 'initrd').stat().st_size} bytes: 4 GiB and more can't be loaded",
            hint="make the configuration smaller, or mount its store over NFS or HTTP",
        )
    work.facts["outputs"] = outputs


def _present(flake: Flake, derivations: Mapping[str, str], name: str, log: Path) -> None:
    """See to it that this machine's store has the derivations: those of a lock from elsewhere are evaluated again."""
    if are_there(derivations.values()):
        return
    found = evaluated(flake, name, log)
    if found != derivations:
        odd = next(part for part in derivations if found.get(part) != derivations[part])
        raise BuildError(
            f"{odd} evaluates to {found.get(odd)}, but recipe.lock says {derivations[odd]}",
            hint=f"./doit lock:{name} takes it",
        )


def _built(
    work: Work, derivations: Mapping[str, str], arguments: Iterable[str], env: Mapping[str, str], name: str
) -> dict[str, str]:
    """Build here or on builders; the path of each part."""
    roots = work.cache / ROOTS / work.key
    roots.mkdir(parents=True, exist_ok=True)
    todo = 0
    done = 0

    def on_line(text: str) -> None:
        nonlocal todo, done
        if found := _COUNT.search(text):
            todo = int(found[1] or 1)
        elif found := _BUILDING.search(text):
            done += 1
            work.progress(done / (todo + 1) if todo else None, f"{found['name']} {found['on'] or ''}".strip())

    # All at once, so that nix builds side by side what does not need each other.
    line = ["nix-store", "--realise", *(f"{path}!out" for path in derivations.values()), *arguments]
    nix.run(
        [*line, "--add-root", str(roots / "result"), "--indirect"], name=name, log=work.log, env=env, on_line=on_line
    )
    query = ["nix-store", "--query", "--binding", "out", *derivations.values()]
    return dict(zip(derivations, nix.read(query, name=name, log=work.log, env=env).split(), strict=True))


def _built_there(
    work: Work, derivations: Mapping[str, str], store: Builder, env: Mapping[str, str], name: str
) -> dict[str, str]:
    """Build in a builder's own store, where it stays; the path of each part there."""
    where = builders.uri(store)
    paths = list(derivations.values())
    nix.run(["nix", *nix.FEATURES, "copy", "--derivation", "--to", where, *paths], name=name, log=work.log, env=env)
    outputs = {}
    for part, path in derivations.items():
        line = ["nix-store", "--store", where, "--realise", f"{path}!out"]
        work.progress(None, f"{part} {store.host}")
        said = nix.run(line, name=name, log=work.log, env=env)
        found = [text for text in said if _PATH.fullmatch(text)]
        if not found:
            raise BuildError(f"{part}: nix did not say where it is", log=work.log)
        outputs[part] = found[-1]
    return outputs


def _taken(work: Work, outputs: Mapping[str, str]) -> None:
    """Kernel, initrd and command line out of this machine's store."""
    kernel = _first(Path(outputs.get("kernel") or outputs["netboot"]), KERNELS[work.options["system"]], "kernel")
    ramdisk = _first(Path(outputs.get("netbootRamdisk") or outputs["netboot"]), ("initrd",), "initrd")
    _share(kernel, work.out / "vmlinuz")
    _share(ramdisk, work.out / "initrd")
    folder = Path(outputs.get("toplevel") or outputs["netboot"])
    script, params, init = (_below(folder, name) for name in ("netboot.ipxe", "kernel-params", "init"))
    if params is not None and init is not None:
        real = outputs["toplevel"] + "/init" if "toplevel" in outputs else str(_linked(init))
        words = f"init={real} {params.read_text()}"
    elif script is not None:
        words = of_script(script.read_text())
    else:
        raise BuildError(
            f"{folder}: has neither netboot.ipxe nor kernel-params and init, so nobody knows the command line",
            hint="join config.system.build.netbootIpxeScript with it",
        )
    (work.out / "cmdline").write_text(" ".join(words.split()))


def _fetched(work: Work, outputs: Mapping[str, str], store: Builder, user: Path | None) -> None:
    """As `_taken`, out of a builder's store."""
    folder = shlex.quote(outputs.get("toplevel") or outputs["netboot"])
    kernel = shlex.quote(outputs.get("kernel") or outputs["netboot"])
    ramdisk = shlex.quote(outputs.get("netbootRamdisk") or outputs["netboot"])
    names = " ".join(f"{kernel}/{name}" for name in KERNELS[work.options["system"]])
    script = f"""\
for file in {names}; do [ ! -f "$file" ] || {{ echo "vmlinuz $(readlink -f "$file")"; break; }}; done
[ ! -f {ramdisk}/initrd ] || echo "initrd $(readlink -f {ramdisk}/initrd)"
find -L {folder} -maxdepth 2 '(' -name kernel-params -o -name init -o -name netboot.ipxe ')' |
    while read -r file; do echo "${{file##*/}} $(readlink "$file" || echo "$file") $file"; done
"""
    listing = work.scratch / "listing"
    builders.said(store, script, listing, user, work.log)
    found: dict[str, list[str]] = {}
    for text in listing.read_text().splitlines():
        word, *rest = text.split()
        found.setdefault(word, rest)
    for name in ("vmlinuz", "initrd"):
        if name not in found:
            raise BuildError(f"{outputs}: has no {name}", hint="see `configuration` or `netboot` in the recipe")
        work.progress(None, name)
        builders.fetched(store, found[name][0], work.out / name, user, work.log)
    said = work.scratch / "words"
    if "kernel-params" in found and "init" in found:
        builders.fetched(store, found["kernel-params"][1], said, user, work.log)
        real = outputs["toplevel"] + "/init" if "toplevel" in outputs else found["init"][0]
        words = f"init={real} {said.read_text()}"
    elif "netboot.ipxe" in found:
        builders.fetched(store, found["netboot.ipxe"][1], said, user, work.log)
        words = of_script(said.read_text())
    else:
        raise BuildError(f"{outputs}: has neither netboot.ipxe nor kernel-params and init")
    (work.out / "cmdline").write_text(" ".join(words.split()))


def of_script(text: str) -> str:
    """The kernel command line in nixpkgs' netboot.ipxe, without what is iPXE's own."""
    found = re.search(r"^\s*kernel\s+\S+\s+(.*)$", text, re.M)
    if found is None:
        raise BuildError("netboot.ipxe: has no line for the kernel")
    return " ".join(word for word in found[1].split() if not word.startswith("initrd=") and word != "${cmdline}")


def packaged(path: str, arch: str) -> str:
    """A line of packages.tsv for a store path: its version begins where a dash is followed by no letter."""
    name = path.rpartition("/")[2].partition("-")[2]
    found = re.match(r"(.+?)-([^a-zA-Z].*)$", name)
    return f"{found[1]}\t{found[2]}\t{arch}\n" if found else f"{name}\t\t{arch}\n"


def _below(folder: Path, name: str) -> Path | None:
    """A file of that name in a folder or the folders in it."""
    return next((path for path in [folder / name, *sorted(folder.glob(f"*/{name}"))] if path.exists()), None)


def _linked(init: Path) -> Path:
    """Where a link to a system's `init` points: that path is what stage 1 looks for, not what it is a link to."""
    return Path(os.readlink(init)) if init.is_symlink() else init


def _first(folder: Path, names: Iterable[str], what: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return (folder / name).resolve()
    have = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ""
    raise BuildError(
        f"{folder}: has no {what} ({' or '.join(names)}), but {have or 'nothing'}",
        hint="see `configuration` or `netboot` in the recipe",
    )


def _share(source: Path, target: Path) -> None:
    """One file under two names where that can be, else a copy."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EROFS, errno.EACCES):
            raise
        shutil.copyfile(source, target)
