"""Language models with a teacher: what they minimise, that they continue exactly, and what is refused."""

import copy
import shutil

import pytest
import torch

from nanolm.data import Loader, open_prepared, prepare
from nanolm.errors import CheckpointError, ConfigError
from nanolm.loss import LossOptions, reference
from nanolm.training import find_checkpoint
from tests.faults.runs import TINY, each_step, evaluation, metrics, outcome, run, run_script, stop_after

TEACHER = "loss.distillation.teacher"
SMALL = ["trainer.max_steps=3", "model.num_hidden_layers=1", "model.hidden_size=16"]


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory):
    """A finished run, wider than its students, with a softcap and a temperature of its own."""
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    run(tiny("trainer.batch_size=8", "loss.softcap=4", "loss.temperature=0.8", "model.dropout=0.1"), run_dir)
    return run_dir


@pytest.fixture
def student(tiny, teacher):
    return lambda *overrides: tiny(*SMALL, f"{TEACHER}={teacher}", *overrides)


def sha256_of(teacher):
    return find_checkpoint(teacher).manifest.files["model.safetensors"]["sha256"]


def test_a_step_minimises_the_reference(student, teacher, tmp_path):
    """From the logits of both models, in float64; the NLL that is logged is that of the student alone."""
    config = student(
        "loss.label_smoothing=0.1", "loss.softcap=3", "loss.distillation.weight=0.7", "trainer.max_steps=1"
    )
    models = [find_checkpoint(teacher).load_model(torch.device("cpu"))]
    with each_step(before=lambda state: models.append(copy.deepcopy(state.model))):
        run(config, tmp_path / "run")
    corpus = open_prepared(prepare(config.data, config.tokenizer))
    inputs, targets = Loader(corpus.splits["train"], 16, 4, config.seed).rows(0, 0, 4)
    with torch.no_grad():
        theirs, ours = ((model(inputs) @ model.head_weight.T).flatten(0, 1) for model in models)
    expected = reference.distilled_objective(
        ours,
        targets.flatten(),
        LossOptions(label_smoothing=0.1, softcap=3),
        theirs,
        LossOptions(softcap=4, temperature=0.8),
        weight=0.7,
        temperature=2.0,
    )
    line = metrics(tmp_path / "run")[0]
    assert line["train/objective"] == pytest.approx(expected.objective.mean(), rel=1e-5)
    assert line["train/nll"] == pytest.approx(expected.nll.mean(), rel=1e-5)
    assert line["train/entropy"] == pytest.approx(expected.entropy.mean(), rel=1e-4)


def test_a_run_stopped_and_continued_ends_as_one_left_alone(student, teacher, tmp_path):
    options = ["model.dropout=0.2", "trainer.micro_batch_size=3"]
    run(student(*options), tmp_path / "straight")
    stop_after(student(*options), tmp_path / "stopped", 2)
    moved = tmp_path / "the teacher, elsewhere"
    shutil.copytree(teacher / "checkpoints" / "step-00000006", moved)
    assert run(student(*options, f"{TEACHER}={moved}"), tmp_path / "stopped") == 0
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "straight")


def test_a_weight_of_0_is_a_run_without_a_teacher_in_every_bit(student, tmp_path):
    run(student("model.dropout=0.2", "loss.distillation.weight=0"), tmp_path / "taught")
    run(student("model.dropout=0.2", f"{TEACHER}=null"), tmp_path / "alone")
    taught, alone = outcome(tmp_path / "taught"), outcome(tmp_path / "alone")
    assert taught.pop("evaluation")["teacher"]["trainer.max_steps"] == 6
    assert alone.pop("evaluation")["teacher"] is None
    assert taught == alone
    assert find_checkpoint(tmp_path / "alone").manifest.teacher is None


def test_another_teacher_is_refused_naming_both(student, teacher, tmp_path):
    stop_after(student(), tmp_path / "run", 2)
    stop_after(student(f"{TEACHER}=null"), tmp_path / "alone", 2)
    earlier = teacher / "checkpoints" / "step-00000004"
    for other, run_dir, hashes in (
        (earlier, tmp_path / "run", [sha256_of(teacher), sha256_of(earlier)]),
        ("null", tmp_path / "run", [sha256_of(teacher), "none"]),
        (teacher, tmp_path / "alone", ["none", sha256_of(teacher)]),
    ):
        with pytest.raises(CheckpointError, match=".*".join(hashes)):
            run(student(f"{TEACHER}={other}"), run_dir)
    assert run(student(), tmp_path / "run") == 0


def test_a_run_that_is_not_finished_is_no_teacher_but_its_checkpoint_may_be(student, teacher, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(teacher, half)
    (half / "evaluation.json").unlink()
    with pytest.raises(ConfigError, match=TEACHER):
        run(student(f"{TEACHER}={half}"), tmp_path / "run")
    assert run(student(f"{TEACHER}={half / 'checkpoints/step-00000006'}"), tmp_path / "run") == 0
    assert evaluation(tmp_path / "run")["teacher"]["trainer.max_steps"] == 6


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("trainer.sequence_length=17", r"trainer\.sequence_length.* 17.* 16"),
        ("tokenizer=char", "tokenizer.* 257"),
        (f"{TEACHER}=.", r"=\.: "),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(student, tmp_path, override, word):
    with pytest.raises((ConfigError, CheckpointError), match=TEACHER + word if word[0] == "=" else word) as raised:
        run(student(override), tmp_path / "run")
    assert raised.value.exit_code == 2
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_no_run_is_its_own_teacher(student, tmp_path):
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "run", tmp_path / "other" / ".." / "run"):
        with pytest.raises(ConfigError, match=TEACHER):
            run(student(f"{TEACHER}={path}"), tmp_path / "run")


def test_a_student_stands_alone(corpus_file, data_root, teacher, tmp_path, monkeypatch, capsys):
    """From the command line to the student's text, with the teacher gone."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "the teacher")
    given = [*TINY, *SMALL, f"data.path={corpus_file}", f"data.root={data_root}", f"{TEACHER}=the teacher"]
    assert run_script("train", [*given, "hydra.run.dir=the student"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "the student"
    assert "the teacher/checkpoints/step-00000006" in printed.err
    shutil.rmtree("the teacher")
    assert run_script("sample", ["checkpoint=the student", "max_new_tokens=2", "device=cpu"]) == 0
    assert capsys.readouterr().out
