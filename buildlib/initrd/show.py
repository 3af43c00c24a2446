"""An initrd for people: its segments, what is big in them, and what is wrong."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable, Iterator

from buildlib.initrd.checks import Finding
from buildlib.initrd.scan import Initrd
from buildlib.listing import shown

_BIGGEST = 5


def segments(initrd: Initrd) -> Iterator[str]:
    """A line a segment, and its biggest files."""
    yield f"{'segment':>7} {'offset':>12} {'bytes':>12} {'unpacked':>12}  {'kind':5} {'entries':>7}"
    for number, segment in enumerate(initrd.segments, 1):
        yield (
            f"{number:7} {segment.offset:12,} {segment.size:12,} {segment.unpacked:12,}  {segment.kind:5} "
            f"{len(segment.entries):7,}"
        )
        files = sorted(segment.entries, key=lambda entry: (-entry.member.size, entry.member.path))
        for entry in files[:_BIGGEST]:
            if entry.member.size:
                yield f"{'':7} {'':12} {'':12} {entry.member.size:12,}  {shown(entry.member.path)}"
    if initrd.tail < initrd.size:
        yield f"{'rest':>7} {initrd.tail:12,} {initrd.size - initrd.tail:12,}  is not read by the kernel"


def entries(initrd: Initrd) -> Iterator[str]:
    """A line an entry, as `ls -l` has it."""
    for entry in initrd.entries:
        member = entry.member
        to = f" -> {shown(entry.head.decode(errors='surrogateescape'))}" if member.kind == "l" else ""
        size = f"{member.rdev[0]}, {member.rdev[1]}" if member.kind in "cb" else f"{member.size}"
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(member.mtime))
        who = f"{member.uid}/{member.gid}"
        yield f"{entry.segment + 1:2} {stat.filemode(member.mode)} {who:>9} {size:>12} {when} {shown(member.path)}{to}"


def findings(found: Iterable[Finding]) -> Iterator[str]:
    """Each finding, what the console shows because of it, and what to do."""
    for finding in found:
        yield f"{finding.where}: {finding.problem}"
        if finding.kernel:
            yield f"  the console shows: {finding.kernel}"
        yield f"  hint: {finding.hint}"
