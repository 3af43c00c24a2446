"""The store: whole entries or none, whatever is killed when; and one builder for each key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from buildlib import build, sandbox
from buildlib.errors import BuildError
from buildlib.plan import Keyed, Stage
from buildlib.store import RECEIPT, Output, Receipt, Store, describe
from tests import stage_helper as helper

CHECKOUT = Path(__file__).parents[1]
KEY = "a" * 64
OTHER = "b" * 64
HELLO = Output("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", 5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def receipt(key: str = KEY, **changes: Any) -> Receipt:
    given: dict[str, Any] = {
        "document": {"stage": "one", "options": {"a": [1, None]}},
        "outputs": {"hello": HELLO},
        "layer": Output("c" * 64, 7),
        "seconds": 1.5,
        "facts": {"kernel": "6.1"},
    }
    return Receipt(key, **{**given, **changes})


def put(store: Store, key: str = KEY, text: str = "hello", **changes: Any) -> Receipt:
    """An entry with one file."""
    with store.lock(key):
        folder = store.begin(key)
        (folder / "out").mkdir()
        (folder / "out/hello").write_text(text)
        made = receipt(key, **changes)
        store.put(made, folder / "out")
        store.abandon(folder)
    return made


# Entries


def test_what_is_put_is_there(store: Store) -> None:
    put(store)
    assert store.has(KEY)


def test_a_receipt_comes_back_as_it_was(store: Store) -> None:
    assert put(store) == store.get(KEY)


def test_a_receipt_without_a_layer_comes_back_as_it_was(store: Store) -> None:
    assert put(store, layer=None) == store.get(KEY)


def test_a_file_lies_where_the_store_says(store: Store) -> None:
    put(store)
    assert store.path(KEY, "hello").read_text() == "hello"


def test_a_receipts_size_is_that_of_files_and_layer() -> None:
    assert receipt().size == 12


def test_putting_again_replaces(store: Store) -> None:
    put(store)
    put(store, text="other")
    assert store.path(KEY, "hello").read_text() == "other"


def test_an_unknown_key_is_not_there(store: Store) -> None:
    assert not store.has(KEY)


def test_an_unknown_key_has_no_receipt(store: Store) -> None:
    with pytest.raises(KeyError, match=KEY):
        store.get(KEY)


def test_an_empty_store_has_no_keys(store: Store) -> None:
    assert list(store.keys()) == []


def test_keys(store: Store) -> None:
    for key in (KEY, OTHER):
        put(store, key)
    assert sorted(store.keys()) == [KEY, OTHER]


def test_what_is_removed_is_gone(store: Store) -> None:
    put(store)
    store.remove(KEY)
    assert (store.has(KEY), store.path(KEY).exists()) == (False, False)


def test_removing_an_unknown_key(store: Store) -> None:
    store.remove(KEY)
    assert not store.has(KEY)


def test_removing_one_key_keeps_the_others(store: Store) -> None:
    for key in (KEY, OTHER):
        put(store, key)
    store.remove(KEY)
    assert list(store.keys()) == [OTHER]


def test_a_removal_that_was_cut_short_is_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receipt goes first, so that the rest never counts."""

    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    put(store)
    monkeypatch.setattr(sandbox, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        store.remove(KEY)
    assert not store.has(KEY)


def half(store: Store) -> None:
    """As a crash leaves it: the files are there, the receipt is not."""
    put(store)
    store.path(KEY, RECEIPT).unlink()


def _gives_receipt(store: Store) -> bool:
    try:
        store.get(KEY)
    except KeyError:
        return False
    return True


@pytest.mark.parametrize(
    "look",
    [
        lambda store: store.has(KEY),
        lambda store: KEY in set(store.keys()),
        _gives_receipt,
    ],
    ids=["has", "keys", "get"],
)
def test_half_an_entry_never_counts(store: Store, look: Callable[[Store], bool]) -> None:
    half(store)
    assert not look(store)


def test_half_an_entry_is_replaced(store: Store) -> None:
    half(store)
    put(store, text="whole")
    assert store.path(KEY, "hello").read_text() == "whole"


def test_a_whole_entry_is_verified(store: Store) -> None:
    put(store)
    assert store.verify(KEY) == []


def test_a_changed_file_is_found(store: Store) -> None:
    put(store)
    store.path(KEY, "hello").write_text("hullo")
    assert store.verify(KEY) == ["hello"]


def test_a_missing_file_is_found(store: Store) -> None:
    put(store)
    store.path(KEY, "hello").unlink()
    assert store.verify(KEY) == ["hello"]


def test_a_file_is_described_by_digest_and_size(tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("hello")
    assert describe(tmp_path / "hello") == HELLO


# Work


def test_work_begins_in_an_empty_folder(store: Store) -> None:
    (store.begin(KEY) / "left").touch()
    assert list(store.begin(KEY).iterdir()) == []


def test_work_is_on_the_stores_file_system(store: Store) -> None:
    put(store)
    assert store.begin(KEY).stat().st_dev == store.path(KEY).stat().st_dev


def test_abandoned_work_is_gone(store: Store) -> None:
    folder = store.begin(KEY)
    store.abandon(folder)
    assert not folder.exists()


def test_work_does_not_count_as_an_entry(store: Store) -> None:
    (store.begin(KEY) / RECEIPT).write_text("{}")
    assert not store.has(KEY)


HOLDER = """
import sys, time
from pathlib import Path
from buildlib.store import Store
store = Store(Path(sys.argv[1]))
with store.lock(sys.argv[2]):
    (store.begin(sys.argv[2]) / "half").touch()
    print("holding", flush=True)
    time.sleep(60)
"""


def holder(store: Store) -> subprocess.Popen[str]:
    """A process that is at work on KEY."""
    line = [sys.executable, "-c", HOLDER, str(store.folder), KEY]
    process = subprocess.Popen(line, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def test_sweeping_leaves_work_that_goes_on(store: Store) -> None:
    with holder(store) as process:
        store.sweep()
        there = any((store.folder / "tmp").glob(f"{KEY}.*/half"))
        process.kill()
    assert there


def test_sweeping_removes_the_work_of_a_killed_process(store: Store) -> None:
    with holder(store) as process:
        process.kill()
    store.sweep()
    assert not any((store.folder / "tmp").glob(f"{KEY}.*"))


def test_sweeping_keeps_entries(store: Store) -> None:
    put(store)
    store.sweep()
    assert store.has(KEY)


def test_sweeping_an_empty_store(store: Store) -> None:
    store.sweep()
    assert not store.folder.exists()


def test_a_lock_is_held_by_one(store: Store) -> None:
    with holder(store) as process, store.lock(KEY, wait=False) as free:
        process.kill()
    assert not free


def test_a_killed_process_holds_no_lock(store: Store) -> None:
    with holder(store) as process:
        process.kill()
    with store.lock(KEY, wait=False) as free:
        assert free


def test_locks_of_other_keys_are_free(store: Store) -> None:
    with store.lock(KEY), store.lock(OTHER, wait=False) as free:
        assert free


# Running a stage into the store


def keyed(
    folder: Path, function: str = "make", key: str = KEY, inputs: tuple[Stage, ...] = (), **options: Any
) -> Keyed:
    told = {"runs": str(folder / "runs"), **options}
    stage = Stage("one", f"tests.stage_helper:{function}", told, inputs=inputs)
    return Keyed(stage, key, {"stage": "one", "options": told})


def run(store: Store, made: Keyed, keys: Mapping[str, str] | None = None) -> Receipt:
    return build.run(
        made,
        keys or {},
        store,
        cache=store.folder / "cache",
        log=store.folder / "log/one.log",
        epoch=1,
        progress=lambda fraction, text: None,
        mirrors={},
    )


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def test_a_stage_runs_into_the_store(store: Store, tmp_path: Path) -> None:
    run(store, keyed(tmp_path))
    assert store.path(KEY, "made").read_text() == "made\n"


def test_a_stages_receipt_is_what_run_gives(store: Store, tmp_path: Path) -> None:
    assert run(store, keyed(tmp_path)) == store.get(KEY)


def test_a_stages_files_are_in_its_receipt(store: Store, tmp_path: Path) -> None:
    run(store, keyed(tmp_path))
    assert set(store.get(KEY).outputs) == {"made", "tree.list"}


def test_a_stages_entry_is_verified(store: Store, tmp_path: Path) -> None:
    run(store, keyed(tmp_path))
    assert store.verify(KEY) == []


def test_a_stages_facts_are_in_its_receipt(store: Store, tmp_path: Path) -> None:
    assert run(store, keyed(tmp_path)).facts == {"say": "so"}


def test_a_layers_digest_is_that_of_its_listing(store: Store, tmp_path: Path) -> None:
    made = run(store, keyed(tmp_path))
    assert made.layer is not None
    assert made.layer.digest == made.outputs["tree.list"].digest


def test_the_same_stage_elsewhere_makes_the_same(tmp_path: Path) -> None:
    one, two = (run(Store(tmp_path / name), keyed(tmp_path)) for name in ("one", "two"))
    assert (one.outputs, one.layer) == (two.outputs, two.layer)


def test_a_stage_that_is_there_does_not_run(store: Store, tmp_path: Path) -> None:
    for _ in range(2):
        run(store, keyed(tmp_path))
    assert runs(tmp_path) == 1


def test_nothing_of_the_work_is_left(store: Store, tmp_path: Path) -> None:
    run(store, keyed(tmp_path))
    assert os.listdir(store.folder / "tmp") == ["locks"]


def test_a_failed_stage_leaves_no_entry(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="it cannot be"):
        run(store, keyed(tmp_path, "fail"))
    assert not store.has(KEY)


def test_a_failed_stage_leaves_nothing_of_its_work(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BuildError):
        run(store, keyed(tmp_path, "fail"))
    assert os.listdir(store.folder / "tmp") == ["locks"]


def test_a_failed_stage_names_its_log(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        run(store, keyed(tmp_path, "fail"))
    assert caught.value.log == store.folder / "log/one.log"


def test_files_that_were_made_earlier_are_adopted(store: Store, tmp_path: Path) -> None:
    (tmp_path / "made/lists").mkdir(parents=True)
    (tmp_path / "made/lists/one").write_text("hello")
    build.adopt(keyed(tmp_path), tmp_path / "made", store)
    assert store.get(KEY).outputs == {"lists/one": HELLO}


def test_what_is_there_is_not_replaced_by_adoption(store: Store, tmp_path: Path) -> None:
    put(store)
    (tmp_path / "made").mkdir()
    build.adopt(keyed(tmp_path), tmp_path / "made", store)
    assert store.path(KEY, "hello").exists()


RUNNER = """
import json, sys
from pathlib import Path
from buildlib import build
from buildlib.plan import Keyed, Stage
from buildlib.store import Store
out, function, key, options = sys.argv[1:]
stage = Stage("one", f"tests.stage_helper:{function}", json.loads(options))
build.run(
    Keyed(stage, key, {}), {}, Store(Path(out)), cache=Path(out), log=Path(out) / "log", epoch=1,
    progress=lambda fraction, text: None, mirrors={},
)
"""


def runner(store: Store, made: Keyed) -> subprocess.Popen[bytes]:
    """Another process that runs a stage into the store."""
    function = made.stage.run.partition(":")[2]
    options = json.dumps(dict(made.stage.options))
    line = [sys.executable, "-c", RUNNER, str(store.folder), function, made.key, options]
    return subprocess.Popen(line, cwd=CHECKOUT)


def test_of_two_that_want_one_key_one_builds_and_one_waits(store: Store, tmp_path: Path) -> None:
    made = keyed(tmp_path, seconds=0.5)
    with runner(store, made) as one, runner(store, made) as two:
        statuses = [one.wait(), two.wait()]
    assert (statuses, runs(tmp_path)) == ([0, 0], 1)


def test_two_that_want_different_keys_build_both(store: Store, tmp_path: Path) -> None:
    with runner(store, keyed(tmp_path)), runner(store, keyed(tmp_path, key=OTHER)):
        pass
    assert sorted(store.keys()) == [KEY, OTHER]


def test_a_waiting_process_builds_when_the_other_was_killed(store: Store, tmp_path: Path) -> None:
    """However late the killed one's work is removed: the other's must not go with it."""
    with runner(store, keyed(tmp_path, "stop")) as one:
        assert helper.wait_until(
            lambda: (tmp_path / "runs").exists() and helper.running(str(store.folder / "tmp" / KEY))
        )
        guards = helper.processes(str(store.folder / "tmp" / KEY))
        for pid in guards:
            os.kill(pid, signal.SIGSTOP)
        with runner(store, keyed(tmp_path, seconds=1)) as two:
            one.kill()
            helper.wait_until(lambda: runs(tmp_path) == 2, 1)
            for pid in guards:
                os.kill(pid, signal.SIGCONT)
            assert two.wait() == 0
    assert store.path(KEY, "made").read_text() == "made\n"


@pytest.fixture(params=[signal.SIGKILL, signal.SIGINT])
def stopped(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Store:
    """A store in which a process that ran a stage was stopped."""
    with runner(store, keyed(tmp_path, "stop")) as process:
        assert helper.wait_until((tmp_path / "runs").exists)
        process.send_signal(request.param)
    return store


def test_a_stopped_stage_leaves_no_entry(stopped: Store) -> None:
    assert list(stopped.keys()) == []


def test_a_stopped_stage_leaves_nothing_of_its_work(stopped: Store) -> None:
    assert helper.wait_until(lambda: os.listdir(stopped.folder / "tmp") == ["locks"])


def test_a_stage_has_its_inputs_layers_below(store: Store, tmp_path: Path) -> None:
    below = keyed(tmp_path)
    run(store, below)
    above = keyed(tmp_path, "look", OTHER, inputs=(below.stage,))
    assert run(store, above, {"one": KEY}).facts["layers"] == [str(store.path(KEY, "tree"))]
