"""Classifiers with a teacher: what they minimise, what the teacher has seen, and which teachers are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from nanolm.classifiers import CrossValidation, run_baseline
from nanolm.classifiers.distillation import read_teacher
from nanolm.classifiers.learner import Learner
from nanolm.config import flatten, to_yaml
from nanolm.errors import CheckpointError, ConfigError, NonFiniteError

TEACHER = "loss.distillation.teacher"


def finished(folder, config):
    """A directory as a finished run of this configuration leaves it, so far as a student looks."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "evaluation.json").write_text("{}")
    return folder


@pytest.fixture
def taught(tiny_baseline, tmp_path):
    """``taught(teacher's overrides, student's overrides)``: a student's configuration, and its teacher's."""

    def make(teachers=(), students=()):
        teacher = tiny_baseline(*teachers)
        return tiny_baseline(*students, f"{TEACHER}={finished(tmp_path / 'teacher', teacher)}"), teacher

    return make


@pytest.fixture
def teachers(monkeypatch):
    """The teachers that students have learned from, in their order."""
    seen, original = [], Learner.learn_from
    monkeypatch.setattr(Learner, "learn_from", lambda *arguments: (seen.append(arguments[1]), original(*arguments)))
    return seen


def same_weights(one, other):
    return all(map(torch.equal, one.model.parameters(), other.model.parameters()))


def test_a_student_minimises_what_is_computed_by_hand(overlapping, taught, teachers):
    """One fold, one full-batch epoch of Adam on the mean of (1-w) hard + w τ² H(p', p), by torch's own losses."""
    config, _ = taught(
        ["task=softmax", "task.hidden_size=6", "loss.temperature=0.7"],
        ["task=softmax", "task.model=linear", "task.epochs=1", "task.batch_size=null", "loss.label_smoothing=0.1"],
    )
    student = CrossValidation(overlapping, config).models[0]
    features, targets = student.learning
    theirs = (teachers[0].logits(features) / 0.7 / 2).softmax(dim=1)
    manual = torch.nn.Linear(4, 3, dtype=torch.float64)
    manual.load_state_dict(student.model[0].state_dict())
    logits = manual(features)
    objective = 0.5 * cross_entropy(logits, targets, label_smoothing=0.1) + 2 * cross_entropy(logits / 2, theirs)
    objective.backward()
    torch.optim.Adam(manual.parameters(), lr=config.task.learning_rate).step()
    ((result, _),) = student.train_epoch(1)
    for one, other in zip(student.model.parameters(), manual.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert result.nll.mean().item() == pytest.approx(cross_entropy(logits, targets).item())  # never the teacher's
    assert result.objective.item() == pytest.approx(objective.item())


def test_a_binary_student_learns_from_the_probability_of_class_1(two_classes, taught, teachers):
    config, _ = taught(["loss.softcap=3"], ["loss.distillation.weight=1", "loss.distillation.temperature=3"])
    student = CrossValidation(two_classes, config).models[0]
    features, targets = student.learning
    logits = torch.randn(len(targets), dtype=torch.float64, requires_grad=True)
    theirs = (3 * torch.tanh(teachers[0].logits(features) / 3) / 3).sigmoid()
    expected = 9 * binary_cross_entropy_with_logits(logits / 3, theirs)
    found = student.objective(logits, torch.arange(len(targets)))
    torch.testing.assert_close(found.objective, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits) for value in (found.objective, expected)))
    torch.testing.assert_close(found.nll.mean(), binary_cross_entropy_with_logits(logits, targets.double()).detach())


@pytest.mark.parametrize("patience", ["null", "2"])
def test_no_teacher_has_seen_the_scored_fold(overlapping, taught, teachers, patience):
    """Whatever the scored examples of a fold are, its teacher and its student stay the same in every bit."""
    config, _ = taught(["task=softmax", f"task.patience={patience}"], ["task=softmax", "task.model=linear"])
    before = CrossValidation(overlapping, config).models[0]
    features = overlapping.features.copy()
    features[before.fold.scored] = 1e3 * np.random.default_rng(5).normal(size=features[before.fold.scored].shape)
    after = CrossValidation(replace(overlapping, features=features), config).models[0]
    assert not torch.equal(before.scored[0], after.scored[0])
    assert torch.equal(teachers[0].learning[0], before.learning[0])
    assert same_weights(teachers[0], teachers[6])
    for model in (before, after):
        model.train_epoch(1)
    assert same_weights(before, after)


