import os

import pytest

from nanolm.config import load
from nanolm.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task.path=table.csv"], "task.target: task.path needs it"),
        (["task.target=kind"], "task.path: task.target needs it"),
        (["task.path=missing.csv", "task.target=kind"], "task.path: 'missing.csv' is no such file; give a CSV file"),
        (["task.path=.", "task.target=kind"], "task.path: '.' is a folder, not a CSV file"),
        (["task.path=~/table.csv", "task.target=kind"], "write $HOME"),
        (["task=regression"], "task=regression: no such choice"),
        (["task.model=tree"], "task.model: expected one of linear, mlp"),
        (["loss.label_smoothing=1"], "loss.label_smoothing: expected a number >= 0 and < 1"),
        (["cross_validation.folds=1"], "cross_validation.folds: expected a whole number >= 2"),
        (["cross_validation.calibration_fraction=0"], "cross_validation.calibration_fraction"),
        (["name=a/b"], "name: expected a folder's name"),
    ],
)
def test_what_is_wrong_with_a_configuration(overrides, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load("baseline", overrides)
    assert told in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_runs_are_named_after_task_and_model():
    assert load("baseline").name == "binary-linear"
    assert load("baseline", ["task=softmax"]).name == "softmax-mlp"
    assert load("baseline", ["task=softmax", "task.model=linear"]).name == "softmax-linear"


def test_a_path_and_a_column_arrive_as_typed(tmp_path):
    path = tmp_path / "my table (1), a=b.csv"
    path.write_text("x")
    task = load("baseline", [f"task.path={path}", "task.target=What's the class? (y=1), yes"]).task
    assert (task.path, task.target) == (str(path), "What's the class? (y=1), yes")
