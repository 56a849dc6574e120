"""R12, R13: what is not finite never reaches a weight or a moment, and what is ignored weighs nothing."""

import dataclasses
import math
import re

import pytest
import torch

from nanolm.data import Loader, open_prepared, prepare
from nanolm.device import resolve_compute
from nanolm.errors import CheckpointError, NonFiniteError
from nanolm.loss import linear_nll
from nanolm.objective import loss_options
from nanolm.stop import StopSignal
from nanolm.training import find_checkpoint
from nanolm.training.objective import Objective
from nanolm.training.resume import new_state
from nanolm.training.state import TrainingState
from nanolm.training.step import MAX_SKIPPED_IN_A_ROW, TrainingStep
from tests.faults.runs import COMMAND, TIMES, each_step, metrics, outcome, plain, run, stop_after

IGNORED = -100


@pytest.fixture
def make_step(monkeypatch):
    """``make_step(config)``: a step and its state, with any loader."""
    monkeypatch.setattr("nanolm.training.step.measure_peak_flops", lambda compute: 1e18)

    def make(config, loader_type=Loader):
        corpus, compute, trainer = corpus_of(config), resolve_compute("cpu", "fp32"), config.trainer
        loader = loader_type(corpus.splits["train"], trainer.sequence_length, trainer.batch_size, config.seed)
        objective = Objective(loss_options(config.loss))
        state = new_state(config, corpus, compute)
        return TrainingStep(state, loader, objective, config, compute, StopSignal(), lambda note: None), state

    return make


def corpus_of(config):
    return open_prepared(prepare(config.data, config.tokenizer))


class Poison:
    """The loss of a step, to which a value is added if it is that of so many targets."""

    value: float | None = None
    num_targets = 64

    def __call__(self, hidden, weight, targets, **options):
        result = linear_nll(hidden, weight, targets, **options)
        if self.value is None or len(targets) != self.num_targets:
            return result
        return dataclasses.replace(result, objective=result.objective + self.value)


@pytest.fixture
def poison(monkeypatch):
    found = Poison()
    monkeypatch.setattr("nanolm.training.objective.linear_nll", found)
    return found


def poisoned(poison, steps):
    """Return a context in which the losses of these steps are NaN."""

    def before(state):
        poison.value = math.nan if state.step in steps else None

    return each_step(before=before)


def everything(state):
    return {name: plain(value) for name, value in state.state_dict().items()} | plain(state.model.state_dict())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("place", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_leaves_weights_and_moments_to_the_bit(
    tiny, make_step, poison, optimizer, place, value
):
    """In the last of two micro-batches, of 3 sequences and of 1."""
    step, state = make_step(tiny(f"optimizer={optimizer}", "trainer.micro_batch_size=3", "model.dropout=0.1"))
    for _ in range(2):
        step()
    before = everything(state)
    if place == "loss":
        poison.value, poison.num_targets = value, 16
    else:
        last = list(state.model.parameters())[-1]
        last.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), value))
    line = step()
    counted = {"step": 3, "tokens": 192, "skipped_steps": 1, "skipped_in_a_row": 1}
    assert everything(state) == before | counted
    assert all(parameter.grad is None for parameter in state.model.parameters())  # nothing is left for the next step
    assert (line["step"], line["train/skipped_steps"]) == (3, 1)
    assert not (math.isfinite(line["train/objective"]) and math.isfinite(line["train/grad_norm"]))


def test_a_healthy_gradient_does_change_them(tiny, make_step):
    """So that the test before can fail."""
    step, state = make_step(tiny())
    step()
    before = everything(state)
    step()
    after = everything(state)
    unchanged = {name for name in before if after[name] == before[name]}
    assert unchanged == {"seconds", "skipped_steps", "skipped_in_a_row"}


def test_a_skipped_step_is_reported_counted_and_kept_over_a_resume(tiny, tmp_path, poison, capsys):
    config = tiny()
    with poisoned(poison, {1, 3, 4}):
        run(config, tmp_path / "straight")
        warnings = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
        stop_after(config, tmp_path / "stopped", 4)
        assert run(config, tmp_path / "stopped") == 0
    assert [re.findall(r"step (\d+)", line) for line in warnings] == [["2"], ["4"], ["5"]]
    assert all("document(s)" in line for line in warnings)
    assert [line["train/skipped_steps"] for line in metrics(tmp_path / "straight")] == [0, 1, 1, 2, 3, 3]
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "straight")


