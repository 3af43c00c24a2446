"""Begun by the dodo.py of a checkout of `elsewhere`: in its sandboxes, too, it is another time.

Nothing but the clock is another one there: a sandbox has its own environment, host name and mask.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from buildlib import sandbox

LIBRARY = "/run/netboot-test/clock.so"
"""libfaketime, by the same path here and in roots."""

RUN = Path("/run/netboot-test/run")
"""A root's /run with it."""

CLOCK = {
    "LD_PRELOAD": LIBRARY,
    "FAKETIME": "+400d",
    # What files say of themselves is the kernel's, which has the real time.
    "NO_FAKE_STAT": "1",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
}

_specified = sandbox.Sandbox._specified


@contextlib.contextmanager
def _with_clock(self: sandbox.Sandbox, job: Mapping[str, Any], **more: Any) -> Iterator[list[str]]:
    """The clock of programs of this machine's architecture, but for those that begin with a root that could not load
    it, or load it half unpacked."""
    if sandbox.is_foreign(self.arch) or job.get("argv", [""])[0] in ("debootstrap", "mmdebstrap"):
        with _specified(self, job, **more) as line:
            yield line
        return
    own: tuple[sandbox.Bind, ...] = ()
    if self.chroot:
        own = (sandbox.Bind(Path(LIBRARY), LIBRARY),)
    elif self.upper:
        # What packages have in /run is a part of the layer, and nothing else.
        scratch = self.work / "run"
        (scratch / "work").mkdir(parents=True, exist_ok=True)
        (self.upper / "run").mkdir(exist_ok=True)
        (self.upper / "run").chmod(0o755)
        (scratch / "upper").unlink(missing_ok=True)
        (scratch / "upper").symlink_to((self.upper / "run").absolute())
        own = (sandbox.Bind(RUN, f"{self.mount}/run", scratch=scratch),)
    changed = dataclasses.replace(self, env={**self.env, **CLOCK}, binds=(*own, *self.binds))
    with _specified(changed, job, **more) as line:
        yield line


def begin() -> None:
    """From now on, in this process."""
    setattr(sandbox.Sandbox, "_specified", _with_clock)  # noqa: B010
