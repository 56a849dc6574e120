"""R6, R7: a signal at any place ends a run after its last completed step; it continues as if untouched."""

import contextlib
import os
import pkgutil
import signal

import pytest

from nanolm.training import find_checkpoint
from tests.faults.injection import in_child
from tests.faults.runs import metrics, outcome, run

FORWARD = "nanolm.training.objective.linear_nll"  # called twice at the start, by the check of memory
EVALUATION = "nanolm.evaluation.scorer.linear_nll"  # 12 times for step 3, 24 times at the end
FIT = "nanolm.calibration.temperature.linear_nll"
FILES_WRITTEN = "nanolm.training.checkpoint.file_table"
PUBLISHED = "nanolm.train.prune_checkpoints"


@pytest.fixture
def config(tiny):
    return tiny(
        "trainer.eval_every=3",
        "trainer.micro_batch_size=1",
        "trainer.checkpoint_every=4",
        "trainer.keep_checkpoints=1",
        "model.dropout=0.1",
        "evaluate.batch_size=2",
        "evaluate.further_splits=[test]",
    )


def after(name, calls, *numbers):
    """Return the function of a dotted name, but with signals to this thread after so many calls, and the list of calls.

    Raised, not killed: of two equal signals that wait for a process one is lost, and another thread may take them.
    """
    function, seen = pkgutil.resolve_name(name), []

    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        seen.append(name)
        if len(seen) == calls:
            for number in numbers:
                signal.raise_signal(number)
        return result

    return wrapped, seen


def stop_run(config, run_dir, name, calls, number=signal.SIGTERM):
    function, seen = after(name, calls, number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name, function)
        assert run(config, run_dir) == 3
    assert len(seen) == calls  # it ended there, and not at the next occasion


PLACES = {
    "start of a step": ("nanolm.training.step.learning_rate_factor", 3, signal.SIGINT, 2),
    "forward": (FORWARD, 2 + 5, signal.SIGTERM, 1),  # the first micro-batch of step 2
    "accumulation": (FORWARD, 2 + 6, signal.SIGINT, 1),  # and its second
    "backward": ("torch.Tensor.backward", 11, signal.SIGTERM, 2),
    "update": ("nanolm.optim.muon.Muon.step", 2, signal.SIGINT, 2),
    "metrics line": ("nanolm.tracking.MetricsFile.write", 2, signal.SIGTERM, 2),
    "evaluation": (EVALUATION, 2, signal.SIGTERM, 3),
    "temperature fit": (FIT, 1, signal.SIGINT, 6),
    "last evaluation": (EVALUATION, 20, signal.SIGTERM, 6),
    "evaluation of a further split": (EVALUATION, 40, signal.SIGTERM, 6),
    "save": (FILES_WRITTEN, 1, signal.SIGTERM, 4),
    "pruning": (PUBLISHED, 1, signal.SIGINT, 4),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_costs_nothing(config, straight, tmp_path, place):
    run_dir = tmp_path / "stopped"
    name, calls, number, step = PLACES[place]
    stop_run(config, run_dir, name, calls, number)
    assert os.listdir(run_dir / "checkpoints") == [f"step-{step:08d}"]  # one, and it is valid
    assert find_checkpoint(run_dir).step == step == len(metrics(run_dir))
    assert not (run_dir / "evaluation.json").exists()
    was_evaluated = "val/nll" in metrics(run_dir)[-1]
    assert was_evaluated == (place == "evaluation of a further split")
    assert run(config, run_dir) == 0
    assert outcome(run_dir) == straight(config)


def test_an_evaluation_that_is_stopped_again_and_again_completes_its_line_at_last(config, straight, tmp_path):
    run_dir = tmp_path / "stopped"
    for name, calls, step in [(EVALUATION, 2, 3), (EVALUATION, 3, 3), (FIT, 2, 6), (EVALUATION, 4, 6), (FIT, 1, 6)]:
        stop_run(config, run_dir, name, calls)
        lines = metrics(run_dir)
        assert ["val/nll" in line for line in lines] == [line["step"] == 3 < step for line in lines]
        assert len(lines) == find_checkpoint(run_dir).step == step
    assert run(config, run_dir) == 0
    assert outcome(run_dir) == straight(config)


TWICE = {
    "forward": (FORWARD, 2 + 19, 4),
    "evaluation": (EVALUATION, 2, None),  # of step 3, before the first checkpoint
    "save, files written": (FILES_WRITTEN, 1, None),
    "save, published": (PUBLISHED, 1, 4),
    "last save, files written": (FILES_WRITTEN, 2, 4),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", TWICE)
def test_a_second_signal_ends_at_once_and_leaves_the_last_valid_checkpoint(config, straight, tmp_path, place, number):
    """In a child, which dies of it: of SIGTERM as a process does, of Ctrl-C with a KeyboardInterrupt."""
    run_dir = tmp_path / "stopped"
    name, calls, step = TWICE[place]

    def interrupted():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background of a shell ignores
        pytest.MonkeyPatch().setattr(name, after(name, calls, number, number)[0])
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


@pytest.mark.parametrize("place", [FORWARD, EVALUATION])
def test_a_closed_terminal_ends_a_run_as_sigterm_does(config, straight, tmp_path, place):
    """It sends SIGHUP more than once: from the shell and from the kernel."""

    def closed():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup around the tests ignores it
        pytest.MonkeyPatch().setattr(place, after(place, 5, signal.SIGHUP, signal.SIGHUP)[0])
        assert run(config, tmp_path / "stopped") == 3
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL

    assert in_child(closed) == 0
    assert run(config, tmp_path / "stopped") == 0
    assert outcome(tmp_path / "stopped") == straight(config)


def test_a_run_under_nohup_goes_on_without_its_terminal(config, tmp_path):
    def closed():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        pytest.MonkeyPatch().setattr(FORWARD, after(FORWARD, 5, signal.SIGHUP)[0])
        assert run(config, tmp_path / "run") == 0

    assert in_child(closed) == 0


def test_a_finished_run_resumed_at_an_epochs_boundary_goes_on_whole(tiny, tmp_path):
    """Steps enough for several passes over the text, each of the runs finished before the next goes on."""
    options = ["trainer.batch_size=16", "trainer.checkpoint_every=1", "schedule=constant"]
    run(tiny(*options, "trainer.max_steps=24"), tmp_path / "straight")
    for steps in (12, 13, 15, 24):
        assert run(tiny(*options, f"trainer.max_steps={steps}"), tmp_path / "longer") == 0
    whole, longer = outcome(tmp_path / "straight"), outcome(tmp_path / "longer")
    for found in (whole, longer):  # each of the runs ended with an evaluation of its own
        found["metrics"] = [{k: v for k, v in line.items() if "val/" not in k} for line in found["metrics"]]
    assert longer == whole
