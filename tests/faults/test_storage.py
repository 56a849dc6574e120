"""R2, R19: a disk that is full or fails is found before the first step, or ends the run with a clear message and no
loss."""

import errno
import os

import pytest

from nanolm.config import command_line
from nanolm.errors import StorageError
from nanolm.training import find_checkpoint
from tests.faults.injection import file_limit, in_child
from tests.faults.runs import COMMAND, each_step, outcome, run, run_script

LIMITS = {
    "metrics.jsonl": lambda size: size + 20,
    "model.safetensors": lambda size: size // 2,
    "training_state.pt": lambda size: size - 100,
    "config.yaml": lambda size: size - 1,
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_disk_that_fills_up_ends_the_run_with_a_clear_message_and_no_loss(tiny, straight, tmp_path, name):
    """At the start of step 4, when the checkpoint of step 2 is there; a real limit, in a child of its own."""
    config, run_dir = tiny(), tmp_path / "run"

    def fill(state):
        if state.step == 3:
            folder = run_dir if name == "metrics.jsonl" else find_checkpoint(run_dir).path
            file_limit(LIMITS[name]((folder / name).stat().st_size), fatal=False)()

    def fail():
        with pytest.raises(StorageError) as caught, each_step(before=fill):
            run(config, run_dir)
        message = str(caught.value)
        assert "bytes free" in message
        assert f"{run_dir}/checkpoints/step-00000002" in message
        assert message.endswith(COMMAND)
        assert name in message or name == "config.yaml"  # then it is the first file that is too large
        assert caught.value.exit_code == 1

    assert in_child(fail) == 0
    assert os.listdir(run_dir / "checkpoints") == ["step-00000002"]  # nothing half written, nothing pruned
    assert run(config, run_dir) == 0
    assert outcome(run_dir) == straight(config)


def test_an_io_error_of_a_sync_ends_the_run_with_a_clear_message(tiny, tmp_path):
    config, run_dir = tiny(), tmp_path / "run"
    sync = os.fsync

    def broken(descriptor):
        if (run_dir / "checkpoints" / "step-00000002").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", broken)
        with pytest.raises(StorageError, match=rf"{os.strerror(errno.EIO)}.*step-00000002"):
            run(config, run_dir)
    assert os.listdir(run_dir / "checkpoints") == ["step-00000002"]
    assert run(config, run_dir) == 0


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_no_room_for_the_first_checkpoint_is_found_before_the_first_step(tiny, tmp_path, monkeypatch, optimizer):
    """What is free is not real here: a disk so nearly full is not to be had in a test. The size of a checkpoint is
    known within the allowance for small files, from a state that has no moments yet."""
    config = tiny(f"optimizer={optimizer}", "model.hidden_size=128", "trainer.max_steps=2")
    assert run(config, tmp_path / "roomy") == 0
    size = sum(file.stat().st_size for file in find_checkpoint(tmp_path / "roomy").path.iterdir())
    monkeypatch.setattr("nanolm.training.storage.free_bytes", lambda folder: size)
    with pytest.raises(StorageError) as caught:
        run(config, tmp_path / "run")
    message = str(caught.value)
    assert f"{tmp_path / 'run' / 'checkpoints'}: " in message
    assert f"{size:,} bytes" in message
    assert message.endswith(COMMAND)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    monkeypatch.setattr("nanolm.training.storage.free_bytes", lambda folder: int(1.2 * size))
    assert run(config, tmp_path / "run") == 0


def test_a_file_in_the_place_of_the_checkpoints_is_found_before_the_first_step(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    with pytest.raises(StorageError, match="run/checkpoints"):
        run(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_directory_that_cannot_be_made_is_the_users_mistake(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run_script("train", [f"hydra.run.dir={tmp_path / 'file' / 'run'}"]) == 2
    assert str(tmp_path / "file" / "run") in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_is_one_clear_message_of_every_script(tmp_path, capsys):
    """Errors that nothing closer can explain; the log, on the same disk, does not hide them."""

    def task(config, run_dir, command):
        file_limit(0, fatal=False)()
        (run_dir / "file").write_bytes(b"?")

    def full():
        assert command_line.run("train", task, [f"hydra.run.dir={tmp_path / 'run'}"]) == 1
        message = capsys.readouterr().err
        assert os.strerror(errno.EFBIG) in message
        assert "Traceback" not in message

    assert in_child(full) == 0
