import csv

import pytest

from nanolm.comparison import compare_runs, summarize_sweep
from nanolm.config import load
from nanolm.errors import ConfigError, DataError
from nanolm.report.comparison import write_comparison_page


@pytest.fixture
def runs(make_run, tmp_path):
    """Two cells of two seeds, smoothed and not, scored on train too; and one run without an end."""
    for number in range(4):
        smoothing = 0.1 * (number // 2)
        figures = {"temperature": 1 - smoothing, "nll_at_temperature": 1.8, "entropy_gap": -0.1}
        figures["calibrators"] = [{"calibrator": "inverse smoothing", "nll": 1.8, "ece": 0.01, "note": ""}]
        figures["calibration"] = {"temperature": None, "curve": {"temperature": [0.5, 1, 2], "nll": [2.0, 1.9, 2.1]}}
        sizes = [{"num_tokens": 8, "nll_at_one": 2.0, "draws": [{"temperature": 1.5, "nll": 1.9}]}]
        figures["calibration_sizes"] = sizes
        for split in ("val", "train"):
            make_run(
                f"{number}",
                number % 2,
                1.9 + smoothing,
                number,
                split,
                figures,
                loss__label_smoothing=smoothing,
                trainer__note="<script>alert(1)</script>" if number // 2 else "b",
            )
    (tmp_path / "runs/unfinished").mkdir()
    (tmp_path / "runs/unfinished/config.yaml").write_text("seed: 0\ntrainer: {max_steps: 3}\n")
    return tmp_path / "runs"


def compare(*overrides):
    return compare_runs(load("compare", overrides), write_comparison_page)


def test_a_comparison_leaves_a_table_a_page_and_a_csv_file(runs, tmp_path, capsys):
    page = compare(f"runs={runs}", f"out={tmp_path / 'new' / 'place'}")
    shown = capsys.readouterr()
    assert page == tmp_path / "new/place/comparison.html"
    assert shown.out.splitlines()[-1] == str(page)
    assert "label_smoothing=0.1" in shown.out
    assert "unfinished" in shown.err
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 4
    assert "<script" not in html
    assert "src=" not in html
    with open(page.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    nll = {(row["cell"], row["is_baseline"]): row for row in rows if row["metric"] == "nll"}
    assert [float(row["mean"]) for row in nll.values()] == pytest.approx([1.9, 2.0])
    (worse,) = [row for row in nll.values() if row["is_baseline"] == "False"]
    assert float(worse["difference"]) == pytest.approx(0.1)
    assert float(worse["low"]) < 0.1 < float(worse["high"])
    assert float(worse["seeds_standard_error"]) >= 0
    assert 0 <= float(worse["p_value_holm"]) <= 1
    assert worse["loss.label_smoothing"] == "0.1"
    again = {file.name: file.read_bytes() for file in page.parent.iterdir()}
    compare(f"runs={runs}", f"out={page.parent}")
    assert again == {file.name: file.read_bytes() for file in page.parent.iterdir()}


def test_a_sweep_is_compared_on_each_split(runs, capsys):
    summarize_sweep(runs, write_comparison_page)
    assert {"comparison.html", "comparison-train.html"} <= {path.name for path in runs.iterdir()}
    assert capsys.readouterr().out.count("2 cells of loss.label_smoothing") == 2


def test_a_sweep_without_a_finished_run_is_a_note(tmp_path, capsys):
    summarize_sweep(tmp_path, write_comparison_page)
    assert "expected finished runs" in capsys.readouterr().err


def test_what_cannot_be_compared_is_told(runs, tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        compare(f"runs={tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="expected finished runs"):
        compare(f"runs={runs}", "split=test")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        compare(f"runs={runs}", f"out={tmp_path / 'file'}")
    with pytest.raises(ConfigError, match="runs: not given"):
        compare()


def test_any_value_can_be_a_label(make_run, tmp_path):
    for number, path in enumerate((r"/x/$a_{$.txt", "_" * 300, "<b>&")):
        make_run(f"{number}", 0, data__path=path, figures={"calibration": {"curve": {"temperature": [1], "nll": [2]}}})
    page = compare(f"runs={tmp_path / 'runs'}").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in page


def test_runs_done_twice_are_told_and_counted_once(make_run, tmp_path, capsys):
    for number in range(3):
        make_run(f"{number}", 0)
    compare(f"runs={tmp_path / 'runs'}")
    shown = capsys.readouterr()
    assert "left out, since a later run has the same configuration and seed" in shown.err
    assert "all runs     1" in shown.out
