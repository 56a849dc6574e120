"""R1, R12: a sweep that died continues by the same command and ends with the table of one that was left alone."""

import os
import subprocess
import sys

import pytest

from tests.faults.runs import ROOT, TINY, evaluation, run_script
from tests.faults.soak import kill_after


@pytest.fixture
def sweep(corpus_file, data_root):
    """``sweep(folder, …)``: the arguments of one and the same sweep, with its directory below a folder."""

    def arguments(folder, *overrides):
        given = [f"data.path={corpus_file}", f"data.root={data_root}", f"hydra.sweep.dir={folder}"]
        return ["-m", *TINY, *given, "trainer.max_steps=30", "loss.label_smoothing=0,0.1", *overrides]

    return arguments


def results_of(folder):
    """Return what a sweep leaves that does not depend on its path."""
    return (folder / "comparison.csv").read_text(), [evaluation(folder / str(number)) for number in range(2)]


def test_a_killed_sweep_ends_with_the_same_table(sweep, tmp_path, capfd):
    assert run_script("train", sweep(tmp_path / "straight")) == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts/train.py", *sweep(killed)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    kill_after(process, killed / "1", steps=10, delay=0)
    assert not (killed / "1/evaluation.json").exists()
    finished = (killed / "0/evaluation.json").stat().st_mtime_ns
    capfd.readouterr()
    assert run_script("train", sweep(killed)) == 0
    shown = capfd.readouterr()
    assert "killed/0: " in shown.err
    assert "continuing" in shown.err
    assert (killed / "0/evaluation.json").stat().st_mtime_ns == finished
    assert results_of(killed) == results_of(tmp_path / "straight")
    assert any(line.split()[:2] == ["label_smoothing=0.1", "1"] for line in shown.out.splitlines())


def test_a_failed_job_is_listed_behind_the_table_of_the_others(sweep, tmp_path, capfd):
    folder = tmp_path / "sweep"
    given = sweep(folder, "loss.label_smoothing=0", "optimizer.learning_rate=0.01,1e30", "trainer.max_grad_norm=null")
    assert run_script("train", given) == 1
    shown = capfd.readouterr()
    assert (folder / "0/evaluation.json").exists()
    assert "1 of 2 jobs failed" in shown.err
    assert "scripts/train.py -m" in shown.err
    assert (folder / "comparison.csv").exists()
