"""A sweep that died continues by the same command and ends with the table of one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.runs import ROOT, TINY, run_script

OVERRIDES = [
    *TINY,
    "trainer.max_steps=30",
    "trainer.eval_every=null",
    "trainer.checkpoint_every=4",
    "loss.label_smoothing=0,0.1",
]


@pytest.fixture
def sweep(corpus_file, data_root):
    """``sweep(folder, …)``: the arguments of one and the same sweep, with its directory below a folder."""

    def arguments(folder, *overrides):
        given = [f"data.path={corpus_file}", f"data.root={data_root}", f"hydra.sweep.dir={folder}"]
        return ["-m", *OVERRIDES, *given, *overrides]

    return arguments


def run_here(arguments):
    return run_script("train", arguments)


def results_of(folder):
    """What a sweep leaves that does not depend on its path."""
    table = (folder / "comparison.csv").read_text()
    return table, [json.loads((folder / str(number) / "evaluation.json").read_text()) for number in range(2)]


def num_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_sweep_ends_with_the_same_table(sweep, tmp_path, capfd):
    assert run_here(sweep(tmp_path / "straight")) == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts/train.py", *sweep(killed)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and num_lines(killed / "1/metrics.jsonl") < 10:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (killed / "0/evaluation.json").exists()
    assert not (killed / "1/evaluation.json").exists()
    finished = (killed / "0/evaluation.json").stat().st_mtime_ns
    capfd.readouterr()
    assert run_here(sweep(killed)) == 0
    shown = capfd.readouterr()
    assert "killed/0: this run is finished" in shown.err
    assert "continuing after step" in shown.err
    assert (killed / "0/evaluation.json").stat().st_mtime_ns == finished
    assert results_of(killed) == results_of(tmp_path / "straight")
    table = shown.out.splitlines()
    assert any(line.split()[:2] == ["label_smoothing=0.1", "1"] for line in table)


def test_a_failed_job_is_listed_behind_the_table_of_the_others(sweep, tmp_path, capfd):
    folder = tmp_path / "sweep"
    given = sweep(folder, "loss.label_smoothing=0", "optimizer.learning_rate=0.01,1e30", "trainer.max_grad_norm=null")
    assert run_here(given) == 1
    shown = capfd.readouterr()
    assert (folder / "0/evaluation.json").exists()
    assert (folder / "0/config.yaml").exists()
    assert "1 of 2 jobs failed" in shown.err
    assert "in a row" in shown.err
    assert "finished jobs stay as they are: python scripts/train.py -m" in shown.err
    assert (folder / "comparison.csv").exists()
    assert "not finished, so left out, 1" in shown.err
