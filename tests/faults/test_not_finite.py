"""R12, R13: what is not finite never reaches a weight or a moment, and what is ignored weighs nothing."""

import math

import pytest
import torch

from nanolm.data import Loader, open_prepared, prepare
from nanolm.device import resolve_compute
from nanolm.errors import CheckpointError, NonFiniteError
from nanolm.model import GPT
from nanolm.optim import build_optimizer
from nanolm.optim.groups import Optimizers
from nanolm.training import find_checkpoint
from nanolm.training.loop import MAX_SKIPPED_IN_A_ROW, TrainingLoop, loss_options
from nanolm.training.objective import Likelihood
from nanolm.training.state import TrainingState
from nanolm.training.storage import failures_told
from tests.faults.runs import COMMAND, metrics, outcome, plain, run, stop_after

IGNORED = -100


def new_loop(config, loader_type=Loader):
    corpus = open_prepared(prepare(config.data, config.tokenizer))
    torch.manual_seed(0)
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    state = TrainingState(model, build_optimizer(model, config.optimizer))
    trainer = config.trainer
    loader = loader_type(corpus.splits["train"], trainer.sequence_length, trainer.batch_size, config.seed)
    return TrainingLoop(state, loader, config, resolve_compute("cpu", "fp32"), 1.0, Likelihood(loss_options(config)))


def everything(state):
    return plain(state.model.state_dict()), plain(state.optimizers.state_dict())


def gradients_of(loop):
    return [parameter.grad for parameter in loop.state.model.parameters()]


def poison(loop, where, value):
    """Put a value that is not finite into the loss of the last micro-batch, or into one gradient of it."""
    forward, seen = loop._forward, []

    def poisoned(inputs, targets):
        result = forward(inputs, targets)
        seen.append(1)
        if where == "loss" and len(seen) % 2 == 0:
            object.__setattr__(result, "objective", result.objective + value)
        return result

    loop._forward = poisoned
    if where == "gradient":
        last = list(loop.state.model.parameters())[-1]
        last.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), value))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_leaves_weights_and_moments_to_the_bit(tiny, optimizer, where, value):
    loop = new_loop(tiny(f"optimizer={optimizer}", "trainer.micro_batch_size=2", "model.dropout=0.1"))
    for _ in range(2):
        loop.step()
    before, ece = everything(loop.state), loop.state.trailing.ece()
    poison(loop, where, value)
    line = loop.step()
    assert everything(loop.state) == before
    assert loop.state.trailing.ece() == ece
    assert all(gradient is None for gradient in gradients_of(loop))  # nothing of it is left for the next step
    assert (line["step"], loop.state.skipped_steps, line["train/skipped_steps"]) == (3, 1, 1)
    assert not (math.isfinite(line["train/objective"]) and math.isfinite(line["train/grad_norm"]))


def test_a_healthy_gradient_does_change_them(tiny):
    """So that the test before can fail."""
    loop = new_loop(tiny())
    loop.step()
    weights, moments = everything(loop.state)
    ece = loop.state.trailing.ece()
    loop.step()
    assert loop.state.trailing.ece() != ece
    assert everything(loop.state)[0] != weights
    assert everything(loop.state)[1] != moments


def poisoned_steps(monkeypatch, steps):
    original = TrainingLoop._forward

    def forward(self, inputs, targets):
        result = original(self, inputs, targets)
        if self.state.step in steps:
            object.__setattr__(result, "objective", result.objective * math.nan)
        return result

    monkeypatch.setattr(TrainingLoop, "_forward", forward)


def test_a_skipped_step_is_told_counted_and_kept_over_a_resume(tiny, tmp_path, monkeypatch, capsys):
    poisoned_steps(monkeypatch, {1, 3, 4})
    config = tiny()
    run(config, tmp_path / "straight")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: step")]
    assert [line.split(" was skipped")[0] for line in told] == ["warning: step 2", "warning: step 4", "warning: step 5"]
    assert all("Its batch is of document(s)" in line for line in told)
    assert [line["train/skipped_steps"] for line in metrics(tmp_path / "straight")] == [0, 1, 1, 2, 3, 3]
    stop_after(monkeypatch, config, tmp_path / "stopped", 4)
    assert run(config, tmp_path / "stopped") == 0
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "straight")


def test_too_many_in_a_row_end_the_run_name_the_documents_and_publish_nothing(tiny, tmp_path, monkeypatch):
    bad = range(3, 3 + MAX_SKIPPED_IN_A_ROW)
    poisoned_steps(monkeypatch, bad)
    config = tiny("trainer.max_steps=20", "trainer.checkpoint_every=3", "trainer.keep_checkpoints=9")
    with pytest.raises(NonFiniteError) as caught:
        run(config, tmp_path / "run")
    message = str(caught.value)
    assert "steps 4 to 13: expected a finite loss and gradient, found NaN or infinity 10 times in a row" in message
    assert "the weights, which are those after step 3" in message
    corpus = open_prepared(prepare(config.data, config.tokenizer))
    loader = Loader(corpus.splits["train"], 16, 4, 0)
    documents = ", ".join(map(str, loader.documents(bad[-1])))
    assert f"The last batch is of document(s) {documents} of the train split, counted from 0." in message
    newest = find_checkpoint(tmp_path / "run")
    assert newest.step == 12
    assert f"The last good checkpoint is {newest.path}, of step 12." in message
    assert "give another hydra.run.dir" in message
    assert message.endswith(COMMAND)
    third = newest.path.with_name("step-00000003")
    assert (newest.path / "model.safetensors").read_bytes() == (third / "model.safetensors").read_bytes()
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_a_stop_among_bad_steps_does_not_start_the_count_again(tiny, tmp_path, monkeypatch):
    poisoned_steps(monkeypatch, range(3, 100))
    config = tiny("trainer.max_steps=30", "trainer.checkpoint_every=null")
    stop_after(monkeypatch, config, tmp_path / "run", 8)
    with pytest.raises(NonFiniteError, match="steps 4 to 13: "):
        run(config, tmp_path / "run")


