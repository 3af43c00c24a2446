"""Runs one stage into the store."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from buildlib import sandbox, space, tree
from buildlib.errors import BuildError
from buildlib.plan import Keyed, key
from buildlib.store import LISTING, TREE, Output, Receipt, Store, Waiting, describe
from buildlib.work import Progress, Work

Mirrors = Mapping[str, Mapping[str, str | None]]


def run(
    keyed: Keyed,
    keys: Mapping[str, str],
    store: Store,
    *,
    cache: Path,
    log: Path,
    epoch: int,
    progress: Progress,
    mirrors: Mirrors,
    what: str = "",
    waiting: Waiting | None = None,
) -> Receipt:
    """Run a stage unless the store has its outcome; wait when another process is at it.

    keys  -- key by name of the stages before it
    cache -- folder that stays between builds
    log   -- the stage's log, written anew
    epoch -- SOURCE_DATE_EPOCH for all that it makes, seconds since 1970
    mirrors -- the site's mirrors by distribution
    what  -- this stage in words, for other processes that wait for it; `waiting` is told for whom this one does
    Raises BuildError, with the log when there is one.
    """
    with store.used(waiting), store.lock(keyed.key, what=what, waiting=waiting):
        if store.has(keyed.key):
            return store.get(keyed.key)
        lost = [stage.name for stage in keyed.stage.inputs if not store.has(keys[stage.name])]
        if lost:
            raise BuildError(
                f"the store no longer has the outcome of {', '.join(lost)}: it went while this build ran",
                hint="build again: what lacks is made anew",
            )
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        folder = store.begin(keyed.key)
        inputs = {stage.name: store.path(keys[stage.name]) for stage in keyed.stage.inputs}
        work = Work(
            stage=keyed.stage,
            key=keyed.key,
            out=folder / "out",
            inputs=inputs,
            layers=tuple(path / TREE for path in inputs.values() if (path / TREE).exists()),
            scratch=folder / "scratch",
            cache=cache,
            kept=store.kept,
            alike=key({**keyed.document, "inputs": sorted(inputs), "epoch": epoch}),
            log=log,
            progress=progress,
            epoch=epoch,
            mirrors=mirrors,
        )
        with sandbox.guard(folder):
            try:
                receipt = _run(keyed, work, store)
            except (BuildError, OSError) as error:
                full = space.full(error, folder, log)
                if full is not None:
                    raise full from error
                if isinstance(error, BuildError):
                    error.log = error.log or log
                raise
            store.abandon(folder)
        return receipt


def _run(keyed: Keyed, work: Work, store: Store) -> Receipt:
    started = time.monotonic()
    work.out.mkdir()
    work.scratch.mkdir()
    function(keyed.stage.run)(work)
    work.progress(None, "checksums")
    layer = _layer(work)
    receipt = Receipt(
        key=keyed.key,
        document=keyed.document,
        outputs=outputs(work.out),
        layer=layer,
        seconds=round(time.monotonic() - started, 1),
        facts=work.facts,
    )
    store.put(receipt, work.out)
    return receipt


def function(run: str) -> Callable[[Work], None]:
    """The function that `module:function` names."""
    module, _, name = run.partition(":")
    found: Callable[[Work], None] = getattr(importlib.import_module(module), name)
    return found


def _layer(work: Work) -> Output | None:
    if not (work.out / TREE).exists():
        return None
    arguments = {"tree": str(work.out / TREE), "listing": str(work.out / LISTING), "epoch": work.epoch}
    if os.geteuid() == 0:  # who may read all of it here as well
        made = tree.write_listing(arguments)
    else:
        made = sandbox.host(work.scratch / "listing").call(tree.write_listing, arguments, log=work.log)
    return Output(made["digest"], made["size"])


def adopt(keyed: Keyed, made: Path, store: Store) -> None:
    """Put files that were made while something else was found out into the store, as the outcome of a stage."""
    with store.lock(keyed.key):
        if not store.has(keyed.key):
            store.put(Receipt(keyed.key, keyed.document, outputs(made), None, 0.0), made)


def outputs(folder: Path) -> dict[str, Output]:
    """Digest and size of each file below a folder, but for the layer's own tree."""
    found = (
        [path for path in folder.rglob("*") if path.is_file()]
        if not (folder / TREE).exists()
        else list(folder.glob("*"))
    )
    return {str(path.relative_to(folder)): describe(path) for path in sorted(found) if path.is_file()}
