"""What was measured, as Markdown: tables of medians and ratios, the machine, the versions."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures import Figure
from bench.measure import Cost
from bench.rivals import Peer

ROWS = {
    "cold": "cold: nothing there, downloads neither",
    "warm": "downloads cached, nothing built",
    "nothing": "nothing changed",
    "file": "one overlay file changed",
    "key": "one SSH key changed",
    "cmdline": "kernel command line changed",
    "module": "initramfs module added",
    "package": "one package added",
    "group": "one package added, in a group of its own",
}
BEGIN, END = "<!-- bench.peers writes from here -->", "<!-- to here -->"


@dataclass
class Results:
    """costs, published -- by row and tool's name; bytes
    reasons, versions -- by tool's name: why it could not be measured; what it is
    """

    rounds: int
    costs: dict[tuple[str, str], list[Cost]] = field(default_factory=dict)
    published: dict[tuple[str, str], int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    size: int = 0
    load: float = 0.0

    def value(self, row: str, name: str, of: Callable[[Cost], float]) -> float | None:
        found = self.costs.get((row, name))
        return statistics.median(of(cost) for cost in found) if found else None

    def seconds(self, row: str, name: str) -> float | None:
        return self.value(row, name, lambda cost: cost.seconds)


def machine(folder: Path) -> Iterator[str]:
    told = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", told, re.M)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    disk = subprocess.run(["stat", "-f", "-c", "%T", folder], check=True, capture_output=True, text=True).stdout
    yield f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), {memory / 2**30:.0f} GiB of memory"
    yield f"{system}, Linux {platform.release()}, {disk.strip()}"


def tables(results: Results, peers: Sequence[Peer]) -> Iterator[str]:
    """The four tables, the first tool's figures beside each other's."""
    kinds: list[tuple[str, Callable[[Cost], float], str]] = [
        ("Seconds", lambda cost: cost.seconds, "{:.2f}"),
        ("Processor time, seconds (user and system, of all processes)", lambda cost: cost.cpu, "{:.2f}"),
        ("Megabytes written", lambda cost: cost.written / 1e6, "{:.1f}"),
    ]

    def median(of: Callable[[Cost], float]) -> Callable[[str, Peer], float | None]:
        return lambda row, peer: results.value(row, peer.name, of)

    for title, of, form in kinds:
        yield from _table(title, median(of), form, results, peers)
    yield from _table(
        "Megabytes published",
        lambda row, peer: _megabytes(results.published.get((row, peer.name))),
        "{:.2f}",
        results,
        peers,
    )


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6


def _table(
    title: str,
    value: Callable[[str, Peer], float | None],
    form: str,
    results: Results,
    peers: Sequence[Peer],
) -> Iterator[str]:
    ran = [peer for peer in peers if peer.name not in results.reasons]
    yield from (f"### {title}", "", f"| | {' | '.join(peer.name for peer in ran)} |", "|---|" + "---:|" * len(ran))
    for row, text in ROWS.items():
        own = value(row, ran[0])
        cells = []
        for peer in ran:
            instead = peer.same.get(row)
            found = value(instead or row, peer)
            if found is None:
                cells.append("")
                continue
            cell = form.format(found)
            if own is not None and peer is not ran[0] and found:
                cell += f" ({own / found:.3f})"
            cells.append(f"*{cell}*" if instead else cell)
        yield f"| {text} | {' | '.join(cells)} |"
    yield ""


def figures(results: Results, ours: str) -> Iterator[Figure]:
    """What is to be reached of what the tables say."""

    def ratio(row: str, name: str, other: str, wanted: float) -> Iterator[Figure]:
        for what, of in (("", lambda cost: cost.seconds), (", processor time", lambda cost: cost.cpu)):
            a, b = results.value(row, ours, of), results.value(other, name, of)
            if a is not None and b:
                against = name if name != ours else "this project"
                yield Figure(f"{ROWS[row]}, over {against}: {ROWS[other]}{what}", a / b, wanted)

    yield from ratio("nothing", "mkosi", "nothing", 1)
    for row in ("file", "key"):
        yield from ratio(row, "mkosi", row, 0.3)
        yield from ratio(row, "debootstrap, tar, gzip", "warm", 0.05)
    now, before = results.seconds("cmdline", ours), results.seconds("nothing", ours)
    if now is not None and before is not None:
        yield Figure(f"{ROWS['cmdline']}: seconds over {ROWS['nothing']}", now - before, 0.5, " s")
    for row in ("group", "package"):
        yield from ratio(row, ours, "cold", 0.35)
        yield from ratio(row, "mkosi", "package", 0.35)
    for row in ("cold", "warm"):
        yield from ratio(row, "mmdebstrap", row, 1.15)
        yield from ratio(row, "mkosi", row, 1)
        yield from ratio(row, "debootstrap, tar, gzip", row, 1)
    for name, instead in (("live-build", "warm"), ("debos", "cold")):
        yield from ratio("cold", name, "cold", 1)
        yield from ratio("warm", name, instead, 1)


def page(
    results: Results, peers: Sequence[Peer], reached: Sequence[Figure], command: str, folder: Path, date: str
) -> str:
    """All of it."""
    lines = [f"`{command}`, {date}. {results.rounds} rounds; load of the machine before: {results.load:.1f}.", ""]
    lines += [f"- {text}" for text in machine(folder)]
    for peer in peers:
        if peer.name in results.versions:
            lines.append(f"- {peer.name} {results.versions[peer.name]}{', ' if peer.note else ''}{peer.note}")
    lines += [f"- root of {results.size / 1e6:.0f} MB, with a kernel", ""]
    lines += [f"- not measured: {name}: {reason}" for name, reason in results.reasons.items()]
    lines += ["", *tables(results, peers)] if results.costs else []
    if reached:
        lines += ["### Figures to reach", "", "| | is | at most | |", "|---|---:|---:|---|"]
        for one in reached:
            lines.append(
                f"| {one.what} | {one.value:.3f}{one.unit} | {one.wanted:g}{one.unit} | {'yes' if one.met else 'no'} |"
            )
    return "\n".join(lines).rstrip() + "\n"


def write(path: Path, text: str) -> None:
    """Put it in the place of what the last run wrote."""
    whole = path.read_text()
    before, begin, rest = whole.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: has no {BEGIN} and {END}")
    path.write_text(f"{before}{begin}\n{text}{end}{after}")
