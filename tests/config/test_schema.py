"""Every key's type and range, the rules between keys, and what this machine has to have."""

import copy
import dataclasses
import functools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch

from nanolm.config import from_yaml, load, to_yaml
from nanolm.config.convert import convert
from nanolm.config.keys import Key, leaves
from nanolm.config.schema import SCHEMAS, ModelConfig, TrainConfig, irrelevant_keys
from nanolm.config.words import expected, limits_of, members
from nanolm.errors import ConfigError
from tests.config.composed import composed


def problem(script: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(script, list(overrides))
    return str(raised.value)


# Ranges


def number_of(kind: Any) -> Any:
    """The annotated number in a type, itself, in a union or in a list; None where there is none."""
    if get_origin(kind) is tuple:
        return number_of(get_args(kind)[0])
    if members(kind)[0] in (int, float) and len(members(kind)) == 1:
        return kind
    return next((number_of(part) for part in get_args(kind) if not isinstance(part, str) and number_of(part)), None)


NUMBERS = [
    pytest.param(script, name, key, id=f"{script}-{name}")
    for script, schema in SCHEMAS.items()
    for name, key in leaves(schema).items()
    if number_of(key.kind)
]
WORSE = [math.inf, -math.inf, math.nan, 10**400, 10**5000, -(10**5000)]


@functools.cache
def values_by_default(script: str, choice: str | None, section: str) -> Any:
    chosen = [f"{section}={choice}"] if choice else ["data=sotu"] if script == "evaluate" else []
    return composed(script, chosen).container


def refusal(script: str, name: str, key: Key, value: Any) -> list[str]:
    """The line about a key that has this value."""
    choice = key.choices[0] if key.choices else None
    container = copy.deepcopy(values_by_default(script, choice, name.partition(".")[0]))
    *sections, last = name.split(".")
    section: Any = container
    for part in sections:
        section = section[part]
    section[last] = [value] if get_origin(key.kind) is tuple else value
    try:
        convert(SCHEMAS[script], container)
    except ConfigError as error:
        return [line for line in str(error).splitlines() if f"{name}: expected {expected(key.kind)}" in line]
    return []


def test_the_numbers_are_found() -> None:
    found = {(parameter.values[0], parameter.values[1]) for parameter in NUMBERS}
    assert {("train", "trainer.max_steps"), ("train", "seed"), ("train", "evaluate.calibration_sizes")} <= found
    assert {("sample", "temperature"), ("evaluate", "data.max_documents"), ("baseline", "task.l2")} <= found


@pytest.mark.parametrize(("script", "name", "key"), NUMBERS)
def test_every_number_has_an_upper_limit(script: str, name: str, key: Key) -> None:
    *_, (sign, limit) = limits = [
        (sign, limit) for sign, limit in limits_of(number_of(key.kind)) if sign in ("<", "<=")
    ]
    assert len(limits) == 1
    assert sign in expected(key.kind)
    assert bool(refusal(script, name, key, limit)) == (sign == "<")
    for value in (2 * limit, *WORSE):
        assert refusal(script, name, key, value), value


@pytest.mark.parametrize("value", ["1e99", "1e400", "-1e400", "inf", "nan", ".inf", "9" * 30, "9" * 5000, "1e12000"])
@pytest.mark.parametrize("name", ["trainer.max_seconds", "seed", "evaluate.calibration_sizes"])
def test_a_command_line_refuses_what_no_number_can_be(name: str, value: str) -> None:
    message = problem("train", f"{name}=[{value}]" if name.endswith("sizes") else f"{name}={value}")
    assert message.startswith(f"{name}: expected ")
    assert len(message) < 500


@pytest.mark.parametrize("value", ["1.0e+99", "1.0e+400", ".inf", ".nan", "9" * 30, "9" * 5000, "0x" + "f" * 5000])
def test_a_file_is_refused_as_well(value: str) -> None:
    with pytest.raises(ConfigError):
        from_yaml(to_yaml(load("train")).replace("seed: 0\n", f"seed: {value}\n", 1), TrainConfig)


# Rules


@pytest.mark.parametrize(
    ("overrides", "key", "word"),
    [
        ("model.num_attention_heads=3 model.num_key_value_heads=3", "model.num_attention_heads", "256"),
        ("model.num_key_value_heads=3", "model.num_key_value_heads", "divisor"),
        ("model.head_dim=31", "model.head_dim", "even"),
        ("model.hidden_size=12", "model.hidden_size", "even"),
        ("tokenizer.vocab_size=256", "tokenizer.vocab_size", ">= 257"),
        ("tokenizer.vocab_size=null", "tokenizer.vocab_size", "required"),
        ("tokenizer=char tokenizer.vocab_size=500", "tokenizer.vocab_size", "tokenizer=bpe"),
        ("tokenizer=byte tokenizer.training_bytes=500", "tokenizer.training_bytes", "tokenizer=bpe"),
        ("data.val_fraction=0.9 data.test_fraction=0.05", "data.val_fraction", "found 1"),
        ("data.path=file.txt", "data.path", "data=text"),
        ("data=text", "data.path", "required"),
        ("data.hub_revision=main", "data.hub_revision", "data=tinystories"),
        ("data=tinystories data.shifted_from_year=2000", "data.shifted_from_year", "data=sotu"),
        ("data.root=", "data.root", "empty"),
        ("data.name=wikitext", "data.name", "wikitext2"),
        ("optimizer.matrix_learning_rate=null", "optimizer.matrix_learning_rate", "required"),
        ("optimizer=adamw optimizer.momentum=0.1", "optimizer.momentum", "optimizer=muon"),
        ("schedule.decay_fraction=0.99", "schedule.warmup_fraction", "1.01"),
        ("schedule=cosine schedule.decay_fraction=0.5", "schedule.decay_fraction", "schedule=wsd"),
        ("schedule=constant schedule.final_fraction=0.5", "schedule.final_fraction", "schedule=wsd"),
        ("trainer.batch_size=4 trainer.micro_batch_size=5", "trainer.micro_batch_size", "found 5"),
        ("trainer.max_steps=null", "trainer.max_steps", "max_seconds"),
        ("trainer.sequence_length=64 evaluate.stride=65", "evaluate.stride", "found 65"),
        ("evaluate.further_splits=[test,test]", "evaluate.further_splits", "once"),
        ("evaluate.further_splits=[val]", "evaluate.further_splits", "val"),
        ("sample.temperature=fitted data.calibration_fraction=0", "sample.temperature", "calibration"),
        ("name=", "name", "folder"),
        ("name=a/b", "name", "folder"),
        ("name=..", "name", "folder"),
        ("name=a\nb", "name", "folder"),
        (f"name={'a' * 101}", "name", "folder"),
        ("sample.prompt=a\0b", "sample.prompt", "NUL"),
    ],
)
def test_a_broken_rule_is_reported_by_its_key(overrides: str, key: str, word: str) -> None:
    message = problem("train", *overrides.split(" "))
    assert message.startswith(key)
    assert word in message


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


@pytest.mark.parametrize("sentence", ["", "a", "\udcff\udcff"])
def test_a_sentence_has_enough_text(sentence: str) -> None:
    assert problem("first_principles", f"sentence={sentence}").startswith("sentence")


def test_whoever_makes_or_changes_a_configuration_is_held_to_the_same_rules() -> None:
    model = load("train").model
    for changes in ({"num_attention_heads": 3}, {"dropout": 1.0}, {"nothing": 1}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            ModelConfig(**{**dataclasses.asdict(model), **changes})
    with pytest.raises(ConfigError, match="num_attention_heads"):
        dataclasses.replace(model, num_attention_heads=3)


def test_keys_that_tell_no_runs_apart() -> None:
    irrelevant = irrelevant_keys()
    assert {"seed", "name", "wandb.mode", "sample.top_k", "trainer.log_every", "separation.l2"} <= irrelevant
    assert not {"data.path", "trainer.max_steps", "loss.distillation.teacher", "task.l2", "model.name"} & irrelevant


# This machine


def test_a_corpus_has_to_be_there(tmp_path: Path) -> None:
    for name in ("self", "again"):  # links in a loop, of which there is no end
        (tmp_path / name).symlink_to(".")
    missing = ["/nowhere/a.txt", f"{tmp_path}/*.txt", f"{tmp_path}/**/*.nothing", str(tmp_path)]
    for path in missing:
        assert problem("tokenize", "data=text", f"data.path={path}").startswith("data.path: ")
    assert "$HOME" in problem("train", "data=text", "data.path=~/a.txt")
    odd = tmp_path / "a [b]*, (c=d).txt"
    odd.write_text("x")
    assert load("train", ["data=text", f"data.path={odd}"]).data.path == str(odd)
    assert load("train", ["data=text", f"data.path={tmp_path}/**/*.txt"]).data.path == f"{tmp_path}/**/*.txt"


@pytest.mark.parametrize(
    ("script", "key"),
    [
        ("sample", "checkpoint"),
        ("evaluate", "checkpoint"),
        ("train", "loss.distillation.teacher"),
        ("baseline", "loss.distillation.teacher"),
    ],
)
def test_a_run_that_is_named_has_to_be_a_folder(script: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in ("runs/nowhere", str(tmp_path / "file"), "~/runs", ""):
        assert problem(script, f"{key}={path}").startswith(f"{key}: ")
    odd = tmp_path / "a run (1), b=c"
    odd.mkdir()
    load(script, [f"{key}={odd}"])


def test_another_corpus_for_evaluation_has_to_be_chosen_before_its_keys_are_set(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("x")
    given = [f"checkpoint={tmp_path}", f"data.path={file}"]
    assert load("evaluate", given[:1]).data is None
    assert "data=NAME" in problem("evaluate", *given)
    assert load("evaluate", [*given, "data=text"]).data.path == str(file)


@pytest.mark.parametrize(
    ("script", "name"), [("train", "trainer.device"), ("sample", "device"), ("evaluate", "device")]
)
def test_cuda_has_to_be_there(script: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [f"{name}=cuda"] + ([] if script == "train" else [f"checkpoint={tmp_path}"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert problem(script, *given).startswith(f"{name}: ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load(script, given)


def test_torch_is_loaded_for_nothing_else() -> None:
    code = "import sys; from nanolm.config import load; load('train'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
