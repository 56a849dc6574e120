"""Model FLOPs utilisation is a share: never above 1, and absent where its ceiling was measured wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.device import measure_peak_flops, resolve_compute
from nanolm.report import write_run_report
from nanolm.training import train


def mfu_of_a_run(config: Any, run_dir: Path) -> list[float | None]:
    run_dir.mkdir()
    assert train(config, run_dir, "python scripts/train.py", write_run_report) == 0
    return [json.loads(line)["train/mfu"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_ceiling_that_a_step_beats_leaves_the_metric_out_and_says_so_once(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nanolm.training.run.measure_peak_flops", lambda _: 1.0)
    assert mfu_of_a_run(tiny(), tmp_path / "run") == [None] * 6
    assert capsys.readouterr().err.count("train/mfu") == 1


def test_below_its_ceiling_it_is_a_share(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nanolm.training.run.measure_peak_flops", lambda _: 1e18)
    assert all(value is not None and 0 < value < 1 for value in mfu_of_a_run(tiny(), tmp_path / "run"))
    assert "train/mfu" not in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_ceiling_is_measured_without_touching_the_global_generator(precision: str) -> None:
    before = torch.random.get_rng_state()
    assert measure_peak_flops(resolve_compute("cpu", precision), size=64, seconds=0.0) > 0
    assert torch.equal(torch.random.get_rng_state(), before)
