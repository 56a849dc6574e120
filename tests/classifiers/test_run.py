"""A whole run: its files, its page, its metrics."""

import contextlib
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from nanolm.classifiers import ClassifierEvaluation, run_baseline
from nanolm.config import load
from nanolm.errors import ConfigError, DataError
from nanolm.tracking import read_metrics

METRICS = ("nll", "perplexity", "accuracy", "confidence", "ece", "smooth_ece", "brier", "entropy", "entropy_gap")
AT_TEMPERATURE = ("temperature", "nll_at_temperature", "calibration_error", "refinement")
NAMES = ("<b>width</b>", "a&b", "<script>alert(1)</script>")


def write_csv(path, num_rows=90):
    """Two features and a class that depends on them, all under names that a page must escape."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(num_rows, 2))
    classes = np.where(features.sum(axis=1) + generator.normal(size=num_rows) > 0, "<i>yes</i>", "no & never")
    rows = [f"{x:.4f},{y:.4f},{c}" for (x, y), c in zip(features, classes, strict=True)]
    path.write_text("\n".join([",".join(NAMES), *rows]) + "\n")
    return [f"task.path={path}", f"task.target={NAMES[2]}"]


def run(config, run_dir):
    """What a run prints on standard output; its directory is made."""
    run_dir.mkdir(parents=True, exist_ok=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run_baseline(config, run_dir, "python scripts/baseline.py") == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a binary run on a CSV file, its configuration, and what it printed."""
    folder = tmp_path_factory.mktemp("user")
    run_dir = folder / "runs" / "<u>run</u>"
    keys = ["task.epochs=12", "task.eval_every=5", "cross_validation.folds=3", "separation.epochs=20"]
    keys += ["loss.label_smoothing=0.1", "wandb.mode=disabled"]
    config = load("baseline", [*write_csv(folder / "table.csv"), *keys])
    return run_dir, config, run(config, run_dir)


@pytest.fixture(scope="module")
def content(finished):
    """The content of its ``evaluation.json``."""
    return json.loads((finished[0] / "evaluation.json").read_text())


def test_a_run_leaves_its_files_and_prints_its_tables(finished):
    run_dir, _, printed = finished
    files = {"config.yaml", "metrics.jsonl", "report.html"}
    files |= {"documents-val.npz", "documents-train.npz", "evaluation.json", "evaluation-train.json"}
    assert files <= {path.name for path in run_dir.iterdir()}
    assert printed.splitlines()[-1] == str(run_dir)
    for words in ("vector scaling", "inverse smoothing", "early stopping", "90 examples", "nll_at_temperature"):
        assert words in printed
    assert "bits_per_byte" not in printed


def test_evaluation_json_has_the_keys_of_a_language_models(finished, content):
    for name in (*METRICS, *AT_TEMPERATURE):
        assert content[name].keys() == {"value", "low", "high"}
        assert math.isfinite(content[name]["value"])
    for name in ("nll", "temperature"):
        assert content[name]["low"] < content[name]["value"] < content[name]["high"]
    assert (content["split"], content["step"]) == ("val", 12)
    assert (content["num_tokens"], content["num_documents"]) == (180, 90)
    assert content["reliability"].keys() == {"1", "fitted"}
    assert sum(content["reliability"]["1"]["count"]) == 180
    assert content["task"]["classes"] == ["<i>yes</i>", "no & never"]
    assert sum(content["task"]["class_counts"]) == 90
    assert [row["calibrator"] for row in content["calibrators"]][-1] == "inverse smoothing"
    assert [(fold["repeat"], fold["fold"]) for fold in content["folds"]] == [(r, f) for r in (0, 1) for f in range(3)]
    assert {fold["num_learning"] + fold["num_calibration"] + fold["num_scored"] for fold in content["folds"]} == {90}
    assert content["perplexity"]["value"] == pytest.approx(math.exp(content["nll"]["value"]))
    text = (finished[0] / "evaluation.json").read_text()
    assert ClassifierEvaluation.model_validate_json(text).model_dump_json(indent=2) + "\n" == text


def test_what_was_learned_from_is_measured_too(finished, content):
    of_train = json.loads((finished[0] / "evaluation-train.json").read_text())
    assert of_train["split"] == "train"
    assert of_train["num_tokens"] == sum(fold["num_learning"] for fold in content["folds"])
    assert of_train["nll"]["value"] < content["nll"]["value"]
    assert of_train["nll"]["low"] < of_train["nll"]["value"] < of_train["nll"]["high"]
    last = read_metrics(finished[0] / "metrics.jsonl")[-1]  # of full batches, before the last step
    assert of_train["nll"]["value"] == pytest.approx(last["train/nll"], rel=0.1)


