"""A whole run: its files, its page, its figures."""

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from nanolm.classifiers import run_baseline
from nanolm.comparison import find_runs, make_panels
from nanolm.comparison.theory import gaps
from nanolm.errors import ConfigError, DataError
from nanolm.report import write_baseline_report
from nanolm.report.baseline import separation_figure
from nanolm.tracking import read_metrics

FIGURES = ("nll", "perplexity", "accuracy", "confidence", "ece", "smooth_ece", "brier", "entropy", "entropy_gap")
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a binary run on a CSV file, and what it printed."""
    import contextlib
    import io

    from nanolm.config import load

    folder = tmp_path_factory.mktemp("user")
    run_dir = folder / "runs" / "<u>run</u>"
    run_dir.mkdir(parents=True)
    config = load(
        "baseline",
        [
            *write_csv(folder / "table.csv"),
            *("task.epochs=12", "task.eval_every=5", "cross_validation.folds=3", "separation.epochs=20"),
            *("loss.label_smoothing=0.1", "wandb.mode=disabled"),
        ],
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run_baseline(config, run_dir, "python scripts/baseline.py", write_baseline_report) == 0
    return run_dir, config, printed.getvalue()


def test_the_files_of_a_run(finished):
    run_dir, _, printed = finished
    files = {"config.yaml", "metrics.jsonl", "documents-val.npz", "evaluation.json", "report.html"}
    assert files <= {path.name for path in run_dir.iterdir()}
    assert printed.splitlines()[-1] == str(run_dir)


def test_evaluation_json_has_the_keys_of_a_language_models(finished):
    content = json.loads((finished[0] / "evaluation.json").read_text())
    for name in (*FIGURES, *AT_TEMPERATURE):
        assert content[name].keys() == {"value", "low", "high"}
        assert math.isfinite(content[name]["value"])
    assert content["nll"]["low"] < content["nll"]["value"] < content["nll"]["high"]
    assert content["temperature"]["low"] < content["temperature"]["value"] < content["temperature"]["high"]
    assert (content["split"], content["step"]) == ("val", 12)
    assert (content["num_tokens"], content["num_documents"]) == (180, 90)
    assert content["reliability"].keys() == {"1", "fitted"}
    assert sum(content["reliability"]["1"]["count"]) == 180
    assert content["task"]["classes"] == ["<i>yes</i>", "no & never"]
    assert sum(content["task"]["class_counts"]) == 90
    assert [row["calibrator"] for row in content["calibrators"]][-1] == "inverse smoothing"
    assert len(content["folds"]) == 6
    assert content["perplexity"]["value"] == pytest.approx(math.exp(content["nll"]["value"]))


def test_what_was_learnt_from_is_measured_too(finished):
    content, of_train = (
        json.loads((finished[0] / name).read_text()) for name in ("evaluation.json", "evaluation-train.json")
    )
    assert of_train["split"] == "train"
    assert of_train["num_tokens"] == sum(fold["num_learning"] for fold in content["folds"])
    assert of_train["nll"]["value"] < content["nll"]["value"]
    assert of_train["nll"]["low"] < of_train["nll"]["value"] < of_train["nll"]["high"]
    last = read_metrics(finished[0] / "metrics.jsonl")[-1]  # of full batches, before the last step
    assert of_train["nll"]["value"] == pytest.approx(last["train/nll"], rel=0.1)
    (panel,) = make_panels(find_runs(finished[0])[0])
    assert [gap.generalization for gap in gaps(panel)] == [
        pytest.approx(of_train["accuracy"]["value"] - content["accuracy"]["value"])
    ]


def test_metrics_are_a_line_an_epoch_by_a_language_models_names(finished):
    lines = read_metrics(finished[0] / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "val/nll" in line] == [5, 10, 12]
    train = ("objective", "nll", "perplexity", "accuracy", "confidence", "entropy", "entropy_gap", "ece", "grad_norm")
    train += ("learning_rate", "tokens_per_second", "seconds", "weight_norm")
    assert {f"train/{name}" for name in train} | {"step", "tokens"} == lines[0].keys()
    assert {f"val/{name}" for name in FIGURES} == lines[-1].keys() - lines[0].keys()
    assert lines[1]["tokens"] == 2 * lines[0]["tokens"]
    content = json.loads((finished[0] / "evaluation.json").read_text())
    assert lines[-1]["val/nll"] == pytest.approx(content["nll"]["value"], abs=1e-7)
    assert lines[-1]["tokens"] == content["task"]["examples_seen"]


def test_tables_are_printed(finished):
    printed = finished[2]
    for words in (
        "calibrators, each fitted within",
        "vector scaling",
        "inverse smoothing",
        "separation (",
        "maximum likelihood",
        "early stopping",
        "logistic regression three ways",
        "scikit-learn",
        "out-of-fold predictions of 90 examples",
        "nll_at_temperature",
    ):
        assert words in printed
    assert "bits_per_byte" not in printed


def test_the_page_is_complete_self_contained_and_escaped(finished):
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4  # reliability, temperature, training, separation
    for heading in ("Calibration", "Calibrators", "Training", "Separable data", "Data", "Configuration"):
        assert f"<h2>{heading}</h2>" in page
    for unescaped in ("<script", "<b>", "<i>", "<u>", "a&b"):
        assert unescaped not in page
    for escaped in ("&lt;b&gt;width", "a&amp;b", "&lt;i&gt;yes", "no &amp; never", "&lt;u&gt;run"):
        assert escaped in page
    for elsewhere in ("src=", "href=http", "@import", "url(http"):
        assert elsewhere not in page
    assert "inverse smoothing" in page
    assert "token" not in page[page.index("<h1>") : page.index("<h2>Configuration")].replace("num_tokens", "")
    assert page.count("<table>") == 4
    assert "bits per byte" not in page


def test_a_finished_run_is_left_alone_and_another_configuration_is_refused(finished, tiny_baseline, capsys):
    run_dir, config, _ = finished
    before = (run_dir / "evaluation.json").stat().st_mtime_ns
    assert run_baseline(config, run_dir, "", write_baseline_report) == 0
    assert "this run is finished" in capsys.readouterr().err
    assert (run_dir / "evaluation.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"(?s)seed: 0 there, 1 now"):
        run_baseline(tiny_baseline("seed=1"), run_dir, "", write_baseline_report)


def test_a_run_that_was_killed_starts_over_and_ends_the_same(finished, tmp_path):
    run_dir, config, _ = finished
    (tmp_path / "config.yaml").write_bytes((run_dir / "config.yaml").read_bytes())
    half = (run_dir / "metrics.jsonl").read_text()[:2000]
    (tmp_path / "metrics.jsonl").write_text(half)
    run_baseline(config, tmp_path, "", write_baseline_report)
    assert (tmp_path / "evaluation.json").read_bytes() == (run_dir / "evaluation.json").read_bytes()
    timed = ("train/seconds", "train/tokens_per_second")
    one, other = (
        [
            {name: value for name, value in line.items() if name not in timed}
            for line in read_metrics(path / "metrics.jsonl")
        ]
        for path in (run_dir, tmp_path)
    )
    assert one == other


def test_a_softmax_run_whose_folds_all_have_no_temperature(tiny_baseline, tmp_path):
    """Everything is told apart: no temperature, no figures at one, and the page says why."""
    rows = [f"{10 * c + i / 100},{c}" for c in range(3) for i in range(20)]
    (tmp_path / "easy.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    config = tiny_baseline(
        "task=softmax",
        f"task.path={tmp_path / 'easy.csv'}",
        "task.target=y",
        "task.epochs=150",
        "task.learning_rate=0.03",
    )
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert run_baseline(config, run_dir, "", write_baseline_report) == 0
    content = json.loads((run_dir / "evaluation.json").read_text())
    assert content["accuracy"]["value"] == 1
    assert "temperature" not in content
    assert content["agreement"] is content["separation"] is None
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "No temperature was fitted" in page
    assert "In 6 of 6 folds no temperature could be fitted" in page
    assert page.count("<svg") == 2


def test_bad_data_leaves_no_file(tiny_baseline, tmp_path):
    (tmp_path / "table.csv").write_text("x,y\n1,a\n2,b\n")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with pytest.raises(DataError, match="at least 3 examples of each class"):
        run_baseline(
            tiny_baseline(f"task.path={tmp_path / 'table.csv'}", "task.target=y"), run_dir, "", write_baseline_report
        )
    assert {path.name for path in run_dir.iterdir()} <= {".lock"}


def test_the_separation_figure_is_valid_svg_of_all_fits(finished):
    content = json.loads((finished[0] / "evaluation.json").read_text())
    svg = separation_figure(content["separation"])
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    for fit in content["separation"]["fits"]:
        assert fit["name"] in svg


def test_calibration_sizes_above_the_calibration_part_are_left_out_with_a_note(tmp_path, tiny_baseline, capsys):
    sizes = "cross_validation.calibration_sizes=[4,100000]"
    config = tiny_baseline(*write_csv(tmp_path / "table.csv"), sizes)
    (tmp_path / "run").mkdir()
    assert run_baseline(config, tmp_path / "run", "python scripts/baseline.py", write_baseline_report) == 0
    assert "cross_validation.calibration_sizes" in capsys.readouterr().err
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [entry["num_tokens"] for entry in content["calibration_sizes"]] == [4]
