"""An initrd of 1 GB listed, beside `zstd -dc`: `python -m bench.initrds [ROUNDS]`.

Medians, and ratios within one run; they take turns. Memory is the most that the process had.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from buildlib.initrd import cpio

SIZE = 1 << 30
"""Bytes, unpacked, of each kind of initrd."""


def write(path: Path, files: int) -> None:
    """Files of equal size that zstd makes about half as big, as programs are."""
    # Words of a few thousand, as text and programs have them.
    chance = random.Random(1)
    words = [chance.randbytes(chance.randrange(3, 20)) for _ in range(20_000)]
    pool = b"".join(chance.choices(words, k=12_000_000))
    size = SIZE // files
    line = ["zstd", "-q", "-3", "-T0", "-f", "-o", str(path)]
    packer = subprocess.Popen(line, stdin=subprocess.PIPE)
    assert packer.stdin
    for number in range(files):
        name = f"usr{number}" if number else "init"
        member = cpio.Member(name, number, 0o100755, 0, 0, 1, 0, size, (0, 0), (0, 0), None, 0)
        packer.stdin.write(cpio.header(member))
        for begin in range(0, size, len(pool)):
            length = min(len(pool), size - begin)
            at = chance.randrange(len(pool) - length + 1)
            packer.stdin.write(memoryview(pool)[at : at + length])
        packer.stdin.write(bytes(-size % 4))
    packer.stdin.write(cpio.trailer())
    packer.stdin.close()
    packer.wait()


OURS = """
import re, sys
from buildlib.initrd.__main__ import main
main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


def measure(line: list[str]) -> tuple[float, str]:
    """Seconds, and what it wrote to its standard error."""
    begun = time.monotonic()
    done = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True)
    return time.monotonic() - begun, done.stderr


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    memory = 0
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for files in (20, 2_000, 50_000):
            path = Path(folder) / "initrd"
            write(path, files)
            ours, zstd = [], []
            for _ in range(rounds):
                zstd.append(measure(["zstd", "-q", "-dc", str(path)])[0])
                taken, used = measure([sys.executable, "-c", OURS, str(path), "list"])
                ours.append(taken)
                memory = max(memory, int(used) // 1024)
            one, other = statistics.median(ours), statistics.median(zstd)
            what = f"1 GB of zstd in {files} files: list / zstd -dc, seconds"
            print(f"{what:<58} {one:8.2f} / {other:8.2f} = {one / other:5.2f}  (wanted: at most 1.2)", flush=True)
    print(f"most memory: {memory} MB (wanted: at most 200 MB)")


if __name__ == "__main__":
    main()