def test_too_many_in_a_row_end_the_run_name_the_documents_and_publish_nothing(tiny, tmp_path, poison):
    bad = range(3, 3 + MAX_SKIPPED_IN_A_ROW)
    config = tiny("trainer.max_steps=20", "trainer.checkpoint_every=3", "trainer.keep_checkpoints=9")
    with pytest.raises(NonFiniteError) as caught, poisoned(poison, bad):
        run(config, tmp_path / "run")
    message = str(caught.value)
    assert "steps 4 to 13" in message
    loader = Loader(corpus_of(config).splits["train"], 16, 4, 0)
    assert ", ".join(map(str, loader.documents(bad[-1]))) in message
    newest = find_checkpoint(tmp_path / "run")
    assert newest.step == 12
    assert str(newest.path) in message
    assert message.endswith(COMMAND)
    third = newest.path.with_name("step-00000003")
    assert (newest.path / "model.safetensors").read_bytes() == (third / "model.safetensors").read_bytes()
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_a_stop_among_bad_steps_does_not_start_the_count_again(tiny, tmp_path, poison):
    config = tiny("trainer.max_steps=30", "trainer.checkpoint_every=null")
    poison.value = math.nan
    stop_after(config, tmp_path / "run", 5)
    with pytest.raises(NonFiniteError, match="steps 1 to 10"):
        run(config, tmp_path / "run")


def broken_update(step, what):
    """Return a context in which the update of a step leaves NaN or infinity behind, though its gradient is finite."""

    def after(state):
        if state.step == step:
            tensor = next(state.model.parameters()).data if what == "weight" else next(state.optimizers.moments())[1]
            tensor.view(-1)[0] = math.nan if what == "weight" else math.inf

    return each_step(after=after)


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("what", ["weight", "moment"])
def test_what_an_update_makes_not_finite_is_never_published(tiny, tmp_path, what, every):
    limits = [f"trainer.checkpoint_every={every}", "trainer.max_steps=12", "trainer.keep_checkpoints=2"]
    with pytest.raises(NonFiniteError) as caught, broken_update(5, what):
        run(tiny("optimizer=muon", *limits), tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept == {1: ["step-00000003", "step-00000004"], 3: ["step-00000003"], 100: []}[every]
    assert not (tmp_path / "run" / "evaluation.json").exists()
    if kept:
        assert str(tmp_path / "run" / "checkpoints" / kept[-1]) in str(caught.value)


def test_a_stop_does_not_publish_weights_that_are_not_finite(tiny, tmp_path):
    config = tiny("trainer.checkpoint_every=null", "trainer.eval_every=null")
    with pytest.raises(NonFiniteError, match="step 2"), broken_update(2, "weight"):
        stop_after(config, tmp_path / "run", 2)
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")) == []


def test_an_epsilon_that_float32_rounds_to_zero_leaves_no_checkpoint(tiny, tmp_path):
    """0 divided by 0 for the tokens that a batch does not hold."""
    with pytest.raises(NonFiniteError):
        run(tiny("optimizer=adamw", "optimizer.epsilon=1e-46", "trainer.checkpoint_every=1"), tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")) == []


def test_a_checkpoint_whose_weights_are_not_finite_is_refused(tiny, tmp_path, monkeypatch):
    """Such as one that an older version has published."""
    with monkeypatch.context() as patch, broken_update(2, "weight"):
        patch.setattr(TrainingState, "check_finite", lambda self: None)
        stop_after(tiny(), tmp_path / "run", 2)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        find_checkpoint(tmp_path / "run").load_model(torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        run(tiny(), tmp_path / "run")


class AllIgnored(Loader):
    """Batches in which no target counts."""

    def rows(self, step, first, last):
        inputs, targets = super().rows(step, first, last)
        return inputs, torch.full_like(targets, IGNORED)


class Uneven(Loader):
    """Row r of a batch keeps its first 16, 7, 1 and 0 targets: micro-batches of very different weight."""

    kept = (16, 7, 1, 0)

    def rows(self, step, first, last):
        inputs, targets = super().rows(step, first, last)
        targets = targets.clone()  # of one row, inputs and targets are views of the same memory
        for row in range(first, last):
            targets[row - first, self.kept[row] :] = IGNORED
        return inputs, targets


def take(monkeypatch, step, state):
    """Take a step; return its metrics without times, and the gradients that the optimizers were given."""
    gradients, update = [], state.optimizers.step

    def noting(factor):
        gradients.extend(parameter.grad.clone() for parameter in state.model.parameters())
        update(factor)

    monkeypatch.setattr(state.optimizers, "step", noting)
    return {name: value for name, value in step().items() if name not in TIMES}, gradients


@pytest.mark.parametrize("size", ["null", "1", "3"])
def test_an_all_ignored_batch_has_zero_gradients_and_no_mean(tiny, make_step, monkeypatch, size):
    step, state = make_step(tiny(f"trainer.micro_batch_size={size}"), AllIgnored)
    line, gradients = take(monkeypatch, step, state)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
    assert (line["train/objective"], line["train/nll"], line["tokens"], line["train/grad_norm"]) == (0, None, 0, 0)
    assert state.skipped_steps == 0
    state.check_finite()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_uneven_micro_batches_are_one_big_batch(tiny, make_step, monkeypatch, size):
    (whole, expected), (parts, found) = (
        take(monkeypatch, *make_step(tiny(f"trainer.micro_batch_size={size}"), Uneven)) for size in ("null", size)
    )
    assert whole["tokens"] == parts["tokens"] == sum(Uneven.kept)
    assert parts == pytest.approx(whole, rel=1e-5)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-7)
