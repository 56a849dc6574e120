"""A whole run: what it leaves, what its numbers mean, when it ends. What must not disturb it is in ``tests/faults``."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from nanolm.device import measure_peak_flops, resolve_compute
from nanolm.errors import ConfigError
from nanolm.evaluation import Scorer
from nanolm.train import train
from nanolm.training import find_checkpoint
from tests.faults.runs import TIMES, evaluation, metrics, outcome, run

MEANS = ("nll", "perplexity", "accuracy", "confidence", "entropy", "entropy_gap", "ece")
CONTRACT = TIMES | {f"train/{name}" for name in ("objective", *MEANS, "grad_norm", "learning_rate")}


def all_metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_a_run_leaves_what_the_contract_says(tiny, tmp_path):
    run_dir, small = tmp_path, {"config.yaml", "tokenizer.json", "manifest.json"}
    assert train(tiny("trainer.eval_every=3"), run_dir, "the command") == 0
    files = {"config.yaml", "metrics.jsonl", "documents-val.npz", "samples.txt", "report.html", "evaluation.json"}
    assert names_in(run_dir) == files | {"checkpoints", ".lock"}
    assert names_in(run_dir / "checkpoints") == {"step-00000004", "step-00000006"}
    middle = small | {"model.safetensors", "training_state.pt"}
    assert names_in(run_dir / "checkpoints" / "step-00000004") == middle
    assert names_in(run_dir / "checkpoints" / "step-00000006") == middle | {"calibration.json"}

    lines = all_metrics(run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["tokens"] for line in lines] == [64, 128, 192, 256, 320, 384]
    assert all(line.keys() >= CONTRACT for line in lines)
    assert ["val/nll" in line for line in lines] == [False, False, True, False, False, True]

    found = evaluation(run_dir)
    assert (found["step"], found["split"]) == (6, "val")
    for name in ("nll", "perplexity", "bits_per_byte", "accuracy", "confidence", "ece", "smooth_ece", "brier"):
        assert found[name]["value"] == lines[-1][f"val/{name}"]
    for name in ("nll", "accuracy", "ece", "entropy_gap", "temperature", "nll_at_temperature", "calibration_error"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    parts = found["calibration_error"]["value"] + found["refinement"]["value"]
    assert found["nll"]["value"] == pytest.approx(parts)
    assert "2 documents" in found["intervals"]
    assert {group["name"] for group in found["slices"]["frequency"]} >= {"0–10 %", "after end of text"}
    with np.load(run_dir / "documents-val.npz") as documents:
        assert documents["num_tokens"].sum() == found["num_tokens"]
        assert documents["nll_sum"].sum() / found["num_tokens"] == pytest.approx(found["nll"]["value"])
    assert (run_dir / "samples.txt").read_text().startswith("the")


def test_it_learns(tiny, tmp_path):
    run(tiny("trainer.max_steps=40", "trainer.batch_size=16"), tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert lines[0]["train/nll"] == pytest.approx(np.log(257), rel=0.05)
    assert lines[-1]["val/nll"] < 2.7  # the entropy of single characters here is 2.9


def test_one_seed_gives_one_run(tiny, tmp_path):
    options = ["model.dropout=0.2", "trainer.eval_every=2"]
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run(tiny(*options, f"seed={seed}"), tmp_path / name)
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    assert metrics(tmp_path / "one") != metrics(tmp_path / "three")


def test_evaluation_never_changes_training(tiny, tmp_path):
    found = []
    for every in ("null", "1", "4"):
        run(tiny("model.dropout=0.2", f"trainer.eval_every={every}"), tmp_path / every)
        lines = metrics(tmp_path / every)
        found.append([{name: line[name] for name in line if name.startswith("train/")} for line in lines])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_add_up_to_the_batch(tiny, tmp_path, size):
    run(tiny(), tmp_path / "whole")
    run(tiny(f"trainer.micro_batch_size={size}"), tmp_path / "parts")
    for whole, parts in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert parts == pytest.approx(whole, rel=1e-4)


def test_the_objective_is_smoothed_and_the_nll_is_not(tiny, tmp_path):
    run(tiny(), tmp_path / "plain")
    run(tiny("loss.label_smoothing=0.1", "loss.z_loss=0.01"), tmp_path / "smooth")
    plain, smooth = metrics(tmp_path / "plain")[0], metrics(tmp_path / "smooth")[0]
    assert plain["train/objective"] == pytest.approx(plain["train/nll"], rel=1e-6)
    assert smooth["train/nll"] == plain["train/nll"]
    assert smooth["train/objective"] > smooth["train/nll"]


def test_a_run_without_a_calibration_split_says_so_and_ends(tiny, tmp_path, capsys):
    assert run(tiny("data.calibration_fraction=0", "trainer.max_steps=2"), tmp_path / "run") == 0
    assert "data.calibration_fraction" in capsys.readouterr().err
    calibration = find_checkpoint(tmp_path / "run").calibration()
    assert calibration.temperature is None
    assert "data.calibration_fraction" in calibration.reason
    assert "nll_at_temperature" not in evaluation(tmp_path / "run")


def test_a_finished_run_can_be_made_longer(tiny, tmp_path):
    run(tiny("schedule=constant"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"schedule\.warmup_fraction"):
        run(tiny("schedule=constant", "schedule.warmup_fraction=0", "trainer.max_steps=8"), tmp_path / "run")
    assert run(tiny("schedule=constant", "trainer.max_steps=8"), tmp_path / "run") == 0
    assert_whole(tmp_path / "run", 8)


def test_resume_never_refuses_a_run_that_has_begun(tiny, tmp_path):
    run(tiny(), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"trainer\.resume"):
        run(tiny("trainer.resume=never"), tmp_path / "run")


# Limits in seconds


def test_a_limit_in_seconds_ends_the_run_and_its_schedule(tiny, tmp_path):
    run(tiny("trainer.max_steps=null", "trainer.max_seconds=1.0"), tmp_path / "run")
    lines = all_metrics(tmp_path / "run")
    assert lines[-2]["train/seconds"] < 1.0 <= lines[-1]["train/seconds"]
    rates = [line["train/learning_rate"] for line in lines]
    assert rates[-1] < 0.2 * max(rates)


def assert_whole(run_dir, num_steps):
    """A finished run has a line for each step, a fitted temperature, its slices, and an evaluation of its last step."""
    lines, found, checkpoint = metrics(run_dir), evaluation(run_dir), find_checkpoint(run_dir)
    assert [line["step"] for line in lines] == list(range(1, num_steps + 1))
    assert found["step"] == checkpoint.step == num_steps
    assert found["temperature"]["value"] == checkpoint.calibration().value > 0
    assert found["slices"].keys() == {"frequency", "position"}
    assert lines[-1]["val/nll"] == found["nll"]["value"]


@pytest.mark.parametrize("checkpoint_every", ["1", "null"])
def test_an_evaluation_that_crosses_the_limit_in_seconds_still_ends_a_whole_run(
    tiny, tmp_path, monkeypatch, checkpoint_every
):
    """The clock stands still but for an evaluation, which takes 60 s: step 1 is not the last when it ends."""
    now, measure = [0.0], Scorer.measure

    def slow(*args):
        now[0] += 60
        return measure(*args)

    limits = ["trainer.max_steps=null", "trainer.eval_every=1", f"trainer.checkpoint_every={checkpoint_every}"]
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "measure", slow)
        patch.setattr("time.monotonic", lambda: now[0])
        for seconds, num_steps in ((50, 1), (50, 1), (70, 2), (200, 4)):
            assert run(tiny(*limits, f"trainer.max_seconds={seconds}"), tmp_path / "run") == 0
            assert_whole(tmp_path / "run", num_steps)


def test_a_run_is_made_longer_by_raising_the_limit_that_ended_it(tiny, tmp_path, monkeypatch, capsys):
    """A clock that moves on by a second whenever it is read; the message names the limit that ended the run."""
    ticks, step = itertools.count(), 0
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    for max_steps, max_seconds, advice in (
        ("null", "20", "trainer.max_seconds"),
        ("1000", "40", "trainer.max_seconds"),
        ("40", "1e6", "trainer.max_steps"),
        ("42", "null", "trainer.max_steps"),
        ("null", "500", "trainer.max_seconds"),
    ):
        config = tiny(f"trainer.max_steps={max_steps}", f"trainer.max_seconds={max_seconds}")
        assert run(config, tmp_path / "run") == 0
        before, step = step, find_checkpoint(tmp_path / "run").step
        assert step > before
        assert_whole(tmp_path / "run", step)
        capsys.readouterr()
        assert run(config, tmp_path / "run") == 0
        message = capsys.readouterr().err
        assert advice in message
        assert message.count("trainer.") == 1


# Speed


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler here")
def test_a_compiled_run_is_the_same_run(tiny, tmp_path):
    small = ["model.num_hidden_layers=1", "trainer.max_steps=2"]
    run(tiny(*small), tmp_path / "eager")
    run(tiny(*small, "trainer.compile=on"), tmp_path / "compiled")
    for eager, compiled in zip(metrics(tmp_path / "eager"), metrics(tmp_path / "compiled"), strict=True):
        assert compiled == pytest.approx(eager, rel=1e-4)


def test_compiling_without_a_compiler_is_a_clear_error(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"trainer\.compile"):
        run(tiny("trainer.compile=on"), tmp_path / "run")


@pytest.mark.parametrize("peak", [1.0, 1e18])
def test_mfu_is_a_share_and_absent_once_a_step_beats_the_measured_peak(tiny, tmp_path, monkeypatch, capsys, peak):
    monkeypatch.setattr("nanolm.training.step.measure_peak_flops", lambda compute: peak)
    assert train(tiny(), tmp_path, "the command") == 0
    values = [line["train/mfu"] for line in all_metrics(tmp_path)]
    if peak == 1.0:
        assert values == [None] * 6
    else:
        assert all(0 < value < 1 for value in values)
    assert capsys.readouterr().err.count("train/mfu") == (peak == 1.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_is_measured_without_touching_the_global_generator(precision):
    before = torch.random.get_rng_state()
    assert measure_peak_flops(resolve_compute("cpu", precision), size=64, seconds=0.0) > 0
    assert torch.equal(torch.random.get_rng_state(), before)


# What is evaluated in addition


def test_further_splits_and_sizes_of_the_calibration_split(tiny, tmp_path, capsys):
    smoothed = ["loss.label_smoothing=0.1"]
    further = ["evaluate.further_splits=[train,shifted]", "evaluate.calibration_sizes=[20,40]"]
    assert run(tiny(*smoothed, *further), tmp_path) == 0
    assert "shifted" in capsys.readouterr().err
    of_val, of_train = evaluation(tmp_path), evaluation(tmp_path, "train")
    assert of_train["split"] == "train"
    assert of_train["num_tokens"] > of_val["num_tokens"]
    assert of_train["temperature"] == of_val["temperature"]
    assert (tmp_path / "documents-train.npz").exists()
    assert [entry["num_tokens"] for entry in of_val["calibration_sizes"]] == [20, 40]
    assert [row["calibrator"] for row in of_val["calibrators"]] == ["none", "temperature", "inverse smoothing"]
    assert len(of_val["corpus"]) == 64
    shutil.rmtree(tmp_path / "checkpoints/step-00000006")
    (tmp_path / "evaluation.json").unlink()
    assert run(tiny(*smoothed, *further), tmp_path) == 0  # the end of the run again
    assert evaluation(tmp_path) == of_val
    assert run(tiny(*smoothed, "trainer.max_steps=7"), tmp_path) == 0
    assert not (tmp_path / "evaluation-train.json").exists()  # it was of fewer steps


@pytest.mark.parametrize("key", ["further_splits=[val]", "further_splits=[validation]", "calibration_sizes=[0]"])
def test_splits_and_sizes_that_make_no_sense_are_refused(tiny, key):
    with pytest.raises(ConfigError, match=rf"evaluate\.{key.partition('=')[0]}"):
        tiny(f"evaluate.{key}")


@pytest.mark.parametrize(("fraction", "size"), [(0, 1), (0.05, 100_000)])
def test_calibration_sizes_that_the_split_lacks_are_left_out_with_a_note(tiny, tmp_path, capsys, fraction, size):
    sizes = f"evaluate.calibration_sizes=[{size}]"
    assert run(tiny("trainer.max_steps=1", f"data.calibration_fraction={fraction}", sizes), tmp_path / "run") == 0
    assert "evaluate.calibration_sizes" in capsys.readouterr().err
