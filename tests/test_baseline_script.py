"""scripts/baseline.py as its users call it: in a process of its own, by its output and exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = [
    "task.epochs=3",
    "task.eval_every=3",
    "cross_validation.folds=3",
    "cross_validation.repeats=1",
    "separation.epochs=3",
    "wandb.mode=disabled",
]


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
    command = ["-m", "task=binary,softmax", "loss.label_smoothing=0,0.1", "seed=0", *TINY, "separation.epochs=null"]
    code, _, err = call(*command, "hydra.sweep.dir=sweeps/all", cwd=tmp_path)
    assert code == 0, err
    runs = [tmp_path / "sweeps" / "all" / str(number) for number in range(4)]
    found = [json.loads((run / "evaluation.json").read_text()) for run in runs]
    assert [content["task"]["name"] for content in found] == ["binary"] * 2 + ["softmax"] * 2
    assert len({content["nll"]["value"] for content in found}) == 4
    (runs[3] / "evaluation.json").unlink()
    code, _, err = call(*command, "hydra.sweep.dir=sweeps/all", cwd=tmp_path)
    assert code == 0, err
    assert err.count("this run is finished") == 3
    assert json.loads((runs[3] / "evaluation.json").read_text()) == found[3]


def write_bad_files(folder):
    (folder / "good.csv").write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(40)))
    (folder / "three.csv").write_text("x,y\n" + "".join(f"{i},{i % 3}\n" for i in range(40)))
    (folder / "rare.csv").write_text("x,y\n" + "".join(f"{i},{int(i > 37)}\n" for i in range(40)))
    (folder / "one.csv").write_text("x,y\n1,a\n2,a\n")
    (folder / "words.csv").write_text("x,y\n1,a\nred,b\n")
    (folder / "gaps.csv").write_text("x,y\n1,a\n,b\n")
    (folder / "image.csv").write_bytes(bytes(range(256)))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["task.path=missing.csv", "task.target=y"], ["task.path", "missing.csv"]),
        (["task.path=good.csv"], ["task.target"]),
        (["task.path=good.csv", "task.target=z"], ["good.csv", "'z'", "['x', 'y']"]),
        (["task.path=three.csv", "task.target=y"], ["found 3", "task=softmax"]),
        (["task.path=rare.csv", "task.target=y"], ["rare.csv", "found 2 of class '1'"]),
        (["task.path=one.csv", "task.target=y"], ["2 classes", "'a'"]),
        (["task.path=words.csv", "task.target=y"], ["row 3", "'x'", "'red'"]),
        (["task.path=gaps.csv", "task.target=y"], ["row 3", "'x'", "empty cell"]),
        (["task.path=image.csv", "task.target=y"], ["image.csv", "CSV"]),
        (["tsak=softmax"], ["tsak", "task"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_one_clear_message_and_leaves_nothing(arguments, told, tmp_path):
    write_bad_files(tmp_path)
    before = sorted(os.listdir(tmp_path))
    code, out, err = call(*arguments, cwd=tmp_path)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("error: ")]
    for word in told:
        assert word in err
    assert sorted(os.listdir(tmp_path)) == before
