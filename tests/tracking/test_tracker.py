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
                assert tracker.last == {"step": 2, "tokens": 1536}
            for step in steps:
                tracker.log({"step": step, "tokens": 768 * step})
            tracker.sync()
            tracker.note("a note")
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    said = stream.getvalue().splitlines()
    assert said[0].startswith("metrics.jsonl: dropped 1 line(s) that an interrupted start had written behind step 2")
    assert said[-1] == "a note"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_directory_that_holds_a_run_is_no_place_for_a_new_one(tmp_path: Path, config: TrainConfig) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 768}\n')
    with pytest.raises(DataError, match="already holds the metrics of a run"):
        Tracker.open(config, tmp_path, None, Console())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (ValueError(), 1),
        (CheckpointError(), 2),
        (SystemExit(3), 3),
        (SystemExit("text"), 1),
        (SystemExit(), 0),
    ],
)
def test_the_mirror_learns_how_the_run_ended(tmp_path: Path, config: TrainConfig, error, code: int) -> None:
    closed = []
    tracker = Tracker.open(config, tmp_path, None, Console())
    tracker._wandb.close = closed.append
    with contextlib.suppress(BaseException), tracker:
        if error is not None:
            raise error
    tracker.close(9)
    assert closed == [code]


def test_neither_wandb_nor_rich_is_loaded_before_it_is_needed() -> None:
    program = "import sys, nanolm.tracking; print([name for name in ('wandb', 'rich', 'torch') if name in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert ended.stdout == "[]\n", ended.stderr
