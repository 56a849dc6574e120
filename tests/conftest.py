"""A small corpus and a configuration of a run that takes a second."""

import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from nanolm.config import load
from nanolm.config.schema import TrainConfig

# Threads cost more than they gain in models of this size, and two of them more than that on two busy cores.
torch.set_num_threads(1)

# The suite draws the same examples every time, so that a change is judged by the change alone;
# HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

WORDS = ("the", "state", "of", "our", "union", "is", "strong", "and", "free", "people", "work", "for", "peace")


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty documents of a simple language, one a line of JSON."""
    generator = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    lines = []
    for _ in range(20):
        text = " ".join(generator.choice(WORDS) for _ in range(generator.randint(30, 60)))
        lines.append('{"text": "' + text + '."}\n')
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared corpora, shared by the tests of a session."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tiny(corpus_file: Path, data_root: Path):
    """``tiny("trainer.max_steps=3", …)``: the configuration of a tiny run, with overrides."""

    def make(*overrides: str) -> TrainConfig:
        base = [
            "data=jsonl",
            f"data.path={corpus_file}",
            f"data.root={data_root}",
            "tokenizer=byte",
            "model.hidden_size=32",
            "model.num_hidden_layers=2",
            "model.num_attention_heads=2",
            "model.num_key_value_heads=1",
            "model.intermediate_size=48",
            "trainer.device=cpu",
            "trainer.max_steps=6",
            "trainer.batch_size=4",
            "trainer.sequence_length=16",
            "trainer.eval_every=null",
            "trainer.checkpoint_every=2",
            "sample.prompt=the",
            "sample.max_new_tokens=5",
            "wandb.mode=disabled",
        ]
        config: TrainConfig = load("train", [*base, *overrides])
        return config

    return make
