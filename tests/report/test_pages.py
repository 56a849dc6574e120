import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from nanolm.report import write_evaluation_report, write_run_report
from nanolm.report.figures import running_mean, training_curve

EVALUATION = {
    "split": "val",
    "step": 3,
    "num_tokens": 30,
    "num_documents": 2,
    "num_bytes": 1234567,
    "sequence_length": 8,
    "stride": 4,
    **{
        name: {"value": 0.25, "low": None, "high": None}
        for name in ("nll", "perplexity", "bits_per_byte", "accuracy", "confidence", "nll_at_temperature")
    },
    "intervals": "95 % intervals over 2 documents",
    "reliability": {"1": {"count": [3, 0], "confidence": [0.2, 0], "accuracy": [0.3, 0]}},
    "slices": {},
    "calibrators": [{"calibrator": "none", "nll": 0.25, "note": ""}],
    "calibration": {"temperature": None, "reason": "<u>no</u> tokens"},
}


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


def test_the_page_is_self_contained_and_escaped(run_dir):
    write_run_report(run_dir, EVALUATION)
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
    assert "<b>name" not in page
    assert "<i>name" not in page
    assert "<u>no" not in page
    assert page.count("<svg") == 3
    assert "src=" not in page
    assert "1,234,567 bytes" in page
    assert "bits per byte" in page
    write_run_report(run_dir, EVALUATION)
    assert (run_dir / "report.html").read_text(encoding="utf-8") == page


def test_a_whole_evaluation_has_all_figures(run_dir):
    bins = {"count": [3, 2], "confidence": [0.2, 0.7], "accuracy": [0.3, 0.5]}
    fitted = {"temperature": {"value": 1.3, "low": 1.2, "high": 1.4}, "curve": {"temperature": [1, 2], "nll": [3, 4]}}
    without = {"value": None, "low": None, "high": None}
    gap = {"value": 0.1, "low": 0.05, "high": 0.12}
    group = {"name": "0–10 %", "num_tokens": 5, "ece": 0.1, "entropy_gap": without, "confidence_gap": gap}
    whole = {
        "temperature": fitted["temperature"],
        "reliability": {"1": bins, "fitted": bins},
        "slices": {"frequency": [group], "position": [group]},
        "calibration": fitted,
        "calibrators": [
            {"calibrator": name, "nll": 0.5, "note": "<i>ε</i>"} for name in ("none", "temperature", "map")
        ],
        "calibration_sizes": [
            {"num_tokens": 8, "nll_at_one": 2.0, "draws": [{"temperature": 1.5, "nll": 1.9}]},
            {"num_tokens": 4, "nll_at_one": 2.0, "draws": [{"temperature": None, "nll": None}]},
        ],
    }
    image = write_run_report(run_dir, EVALUATION | whole)
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert image.startswith(b"\x89PNG")
    assert page.count("<svg") == 7
    assert "&lt;i&gt;ε" in page
    assert "1.300 [1.200, 1.400]" in page


def test_a_value_that_is_none_and_documents_without_text(tmp_path):
    write_documents(tmp_path / "documents-val.npz", num_bytes=(0, 0))
    nothing = {"value": None, "low": None, "high": None}
    write_evaluation_report(tmp_path, tmp_path / "step-00000003", {**EVALUATION, "bits_per_byte": nothing})
    assert "not finite" in (tmp_path / "report-val.html").read_text(encoding="utf-8")


def test_figures_are_valid_svg():
    svg = training_curve([{"tokens": 8, "train/nll": 2.0, "val/nll": 1.0}])
    assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_running_mean_matches_the_definition():
    values = np.random.default_rng(0).normal(size=50)
    values[[3, *range(20, 30)]] = np.nan
    expected = [
        np.nanmean(values[max(0, end - 7) : end]) if end not in (27, 28, 29, 30) else np.nan for end in range(1, 51)
    ]
    np.testing.assert_allclose(running_mean(values, 7), expected)
