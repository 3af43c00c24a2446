"""An image out of an ISO of 1.2 GB, beside bsdtar by hand: `python -m bench.isos [ROUNDS]`. Medians of one run."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from buildlib.distros.archlinux import files, iso
from tests import archlab


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        made = archlab.tree(folder / "tree")
        root = made / files.ROOTS[0]
        subprocess.run(["openssl", "rand", "-out", str(root), str(1 << 30)], check=True)
        done = subprocess.run(["sha512sum", root.name], cwd=root.parent, check=True, capture_output=True, text=True)
        (made / files.CHECKSUM).write_text(done.stdout)
        (made / "more").write_bytes(bytes(200 << 20))
        path = archlab.iso(made, folder / "arch.iso")
        shutil.rmtree(made)
        times: dict[str, list[float]] = {"bsdtar": [], "ours": [], "verified": []}
        wanted = iso.names(path)
        for _ in range(rounds):
            begun = time.monotonic()
            (folder / "out").mkdir()
            line = ["bsdtar", "-x", "-f", str(path), "-C", str(folder / "out"), *wanted]
            subprocess.run(line, check=True)
            times["bsdtar"].append(time.monotonic() - begun)
            shutil.rmtree(folder / "out")
            begun = time.monotonic()
            iso.take(path, folder / "out", iso.names(path), folder / "log")
            times["ours"].append(time.monotonic() - begun)
            shutil.rmtree(folder / "out")
            begun = time.monotonic()
            iso.extract(path, folder / "out", folder / "log")
            times["verified"].append(time.monotonic() - begun)
            shutil.rmtree(folder / "out")
    hand, own, checked = (statistics.median(times[name]) for name in ("bsdtar", "ours", "verified"))
    print(f"{rounds} rounds; medians, seconds")
    print(f"taken / bsdtar      {own:5.2f} / {hand:5.2f} = {own / hand:4.2f}  (wanted: at most 1.3)")
    print(f"verified / bsdtar   {checked:5.2f} / {hand:5.2f} = {checked / hand:4.2f}  (with the SHA-512 of the root)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
