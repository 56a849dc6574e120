"""Language models with a teacher: what they minimise, that they continue exactly, and what is refused."""

import json
import shutil

import pytest
import torch

from nanolm.config import command_line
from nanolm.errors import CheckpointError, ConfigError
from nanolm.loss import LossOptions, reference
from nanolm.training import find_checkpoint, train
from nanolm.training.checkpoint import manifest_checksum
from nanolm.training.loop import TrainingLoop
from nanolm.training.objective import Likelihood, open_objective, teacher_sha256
from tests.training.test_run import Interrupted, assert_same_run, lines_of

TEACHER = "loss.distillation.teacher"
SMALL = ["trainer.max_steps=3", "model.num_hidden_layers=1", "model.hidden_size=16"]


def run(config, run_dir):
    """A run without its page, which has tests of its own and takes longer than such a training."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return train(config, run_dir, "python scripts/train.py", lambda *_: b"", lambda *_: None)


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory):
    """A finished run, wider than its students, with a softcap and a temperature of its own."""
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    run(tiny("trainer.batch_size=8", "loss.softcap=4", "loss.temperature=0.8", "model.dropout=0.1"), run_dir)
    return run_dir


@pytest.fixture
def student(tiny, teacher):
    return lambda *overrides: tiny(*SMALL, f"{TEACHER}={teacher}", *overrides)


def test_a_step_minimises_the_reference(student, teacher, tmp_path, monkeypatch):
    """By the logits of both models, in float64; the NLL that is logged is that of the student alone."""
    seen = []
    original = TrainingLoop._forward

    def watch(self, inputs, targets):
        self.state.model.eval()  # no dropout, so that the hidden states can be had again
        with torch.no_grad():
            seen.append((self.state.model(inputs) @ self.state.model.head_weight.T, inputs, targets))
        return original(self, inputs, targets)

    monkeypatch.setattr(TrainingLoop, "_forward", watch)
    config = student(
        "loss.label_smoothing=0.1", "loss.softcap=3", "loss.distillation.weight=0.7", "trainer.max_steps=1"
    )
    run(config, tmp_path / "run")
    logits, inputs, targets = seen[0]
    with torch.no_grad():
        model = find_checkpoint(teacher).load_model(torch.device("cpu"))
        theirs = model(inputs) @ model.head_weight.T
    expected = reference.distilled_objective(
        logits.flatten(0, 1),
        targets.flatten(),
        LossOptions(label_smoothing=0.1, softcap=3),
        theirs.flatten(0, 1),
        LossOptions(softcap=4, temperature=0.8),
        weight=0.7,
        temperature=2.0,
    )
    line = lines_of(tmp_path / "run")[0]
    assert line["train/objective"] == pytest.approx(expected.objective.mean(), rel=1e-5)
    assert line["train/nll"] == pytest.approx(expected.nll.mean(), rel=1e-5)
    assert line["train/entropy"] == pytest.approx(expected.entropy.mean(), rel=1e-4)


def test_a_run_stopped_and_continued_ends_as_one_left_alone(student, teacher, tmp_path, monkeypatch):
    config = student("model.dropout=0.2", "trainer.micro_batch_size=3")
    run(config, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr("nanolm.training.run.TrainingLoop", Interrupted)
        patch.setattr(Interrupted, "at", 2)
        assert run(config, tmp_path / "stopped") == 3
    moved = tmp_path / "the teacher, elsewhere"
    shutil.copytree(teacher / "checkpoints" / "step-00000006", moved)
    assert (
        run(student("model.dropout=0.2", "trainer.micro_batch_size=3", f"{TEACHER}={moved}"), tmp_path / "stopped") == 0
    )
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_a_weight_of_0_is_a_run_without_a_teacher_in_every_bit(student, tmp_path):
    run(student("model.dropout=0.2", "loss.distillation.weight=0"), tmp_path / "taught")
    run(student("model.dropout=0.2", f"{TEACHER}=null"), tmp_path / "alone")
    assert_same_run(tmp_path / "taught", tmp_path / "alone")


def test_another_teacher_is_refused_naming_both(student, teacher, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("nanolm.training.run.TrainingLoop", Interrupted)
        patch.setattr(Interrupted, "at", 2)
        run(student(), tmp_path / "run")
    earlier = teacher / "checkpoints" / "step-00000004"
    with pytest.raises(CheckpointError) as raised:
        run(student(f"{TEACHER}={earlier}"), tmp_path / "run")
    for path in (teacher, earlier):
        assert teacher_sha256(find_checkpoint(path)) in str(raised.value)
    with pytest.raises(CheckpointError, match=r"sha256 [0-9a-f]{64} there, none now"):
        run(student(f"{TEACHER}=null"), tmp_path / "run")
    assert run(student(), tmp_path / "run") == 0
    manifest = tmp_path / "run" / "checkpoints" / "step-00000003" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content.pop("teacher") == teacher_sha256(find_checkpoint(teacher))
    content["checksum"] = manifest_checksum(content)
    manifest.write_text(json.dumps(content))  # as it was before there were teachers
    (tmp_path / "run" / "evaluation.json").unlink()
    with pytest.raises(CheckpointError, match=r"none there, weights of sha256"):
        run(student(), tmp_path / "run")


def test_a_run_that_is_not_finished_is_no_teacher_but_its_checkpoint_may_be(student, teacher, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(teacher, half)
    (half / "evaluation.json").unlink()
    with pytest.raises(ConfigError, match=r"expected a finished run, found .* without evaluation\.json; finish"):
        run(student(f"{TEACHER}={half}"), tmp_path / "run")
    assert run(student(f"{TEACHER}={half / 'checkpoints/step-00000006'}"), tmp_path / "run") == 0
    content = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert content["teacher"]["trainer.max_steps"] == 6


def test_without_a_teacher_there_is_none(tiny, teacher):
    assert find_checkpoint(teacher).manifest["teacher"] is None
    checkpoint = find_checkpoint(teacher)
    objective = open_objective(tiny(), teacher, checkpoint.tokenizer, None)
    assert type(objective) is Likelihood


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.sequence_length=17"], r"expected a context of at least trainer.sequence_length, 17, found 16 in"),
        (["tokenizer=char"], r"with a vocabulary of \d+, found another one in .*, with a vocabulary of 257"),
        ([f"{TEACHER}=."], rf"{TEACHER}=\.: expected a run directory with checkpoints/step-\*/ in it"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(student, tmp_path, overrides, told):
    with pytest.raises((ConfigError, CheckpointError), match=told) as raised:
        run(student(*overrides), tmp_path / "run")
    assert raised.value.exit_code == 2
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_no_run_is_its_own_teacher(student, teacher, tmp_path):
    (tmp_path / "run").mkdir()
    for path in (tmp_path / "run", tmp_path / "other" / ".." / "run"):
        (tmp_path / "other").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="the directory of this run itself"):
            run(student(f"{TEACHER}={path}"), tmp_path / "run")


def test_a_student_stands_alone(corpus_file, data_root, teacher, tmp_path, monkeypatch, capsys):
    """From the command line to the student's text, with the teacher gone."""
    from scripts.sample import task as sample
    from scripts.train import task as train_and_report

    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "the teacher")
    arguments = [
        *("data=jsonl", f"data.path={corpus_file}", f"data.root={data_root}", "tokenizer=byte"),
        *("model.num_hidden_layers=1", "model.hidden_size=16", "model.num_attention_heads=2"),
        *("model.num_key_value_heads=1", "model.intermediate_size=16", "trainer.sequence_length=16"),
        *("trainer.max_steps=2", "trainer.batch_size=2", "trainer.device=cpu", "sample.max_new_tokens=2"),
        *("wandb.mode=disabled", f"{TEACHER}=the teacher", "hydra.run.dir=the student"),
    ]
    assert command_line.run("train", train_and_report, arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "the student"
    assert "teacher: the teacher/checkpoints/step-00000006, nano, " in printed.err
    shutil.rmtree("the teacher")
    assert command_line.run("sample", sample, ["checkpoint=the student", "max_new_tokens=2", "device=cpu"]) == 0
    assert capsys.readouterr().out
