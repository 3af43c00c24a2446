"""The stages of an initramfs of one's own: a root with Alpine's mkinitfs, a modloop of its kernel, and the initramfs.

    buildroot -> modloop -> initramfs

Public keys lie in the root before mkinitfs runs: an initramfs without them would trust no repository.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from buildlib import kernel as versions
from buildlib.distros.alpine import apk, repository, resolving, signing
from buildlib.errors import BuildError
from buildlib.initrd import edit
from buildlib.sandbox import Bind
from buildlib.work import Work

OUT = "/run/netboot"


def run(work: Work) -> None:
    """The layer is the root; outputs `vmlinuz`."""
    facts = work.stage.facts or {}
    key = work.stage.secrets["signing key"]
    where = repository.where_of(work)
    found = resolving.fetched(where, {**facts["buildroot"], apk.TOOL: facts["tool"]}, repository.teller(work))
    program = apk.program(found.pop(apk.TOOL), work.scratch / "apk")
    home = work.scratch / "repository" / where.arch
    home.mkdir(parents=True)
    repository.filled(home, found.values(), facts["buildroot"], key)
    name, pem = signing.public(key)
    more = {path.name: path.read_bytes() for path in work.stage.files.values()}
    keys = {**apk.trusted(()), **more, name: pem}
    empty = work.scratch / "empty"
    empty.mkdir()
    work.progress(None, "installing")
    sandbox = work.sandbox(chroot=False, layers=(empty,), binds=apk.devices(work.mount))
    # What the kernel's package would start: an initramfs of what is installed so far.
    work.sandbox(chroot=False, layers=(empty,)).call(
        prepared, {"root": str(work.mount), "keys": {name: pem.decode() for name, pem in keys.items()}}, log=work.log
    )
    folder = apk.keyring(work.scratch / "keys", keys)
    apk.install(program, sandbox, home.parent, folder, where.arch, work.options["packages"], work.log)
    work.facts["kernel"] = work.sandbox(layers=(), binds=(Bind(work.out, OUT, writable=True),)).call(
        kernel, {"flavor": work.options["flavor"], "apart": OUT}, log=work.log
    )


def prepared(arguments: dict[str, Any]) -> None:
    """Before packages come: keys, and no initramfs by the kernel's trigger."""
    root = Path(arguments["root"])
    for folder in ("etc/apk/keys", "etc/mkinitfs", "dev", "tmp", "proc", "sys", "run", "var/tmp"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, pem in arguments["keys"].items():
        (root / "etc/apk/keys" / name).write_text(pem)
    (root / "etc/mkinitfs/mkinitfs.conf").write_text("disable_trigger=yes\n")


def kernel(arguments: dict[str, Any]) -> str:
    """In the root: copy the kernel out, give its version. Raises BuildError."""
    flavor = arguments["flavor"]
    path = Path("/boot") / f"vmlinuz-{flavor}"
    if not path.exists():
        raise BuildError(f"linux-{flavor} has no {path}", hint="another flavor, branch or mirror")
    found = sorted(one.name for one in Path("/lib/modules").iterdir() if one.name != "firmware")
    if len(found) != 1:
        raise BuildError(f"the root has modules of {' and '.join(found) or 'no kernel'}; one is wanted")
    version = versions.version(path)
    if version not in (None, found[0]):
        raise BuildError(f"linux-{flavor} has kernel {version}, but modules of {found[0]}", hint="another mirror")
    shutil.copyfile(path, Path(arguments["apart"]) / "vmlinuz")
    return found[0]


def modloop(work: Work) -> None:
    """Outputs `modloop-FLAVOR`, and its signature by the name under which OpenRC looks for it."""
    name = f"modloop-{work.options['flavor']}"
    tree = work.inputs["buildroot"] / "tree"
    lib = next(path for path in (tree / "usr/lib", tree / "lib") if (path / "modules").is_dir())
    empty = work.scratch / "empty"
    empty.mkdir()
    # It becomes the file system's own root.
    empty.chmod(0o755)
    work.progress(None, name)
    version = _version(lib / "modules")
    binds = [Bind(lib / "modules" / version, f"{work.mount}/modules/{version}")]
    if (lib / "firmware").is_dir():
        binds.append(Bind(lib / "firmware", f"{work.mount}/modules/firmware"))
    out = work.out / name
    line = ["mksquashfs", str(work.mount), str(out.absolute()), "-noappend", "-no-progress", "-comp", "xz"]
    sandbox = work.sandbox(change=False, chroot=False, layers=(empty,), binds=tuple(binds))
    sandbox.run([*line, "-exit-on-error", "-all-root"], log=work.log)
    out.chmod(0o644)
    key = work.stage.secrets["signing key"]
    public, _ = signing.public(key)
    (work.out / f"{name}.SIGN.RSA.{public}").write_bytes(signing.sign(out.read_bytes(), key))


def initramfs(work: Work) -> None:
    """Output `initrd`: what mkinitfs makes in the root, with the recipe's features."""
    options = work.options
    folder = work.scratch / "features.d"
    folder.mkdir()
    for kind in ("files", "modules"):
        (folder / f"netboot.{kind}").write_text("".join(f"{line}\n" for line in options[kind]))
    made = work.scratch / "made"
    made.mkdir()
    signature = next(path for path in work.inputs["modloop"].iterdir() if ".SIGN.RSA." in path.name)
    binds = (
        Bind(folder, f"{OUT}/features.d"),
        Bind(signature, f"{OUT}/{signature.name}"),
        Bind(made, f"{OUT}/out", writable=True),
    )
    version = _version(next(path for path in _libs(work) if path.is_dir()))
    features = " ".join([*options["features"], "netboot"])
    known: list[str] = []
    sandbox = work.sandbox(change=False, binds=binds)
    paths = ["-P", f"{OUT}/features.d"]
    sandbox.run(["mkinitfs", *paths, "-L"], on_line=known.append, log=work.log)
    lacking = sorted({*options["features"]} - {line.strip() for line in known})
    if lacking:
        hint = f"there are: {' '.join(sorted(line for line in known if line != 'netboot'))}"
        raise BuildError(f"mkinitfs knows no feature {', '.join(lacking)}", hint=hint)
    work.progress(None, "mkinitfs")
    line = ["mkinitfs", *paths, "-F", features, "-C", "none", "-s", f"{OUT}/{signature.name}"]
    sandbox.run([*line, "-o", f"{OUT}/out/initrd", version], log=work.log)
    # mkinitfs leaves it to root alone; and what it packs knows the device that it was made on.
    sandbox.run(["chmod", "644", f"{OUT}/out/initrd"], log=work.log)
    edit.compress(made / "initrd", options["compression"], work.out / "initrd")
    (work.out / "initrd").chmod(0o644)


def _libs(work: Work) -> tuple[Path, ...]:
    tree = work.inputs["buildroot"] / "tree"
    return tree / "usr/lib/modules", tree / "lib/modules"


def _version(folder: Path) -> str:
    return next(name for name in sorted(os.listdir(folder)) if re.match(r"\d", name))
