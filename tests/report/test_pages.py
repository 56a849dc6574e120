import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from nanolm.metrics import (
    Calibration,
    CalibrationSize,
    CalibratorRow,
    Evaluation,
    Interval,
    Measurement,
    Reliability,
    Slice,
)
from nanolm.metrics.records import Curve, Draw
from nanolm.report import publish, reliability_lines, summary, write_run_page, write_split_page
from nanolm.report.plots import running_mean, training_curve

BINS = Reliability(count=[3, 0, 2], confidence=[0.2, 0.0, 0.7], accuracy=[0.3, 0.0, 0.5])
EVALUATION = Evaluation(
    split="val",
    step=3,
    num_tokens=30,
    num_documents=2,
    num_bytes=1234567,
    num_classes=9,
    sequence_length=8,
    stride=4,
    intervals="95 % intervals over 2 documents",
    metrics={name: Interval(0.25) for name in ("nll", "perplexity", "bits_per_byte", "nll_at_temperature")},
    reliability={"1": BINS},
    calibrators=[CalibratorRow(calibrator="none", nll=0.25)],
    calibration=Calibration.none("<u>no</u> tokens"),
)
GROUP = Slice(
    name="0–10 %",
    num_tokens=5,
    nll=1.0,
    accuracy=0.5,
    confidence=0.6,
    entropy=0.9,
    entropy_gap=Interval(float("nan")),
    confidence_gap=Interval(0.1, 0.05, 0.12),
)
FITTED = Calibration(temperature=Interval(1.3, 1.2, 1.4), curve=Curve(temperature=[1.0, 2.0], nll=[3.0, 4.0]))


def write_documents(path, num_bytes=(10, 20)):
    np.savez(path, nll_sum=np.array([1.0, 2.0]), num_bytes=np.array(num_bytes), num_tokens=np.array([10, 20]))


@pytest.fixture
def run_dir(tmp_path):
    run_dir = tmp_path / "<b>name</b>" / "time"
    run_dir.mkdir(parents=True)
    lines = [{"step": s, "tokens": 8 * s, "train/nll": 5.0 - s, "train/seconds": 1.0 * s} for s in (1, 2, 3)]
    lines[1]["train/nll"] = None  # a step that was not finite
    lines[2]["val/nll"] = 2.5
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_documents(run_dir / "documents-val.npz")
    (run_dir / "samples.txt").write_text("<script>alert('x')</script> & so on")
    (run_dir / "config.yaml").write_text("name: <i>name</i>\n")
    return run_dir


def page_of(run_dir, evaluation):
    write_run_page(run_dir, evaluation)
    return (run_dir / "report.html").read_text(encoding="utf-8")


def test_the_page_is_self_contained_and_escaped(run_dir):
    page = page_of(run_dir, EVALUATION)
    for raw in ("<script", "<b>name", "<i>name", "<u>no", "src="):
        assert raw not in page
    for shown in ("&lt;script&gt;alert", "1,234,567 bytes", "bits per byte"):
        assert shown in page
    assert page.count("<svg") == 3
    assert page_of(run_dir, EVALUATION) == page


def test_a_whole_evaluation_has_all_plots(run_dir):
    whole = EVALUATION.model_copy(
        update={
            "metrics": EVALUATION.metrics | {"temperature": FITTED.temperature},
            "reliability": {"1": BINS, "fitted": BINS},
            "slices": {"frequency": [GROUP], "position": [GROUP]},
            "calibration": FITTED,
            "calibrators": [CalibratorRow(calibrator=name, note="<i>ε</i>") for name in ("none", "temperature", "map")],
            "calibration_sizes": [
                CalibrationSize(num_tokens=8, nll_at_one=2.0, draws=[Draw(temperature=1.5, nll=1.9)]),
                CalibrationSize(num_tokens=4, nll_at_one=2.0, draws=[Draw(temperature=None, nll=None)]),
            ],
        }
    )
    page = page_of(run_dir, whole)
    assert page.count("<svg") == 7
    assert "&lt;i&gt;ε" in page
    assert "1.300 [1.200, 1.400]" in page
    assert reliability_lines(whole).keys() == {"T = 1", "T = fitted"}
    *_, values = summary(whole)
    assert values["val/temperature"] == 1.3


def test_a_value_that_is_not_finite_and_documents_without_text(tmp_path):
    write_documents(tmp_path / "documents-val.npz", num_bytes=(0, 0))
    infinite = EVALUATION.model_copy(update={"metrics": {"nll": Interval(0.25), "bits_per_byte": Interval(np.inf)}})
    write_split_page(tmp_path, tmp_path / "step-00000003", infinite)
    assert "not finite" in (tmp_path / "report-val.html").read_text(encoding="utf-8")
    assert summary(infinite)[2]["val/bits_per_byte"] is None


def test_the_json_is_published_last(tmp_path):
    measured = Measurement("val", "", 2)

    def write_page():
        assert (tmp_path / "documents-val.npz").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, measured, EVALUATION, write_page, "-val")
    assert not (tmp_path / "evaluation-val.json").exists()
    publish(tmp_path, measured, EVALUATION, lambda: None, "-val")
    assert json.loads((tmp_path / "evaluation-val.json").read_text())["nll"]["value"] == 0.25


def test_plots_are_valid_svg():
    svg = training_curve([{"tokens": 8, "train/nll": 2.0, "val/nll": 1.0}])
    assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_running_mean_matches_the_definition():
    values = np.random.default_rng(0).normal(size=50)
    values[[3, *range(20, 30)]] = np.nan
    expected = [
        np.nanmean(values[max(0, end - 7) : end]) if end not in (27, 28, 29, 30) else np.nan for end in range(1, 51)
    ]
    np.testing.assert_allclose(running_mean(values, 7), expected)
