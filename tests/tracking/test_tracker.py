"""The tracker: the metrics file first, the mirrors after it, and one way to open and close all three."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.config import load
from nanolm.config.schema import TrainConfig
from nanolm.errors import CheckpointError, DataError
from nanolm.tracking import Console, Tracker, read_metrics
from nanolm.tracking.wandb_mirror import WandbMirror


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    loaded = load("train", ["wandb.mode=disabled", "trainer.max_steps=4", "trainer.log_every=2"])
    assert isinstance(loaded, TrainConfig)
    return loaded


def test_a_run_interrupted_and_continued_has_each_step_once(tmp_path: Path, config: TrainConfig) -> None:
    for resume_step, steps in ((None, range(1, 4)), (2, range(3, 5))):
        stream = io.StringIO()
        with Tracker.open(config, tmp_path, resume_step, Console(4, None, 2, stderr=stream)) as tracker:
            if resume_step:
                assert tracker.metrics.last == {"step": 2, "tokens": 1536}
                tracker.amend({"val/nll": 1.5})
            for step in steps:
                tracker.log({"step": step, "tokens": 768 * step})
            tracker.sync()
            tracker.note("a note")
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line.get("val/nll") for line in lines] == [None, 1.5, None, None]
    dropped, amended, *_, note = stream.getvalue().splitlines()
    assert "dropped 1 line" in dropped
    assert "val 1.500" in amended
    assert note == "a note"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_directory_that_holds_a_run_is_no_place_for_a_new_one(tmp_path: Path, config: TrainConfig) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 768}\n')
    with pytest.raises(DataError, match="metrics"), Tracker.open(config, tmp_path, None, Console()):
        pass


@pytest.mark.parametrize(("error", "code"), [(None, 0), (ValueError(), 1), (CheckpointError(), 2)])
def test_the_mirror_learns_how_the_run_ended(tmp_path: Path, config: TrainConfig, monkeypatch, error, code) -> None:
    closed = []
    monkeypatch.setattr(WandbMirror, "close", lambda _, exit_code: closed.append(exit_code))
    with contextlib.suppress(ValueError, CheckpointError), Tracker.open(config, tmp_path, None, Console()):
        if error is not None:
            raise error
    assert closed == [code]


def test_neither_wandb_nor_rich_is_loaded_before_it_is_needed() -> None:
    program = "import sys, nanolm.tracking; print([name for name in ('wandb', 'rich', 'torch') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
    assert ended.stdout == b"[]\n"
