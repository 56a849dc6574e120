"""The YAML files that are shipped, against the schema."""

from pathlib import Path

import pytest
import torch

from nanolm.config import load
from nanolm.config.catalog import choices, default_choices, default_values, description
from nanolm.config.keys import leaves
from nanolm.config.schema import SCHEMAS
from nanolm.errors import ConfigError
from tests.config.composed import CONFIGS, composed

CHOICES = [
    (script, group, choice)
    for script in SCHEMAS
    for group in default_choices(CONFIGS, script)
    for choice in choices(CONFIGS, group, script)
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("some text")
    return path


@pytest.mark.parametrize(("script", "group", "choice"), CHOICES)
def test_every_choice_gives_a_valid_configuration(
    script: str, group: str, choice: str, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    given = [f"checkpoint={text.parent}"] if "checkpoint" in leaves(SCHEMAS[script]) else []
    if choice in ("text", "jsonl", "parquet", "tinyshakespeare"):
        given.append(f"data.path={text}")
    config = load(script, [f"{group}={choice}", *given])
    if group != "experiment" and hasattr(getattr(config, group), "name"):
        assert getattr(config, group).name == choice


def test_every_choice_has_a_description_and_each_group_is_used() -> None:
    assert all(words for _, group, _ in CHOICES for words in choices(CONFIGS, group).values())
    assert all(description(CONFIGS / f"{script}.yaml") for script in SCHEMAS)
    folders = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}
    assert folders == {group for _, group, _ in CHOICES} | {"hydra"}


@pytest.mark.parametrize("script", SCHEMAS)
def test_every_value_by_default_stands_in_a_yaml_file(script: str) -> None:
    defaults = default_values(CONFIGS, script)
    # What some choices alone have may be another value for each of them.
    missing = [name for name, key in leaves(SCHEMAS[script]).items() if name not in defaults and not key.choices]
    assert [name for name in missing if not (script == "evaluate" and name.startswith("data."))] == []


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("data", "sotu text jsonl parquet tinystories wikitext2 wikitext103 fineweb_edu"),
        ("tokenizer", "bpe byte char"),
        ("model", "nano micro small gpt2"),
        ("optimizer", "muon adamw"),
        ("schedule", "wsd cosine constant"),
    ],
)
def test_the_contracts_choices_are_there(group: str, names: str) -> None:
    assert set(choices(CONFIGS, group)) == set(names.split())


def test_the_tiny_shakespeare_recipe_sees_as_many_characters_as_nanogpts(text: Path) -> None:
    config = load("train", ["experiment=tinyshakespeare", f"data.path={text}"])
    assert config.trainer.max_steps * config.trainer.batch_size * config.trainer.sequence_length == 1_536_000
    assert (config.model.num_hidden_layers, config.model.num_attention_heads, config.model.hidden_size) == (4, 4, 128)
    assert config.data.calibration_fraction == 0
    assert config.tokenizer.name == "char"


def test_runs_are_named_after_corpus_and_model_and_timed() -> None:
    assert load("train", ["model=micro"]).name == "sotu-micro"
    name, time = Path(composed("train", ["name=a b, c"]).run_directory).parts[1:]
    assert name == "a b, c"
    assert len(time) == len("2026-01-31_12-00-00")


def test_keys_that_a_yaml_file_adds_or_misspells_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("defaults: [_self_]\nname: a\nsed: 1\n_target_: os.system\n")
    with pytest.raises(ConfigError, match=r"(?s)sed: no such key; did you mean seed.*_target_: no such key"):
        load("train", config_dir=tmp_path)


@pytest.mark.parametrize(
    "yaml",
    [
        *("a: [", "defaults: [nowhere]\n", "name: ${nothing}\n", "name: ???\n", "\x00"),
        *("cells: 3\ncell: a\n", "cells: {a: 1}\ncell: a\n", "cells: {a: {}}\ncell: b\n", "cells: {}\ncell: []\n"),
    ],
)
def test_yaml_files_that_are_broken_are_refused(yaml: str, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(yaml)
    with pytest.raises(ConfigError):
        load("train", config_dir=tmp_path)


def test_a_folder_without_the_scripts_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        load("train", config_dir=tmp_path)
