"""SIGTERM or Ctrl-C at any place of a step ends the run after its last completed step; it continues as if untouched."""

import json
import signal

import pytest
import safetensors.torch
import torch

from nanolm.report import write_run_report
from nanolm.training import find_checkpoint, train
from nanolm.training.loop import TrainingLoop

TIMES = {"train/seconds", "train/tokens_per_second", "train/mfu"}


def run(config, run_dir):
    run_dir.mkdir(exist_ok=True)
    return train(config, run_dir, "python scripts/train.py", write_run_report)


def outcome(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    checkpoint = find_checkpoint(run_dir)
    state = torch.load(checkpoint.path / "training_state.pt", weights_only=True)
    del state["seconds"]
    return metrics, str(state), safetensors.torch.load_file(checkpoint.path / "model.safetensors")


@pytest.fixture
def straight(tiny, tmp_path):
    config = tiny(
        "trainer.eval_every=3", "trainer.micro_batch_size=1", "trainer.checkpoint_every=4", "model.dropout=0.1"
    )
    run(config, tmp_path / "straight")
    return config, outcome(tmp_path / "straight")


def after_calls(function, calls, number):
    """The function, but with a signal to this thread after so many calls.

    Raised, not killed: of two equal signals that wait for a process one is lost, and another thread may take them.
    """
    seen = 0

    def wrapped(*args, **kwargs):
        nonlocal seen
        result = function(*args, **kwargs)
        seen += 1
        if seen == calls:
            signal.raise_signal(number)
        return result

    return wrapped


PLACES = [
    ("start of a step", "nanolm.training.loop.learning_rate_factor", 3, signal.SIGINT),
    ("forward", "nanolm.training.objective.linear_nll", 5, signal.SIGTERM),  # the first micro-batch of step 2
    ("accumulation", "nanolm.training.objective.linear_nll", 6, signal.SIGINT),  # and its second
    ("save", "nanolm.training.checkpoint.file_table", 1, signal.SIGTERM),
]


@pytest.mark.parametrize(
    ("name", "calls", "number"), [rest for _, *rest in PLACES], ids=[place for place, *_ in PLACES]
)
def test_a_signal_costs_nothing(straight, tmp_path, monkeypatch, name, calls, number):
    config, (metrics, state, weights) = straight
    module, _, attribute = name.rpartition(".")
    function = getattr(__import__(module, fromlist=[attribute]), attribute)
    with monkeypatch.context() as patch:
        patch.setattr(name, after_calls(function, calls, number))
        assert run(config, tmp_path / "stopped") == 3
    checkpoint = find_checkpoint(tmp_path / "stopped")
    assert len((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()) == checkpoint.step
    assert run(config, tmp_path / "stopped") == 0
    found_metrics, found_state, found_weights = outcome(tmp_path / "stopped")
    assert found_metrics == metrics
    assert found_state == state
    assert all(torch.equal(found_weights[key], weights[key]) for key in weights)


def test_a_second_signal_ends_at_once_and_leaves_the_last_valid_checkpoint(straight, tmp_path, monkeypatch):
    config, (metrics, state, _) = straight
    original = TrainingLoop._forward

    def twice(self, inputs, targets):
        if self.state.step == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return original(self, inputs, targets)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_forward", twice)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "stopped")
    assert find_checkpoint(tmp_path / "stopped").step == 4
    assert run(config, tmp_path / "stopped") == 0
    assert outcome(tmp_path / "stopped")[:2] == (metrics, state)


def test_a_finished_run_resumed_at_an_epochs_boundary_goes_on_whole(tiny, tmp_path):
    """Steps enough for several passes over the text, stopped after each of them."""
    options = ["trainer.batch_size=16", "trainer.checkpoint_every=1", "schedule=constant"]
    run(tiny(*options, "trainer.max_steps=24"), tmp_path / "straight")
    for steps in (12, 13, 15, 24):
        assert run(tiny(*options, f"trainer.max_steps={steps}"), tmp_path / "longer") == 0
    straight, longer = outcome(tmp_path / "straight"), outcome(tmp_path / "longer")
    assert straight[1] == longer[1]
    assert all(torch.equal(straight[2][key], longer[2][key]) for key in straight[2])
    train_lines = [
        [{k: v for k, v in line.items() if "val/" not in k} for line in found[0]] for found in (straight, longer)
    ]
    assert train_lines[0] == train_lines[1]
