"""This project beside mkosi, debos, live-build, mmdebstrap and a wiki's way, at the same image. Needs root.

    python -m bench.peers [ROUNDS] [--only NAMES] [--rows ROWS] [--no-figures] [--write docs/benchmarks.md]

Tools take turns at each row, since a machine is not as fast at any time; medians, and ratios within one run. What
cannot run here is told with its own words, and left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench import figures, page
from bench.image import CHANGES, Image
from bench.live import LiveBuild
from bench.measure import FailedError
from bench.ours import PROJECT, Ours
from bench.page import ROWS, Results
from bench.rivals import Debos, Mkosi, Mmdebstrap, Peer, Wiki
from bench.server import Server, server
from buildlib.store import TREE

WORK = PROJECT / "out" / "bench-peers"
ORDER = ("cold", "nothing", "file", "key", "cmdline", "module", "package", "group", "warm")
"""As a round measures the rows: each goes on from the one before."""


TOOLS: dict[str, Callable[[Path], Peer]] = {
    "mkosi": Mkosi,
    "mmdebstrap": Mmdebstrap,
    "wiki": Wiki,
    "live-build": LiveBuild,
    "debos": Debos,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--only", help=f"other tools, with commas: {', '.join(TOOLS)}")
    parser.add_argument("--rows", help=f"rows, with commas: {', '.join(ORDER)}")
    parser.add_argument("--no-figures", action="store_true", help="the tables alone")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the result into this page")
    asked = parser.parse_args()
    if os.geteuid():
        sys.exit("the tools, and the machine that is published to, want root")
    results = Results(asked.rounds, load=os.getloadavg()[0])
    subprocess.run(["rm", "-rf", "--one-file-system", WORK], check=True)
    WORK.mkdir(parents=True)
    ours = Ours(WORK / "ours")
    chosen = asked.only.split(",") if asked.only else list(TOOLS)
    peers: list[Peer] = [ours, *(make(WORK / name) for name, make in TOOLS.items() if name in chosen)]
    rows = [row for row in ORDER if not asked.rows or row in asked.rows.split(",")]
    with server() as there:
        there.take(ours)
        rounds(results, peers, rows, there)
    reached = list(page.figures(results, ours.name))
    results.size = _size(ours)
    if not asked.no_figures and ours.name not in results.reasons:
        reached += more(ours, asked.rounds)
    command = f"python -m bench.peers {asked.rounds}"
    text = page.page(results, peers, reached, command, WORK, time.strftime("%Y-%m-%d", time.gmtime()))
    print(text)
    if asked.write:
        page.write(asked.write, text)
    subprocess.run(["rm", "-rf", "--one-file-system", WORK], check=True)


def rounds(results: Results, peers: Sequence[Peer], rows: Sequence[str], there: Server) -> None:
    """Measure; a tool that fails is left out from then on."""
    for peer in peers:
        try:
            results.versions[peer.name] = peer.version()
        except FailedError as failed:
            results.reasons[peer.name] = str(failed)
    for number in range(1, results.rounds + 1):
        image = Image()
        for row in rows:
            image = CHANGES[row](image, number) if row in CHANGES else image
            for peer in peers:
                if peer.name in results.reasons or row in peer.same or (peer.slow and number > 1):
                    continue
                try:
                    _measure(results, peer, row, Image() if row == "warm" else image, number, there)
                except (FailedError, OSError, subprocess.CalledProcessError) as failed:
                    results.reasons[peer.name] = _told(failed)
                    tell(f"{peer.name}: {row}: {_told(failed)}")


def _measure(results: Results, peer: Peer, row: str, image: Image, number: int, there: Server) -> None:
    if row == "cold":
        peer.forget()
    elif row == "warm":
        peer.drop()
    if row != "nothing":
        peer.write(image)
    before = _layers(peer)
    cost = peer.build(row)
    if row in ("nothing", "cmdline") and _layers(peer) != before:
        raise FailedError(f"{ROWS[row]}, and a stage ran")
    results.costs.setdefault((row, peer.name), []).append(cost)
    tell(f"{number} {row:8} {peer.name:24} {cost.seconds:8.2f} s {cost.cpu:8.2f} s {cost.written / 1e6:8.1f} MB")
    if number == 1:
        results.published[row, peer.name] = there.publish(peer)


def _layers(peer: Peer) -> set[str]:
    """The keys of this project's store."""
    store = peer.folder / "out/store"
    return {path.name for path in store.iterdir()} if isinstance(peer, Ours) and store.exists() else set()


def _told(failed: Exception) -> str:
    said = getattr(failed, "stderr", None) or b""
    words = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return " ".join(f"{failed} {words[-300:]}".split())


def _size(ours: Ours) -> int:
    """Bytes of the root, by what its layers take."""
    trees = [str(path) for path in (ours.folder / "out/store").glob(f"*/{TREE}")]
    if not trees:
        return 0
    done = subprocess.run(["du", "-scb", *trees], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1].split()[0])


def more(ours: Ours, count: int) -> Iterator[figures.Figure]:
    """What no other tool takes part in; one that fails is told, and the others go on."""
    image = Image()
    ours.write(image)
    ours.build("nothing")
    parts: tuple[Callable[[], Iterator[figures.Figure]], ...] = (
        lambda: figures.squashfs(WORK, ours.folder / "out/cache/debs", image, count),
        lambda: figures.sizes(ours, WORK, image, count),
        lambda: figures.many(ours, image, count),
    )
    for what in parts:
        try:
            for one in what():
                tell(f"{one.what}: {one.value:.3f}{one.unit}, at most {one.wanted:g}")
                yield one
        except (FailedError, OSError, subprocess.CalledProcessError, KeyError, ValueError):
            tell(traceback.format_exc())


def tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
