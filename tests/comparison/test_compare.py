import csv

import pytest

from nanolm.comparison import compare_runs, summarize_sweep
from nanolm.config import load
from nanolm.errors import ConfigError, DataError


@pytest.fixture
def runs(make_run, tmp_path):
    """Two cells of two seeds, smoothed and not, scored on train as well; and one unfinished run."""
    for number in range(4):
        smoothing = 0.1 * (number // 2)
        found = {"temperature": 1 - smoothing, "nll_at_temperature": 1.8, "entropy_gap": -0.1}
        found["calibrators"] = [{"calibrator": "inverse smoothing", "nll": 1.8, "ece": 0.01}]
        curve = {"temperature": [0.5, 1, 2], "nll": [2.0, 1.9, 2.1]}
        found["calibration"] = {"temperature": None, "reason": "made up", "curve": curve}
        draws = [{"temperature": 1.5, "nll": 1.9}]
        found["calibration_sizes"] = [{"num_tokens": 8, "nll_at_one": 2.0, "draws": draws}]
        settings = {"loss__label_smoothing": smoothing}
        settings["trainer__note"] = "<script>alert(1)</script>" if number // 2 else "b"
        for split in ("val", "train"):
            make_run(f"{number}", number % 2, 1.9 + smoothing, number, split, found, **settings)
    (tmp_path / "runs/unfinished").mkdir()
    (tmp_path / "runs/unfinished/config.yaml").write_text("seed: 0\ntrainer: {max_steps: 3}\n")
    return tmp_path / "runs"


def compare(*overrides):
    return compare_runs(load("compare", overrides))


def test_a_comparison_writes_a_table_a_page_and_a_csv_file(runs, tmp_path, capsys):
    page = compare(f"runs={runs}", f"out={tmp_path / 'new' / 'place'}")
    printed = capsys.readouterr()
    assert page == tmp_path / "new/place/comparison.html"
    assert printed.out.splitlines()[-1] == str(page)
    assert "label_smoothing=0.1" in printed.out
    assert "unfinished" in printed.err
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 4
    assert "<script" not in html
    assert "src=" not in html
    with open(page.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    base, worse = (row for row in rows if row["metric"] == "nll")
    assert (base["is_baseline"], worse["is_baseline"]) == ("True", "False")
    assert [float(row["mean"]) for row in (base, worse)] == pytest.approx([1.9, 2.0])
    assert (base["difference"], float(worse["difference"])) == ("", pytest.approx(0.1))
    assert float(worse["low"]) < 0.1 < float(worse["high"])
    assert float(worse["seeds_standard_error"]) >= 0
    assert 0 <= float(worse["p_value_holm"]) <= 1
    assert worse["loss.label_smoothing"] == "0.1"
    again = {file.name: file.read_bytes() for file in page.parent.iterdir()}
    compare(f"runs={runs}", f"out={page.parent}")
    assert again == {file.name: file.read_bytes() for file in page.parent.iterdir()}


def test_a_sweep_is_compared_on_each_split(runs, capsys):
    summarize_sweep(runs)
    assert {"comparison.html", "comparison-train.html"} <= {path.name for path in runs.iterdir()}
    assert capsys.readouterr().out.count("2 cells") == 2


def test_a_sweep_without_a_finished_run_is_a_note(tmp_path, capsys):
    summarize_sweep(tmp_path)
    assert str(tmp_path) in capsys.readouterr().err


def test_what_cannot_be_compared_is_an_error(runs, tmp_path):
    (tmp_path / "file").write_text("")
    for error, key, overrides in (
        (ConfigError, "runs", [f"runs={tmp_path / 'nowhere'}"]),
        (DataError, "split", [f"runs={runs}", "split=test"]),
        (ConfigError, "out", [f"runs={runs}", f"out={tmp_path / 'file'}"]),
        (ConfigError, "runs", []),
    ):
        with pytest.raises(error, match=key):
            compare(*overrides)


def test_any_value_can_be_a_label(make_run, tmp_path):
    curve = {"temperature": [1], "nll": [2]}
    for number, path in enumerate((r"/x/$a_{$.txt", "_" * 300, "<b>&")):
        found = {"calibration": {"temperature": None, "reason": "made up", "curve": curve}}
        make_run(f"{number}", 0, data__path=path, found=found)
    page = compare(f"runs={tmp_path / 'runs'}").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in page


def test_runs_done_twice_are_named_and_counted_once(make_run, tmp_path, capsys):
    for number in range(3):
        make_run(f"{number}", 0)
    page = compare(f"runs={tmp_path / 'runs'}")
    printed = capsys.readouterr().err
    assert all((f"runs/{number}" in printed) == (number < 2) for number in range(3))
    with open(page.with_suffix(".csv"), newline="") as file:
        assert {row["num_runs"] for row in csv.DictReader(file)} == {"1"}
