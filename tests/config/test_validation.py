import sys
from pathlib import Path

import pytest

from nanolm.config import from_yaml, load, to_yaml
from nanolm.errors import ConfigError


def problem(script: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(script, list(overrides))
    return str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["model.num_attention_heads=3", "model.num_key_value_heads=3"],
            "a divisor of model.hidden_size, 256, found 3",
        ),
        (
            ["model.num_key_value_heads=3"],
            "model.num_key_value_heads: expected a divisor of model.num_attention_heads, 4",
        ),
        (["model.head_dim=31"], "model.head_dim: expected an even width"),
        (["model.hidden_size=12"], "model.hidden_size / model.num_attention_heads: expected an even width"),
        (["tokenizer.vocab_size=10"], "tokenizer.vocab_size: expected at least 257"),
        (["tokenizer.vocab_size=256"], "tokenizer.vocab_size: expected at least 257"),
        (["tokenizer.vocab_size=null"], "found null"),
        (["tokenizer=char", "tokenizer.vocab_size=500"], "tokenizer.vocab_size: only tokenizer=bpe has it"),
        (["tokenizer=byte", "tokenizer.training_bytes=500"], "tokenizer.training_bytes: only tokenizer=bpe has it"),
        (["data.val_fraction=0.9", "data.test_fraction=0.05"], "expected a sum below 1, found 1"),
        (["data.path=file.txt"], "data.path: data=sotu reads no local file, found 'file.txt'"),
        (["data=text"], "data.path: data=text needs it"),
        (["data=tinystories", "data.hub_path=null"], "data.hub_path: data=tinystories needs it"),
        (["data.hub_revision=main"], "data.hub_revision: data=sotu is not read from the Hub"),
        (["data=tinystories", "data.shifted_from_year=2000"], "data.shifted_from_year: only data=sotu"),
        (["data.root="], "data.root: expected a text that is not empty"),
        (["optimizer.matrix_learning_rate=null"], "optimizer.matrix_learning_rate: optimizer=muon needs it"),
        (["optimizer=adamw", "optimizer.matrix_learning_rate=0.1"], "expected null, found 0.1"),
        (["schedule.decay_fraction=0.99"], "schedule.warmup_fraction and schedule.decay_fraction"),
        (["schedule=cosine", "schedule.decay_fraction=0.5"], "only schedule=wsd has it"),
        (["schedule=constant", "schedule.final_fraction=0.5"], "expected 1, found 0.5"),
        (["trainer.batch_size=4", "trainer.micro_batch_size=5"], "at most trainer.batch_size, 4, found 5"),
        (["trainer.max_steps=null"], "trainer.max_steps and trainer.max_seconds: both are null"),
        (["trainer.sequence_length=64", "evaluate.stride=65"], "at most trainer.sequence_length, 64, found 65"),
        (["name="], "name: expected a folder's name"),
        (["name=a/b"], "name: expected a folder's name"),
        (["name=.."], "name: expected a folder's name"),
        (["name= a"], "name: expected a folder's name"),
        (["name=a\nb"], "name: expected a folder's name"),
        ([f"name={'a' * 101}"], "name: expected a folder's name"),
        (["sample.prompt=a\0b"], "sample.prompt: text cannot hold the character NUL"),
    ],
)
def test_contradictions_are_told_by_their_keys(overrides: list[str], told: str) -> None:
    assert told in problem("train", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.hidden_size=12", "model.head_dim=8"],
        ["tokenizer.vocab_size=257"],
        ["trainer.batch_size=5", "trainer.micro_batch_size=2"],
        ["trainer.sequence_length=64", "evaluate.stride=64"],
        ["schedule.warmup_fraction=0.5", "schedule.decay_fraction=0.5"],
        ["trainer.max_steps=null", "trainer.max_seconds=9"],
        ["name=ünï (x=1), yes"],
    ],
)
def test_limits_of_what_is_allowed(overrides: list[str]) -> None:
    load("train", overrides)


