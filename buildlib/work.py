"""What a running stage is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from buildlib.plan import Json, Stage
from buildlib.sandbox import Bind, Sandbox

Progress = Callable[[float | None, str], None]
"""Told how far a stage is: a fraction between 0 and 1, or None where nobody knows, and what it is doing."""


@dataclass
class Work:
    """A stage at work.

    out      -- folder for what the stage makes; its `tree`, if made, becomes a layer
    inputs   -- folder of each input's outcome, by stage name
    layers   -- the root tree below, lowest first
    scratch  -- folder that is gone afterwards
    cache    -- folder that stays between builds: downloads
    kept     -- folder of what stages have kept for others, by their keys; it stays between builds into the same store
    alike    -- the same for stages that differ by nothing but the outcomes of those before them
    log      -- the stage's log
    progress -- to be told how far it is
    epoch    -- SOURCE_DATE_EPOCH, seconds since 1970
    mirrors  -- the site's mirrors by distribution: where packages come from, not which
    facts    -- what the stage has to say to the manifest, filled by it
    """

    stage: Stage
    key: str
    out: Path
    inputs: Mapping[str, Path]
    layers: tuple[Path, ...]
    scratch: Path
    cache: Path
    kept: Path
    alike: str
    log: Path
    progress: Progress
    epoch: int
    mirrors: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    facts: dict[str, Json] = field(default_factory=dict)

    @property
    def options(self) -> Mapping[str, Json]:
        """The stage's options and routes."""
        return {**self.stage.options, **self.stage.routes}

    @property
    def tree(self) -> Path:
        """The folder of the stage's own layer."""
        tree = self.out / "tree"
        if not tree.exists():
            tree.mkdir()
            # A layer's top folder becomes the root's own: mkdir's mode depends on the caller's umask.
            tree.chmod(0o755)
        return tree

    @property
    def mount(self) -> Path:
        """Where a sandbox mounts its stack, for programs that stay on the host's root."""
        return self.scratch / "sandbox" / "mount"

    def sandbox(
        self,
        *,
        change: bool = True,
        chroot: bool = True,
        network: bool = False,
        binds: tuple[Bind, ...] = (),
        user: bool = True,
        layers: tuple[Path, ...] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Sandbox:
        """A sandbox over the layers below; with `change`, what is written becomes this stage's layer."""
        return Sandbox(
            work=self.scratch / "sandbox",
            layers=self.layers if layers is None else layers,
            upper=self.tree if change else None,
            chroot=chroot,
            binds=binds,
            network=network,
            arch=self.stage.arch,
            user=user,
            env={"SOURCE_DATE_EPOCH": str(self.epoch), **(env or {})},
        )
