"""An initrd of 1 GB listed, beside `zstd -dc`: `python -m bench.initrds [ROUNDS]`.

Medians, and ratios within one run; they take turns. Memory is the most that the process had.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from buildlib.initrd import cpio

SIZE = 1 << 30
"""Bytes, unpacked, of each kind of initrd."""


def write(path: Path, files: int) -> None:
    """Files of equal size that zstd makes about half as big, as programs are."""
    half = os.urandom(SIZE // files // 2)
    data = b"".join(half[at : at + 64] + bytes(64) for at in range(0, len(half), 64))
    line = ["zstd", "-q", "-3", "-T0", "-f", "-o", str(path)]
    packer = subprocess.Popen(line, stdin=subprocess.PIPE)
    assert packer.stdin
    for number in range(files):
        name = f"usr{number}" if number else "init"
        member = cpio.Member(name, number, 0o100755, 0, 0, 1, 0, len(data), (0, 0), (0, 0), None, 0)
        packer.stdin.write(cpio.header(member) + data + bytes(-len(data) % 4))
    packer.stdin.write(cpio.trailer())
    packer.stdin.close()
    packer.wait()


def seconds(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for files in (20, 2_000, 50_000):
            path = Path(folder) / "initrd"
            write(path, files)
            ours, zstd = [], []
            for _ in range(rounds):
                zstd.append(
                    seconds(lambda: subprocess.run(["zstd", "-q", "-dc", path], stdout=subprocess.DEVNULL, check=True))
                )
                line = [sys.executable, "-m", "buildlib.initrd", str(path), "list"]
                ours.append(seconds(lambda: subprocess.run(line, stdout=subprocess.DEVNULL, check=True)))
            one, other = statistics.median(ours), statistics.median(zstd)
            what = f"1 GB of zstd in {files} files: list / zstd -dc, seconds"
            print(f"{what:<58} {one:8.2f} / {other:8.2f} = {one / other:5.2f}  (wanted: at most 1.2)", flush=True)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"most memory of a process: {memory} MB (wanted: at most 200 MB)")


if __name__ == "__main__":
    main()
