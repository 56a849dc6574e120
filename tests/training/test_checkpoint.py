"""Checkpoints by themselves; what is done to their files is in ``tests/faults``."""

import os
import shutil

import pytest
import torch

from nanolm.data import open_prepared, prepare
from nanolm.device import resolve_compute
from nanolm.errors import CheckpointError
from nanolm.training import find_checkpoint
from nanolm.training.checkpoint import prune_checkpoints, save_checkpoint
from nanolm.training.resume import new_state
from tests.faults.runs import plain


@pytest.fixture
def make_state(tiny):
    """``make_state(…)``: the configuration, corpus and state of a run after an update, so that there are moments."""

    def make(*overrides):
        config = tiny("model.dropout=0.1", *overrides)
        corpus = open_prepared(prepare(config.data, config.tokenizer))
        state = new_state(config, corpus, resolve_compute("cpu", "fp32"))
        for parameter in state.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        state.optimizers.step(1.0)
        state.step, state.tokens, state.seconds = 7, 448, 1.5
        return config, corpus, state

    return make


@pytest.fixture
def saved(make_state, tmp_path):
    config, corpus, state = make_state()
    for step in (3, 5, 7):
        state.step = step
        save_checkpoint(tmp_path / "run", state, config, corpus.tokenizer, corpus.fingerprint)
    return tmp_path / "run", state


def test_what_is_saved_comes_back_to_the_bit(saved, make_state):
    run_dir, state = saved
    config, _, other = make_state("seed=1")
    checkpoint = find_checkpoint(run_dir)
    checkpoint.load_state(other)
    assert plain(other.model.state_dict()) == plain(state.model.state_dict())
    assert plain(other.state_dict()) == plain(state.state_dict())
    assert checkpoint.config.model == config.model
    assert checkpoint.step == 7
    text = "the free people of our union"
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode(text)) == text
    assert not checkpoint.load_model(torch.device("cpu")).training


def test_it_stands_alone(saved, tmp_path):
    run_dir, _ = saved
    moved = tmp_path / "elsewhere" / "my checkpoint"
    shutil.copytree(run_dir / "checkpoints" / "step-00000005", moved)
    shutil.rmtree(run_dir)
    checkpoint = find_checkpoint(moved)
    assert checkpoint.step == 5
    assert checkpoint.run_dir == moved.parent
    checkpoint.load_model(torch.device("cpu"))


def test_pruning_keeps_the_newest(saved):
    run_dir, _ = saved
    for keep in (2, 5):
        prune_checkpoints(run_dir, keep, step=7)
        assert sorted(os.listdir(run_dir / "checkpoints")) == ["step-00000005", "step-00000007"]


@pytest.mark.parametrize(
    ("override", "word"), [("model.hidden_size=64", "model.safetensors"), ("optimizer=adamw", "optimizer")]
)
def test_the_state_of_another_model_or_optimizer_is_refused(saved, make_state, override, word):
    with pytest.raises(CheckpointError, match=word):
        find_checkpoint(saved[0]).load_state(make_state(override)[2])


@pytest.mark.parametrize("path", [None, "missing", "file", "empty"])
def test_a_path_that_is_no_checkpoint(path, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="checkpoint"):
        find_checkpoint(path and tmp_path / path)
