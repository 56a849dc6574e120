"""Classifiers with a teacher: what they minimise, what the teacher has seen, and which teachers are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from nanolm.classifiers import CrossValidation, run_baseline
from nanolm.classifiers.cross_validation import FoldModel, make_folds
from nanolm.classifiers.distillation import read_teacher
from nanolm.classifiers.learner import EpochSums
from nanolm.config import flatten, to_yaml
from nanolm.errors import CheckpointError, ConfigError, NonFiniteError
from nanolm.metrics import GroupedMeter

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


def first_fold(dataset, config):
    """The first fold, its student taught and not yet trained, and the teacher."""
    model = FoldModel(dataset, make_folds(dataset, config.cross_validation, 0)[0], config, seed=3)
    return model, model.learn_from(read_teacher(config), seed=5)


def train(validation):
    for epoch in range(1, validation.config.task.epochs + 1):
        validation.train_epoch(epoch)
    validation.finish()
    return validation


def weights(learner):
    return [parameter.detach().clone() for parameter in learner.model.parameters()]


def test_a_student_minimises_what_is_computed_by_hand(overlapping, taught):
    """One fold, one full-batch epoch of Adam on the mean of (1-w) hard + w τ² H(p', p), by torch's own losses."""
    config, _ = taught(
        ["task=softmax", "task.hidden_size=6", "loss.temperature=0.7"],
        ["task=softmax", "task.model=linear", "task.epochs=1", "task.batch_size=null", "loss.label_smoothing=0.1"],
    )
    model, teacher = first_fold(overlapping, config)
    student = model.learner
    theirs = (teacher.logits(student.features) / 0.7 / 2).softmax(dim=1)
    manual = torch.nn.Linear(4, 3, dtype=torch.float64)
    manual.load_state_dict(student.model.layers[0].state_dict())
    logits = manual(student.features)
    hard = cross_entropy(logits, student.targets, label_smoothing=0.1)
    (0.5 * hard + 0.5 * 4 * cross_entropy(logits / 2, theirs)).backward()
    torch.optim.Adam(manual.parameters(), lr=config.task.learning_rate).step()
    sums = EpochSums(GroupedMeter(1))
    student.train_epoch(1, sums)
    for one, other in zip(weights(student), manual.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    plain = cross_entropy(logits, student.targets).item()
    assert sums.meter.group_metrics(0)["nll"] == pytest.approx(plain)  # never the teacher's, never smoothed
    assert sums.objective / len(student.targets) == pytest.approx(
        (0.5 * hard + 2 * cross_entropy(logits / 2, theirs)).item()
    )


def test_a_binary_student_learns_from_the_probability_of_class_1(two_classes, taught):
    config, _ = taught(["loss.softcap=3"], ["loss.distillation.weight=1", "loss.distillation.temperature=3"])
    model, teacher = first_fold(two_classes, config)
    student = model.learner
    logits = torch.randn(len(student.targets), dtype=torch.float64, requires_grad=True)
    theirs = (3 * torch.tanh(teacher.logits(student.features) / 3) / 3).sigmoid()
    expected = 9 * binary_cross_entropy_with_logits(logits / 3, theirs)
    found = student.objective(logits, torch.arange(len(student.targets)))
    torch.testing.assert_close(found.objective, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits) for value in (found.objective, expected)))
    torch.testing.assert_close(
        found.nll.mean(), binary_cross_entropy_with_logits(logits, student.targets.double()).detach()
    )


@pytest.mark.parametrize("patience", ["null", "2"])
def test_no_teacher_has_seen_the_scored_fold(overlapping, taught, patience):
    """Whatever the scored examples are, teacher and student stay the same in every bit."""
    config, _ = taught(["task=softmax", f"task.patience={patience}"], ["task=softmax", "task.model=linear"])

    def taught_fold(dataset):
        model, teacher = first_fold(dataset, config)
        model.learner.train_epoch(1, EpochSums(GroupedMeter(1)))
        return model, teacher

    before, teacher_before = taught_fold(overlapping)
    assert torch.equal(teacher_before.features, before.learner.features)
    assert len(teacher_before.targets) == len(before.fold.learning)
    features = overlapping.features.copy()
    features[before.fold.scored] = 1e3 * np.random.default_rng(5).normal(size=features[before.fold.scored].shape)
    after, teacher_after = taught_fold(replace(overlapping, features=features))
    assert not torch.equal(before.scored[0], after.scored[0])
    for one, other in ((before.learner, after.learner), (teacher_before, teacher_after)):
        assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_with_its_own_seed_and_folds_the_teacher_is_the_model_of_its_run_in_every_bit(overlapping, taught, monkeypatch):
    config, teacher = taught(
        ["task=softmax", "task.patience=2", "task.epochs=12", "seed=3"], ["task=softmax", "seed=3"]
    )
    fitted = []
    original = FoldModel.learn_from

    def keep(self, *arguments):
        fitted.append(original(self, *arguments))
        return fitted[-1]

    monkeypatch.setattr("nanolm.classifiers.cross_validation.FoldModel.learn_from", keep)
    seen = []
    CrossValidation(overlapping, config, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]
    its_run = train(CrossValidation(overlapping, teacher))
    assert len(fitted) == len(its_run.models) == 6
    for one, model in zip(fitted, its_run.models, strict=True):
        assert one.stopped_at == model.learner.stopped_at
        assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(model.learner), strict=True))


def test_a_weight_of_0_is_a_fit_without_a_teacher_in_every_bit(overlapping, taught, tiny_baseline):
    student = ["task=softmax", "task.epochs=3", "task.dropout=0.2"]
    config, _ = taught(["task=softmax", "task.epochs=2"], [*student, "loss.distillation.weight=0"])
    one, other = (train(CrossValidation(overlapping, c)) for c in (config, tiny_baseline(*student)))
    for left, right in zip(one.models, other.models, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights(left.learner), weights(right.learner), strict=True))


def test_a_student_that_is_its_teacher_stays_as_it_is(two_classes, taught):
    """With w = 1 the teacher's logits are the optimum, and a linear student can have them."""
    config, _ = taught([], ["loss.distillation.weight=1"])
    model, teacher = first_fold(two_classes, config)
    model.learner.model.load_state_dict(teacher.model.state_dict())
    logits = model.learner.model(model.learner.features)
    objective = model.learner.objective(logits, torch.arange(len(logits))).objective
    for gradient in torch.autograd.grad(objective, list(model.learner.model.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-14, rtol=0)


def test_a_whole_run_with_a_teacher(taught, tmp_path, capsys):
    rows = [f"{x},{x % 7},{x % 3}" for x in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["x,y,z", *rows]) + "\n")
    small = ["task=softmax", f"task.path={tmp_path / 'table.csv'}", "task.target=z", "cross_validation.repeats=1"]
    config, teacher = taught(small, [*small, "task.epochs=2", "separation.epochs=null"])
    (tmp_path / "student").mkdir()
    assert run_baseline(config, tmp_path / "student", "python scripts/baseline.py", lambda run_dir, content: b"") == 0
    told = capsys.readouterr().err
    content = json.loads((tmp_path / "student" / "evaluation.json").read_text())
    assert content["teacher"] == json.loads(json.dumps(flatten(teacher)))  # its directory may go
    assert "fitting teachers (100%) | 3/3 fits" in told
    assert f"teacher: that of {tmp_path / 'teacher'}, fitted anew" in told


def test_teachers_that_are_refused(tiny_baseline, tmp_path):
    bundled = tiny_baseline()

    def with_(teacher=None, **task):
        loss = replace(bundled.loss, distillation=replace(bundled.loss.distillation, teacher=teacher and str(teacher)))
        return replace(bundled, loss=loss, task=replace(bundled.task, **task))

    def told(teacher, error=ConfigError, **task):
        with pytest.raises(error) as raised:
            read_teacher(with_(teacher, **task))
        assert raised.value.exit_code == 2
        return str(raised.value)

    table = {"path": str(tmp_path / "table.csv"), "target": "y"}
    of_table = finished(tmp_path / "csv", with_(**table))
    assert read_teacher(with_(of_table, **table)) == with_(**table)
    plain = finished(tmp_path / "plain", bundled)
    assert "found task.name binary" in told(plain, name="softmax")
    assert "found task.path null" in told(plain, **table)
    assert f"found task.path {table['path']} " in told(of_table, path=str(tmp_path / "other.csv"), target="y")
    assert "found task.target y " in told(of_table, path=table["path"], target="x")
    second = finished(tmp_path / "second", with_(plain))
    assert "one level only" in told(second)
    (tmp_path / "empty").mkdir()
    assert "found no config.yaml and evaluation.json there" in told(tmp_path / "empty", CheckpointError)
    (plain / "evaluation.json").unlink()
    assert "found no evaluation.json there" in told(plain, CheckpointError)
    (second / "config.yaml").write_text("name: x")
    assert "its config.yaml cannot be read as that of a baseline" in told(second, CheckpointError)
    (second / "checkpoints").mkdir()
    assert "found that of a language model" in told(second, CheckpointError)


def test_a_teacher_that_diverges_is_named(overlapping, taught):
    config, _ = taught(["task=softmax", "task.learning_rate=1e200", "task.epochs=30"], ["task=softmax"])
    with pytest.raises(NonFiniteError, match=r"loss\.distillation\.teacher: while the teacher was fitted: task\."):
        first_fold(overlapping, config)
