"""SIGTERM, Ctrl-C or SIGHUP at any place of a step ends a run after its last step; it continues as if untouched."""

import contextlib
import os
import signal

import pytest

from nanolm.training import find_checkpoint
from tests.faults.injection import in_child
from tests.faults.runs import metrics, outcome, run


@pytest.fixture
def config(tiny):
    return tiny(
        "trainer.eval_every=3",
        "trainer.micro_batch_size=1",
        "trainer.checkpoint_every=4",
        "trainer.keep_checkpoints=1",
        "model.dropout=0.1",
        "evaluate.batch_size=2",
    )


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
    ("start of a step", "nanolm.training.loop.learning_rate_factor", 3, signal.SIGINT, 2),
    ("forward", "nanolm.training.loop.TrainingLoop._forward", 5, signal.SIGTERM, 1),  # the first micro-batch of step 2
    ("accumulation", "nanolm.training.loop.TrainingLoop._forward", 6, signal.SIGINT, 1),  # and its second
    ("backward", "torch.Tensor.backward", 11, signal.SIGTERM, 2),
    ("update", "nanolm.optim.muon.Muon.step", 2, signal.SIGINT, 2),
    ("metrics line", "nanolm.tracking.MetricsFile.write", 2, signal.SIGTERM, 2),
    ("evaluation", "nanolm.evaluation.score.linear_nll", 2, signal.SIGTERM, 3),
    ("temperature fit", "nanolm.evaluation.temperature.fit_temperature", 1, signal.SIGINT, 6),
    ("last evaluation", "nanolm.evaluation.score.linear_nll", 20, signal.SIGTERM, 6),
    ("save", "nanolm.training.checkpoint.file_table", 1, signal.SIGTERM, 4),
    ("pruning", "nanolm.training.run.prune_checkpoints", 1, signal.SIGINT, 4),
]


def find(name):
    """The function of a dotted name, through modules and classes."""
    module, _, attribute = name.rpartition(".")
    owner = find(module) if module.rpartition(".")[2][:1].isupper() else __import__(module, fromlist=[attribute])
    return getattr(owner, attribute)


@pytest.mark.parametrize(
    ("name", "calls", "number", "step"), [rest for _, *rest in PLACES], ids=[place for place, *_ in PLACES]
)
def test_a_signal_costs_nothing(config, straight, tmp_path, monkeypatch, name, calls, number, step):
    run_dir = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(name, after_calls(find(name), calls, number))
        assert run(config, run_dir) == 3
    assert os.listdir(run_dir / "checkpoints") == [f"step-{step:08d}"]  # one, and it is valid
    checkpoint = find_checkpoint(run_dir)
    waits_for_its_evaluation = step in (3, 6)
    assert len(metrics(run_dir)) == checkpoint.step - waits_for_its_evaluation
    assert run(config, run_dir) == 0
    assert outcome(run_dir) == straight(config)


TWICE = [
    ("forward", "nanolm.training.loop.TrainingLoop._forward", 19, 4),
    ("evaluation", "nanolm.evaluation.score.linear_nll", 2, None),  # of step 3, before the first checkpoint
    ("save, files written", "nanolm.training.checkpoint.file_table", 1, None),
    ("save, published", "nanolm.training.run.prune_checkpoints", 1, 4),
    ("last save, files written", "nanolm.training.checkpoint.file_table", 2, 4),
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("name", "calls", "step"), [rest for _, *rest in TWICE], ids=[place for place, *_ in TWICE])
def test_a_second_signal_ends_at_once_and_leaves_the_last_valid_checkpoint(
    config, straight, tmp_path, name, calls, step, number
):
    """In a child, which dies of it: of SIGTERM as a process does, of Ctrl-C with a KeyboardInterrupt."""
    run_dir = tmp_path / "stopped"
    function, seen = find(name), []

    def twice(*args, **kwargs):
        result = function(*args, **kwargs)
        seen.append(1)
        if len(seen) == calls:
            signal.raise_signal(number)
            signal.raise_signal(number)
            raise AssertionError("still alive")
        return result

    def interrupted():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background of a shell ignores
        pytest.MonkeyPatch().setattr(name, twice)
        with contextlib.suppress(KeyboardInterrupt):
            run(config, run_dir)
            raise AssertionError("it was not interrupted")

    status = in_child(interrupted)
    assert status == (0 if number == signal.SIGINT else number)
    if step is None:
        assert not any(name.startswith("step-") for name in os.listdir(run_dir / "checkpoints"))
    else:
        assert find_checkpoint(run_dir).step == step
    assert run(config, run_dir) == 0
    assert outcome(run_dir) == straight(config)


@pytest.mark.parametrize("place", ["nanolm.training.loop.TrainingLoop._forward", "nanolm.evaluation.score.linear_nll"])
def test_a_closed_terminal_ends_a_run_as_sigterm_does(config, straight, tmp_path, monkeypatch, place):
    """It sends SIGHUP more than once: from the shell and from the kernel."""
    monkeypatch.setattr(place, after_calls(after_calls(find(place), 2, signal.SIGHUP), 2, signal.SIGHUP))

    def closed():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup around the tests ignores it
        assert run(config, tmp_path / "stopped") == 3
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL

    assert in_child(closed) == 0
    monkeypatch.undo()
    assert run(config, tmp_path / "stopped") == 0
    assert outcome(tmp_path / "stopped") == straight(config)


def test_a_run_under_nohup_goes_on_without_its_terminal(config, tmp_path, monkeypatch):
    place = "nanolm.training.loop.TrainingLoop._forward"
    monkeypatch.setattr(place, after_calls(find(place), 2, signal.SIGHUP))

    def closed():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert run(config, tmp_path / "run") == 0

    assert in_child(closed) == 0


def test_a_finished_run_resumed_at_an_epochs_boundary_goes_on_whole(tiny, tmp_path):
    """Steps enough for several passes over the text, stopped after each of them."""
    options = ["trainer.batch_size=16", "trainer.checkpoint_every=1", "schedule=constant"]
    run(tiny(*options, "trainer.max_steps=24"), tmp_path / "straight")
    for steps in (12, 13, 15, 24):
        assert run(tiny(*options, f"trainer.max_steps={steps}"), tmp_path / "longer") == 0
    whole, longer = outcome(tmp_path / "straight"), outcome(tmp_path / "longer")
    for found in (whole, longer):  # each of the runs ended with an evaluation of its own
        found["metrics"] = [{k: v for k, v in line.items() if "val/" not in k} for line in found["metrics"]]
    assert longer == whole
