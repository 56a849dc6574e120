"""The YAML files that are shipped, against the schema."""

from pathlib import Path

import pytest

from nanolm.config import load
from nanolm.config.catalog import SCRIPTS, choices, default_choices, default_values, find_configs
from nanolm.config.compose import compose
from nanolm.config.convert import convert
from nanolm.config.schema import leaves
from nanolm.errors import ConfigError

CONFIGS = find_configs("train")
CHOICES = [
    (script, group, choice)
    for script in SCRIPTS
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
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    given = [f"checkpoint={text.parent}"] if "checkpoint" in dict(leaves(SCRIPTS[script].schema)) else []
    if choice in ("text", "jsonl", "parquet", "tinyshakespeare"):
        given.append(f"data.path={text}")
    config = load(script, [f"{group}={choice}", *given])
    if group != "experiment" and hasattr(getattr(config, group), "name"):
        assert getattr(config, group).name == choice


def test_every_choice_has_a_description_and_each_group_is_used() -> None:
    assert all(description for _, group, _ in CHOICES for description in choices(CONFIGS, group).values())
    folders = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}
    assert folders == {group for _, group, _ in CHOICES} | {"hydra"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_value_by_default_stands_in_a_yaml_file(script: str) -> None:
    values = default_values(CONFIGS, script)
    missing = [name for name, _ in leaves(SCRIPTS[script].schema) if name not in values]
    assert [name for name in missing if not (script == "evaluate" and name.startswith("data."))] == []


def test_the_contracts_choices_are_there() -> None:
    assert set(choices(CONFIGS, "data")) >= {
        "sotu",
        "text",
        "jsonl",
        "parquet",
        "tinystories",
        "wikitext2",
        "wikitext103",
    }
    assert set(choices(CONFIGS, "data")) >= {"fineweb_edu"}
    assert set(choices(CONFIGS, "tokenizer")) == {"bpe", "byte", "char"}
    assert set(choices(CONFIGS, "model")) == {"nano", "micro", "small", "gpt2"}
    assert set(choices(CONFIGS, "optimizer")) == {"muon", "adamw"}
    assert set(choices(CONFIGS, "schedule")) == {"wsd", "cosine", "constant"}


def test_the_tiny_shakespeare_recipe_sees_as_many_characters_as_nanogpts(text: Path) -> None:
    config = load("train", ["experiment=tinyshakespeare", f"data.path={text}"])
    seen = config.trainer.max_steps * config.trainer.batch_size * config.trainer.sequence_length
    assert seen == 1_536_000
    assert (config.model.num_hidden_layers, config.model.num_attention_heads, config.model.hidden_size) == (4, 4, 128)
    assert config.data.calibration_fraction == 0
    assert config.tokenizer.name == "char"


def test_runs_are_named_after_corpus_and_model_and_timed() -> None:
    assert load("train", ["model=micro"]).name == "sotu-micro"
    name, time = Path(compose("train", ["name=a b, c"]).run_directory).parts[1:]
    assert name == "a b, c"
    assert len(time) == len("2026-01-31_12-00-00")


def test_keys_that_a_yaml_file_adds_or_misspells_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("defaults: [_self_]\nname: a\nsed: 1\n_target_: os.system\n")
    with pytest.raises(ConfigError) as raised:
        load("train", config_dir=tmp_path)
    assert "sed: no such key; did you mean seed?" in str(raised.value)
    assert "_target_: no such key" in str(raised.value)


@pytest.mark.parametrize("yaml", ["a: [", "defaults: [nowhere]\n", "name: ${nothing}\n", "name: ???\n", "\x00"])
def test_yaml_files_that_are_broken_are_refused(yaml: str, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(yaml)
    with pytest.raises(ConfigError):
        load("train", config_dir=tmp_path)


def test_a_folder_without_the_scripts_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        load("train", config_dir=tmp_path)


def test_compositions_do_not_depend_on_each_other() -> None:
    first = load("train", ["seed=1"])
    load("sample", [f"checkpoint={CONFIGS}"])
    assert load("train", ["seed=1"]) == first


def test_a_composed_container_is_plain() -> None:
    container = compose("train").container
    assert type(container) is dict
    assert type(container["wandb"]["tags"]) is list
    assert convert(SCRIPTS["train"].schema, container) == load("train")