def test_metrics_are_a_line_an_epoch_by_a_language_models_names(finished, content):
    lines = read_metrics(finished[0] / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "val/nll" in line] == [5, 10, 12]
    train = ("objective", "nll", "perplexity", "accuracy", "confidence", "entropy", "entropy_gap", "ece", "grad_norm")
    train += ("learning_rate", "tokens_per_second", "seconds", "weight_norm")
    assert {f"train/{name}" for name in train} | {"step", "tokens"} == lines[0].keys()
    assert {f"val/{name}" for name in METRICS} == lines[-1].keys() - lines[0].keys()
    assert lines[1]["tokens"] == 2 * lines[0]["tokens"]
    assert lines[-1]["val/nll"] == pytest.approx(content["nll"]["value"], abs=1e-7)
    assert lines[-1]["tokens"] == content["task"]["examples_seen"]


def test_the_page_is_complete_self_contained_and_escaped(finished):
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4  # reliability, temperature, training, separation
    assert page.count("<table>") == 3  # metrics, calibrators, separation
    for escaped in ("&lt;b&gt;width", "a&amp;b", "&lt;i&gt;yes", "no &amp; never", "&lt;u&gt;run"):
        assert escaped in page
    for absent in ("<script", "<b>", "<i>", "<u>", "a&b", "src=", "href=http", "@import", "url(http", "bits per byte"):
        assert absent not in page
    for svg in re.findall("<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    for name in ("maximum likelihood", "early stopping", "L2 penalty, 0.01", "label smoothing, 0.1"):
        assert page.count(name) >= 2, name  # in the table, and in the plot
    assert "token" not in page[page.index("<h1>") : page.index("<h2>Configuration")].replace("num_tokens", "")


def test_a_finished_run_is_left_alone_and_another_configuration_is_refused(finished, tiny_baseline, capsys):
    run_dir, config, _ = finished
    before = (run_dir / "evaluation.json").stat().st_mtime_ns
    assert run(config, run_dir).splitlines() == [str(run_dir)]
    assert "finished" in capsys.readouterr().err
    assert (run_dir / "evaluation.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="seed"):
        run_baseline(tiny_baseline("seed=1"), run_dir, "")


def test_a_run_that_was_killed_starts_over_and_ends_the_same(finished, tmp_path):
    run_dir, config, _ = finished
    (tmp_path / "config.yaml").write_bytes((run_dir / "config.yaml").read_bytes())
    (tmp_path / "metrics.jsonl").write_text((run_dir / "metrics.jsonl").read_text()[:2000])
    run(config, tmp_path)
    assert (tmp_path / "evaluation.json").read_bytes() == (run_dir / "evaluation.json").read_bytes()
    one, other = (
        [line | {"train/seconds": 0, "train/tokens_per_second": 0} for line in read_metrics(path / "metrics.jsonl")]
        for path in (run_dir, tmp_path)
    )
    assert one == other


def test_a_softmax_run_whose_folds_all_have_no_temperature(tiny_baseline, tmp_path):
    """Every prediction is right: there is no temperature, no metric at one, and the page says why."""
    rows = [f"{10 * c + i / 100},{c}" for c in range(3) for i in range(20)]
    (tmp_path / "easy.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    keys = [f"task.path={tmp_path / 'easy.csv'}", "task.target=y", "task.epochs=150", "task.learning_rate=0.03"]
    run(tiny_baseline("task=softmax", *keys), tmp_path / "run")
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert content["accuracy"]["value"] == 1
    assert "temperature" not in content
    assert "nll_at_temperature" not in content
    assert content["separation"] is None
    assert all(fold["temperature"] is None and fold["reason"] for fold in content["folds"])
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "In 6 of 6 folds" in page
    assert page.count("<svg") == 2


def test_bad_data_leaves_no_file(tiny_baseline, tmp_path):
    (tmp_path / "table.csv").write_text("x,y\n1,a\n2,b\n")
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match=r"cross_validation\.folds"):
        run_baseline(tiny_baseline(f"task.path={tmp_path / 'table.csv'}", "task.target=y"), tmp_path / "run", "")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock"}


def test_calibration_sizes_above_the_calibration_part_are_left_out_with_a_note(tmp_path, tiny_baseline, capsys):
    keys = [*write_csv(tmp_path / "table.csv"), "cross_validation.calibration_sizes=[4,100000]"]
    run(tiny_baseline(*keys), tmp_path / "run")
    assert "cross_validation.calibration_sizes" in capsys.readouterr().err
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [entry["num_tokens"] for entry in content["calibration_sizes"]] == [4]
