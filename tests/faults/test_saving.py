"""R1, R2: a save that is killed or fails at any point leaves the checkpoints before it, and the next one works."""

import os
import shutil
import signal

import pytest

from nanolm.data import open_prepared, prepare
from nanolm.device import resolve_compute
from nanolm.files import sweep_leftovers
from nanolm.metrics import Calibration
from nanolm.training import find_checkpoint
from nanolm.training.checkpoint import prune_checkpoints, save_checkpoint
from nanolm.training.resume import new_state
from tests.faults.injection import FAILED, file_limit, in_child, kill_at


@pytest.fixture
def saving(tiny, tmp_path):
    """A run with a checkpoint of step 1, and a function that publishes step 2 and prunes to one."""
    config, run_dir = tiny(), tmp_path / "run"
    corpus = open_prepared(prepare(config.data, config.tokenizer))
    state = new_state(config, corpus, resolve_compute("cpu", "fp32"))

    def save(step=2):
        state.step = step
        reason = Calibration.none("a reason")
        save_checkpoint(run_dir, state, config, corpus.tokenizer, corpus.fingerprint, reason)
        prune_checkpoints(run_dir, 1, step)

    save(1)
    return run_dir, save


def names(run_dir):
    return sorted(os.listdir(run_dir / "checkpoints"))


def check(run_dir, save):
    """Either the old or the new checkpoint is there, whole; leftovers are swept; another save works."""
    step = find_checkpoint(run_dir).step
    assert step in (1, 2)
    sweep_leftovers(run_dir / "checkpoints")
    left = names(run_dir)
    assert left[-1] == f"step-{step:08d}"
    assert [find_checkpoint(run_dir / "checkpoints" / name).step for name in left] == [int(name[5:]) for name in left]
    save(3)
    assert find_checkpoint(run_dir).step == 3
    assert names(run_dir) == ["step-00000003"]
    shutil.rmtree(run_dir / "checkpoints" / "step-00000003")
    save(1)
    return step


def kill_at_every_call(save):
    """Yield after each save that was killed before one of its calls, until one comes to its end."""
    for call in range(200):
        status = in_child(save, kill_at(call))
        if status == 0:
            assert call >= 15  # files, syncs, renames, a removal
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, (call, status)
        yield
    raise AssertionError("the save never came to its end")


def test_killed_before_every_open_sync_rename_and_removal(saving):
    run_dir, save = saving
    found = [check(run_dir, save) for _ in kill_at_every_call(save)]
    assert found == sorted(found)  # the old one up to the rename, the new one from then on
    assert {1, 2} == set(found)


def test_killed_while_a_checkpoint_of_the_same_step_is_replaced(saving):
    """The only one that is kept: after a stop at step 1, the last evaluation adds the temperature to it."""
    run_dir, save = saving
    for _ in kill_at_every_call(lambda: save(1)):
        sweep_leftovers(run_dir / "checkpoints")  # as the next start does before it looks for checkpoints
        assert names(run_dir) == ["step-00000001"]
        assert find_checkpoint(run_dir).step == 1
    assert names(run_dir) == ["step-00000001"]


@pytest.mark.parametrize("fatal", [False, True], ids=["disk full", "killed half-way"])
def test_no_room_for_the_files(saving, fatal):
    run_dir, save = saving
    sizes = sorted(path.stat().st_size for path in find_checkpoint(run_dir).path.iterdir())
    for limit in (0, 1, sizes[0] - 1, sizes[1] - 1, sizes[2] + 1, sizes[-2] - 1, sizes[-1] // 2, sizes[-1] - 1):
        before = {path: path.read_bytes() for path in (run_dir / "checkpoints").rglob("*") if path.is_file()}
        status = in_child(save, file_limit(limit, fatal=fatal))
        if fatal:
            assert os.WIFSIGNALED(status), (limit, status)
        else:
            assert os.WEXITSTATUS(status) == FAILED, (limit, status)
            assert {p: p.read_bytes() for p in (run_dir / "checkpoints").rglob("*") if p.is_file()} == before
        assert check(run_dir, save) == 1