def breaking_updates(monkeypatch, at, where):
    """Updates of which one leaves NaN or infinity behind, though its gradients are finite."""
    original = Optimizers.step

    def step(self, factor):
        original(self, factor)
        step.count += 1
        if step.count == at:
            (parameter, *_), (optimizer, *_) = weights(self), self._optimizers.values()
            broken = parameter.data if where == "weight" else next(iter(optimizer.state[parameter].values()))
            broken[0, 0] = math.nan if where == "weight" else math.inf

    def weights(self):
        return [
            p for optimizer in self._optimizers.values() for group in optimizer.param_groups for p in group["params"]
        ]

    step.count = 0
    monkeypatch.setattr(Optimizers, "step", step)


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_what_an_update_makes_not_finite_is_never_published(tiny, tmp_path, monkeypatch, where, every):
    breaking_updates(monkeypatch, 5, where)
    limits = [f"trainer.checkpoint_every={every}", "trainer.max_steps=12", "trainer.keep_checkpoints=2"]
    with pytest.raises(NonFiniteError) as caught:
        run(tiny("optimizer=muon", *limits), tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept == {1: ["step-00000003", "step-00000004"], 3: ["step-00000003"], 100: []}[every]
    assert not (tmp_path / "run" / "evaluation.json").exists()
    if kept:
        assert f"The last good checkpoint is {tmp_path / 'run' / 'checkpoints' / kept[-1]}" in str(caught.value)


@pytest.mark.parametrize("told", ["the logits were NaN", "the logits were NaN."])
def test_what_is_added_to_an_error_begins_a_sentence(tmp_path, told):
    with pytest.raises(NonFiniteError) as caught, failures_told(tmp_path, COMMAND):
        raise NonFiniteError(told)
    assert str(caught.value).startswith("the logits were NaN. The run has no checkpoint yet. The ")


def test_a_stop_does_not_publish_weights_that_are_not_finite(tiny, tmp_path, monkeypatch):
    breaking_updates(monkeypatch, 2, "weight")
    config = tiny("trainer.checkpoint_every=null", "trainer.eval_every=null")
    with pytest.raises(NonFiniteError, match="step 2: "):
        stop_after(monkeypatch, config, tmp_path / "run", 2)
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")) == []


def test_an_epsilon_that_float32_rounds_to_zero_leaves_no_checkpoint(tiny, tmp_path):
    """0 divided by 0 for the tokens that a batch does not hold."""
    with pytest.raises(NonFiniteError, match="no checkpoint yet"):
        run(tiny("optimizer=adamw", "optimizer.epsilon=1e-46", "trainer.checkpoint_every=1"), tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")) == []


def test_a_checkpoint_whose_weights_are_not_finite_is_refused(tiny, tmp_path, monkeypatch):
    """Such as one that an older version has published."""
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "check_finite", lambda self: None)
        breaking_updates(patch, 2, "weight")
        stop_after(patch, tiny("trainer.eval_every=null"), tmp_path / "run", 2)
    checkpoint = find_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected finite weights"):
        checkpoint.load_model(torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"Move .* away to continue from the checkpoint before it"):
        run(tiny("trainer.eval_every=null"), tmp_path / "run")


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


@pytest.fixture
def seen(monkeypatch):
    """The gradients that the optimizers were given, step by step."""
    found = []
    step = Optimizers.step

    def noting(self, factor):
        groups = [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]
        found.append([p.grad.clone() for group in groups for p in group["params"]])
        step(self, factor)

    monkeypatch.setattr(Optimizers, "step", noting)
    return found


@pytest.mark.parametrize("micro_batch_size", ["null", "1", "3"])
def test_an_all_ignored_batch_has_zero_gradients_and_finite_figures(tiny, seen, micro_batch_size):
    loop = new_loop(tiny(f"trainer.micro_batch_size={micro_batch_size}"), AllIgnored)
    line = loop.step()
    assert len(seen) == 1
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in seen[0])
    assert (line["train/objective"], line["train/nll"], line["tokens"], line["train/grad_norm"]) == (0, 0, 0, 0)
    assert loop.state.skipped_steps == 0


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_uneven_micro_batches_are_one_big_batch(tiny, seen, micro_batch_size):
    whole, parts = (new_loop(tiny(f"trainer.micro_batch_size={size}"), Uneven) for size in ("null", micro_batch_size))
    lines = [loop.step() for loop in (whole, parts)]
    assert lines[0]["tokens"] == lines[1]["tokens"] == sum(Uneven.kept)
    assert lines[1] == pytest.approx(lines[0], rel=1e-5)
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-7)
