"""scripts/baseline.py as its users call it: in a process of its own, by its output and exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = ["task.epochs=3", "cross_validation.folds=3", "cross_validation.repeats=1", "separation.epochs=3"]
TINY.append("wandb.mode=disabled")


def call(*arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "baseline.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_help_needs_no_torch_and_no_scikit_learn(tmp_path):
    code, out, err = call("--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert code == 0
    assert "scripts/baseline.py" in out
    assert "task.path = null" in out
    assert "cross_validation.folds = 5" in out
    assert "import time" in err
    assert "torch" not in err
    assert "sklearn" not in err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("task", ["binary", "softmax"])
def test_a_run_ends_in_a_table_a_page_and_its_path(task, tmp_path):
    code, out, err = call(f"task={task}", *TINY, cwd=tmp_path)
    assert code == 0, err
    run_dir = tmp_path / out.splitlines()[-1]
    assert run_dir.parent == tmp_path / "runs" / {"binary": "binary-linear", "softmax": "softmax-mlp"}[task]
    files = {"config.yaml", "metrics.jsonl", "baseline.log", "documents-val.npz", "report.html", "evaluation.json"}
    assert files <= set(os.listdir(run_dir))
    assert "vector scaling" in out
    assert "maximum likelihood" in out
    assert f"hydra.run.dir={run_dir.relative_to(tmp_path)}" in err


def test_a_sweep_over_tasks_smoothing_and_seeds_and_again(tmp_path):
    command = ["-m", "task=binary,softmax", "loss.label_smoothing=0,0.1", *TINY, "separation.epochs=null"]
    command.append("hydra.sweep.dir=sweep")
    code, _, err = call(*command, cwd=tmp_path)
    assert code == 0, err
    files = [tmp_path / "sweep" / str(number) / "evaluation.json" for number in range(4)]
    found = [json.loads(file.read_text()) for file in files]
    assert [content["task"]["name"] for content in found] == ["binary"] * 2 + ["softmax"] * 2
    assert len({content["nll"]["value"] for content in found}) == 4
    files[3].unlink()
    code, _, err = call(*command, cwd=tmp_path)
    assert code == 0, err
    assert err.count("this run is finished") == 3
    assert json.loads(files[3].read_text()) == found[3]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("task.path=missing.csv task.target=y", ["task.path", "missing.csv"]),
        ("task.path=three.csv task.target=y", ["three.csv", "task=softmax"]),
        ("task.path=three.csv task.target=y task=softmax cross_validation.folds=20", ["folds=20", "found 13"]),
        ("tsak=softmax", ["tsak", "task"]),
    ],
)
def test_bad_input_is_one_clear_message_and_leaves_nothing(arguments, named, tmp_path):
    (tmp_path / "three.csv").write_text("x,y\n" + "".join(f"{i},{i % 3}\n" for i in range(40)))
    code, out, err = call(*arguments.split(), cwd=tmp_path)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    (message,) = [line for line in err.splitlines() if line.startswith("error: ")]
    for word in named:
        assert word in message
    assert os.listdir(tmp_path) == ["three.csv"]
