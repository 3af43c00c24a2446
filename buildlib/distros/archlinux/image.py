"""The stage `image`: kernel, initrd and root of an official image, and the command line that fits them."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from pathlib import Path

from buildlib import command
from buildlib.distros.archlinux import files, iso, mirror, pacman
from buildlib.errors import BuildError
from buildlib.members import Members, of_folder, packed
from buildlib.work import Work

_START = """\
#!/bin/sh
base=$(sed -n 's|.*script=\\([^ ]*\\)/start.sh.*|\\1|p' /proc/cmdline)
fetch() { if command -v curl >/dev/null; then curl -fsS "$base/$1"; else wget -q -O - "$base/$1"; fi; }
"""

_OWN = """\
mac=$(sed -n 's|.*BOOTIF=\\(01-\\)*\\([^ ]*\\).*|\\2|p' /proc/cmdline | tr 'A-F-' 'a-f:')
if fetch "hosts/$mac" >/tmp/netboot-host 2>/dev/null; then
    chmod 755 /tmp/netboot-host
    /tmp/netboot-host
fi"""
"""The program of a single host."""

_CERTIFICATE = "codesign.crt"
"""In an initramfs that can check signatures of roots."""

_ROOM = 300 << 20
"""Bytes of memory that a machine needs beside its root."""


def run(work: Work) -> None:
    """Outputs `vmlinuz`, `initrd`, `cmdline`, `packages.tsv`; the root, and what lies beside it, by their own names."""
    options = work.options
    if "squashfs" in work.inputs:
        found = _of_stages(work)
    elif options["iso"] or options["url"]:
        found = _of_iso(work)
    else:
        facts = work.stage.facts or {}
        sizes = [int(said["size"] or 0) for said in facts["files"].values()]
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            work.progress(None, f"{done >> 20} MB of {max(sum(sizes), done) >> 20} MB or more")

        found = mirror.have(facts["release"], facts["files"], options["mirrors"], work.cache, tell)
    root, microcode = files.names(found)
    _fits(found[root].stat().st_size, options["over"], options["copytoram"], options["memory"])
    named = {name: path for name, path in found.items() if name not in (files.INITRD, *microcode)}
    if options["over"] == "nbd":
        _share(named.pop(files.KERNEL), work.out / "vmlinuz")
        _medium(work, named)
    for name, path in named.items() if options["over"] != "nbd" else ():
        _share(path, work.out / files.published(name))
    _initrd([*(found[name] for name in microcode), found[files.INITRD]], work.out / "initrd")
    if options["start"]:
        _start(work)
    (work.out / "cmdline").write_text(" ".join(_cmdline(work, root, found)))
    if "packages" in work.inputs:
        _share(work.inputs["packages"] / "packages.tsv", work.out / "packages.tsv")
    else:
        (work.out / "packages.tsv").write_text(_packages(work, root, found[root]))


def _packages(work: Work, name: str, image: Path) -> str:
    """packages.tsv of a packed root. Nothing of Debian reads an erofs without mounting it."""
    if not name.endswith(".sfs"):
        return ""
    folder = work.scratch / "database"
    line = ["unsquashfs", "-no-progress", "-no-xattrs", "-dest", str(folder), str(image)]
    command.run([*line, f"{pacman.DATABASE}/*/desc"], log=work.log)
    return pacman.listed(folder)


def _of_stages(work: Work) -> dict[str, Path]:
    """What the stages before have made, by the names that a release has."""
    root = work.inputs["squashfs"] / "rootfs.squashfs"
    with root.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").hexdigest()
    sums = work.scratch / "airootfs.sha512"
    sums.write_text(f"{digest}  {files.ROOTS[0].rpartition('/')[2]}\n")
    made = work.inputs["initramfs"]
    return {
        files.KERNEL: made / "vmlinuz",
        files.INITRD: made / "initrd",
        files.ROOTS[0]: root,
        files.CHECKSUM: sums,
    }


def _medium(work: Work, found: dict[str, Path]) -> None:
    """`medium.squashfs`: what archiso looks for on a block device; the root in it is packed already."""
    folder = work.scratch / "medium"
    for name, path in found.items():
        _share(path, folder / name)
    out = work.out / "medium.squashfs"
    line = ["mksquashfs", str(folder), str(out), "-noappend", "-no-progress", "-all-root"]
    line += ["-noI", "-noD", "-noF", "-noX"]
    # mksquashfs clamps times, but not those of folders that were made just now to what lies before.
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    epoch = str(work.epoch)
    command.run([*line, "-mkfs-time", epoch, "-all-time", epoch], log=work.log)
    out.chmod(0o644)


def _of_iso(work: Work) -> dict[str, Path]:
    facts = work.stage.facts or {}
    if work.options["iso"]:
        path = Path(work.options["iso"])
    else:
        path = mirror.locked_iso(work.options["url"], facts["iso"], work.cache, lambda _count: None)
    if work.options["signature"]:
        iso.verify(path, Path(work.options["signature"]), Path(work.options["keyring"]), work.log)
    found = iso.extract(path, work.scratch / "iso", work.log)
    if sorted(found) != facts["files"]:
        raise BuildError(f"{path.name}: is another one than when it was locked", hint="./doit lock:NAME looks at it")
    return found


def _start(work: Work) -> None:
    """`start.sh`, which a booted machine fetches and runs as root, and what that fetches: it knows where from."""
    options, named = work.options, work.stage.files
    lines = [_START]
    if options["overlays"]:
        members: Members = {}
        for name in options["overlays"]:
            members |= of_folder(named[name])
        (work.out / "overlay.tar.gz").write_bytes(packed(members, work.epoch))
        lines.append("fetch overlay.tar.gz | tar -xz --no-same-owner -C /")
    if options["hostname"]:
        lines.append(f"hostname {options['hostname']}; echo {options['hostname']} >/etc/hostname")
    if options["keys"]:
        lines.append("mkdir -p -m 700 /root/.ssh")
        for name in options["keys"]:
            for key in named[name].read_text().splitlines():
                lines.append(f"echo {shlex.quote(key)} >>/root/.ssh/authorized_keys")
    if options["scripts"]:
        lines.append(_OWN)
        (work.out / "hosts").mkdir()
        for mac, name in options["scripts"].items():
            shutil.copyfile(named[name], work.out / "hosts" / mac)
    if options["script"]:
        shutil.copyfile(named[options["script"]], work.out / "script")
        lines += ["fetch script >/tmp/netboot-script", "chmod 755 /tmp/netboot-script", "/tmp/netboot-script"]
    (work.out / "start.sh").write_text("\n".join(lines) + "\n")


def _cmdline(work: Work, root: str, found: dict[str, Path]) -> list[str]:
    options = work.options
    over = {
        "http": ["archiso_http_srv=${http}/"],
        "nfs": ["archiso_nfs_srv=${nfs_server}:${nfs_root}"],
        # Hooks of 2025 and later know where it is; older ones have to be told.
        "nbd": ["archiso_nbd_srv=${nbd_server}", "archiso_nbd_name=${nbd_name}", "archisodevice=/dev/nbd0"],
    }
    words = ["archisobasedir=arch", *over[options["over"]]]
    words.append(_check(work, root, found))
    # The hooks do nothing without.
    words.append("ip=dhcp")
    if options["copytoram"] != "auto":
        words.append(f"copytoram={options['copytoram'][0]}")
    if options["cow"]:
        words.append(f"cow_spacesize={options['cow']}")
    if options["start"]:
        words.append("script=${http}/start.sh")
    return words


def _check(work: Work, root: str, found: dict[str, Path]) -> str:
    """How a machine checks its root: nobody would see that it is damaged else."""
    checksum, signature = files.sides(root)
    asked = work.options["check"]
    signed = signature in found and _has_certificate(work.out / "initrd")
    if asked == "cms" and not signed:
        what = "certificate in its initramfs" if signature in found else "signature of its root"
        raise BuildError(f"the image has no {what}", hint="say `check: checksum`")
    if signed and asked != "checksum":
        return "cms_verify=y"
    if checksum not in found:
        raise BuildError("the image has no checksum of its root", hint="say `check: cms`, or take another image")
    return "checksum=y"


def _has_certificate(initrd: Path) -> bool:
    from buildlib.initrd.scan import scan

    return any(entry.member.path.lstrip("./") == _CERTIFICATE for entry in scan(initrd).entries)


def _fits(root: int, over: str, copytoram: str, memory: int | None) -> None:
    """Raise BuildError for a root that a machine with so much memory, MiB, can't hold.

    Over HTTP it has it twice; over NFS and NBD the hooks copy it, unless they are told not to.
    """
    times = 2 if over == "http" else int(copytoram != "no")
    need = times * root + _ROOM
    if memory is not None and memory << 20 < need:
        less = "root: {kind: squashfs, over: nfs} with `copytoram: no`" if over == "http" else "`copytoram: no`"
        raise BuildError(
            f"the root has {root >> 20} MB: a machine of {memory} MiB can't hold it, {need >> 20} are needed",
            hint=f"{less}, or more `boot.memory`" if times else "more `boot.memory`",
        )


def _initrd(parts: list[Path], out: Path) -> None:
    """Microcode and initramfs as one: the kernel takes an uncompressed archive only at a multiple of four bytes."""
    if len(parts) == 1:
        _share(parts[0], out)
        return
    with out.open("wb") as target:
        for part in parts:
            target.write(b"\0" * (-target.tell() % 4))
            with part.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)


def _share(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    target.chmod(0o644)
