"""python -m buildlib.initrd FILE [COMMAND ...]

FILE                           segments, biggest files, and what is wrong; status 1 if something is
FILE list                      all entries
FILE cat PATH                  one file's content, to standard output
FILE extract FOLDER            the tree that a machine would see
FILE append FOLDER -o OUT      a segment more
FILE replace PATH NEW -o OUT   another content of one file
FILE repair -o OUT             padding, modes, lacking folders, line ends, compression
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

from buildlib.errors import BuildError
from buildlib.initrd import checks, edit, show, unpacking
from buildlib.initrd.scan import scan


def main(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m buildlib.initrd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--arch", choices=sorted(checks.MACHINES), help="the kernel's architecture")
    parser.add_argument("--init", default="init", help="what the kernel runs: rdinit= of its command line")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list")
    commands.add_parser("cat").add_argument("path")
    commands.add_parser("extract").add_argument("folder", type=Path)
    append = commands.add_parser("append")
    append.add_argument("folder", type=Path)
    append.add_argument("--kind", choices=edit.KINDS, default="cpio", help="its compression")
    append.add_argument("--epoch", type=int, default=int(os.environ.get("SOURCE_DATE_EPOCH", "0")))
    replace = commands.add_parser("replace")
    replace.add_argument("path")
    replace.add_argument("new", type=Path)
    repair = commands.add_parser("repair")
    for each in (append, replace, repair):
        each.add_argument("-o", "--out", type=Path, required=True)
    said = parser.parse_args(arguments)
    # Whatever is made is needed to the end.
    gc.disable()
    try:
        return _run(said)
    except BuildError as error:
        print(f"{error}", file=sys.stderr)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
    return 2


def _run(said: argparse.Namespace) -> int:
    if said.command == "cat":
        unpacking.extract(said.file, said.path, sys.stdout.buffer)
    elif said.command == "extract":
        for path in unpacking.unpack(said.file, said.folder):
            print(f"left out, by who may not make devices: {path}", file=sys.stderr)
    elif said.command == "append":
        print(f"{edit.append(said.file, said.folder, said.out, kind=said.kind, epoch=said.epoch):,} bytes more")
    elif said.command == "replace":
        edit.replace(said.file, said.path, said.new, said.out)
    elif said.command == "repair":
        print("\n".join(edit.repair(said.file, said.out, init=said.init)) or "nothing to repair")
    elif said.command == "list":
        print("\n".join(show.entries(scan(said.file))))
    else:
        found = scan(said.file)
        print("\n".join(show.segments(found)))
        wrong = checks.check(found, arch=said.arch, init=said.init)
        if wrong:
            print("\n".join(["", *show.findings(wrong)]))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
