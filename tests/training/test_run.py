import itertools
import json
import shutil
import signal

import numpy as np
import pytest
import safetensors.torch
import torch

from nanolm.errors import CheckpointError, ConfigError, NonFiniteError
from nanolm.evaluation import evaluate
from nanolm.report import write_run_report
from nanolm.training import find_checkpoint, train
from nanolm.training.loop import TrainingLoop

TIMES = {"train/seconds", "train/tokens_per_second", "train/mfu"}
TRAIN = "evaluation-train.json"
CONTRACT = {
    "train/objective",
    "train/nll",
    "train/perplexity",
    "train/accuracy",
    "train/confidence",
    "train/entropy",
    "train/entropy_gap",
    "train/ece",
    "train/grad_norm",
    "train/learning_rate",
    *TIMES,
}


def run(config, run_dir):
    run_dir.mkdir(parents=True, exist_ok=True)
    return train(config, run_dir, "python scripts/train.py", write_run_report)


def lines_of(run_dir):
    """The metrics without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def weights_of(run_dir):
    return safetensors.torch.load_file(find_checkpoint(run_dir).path / "model.safetensors")


def assert_same_run(one, other):
    assert lines_of(one) == lines_of(other)
    left, right = weights_of(one), weights_of(other)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    left, right = (torch.load(find_checkpoint(d).path / "training_state.pt", weights_only=True) for d in (one, other))
    assert str(left["optimizers"]) == str(right["optimizers"])
    assert left["tokens"] == right["tokens"]


def test_a_run_leaves_what_the_contract_says(tiny, tmp_path):
    run_dir = tmp_path / "run"
    assert run(tiny("trainer.eval_every=3"), run_dir) == 0
    assert {path.name for path in run_dir.iterdir()} - {".lock"} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "documents-val.npz",
        "samples.txt",
        "report.html",
        "evaluation.json",
    }
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"step-00000004", "step-00000006"}
    assert {path.name for path in (run_dir / "checkpoints" / "step-00000006").iterdir()} == {
        "model.safetensors",
        "training_state.pt",
        "config.yaml",
        "tokenizer.json",
        "manifest.json",
        "calibration.json",
    }
    assert not (run_dir / "checkpoints" / "step-00000004" / "calibration.json").exists()

    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["tokens"] for line in lines] == [64, 128, 192, 256, 320, 384]
    assert all(line.keys() >= CONTRACT for line in lines)
    assert ["val/nll" in line for line in lines] == [False, False, True, False, False, True]

    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluation["step"] == 6
    assert evaluation["split"] == "val"
    for name in ("nll", "perplexity", "bits_per_byte", "accuracy", "confidence", "ece", "smooth_ece", "brier"):
        assert evaluation[name]["value"] == lines[-1][f"val/{name}"]
    for name in ("nll", "accuracy", "ece", "entropy_gap", "temperature", "nll_at_temperature", "calibration_error"):
        assert evaluation[name]["low"] <= evaluation[name]["value"] <= evaluation[name]["high"]
    assert evaluation["nll"]["value"] == pytest.approx(
        evaluation["calibration_error"]["value"] + evaluation["refinement"]["value"]
    )
    assert "given this text: 2 documents" in evaluation["intervals"]
    assert evaluation["ece"]["low"] <= evaluation["ece_debiased"]["value"] <= evaluation["ece"]["high"]
    assert {group["name"] for group in evaluation["slices"]["frequency"]} >= {"0–10 %", "after end of text"}
    with np.load(run_dir / "documents-val.npz") as documents:
        assert documents["num_tokens"].sum() == evaluation["num_tokens"]
        assert documents["nll_sum"].sum() / evaluation["num_tokens"] == pytest.approx(evaluation["nll"]["value"])
    assert (run_dir / "samples.txt").read_text().startswith("the")


def test_it_learns(tiny, tmp_path):
    run(tiny("trainer.max_steps=40", "trainer.batch_size=16"), tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert lines[0]["train/nll"] == pytest.approx(np.log(257), rel=0.05)
    assert lines[-1]["val/nll"] < 2.7  # the entropy of single characters here is 2.9


def test_one_seed_gives_one_run(tiny, tmp_path):
    for name in ("one", "two"):
        run(tiny("model.dropout=0.2", "trainer.eval_every=2"), tmp_path / name)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    run(tiny("model.dropout=0.2", "trainer.eval_every=2", "seed=1"), tmp_path / "three")
    assert lines_of(tmp_path / "one") != lines_of(tmp_path / "three")


def test_evaluation_never_changes_training(tiny, tmp_path):
    for every in ("null", "1", "4"):
        run(tiny("model.dropout=0.2", f"trainer.eval_every={every}"), tmp_path / every)
    never, always, sometimes = (
        [{name: value for name, value in line.items() if name.startswith("train/")} for line in lines_of(tmp_path / d)]
        for d in ("null", "1", "4")
    )
    assert never == always == sometimes


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_add_up_to_the_batch(tiny, tmp_path, size):
    run(tiny(), tmp_path / "whole")
    run(tiny(f"trainer.micro_batch_size={size}"), tmp_path / "parts")
    for whole, parts in zip(lines_of(tmp_path / "whole"), lines_of(tmp_path / "parts"), strict=True):
        assert parts == pytest.approx(whole, rel=1e-4)


def test_the_objective_is_smoothed_and_the_nll_is_not(tiny, tmp_path):
    run(tiny(), tmp_path / "plain")
    run(tiny("loss.label_smoothing=0.1", "loss.z_loss=0.01"), tmp_path / "smooth")
    plain, smooth = lines_of(tmp_path / "plain")[0], lines_of(tmp_path / "smooth")[0]
    assert plain["train/objective"] == pytest.approx(plain["train/nll"], rel=1e-6)
    assert smooth["train/nll"] == plain["train/nll"]
    assert smooth["train/objective"] > smooth["train/nll"]


class Interrupted(TrainingLoop):
    """A loop in which a real SIGTERM arrives at the start of a given step."""

    at = 0

    def step(self):
        if self.state.step == self.at:
            signal.raise_signal(signal.SIGTERM)
        return super().step()


@pytest.mark.parametrize("options", [["model.dropout=0.2"], ["optimizer=adamw"], ["trainer.micro_batch_size=3"]])
def test_a_run_stopped_twice_ends_as_one_left_alone(tiny, tmp_path, monkeypatch, options):
    config = tiny("trainer.eval_every=3", *options)
    run(config, tmp_path / "straight")
    monkeypatch.setattr("nanolm.training.run.TrainingLoop", Interrupted)
    for step in (1, 3):
        monkeypatch.setattr(Interrupted, "at", step)
        assert run(config, tmp_path / "stopped") == 3
        assert find_checkpoint(tmp_path / "stopped").step == step
        assert not (tmp_path / "stopped" / "evaluation.json").exists()
    monkeypatch.undo()
    assert run(config, tmp_path / "stopped") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_a_stop_during_an_evaluation_repeats_the_evaluation(tiny, tmp_path, monkeypatch):
    config = tiny("trainer.eval_every=3", "evaluate.batch_size=1")
    run(config, tmp_path / "straight")

    def evaluate_and_stop(model, split, sequence_length, config, loss, compute, progress, extras):
        signal.raise_signal(signal.SIGINT)
        progress(1, 2)
        raise AssertionError("progress did not stop the evaluation")

    with monkeypatch.context() as patch:
        patch.setattr("nanolm.training.run.evaluate", evaluate_and_stop)
        assert run(config, tmp_path / "stopped") == 3
    assert find_checkpoint(tmp_path / "stopped").step == 3
    assert [line["step"] for line in lines_of(tmp_path / "stopped")] == [1, 2]
    assert run(config, tmp_path / "stopped") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_a_stop_during_the_last_evaluation_still_ends_with_a_fitted_temperature(tiny, tmp_path, monkeypatch):
    config = tiny("trainer.checkpoint_every=null")
    run(config, tmp_path / "straight")

    def stop(*args):
        signal.raise_signal(signal.SIGTERM)
        args[-1](1, 2)

    with monkeypatch.context() as patch:
        patch.setattr("nanolm.training.run.try_fit_on_split", stop)
        assert run(config, tmp_path / "stopped") == 3
    assert find_checkpoint(tmp_path / "stopped").calibration() is None
    assert run(config, tmp_path / "stopped") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    straight, stopped = (find_checkpoint(tmp_path / name).calibration() for name in ("straight", "stopped"))
    assert straight == stopped
    assert straight["split"] == "calibration"


def test_a_run_without_a_calibration_split_says_so_and_ends(tiny, tmp_path, capsys):
    assert run(tiny("data.calibration_fraction=0", "trainer.max_steps=2"), tmp_path / "run") == 0
    assert "no temperature was fitted: this corpus has no calibration split" in capsys.readouterr().err
    temperature, reason = find_checkpoint(tmp_path / "run").fitted_temperature()
    assert temperature is None
    assert "data.calibration_fraction" in reason
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "nll_at_temperature" not in evaluation


def test_a_finished_run_is_left_alone(tiny, tmp_path, capsys):
    run(tiny(), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert run(tiny(), tmp_path / "run") == 0
    assert "this run is finished" in capsys.readouterr().err
    changed = {p for p, time in before.items() if p.stat().st_mtime_ns != time and p.name != ".lock"}
    assert not changed


def test_a_finished_run_can_be_made_longer(tiny, tmp_path):
    run(tiny("schedule=constant"), tmp_path / "run")
    run(tiny("schedule=constant", "schedule.warmup_fraction=0", "trainer.max_steps=8"), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"schedule\.warmup_fraction"):
        run(tiny("schedule=constant", "schedule.warmup_fraction=0", "trainer.max_steps=8"), tmp_path / "run")
    assert run(tiny("schedule=constant", "trainer.max_steps=8"), tmp_path / "run") == 0
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_another_configuration_is_refused_with_the_difference(tiny, tmp_path):
    run(tiny(), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"another configuration:\n  seed: 0 there, 1 now"):
        run(tiny("seed=1"), tmp_path / "run")
    assert run(tiny("trainer.log_every=7"), tmp_path / "run") == 0  # changes nothing that is computed


def test_resume_never_refuses_a_run_that_has_begun(tiny, tmp_path):
    run(tiny(), tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        run(tiny("trainer.resume=never"), tmp_path / "run")


def test_a_damaged_checkpoint_is_passed_over(tiny, tmp_path, caplog):
    config = tiny()
    run(config, tmp_path / "straight")
    run(config, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    newest = tmp_path / "run" / "checkpoints" / "step-00000006" / "training_state.pt"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    assert run(config, tmp_path / "run") == 0
    assert "training_state.pt: its sha256" in caplog.text
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_run_whose_every_checkpoint_is_damaged_does_not_start_anew(tiny, tmp_path):
    run(tiny(), tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    for path in (tmp_path / "run" / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="every checkpoint of this run is damaged"):
        run(tiny(), tmp_path / "run")


def test_a_gradient_that_is_not_finite_changes_no_weight(tiny, tmp_path, monkeypatch):
    steps = {"bad": {2, 3}}
    original = TrainingLoop._forward

    def poisoned(self, inputs, targets):
        result = original(self, inputs, targets)
        if self.state.step in steps["bad"]:
            object.__setattr__(result, "objective", result.objective * float("nan"))
        return result

    monkeypatch.setattr(TrainingLoop, "_forward", poisoned)
    run(tiny("trainer.checkpoint_every=1", "trainer.keep_checkpoints=9"), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    before, after = (safetensors.torch.load_file(folder / f"step-{step:08d}" / "model.safetensors") for step in (2, 4))
    assert all(torch.equal(before[name], after[name]) for name in before)
    state = torch.load(folder / "step-00000006" / "training_state.pt", weights_only=True)
    assert state["skipped_steps"] == 2

    steps["bad"] = set(range(100))
    with pytest.raises(NonFiniteError, match="NaN or infinity 10 times in a row"):
        run(tiny("trainer.max_steps=30", "trainer.checkpoint_every=null"), tmp_path / "bad")
    assert not list((tmp_path / "bad" / "checkpoints").iterdir())


def test_a_limit_in_seconds_ends_the_run_and_its_schedule(tiny, tmp_path):
    run(tiny("trainer.max_steps=null", "trainer.max_seconds=1.0"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-2]["train/seconds"] < 1.0 <= lines[-1]["train/seconds"]
    rates = [line["train/learning_rate"] for line in lines]
    assert rates[-1] < 0.2 * max(rates)


def steps_of(run_dir):
    return [line["step"] for line in lines_of(run_dir)]


def assert_whole(run_dir):
    """A finished run has a fitted temperature, its slices, and an evaluation of its last step."""
    content = json.loads((run_dir / "evaluation.json").read_text())
    checkpoint = find_checkpoint(run_dir)
    assert content["step"] == checkpoint.step == steps_of(run_dir)[-1]
    assert content["temperature"]["value"] == checkpoint.fitted_temperature()[0] > 0
    assert content["slices"].keys() == {"frequency", "position"}
    assert lines_of(run_dir)[-1]["val/nll"] == content["nll"]["value"]


@pytest.mark.parametrize("checkpoint_every", ["1", "null"])
def test_an_evaluation_that_crosses_the_limit_in_seconds_still_ends_a_whole_run(
    tiny, tmp_path, monkeypatch, checkpoint_every
):
    """The clock stands still but for an evaluation, which takes 60 s: step 1 is not the last when it ends."""
    now = [0.0]

    def slow(*args):
        now[0] += 60
        return evaluate(*args)

    limits = ["trainer.max_steps=null", "trainer.eval_every=1", f"trainer.checkpoint_every={checkpoint_every}"]
    with monkeypatch.context() as patch:
        patch.setattr("nanolm.training.run.evaluate", slow)
        patch.setattr("nanolm.training.loop.time.monotonic", lambda: now[0])
        for seconds, steps in ((50, 1), (50, 1), (70, 2), (200, 4)):
            assert run(tiny(*limits, f"trainer.max_seconds={seconds}"), tmp_path / "run") == 0
            assert_whole(tmp_path / "run")
            assert len(steps_of(tmp_path / "run")) == steps


def test_a_run_is_made_longer_by_raising_the_limit_that_ended_it(tiny, tmp_path, monkeypatch, capsys):
    """A clock of one second a question; what ended the run is what the advice names."""
    ticks = itertools.count()
    monkeypatch.setattr("nanolm.training.loop.time.monotonic", lambda: float(next(ticks)))
    for limits, advice in (
        (("null", "20"), "trainer.max_seconds"),
        (("1000", "40"), "trainer.max_seconds"),
        (("40", "1e6"), "trainer.max_steps"),
        (("42", "null"), "trainer.max_steps"),
        (("null", "500"), "trainer.max_seconds"),
    ):
        config = tiny(f"trainer.max_steps={limits[0]}", f"trainer.max_seconds={limits[1]}")
        before = find_checkpoint(tmp_path / "run").step if (tmp_path / "run").exists() else 0
        assert run(config, tmp_path / "run") == 0
        assert_whole(tmp_path / "run")
        assert find_checkpoint(tmp_path / "run").step > before
        capsys.readouterr()
        assert run(config, tmp_path / "run") == 0
        told = capsys.readouterr().err
        assert "nothing to do" in told
        assert f"raise {advice} above " in told
        assert told.count("trainer.") == 1


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler here")
def test_a_compiled_run_is_the_same_run(tiny, tmp_path):
    small = ["model.num_hidden_layers=1", "trainer.max_steps=2"]
    run(tiny(*small), tmp_path / "eager")
    run(tiny(*small, "trainer.compile=on"), tmp_path / "compiled")
    for eager, compiled in zip(lines_of(tmp_path / "eager"), lines_of(tmp_path / "compiled"), strict=True):
        assert compiled == pytest.approx(eager, rel=1e-4)


def test_compiling_without_a_compiler_is_a_clear_error(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"trainer\.compile: .* needs a C\+\+ compiler"):
        run(tiny("trainer.compile=on"), tmp_path / "run")


def test_further_splits_and_sizes_of_the_calibration_split(tiny, tmp_path, capsys):
    config = tiny(
        "evaluate.further_splits=[train,shifted]", "evaluate.calibration_sizes=[20,40]", "loss.label_smoothing=0.1"
    )
    assert run(config, tmp_path / "run") == 0
    assert "this corpus has no shifted split" in capsys.readouterr().err
    of_val, of_train = (json.loads((tmp_path / "run" / name).read_text()) for name in ("evaluation.json", TRAIN))
    assert of_train["split"] == "train"
    assert of_train["num_tokens"] > of_val["num_tokens"]
    assert of_train["temperature"] == of_val["temperature"]
    assert (tmp_path / "run/documents-train.npz").exists()
    assert [entry["num_tokens"] for entry in of_val["calibration_sizes"]] == [20, 40]
    assert [row["calibrator"] for row in of_val["calibrators"]] == ["none", "temperature", "inverse smoothing"]
    shutil.rmtree(tmp_path / "run" / "checkpoints/step-00000006")
    (tmp_path / "run/evaluation.json").unlink()
    assert run(config, tmp_path / "run") == 0  # the end of the run again
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == of_val
    assert len(of_val["corpus"]) == 64
    longer = tiny("evaluate.further_splits=[]", "loss.label_smoothing=0.1", "trainer.max_steps=7")
    assert run(longer, tmp_path / "run") == 0
    assert not (tmp_path / "run" / TRAIN).exists()  # it was of fewer steps
    with pytest.raises(ConfigError, match="val is always scored"):
        tiny("evaluate.further_splits=[val]")
    with pytest.raises(ConfigError, match="a list of whole numbers >= 1"):
        tiny("evaluate.calibration_sizes=[0]")
    with pytest.raises(ConfigError, match="a list of any of train"):
        tiny("evaluate.further_splits=[validation]")


@pytest.mark.parametrize(("fraction", "size"), [(0, 1), (0.05, 100_000)])
def test_calibration_sizes_that_the_split_lacks_are_left_out_with_a_note(tiny, tmp_path, capsys, fraction, size):
    sizes = f"evaluate.calibration_sizes=[{size}]"
    assert run(tiny("trainer.max_steps=1", f"data.calibration_fraction={fraction}", sizes), tmp_path / "run") == 0
    assert "evaluate.calibration_sizes" in capsys.readouterr().err