def test_a_corpus_has_to_be_there(tmp_path: Path) -> None:
    assert "data.path: no such file '/nowhere/a.txt'" in problem("train", "data=text", "data.path=/nowhere/a.txt")
    assert "no file matches" in problem("tokenize", "data=text", f"data.path={tmp_path}/*.txt")
    for name in ("self", "again"):  # links in a loop, of which there is no end
        (tmp_path / name).symlink_to(".")
    assert "no file matches" in problem("tokenize", "data=text", f"data.path={tmp_path}/**/*.nothing")
    assert "is a folder" in problem("train", "data=text", f"data.path={tmp_path}")
    assert "the shell leaves ~ alone" in problem("train", "data=text", "data.path=~/a.txt")
    odd = tmp_path / "a [b]*, (c=d).txt"
    odd.write_text("x")
    assert load("train", ["data=text", f"data.path={odd}"]).data.path == str(odd)
    assert load("train", ["data=text", f"data.path={tmp_path}/**/*.txt"]).data.path == f"{tmp_path}/**/*.txt"


def test_a_checkpoint_has_to_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "checkpoint: not given" in problem("sample")
    assert "no such folder" in problem("evaluate", "checkpoint=runs/nowhere")
    assert "a file, not a folder" in problem("sample", f"checkpoint={tmp_path / 'file'}")
    assert "found an empty text" in problem("sample", "checkpoint=")
    assert load("sample", [f"checkpoint={tmp_path}"]).checkpoint == str(tmp_path)


@pytest.mark.parametrize("script", ["train", "baseline"])
def test_a_teacher_has_to_be_a_folder(script: str, tmp_path: Path) -> None:
    key = "loss.distillation.teacher"
    (tmp_path / "file").write_text("x")
    assert f"{key}: 'runs/nowhere' is no such folder; give" in problem(script, f"{key}=runs/nowhere")
    assert f"{key}: '' is no such folder" in problem(script, f"{key}=")
    assert "a file, not a folder" in problem(script, f"{key}={tmp_path / 'file'}")
    assert "write $HOME" in problem(script, f"{key}=~/runs")
    odd = tmp_path / "a run (1), b=c"
    odd.mkdir()
    assert load(script, [f"{key}={odd}"]).loss.distillation.teacher == str(odd)
    assert load(script, [f"{key}=null"]).loss.distillation.teacher is None


@pytest.mark.parametrize("script", ["train", "baseline"])
def test_a_section_within_a_section_is_checked_like_any_other(script: str) -> None:
    assert "loss.distillation.weight: expected a number >= 0 and <= 1" in problem(script, "loss.distillation.weight=2")
    assert "loss.distillation.temperature: expected a number > 0" in problem(script, "loss.distillation.temperature=0")
    assert "did you mean loss.distillation.teacher" in problem(script, "loss.distillation.techer=x")
    assert "loss.distillation: " in problem(script, "loss.distillation=null")
    config = load(script, ["loss.distillation.weight=1", "loss.distillation.temperature=4"])
    assert (config.loss.distillation.weight, config.loss.distillation.temperature) == (1.0, 4.0)
    assert from_yaml(to_yaml(config), type(config)) == config


def test_another_corpus_for_evaluation_has_to_be_chosen_before_its_keys_are_set(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("x")
    assert load("evaluate", [f"checkpoint={tmp_path}"]).data is None
    assert "give data=NAME too" in problem("evaluate", f"checkpoint={tmp_path}", f"data.path={file}")
    assert load("evaluate", [f"checkpoint={tmp_path}", "data=text", f"data.path={file}"]).data.path == str(file)


@pytest.mark.parametrize(
    ("script", "name"), [("train", "trainer.device"), ("sample", "device"), ("evaluate", "device")]
)
def test_cuda_has_to_be_there(script: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    given = [f"{name}=cuda"] + ([] if script == "train" else [f"checkpoint={tmp_path}"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert f"{name}: cuda was asked for, but torch finds no CUDA device" in problem(script, *given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load(script, given)


def test_torch_is_loaded_for_nothing_else() -> None:
    import subprocess

    code = "import sys; from nanolm.config import load; load('train'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
