import pytest

from nanolm.config import load
from nanolm.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["task.path=table.csv"], "task.target"),
        (["task.target=kind"], "task.path"),
        (["task.path=missing.csv", "task.target=kind"], "task.path"),
        (["task.path=.", "task.target=kind"], "task.path"),
        (["task=regression"], "task"),
        (["cross_validation.folds=1"], "cross_validation.folds"),
        (["cross_validation.calibration_fraction=0"], "cross_validation.calibration_fraction"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(overrides, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=key):
        load("baseline", overrides)


def test_runs_are_named_after_task_and_model():
    assert load("baseline").name == "binary-linear"
    assert load("baseline", ["task=softmax"]).name == "softmax-mlp"


def test_a_path_and_a_column_arrive_as_typed(tmp_path):
    path = tmp_path / "my table (1), a=b.csv"
    path.write_text("x")
    task = load("baseline", [f"task.path={path}", "task.target=What's the class? (y=1), yes"]).task
    assert (task.path, task.target) == (str(path), "What's the class? (y=1), yes")
