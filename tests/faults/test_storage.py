"""R2, R19: a disk that is full or fails is found before the first step, or ends the run in words with nothing lost."""

import errno
import os
import resource
import signal

import pytest

from nanolm.config import command_line
from nanolm.errors import StorageError
from nanolm.training import find_checkpoint
from nanolm.training.loop import TrainingLoop
from nanolm.training.storage import checkpoint_bytes
from tests.faults.injection import in_child
from tests.faults.runs import COMMAND, outcome, run

NEXT = f"continue with: {COMMAND}"


def limit_files(num_bytes):
    """From now on no file of this process grows beyond so many bytes: the write fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


@pytest.mark.parametrize("what", ["metrics", "weights", "training state", "small files"])
def test_a_disk_that_fills_up_ends_the_run_in_words_and_loses_nothing(tiny, straight, tmp_path, what):
    """At the start of step 4, when the checkpoint of step 2 is there; a real limit, in a child of its own."""
    config, run_dir = tiny(), tmp_path / "run"
    original = TrainingLoop.step

    def full(self):
        if self.state.step == 3:
            files = find_checkpoint(run_dir).path
            limit_files(
                {
                    "metrics": (run_dir / "metrics.jsonl").stat().st_size + 20,
                    "weights": (files / "model.safetensors").stat().st_size // 2,
                    "training state": (files / "training_state.pt").stat().st_size - 100,
                    "small files": (files / "config.yaml").stat().st_size - 1,
                }[what]
            )
        return original(self)

    def fail_in_words():
        TrainingLoop.step = full
        with pytest.raises(StorageError) as caught:
            run(config, run_dir)
        message = str(caught.value)
        assert "File too large, with" in message
        assert f"The last good checkpoint is {run_dir}/checkpoints/step-00000002, of step 2." in message
        assert message.endswith(NEXT)
        named = {"metrics": "metrics.jsonl", "weights": "model.safetensors", "training state": "training_state.pt"}
        assert named.get(what, "") in message
        assert caught.value.exit_code == 1

    assert in_child(fail_in_words) == 0
    assert os.listdir(run_dir / "checkpoints") == ["step-00000002"]  # nothing half written, nothing pruned
    assert run(config, run_dir) == 0
    assert outcome(run_dir) == straight(config)


def test_an_io_error_of_a_sync_ends_the_run_in_words(tiny, tmp_path, monkeypatch):
    config, run_dir = tiny(), tmp_path / "run"
    sync = os.fsync

    def broken(descriptor):
        if (run_dir / "checkpoints" / "step-00000002").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", broken)
        with pytest.raises(StorageError, match=r"Input/output error\. The last good checkpoint is .*, of step 2\."):
            run(config, run_dir)
    assert os.listdir(run_dir / "checkpoints") == ["step-00000002"]
    assert run(config, run_dir) == 0


def test_the_size_of_a_checkpoint_is_known_beforehand(tiny, tmp_path, monkeypatch):
    """Within the allowance for small files, for both optimizers, from a state that has no moments yet."""
    estimates = []

    def note(run_dir, state, tokenizer_file, command):
        assert state.step == 0
        estimates.append(checkpoint_bytes(state, tokenizer_file))

    monkeypatch.setattr("nanolm.training.run.require_room", note)
    for optimizer in ("muon", "adamw"):
        run_dir = tmp_path / optimizer
        run(tiny(f"optimizer={optimizer}", "model.hidden_size=128", "trainer.max_steps=2"), run_dir)
        size = sum(file.stat().st_size for file in find_checkpoint(run_dir).path.iterdir())
        assert size <= estimates[-1] <= 1.2 * size, optimizer


@pytest.mark.parametrize("missing", [1, 0])
def test_no_room_for_the_first_checkpoint_is_found_before_the_first_step(tiny, tmp_path, monkeypatch, missing):
    """The one thing that is not real here is how much is free: a disk so nearly full is not to be had in a test."""
    needed = []

    def free(folder):
        return needed[0] - missing

    def measured(state, tokenizer_file):
        needed.append(checkpoint_bytes(state, tokenizer_file))
        return needed[0]

    monkeypatch.setattr("nanolm.training.storage.free_bytes", free)
    monkeypatch.setattr("nanolm.training.storage.checkpoint_bytes", measured)
    if not missing:
        assert run(tiny("trainer.max_steps=1"), tmp_path / "run") == 0
        return
    with pytest.raises(StorageError) as caught:
        run(tiny(), tmp_path / "run")
    message = str(caught.value)
    assert f"{tmp_path / 'run' / 'checkpoints'}: a checkpoint of this model takes about {needed[0]:,} bytes" in message
    assert f"{needed[0] - 1:,} bytes are free there" in message
    assert "Free at least 1 bytes" in message
    assert message.endswith(COMMAND)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_file_where_the_checkpoints_belong_is_found_before_the_first_step(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    with pytest.raises(StorageError, match=r"run/checkpoints: expected a folder for checkpoints.*No step was done"):
        run(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_directory_that_cannot_be_made_is_the_users_mistake(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")

    def task(config, run_dir, command):
        raise AssertionError("nothing may begin")

    assert command_line.run("train", task, [f"hydra.run.dir={tmp_path / 'file' / 'run'}"]) == 2
    assert f"hydra.run.dir: cannot make or use the folder '{tmp_path / 'file' / 'run'}'" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_is_told_in_words_by_every_script(tmp_path, capsys):
    """Errors that no one nearer could say more about; the log, on the same disk, does not hide them."""

    def task(config, run_dir, command):
        limit_files(0)
        (run_dir / "file").write_bytes(b"?")

    def full():
        assert command_line.run("train", task, [f"hydra.run.dir={tmp_path / 'run'}"]) == 1
        found = capsys.readouterr().err
        assert "File too large" in found
        assert "Traceback" not in found

    assert in_child(full) == 0