def test_with_its_own_seed_and_folds_the_teacher_is_the_model_of_its_run_in_every_bit(
    overlapping, taught, teachers, trained
):
    of_teacher = ["task=softmax", "task.patience=2", "task.epochs=12", "seed=3"]
    config, _ = taught(of_teacher, ["task=softmax", "seed=3"])
    seen = []
    CrossValidation(overlapping, config, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]
    its_run, _ = trained(overlapping, *of_teacher)
    for teacher, model in zip(teachers, its_run.models, strict=True):
        assert teacher.stopped_at == model.stopped_at
        assert same_weights(teacher, model)


def test_a_weight_of_0_is_a_fit_without_a_teacher_in_every_bit(overlapping, taught, trained):
    student = ["task=softmax", "task.epochs=3", "task.dropout=0.2"]
    config, _ = taught(["task=softmax", "task.epochs=2"])
    keys = [f"{TEACHER}={config.loss.distillation.teacher}", "loss.distillation.weight=0"]
    one, other = (trained(overlapping, *student, *more)[0] for more in (keys, []))
    assert all(same_weights(left, right) for left, right in zip(one.models, other.models, strict=True))


def test_a_whole_run_with_a_teacher(taught, tmp_path, capsys):
    rows = [f"{x},{x % 7},{x % 3}" for x in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["x,y,z", *rows]) + "\n")
    small = ["task=softmax", f"task.path={tmp_path / 'table.csv'}", "task.target=z", "cross_validation.repeats=1"]
    config, teacher = taught(small, [*small, "task.epochs=2"])
    (tmp_path / "student").mkdir()
    assert run_baseline(config, tmp_path / "student", "python scripts/baseline.py") == 0
    content = json.loads((tmp_path / "student" / "evaluation.json").read_text())
    assert content["teacher"] == json.loads(json.dumps(flatten(teacher)))  # its directory may go
    printed = capsys.readouterr().err
    assert "3/3 fits" in printed
    assert str(tmp_path / "teacher") in printed


def test_a_teacher_of_other_data_or_with_a_teacher_is_refused(tiny_baseline, tmp_path):
    bundled = tiny_baseline()

    def having(teacher=None, **task):
        loss = replace(bundled.loss, distillation=replace(bundled.loss.distillation, teacher=teacher and str(teacher)))
        return replace(bundled, loss=loss, task=replace(bundled.task, **task))

    table = {"path": str(tmp_path / "table.csv"), "target": "y"}
    plain, of_table = finished(tmp_path / "plain", bundled), finished(tmp_path / "csv", having(**table))
    assert read_teacher(having(of_table, **table)) == having(**table)
    for teacher, task, named in (
        (plain, {"name": "softmax"}, "task.name"),
        (plain, table, "task.path"),
        (of_table, table | {"path": str(tmp_path / "other.csv")}, "task.path"),
        (of_table, table | {"target": "x"}, "task.target"),
        (finished(tmp_path / "second", having(plain)), {}, str(plain)),
    ):
        with pytest.raises(ConfigError) as raised:
            read_teacher(having(teacher, **task))
        assert TEACHER in str(raised.value)
        assert named in str(raised.value)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml"),
        (lambda folder: (folder / "evaluation.json").unlink(), "evaluation.json"),
        (lambda folder: (folder / "config.yaml").write_text("name: x"), "config.yaml"),
        (lambda folder: (folder / "checkpoints").mkdir(), "language model"),
    ],
)
def test_a_folder_that_is_no_finished_baseline_is_refused(tiny_baseline, tmp_path, damage, named):
    teacher = finished(tmp_path / "teacher", tiny_baseline())
    damage(teacher)
    with pytest.raises(CheckpointError, match=f"{teacher}.*{named}"):
        read_teacher(tiny_baseline(f"{TEACHER}={teacher}"))


def test_a_teacher_that_diverges_is_named(overlapping, taught):
    config, _ = taught(["task=softmax", "task.learning_rate=1e200", "task.epochs=30"], ["task=softmax"])
    with pytest.raises(NonFiniteError, match=r"loss\.distillation\.teacher.*task\.learning_rate"):
        CrossValidation(overlapping, config)
