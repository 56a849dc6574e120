"""A small corpus, and the configuration of a run on it that takes a second."""

import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from nanolm.config import load
from nanolm.config.schema import TrainConfig
from tests.faults.runs import TINY

# Threads cost more than they gain in models of this size, and two of them more than that on two busy cores.
torch.set_num_threads(1)

# The suite draws the same examples every time, so that a change is judged by the change alone;
# HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

WORDS = ("the", "state", "of", "our", "union", "is", "strong", "and", "free", "people", "work", "for", "peace")


# Real processes, long simulations and many fits, which `make test-fast` leaves out.
SLOW = (
    "classifiers/test_cross_validation.py",
    "classifiers/test_separation.py",
    "config/test_command_line.py",
    "config/test_studies.py",
    "data/test_hub.py",
    "data/test_prepare.py",
    "faults/",
    "lessons/test_run.py",
    "loss/test_memory.py",
    "metrics/test_intervals.py",
    "test_baseline_script.py",
    "test_documents.py",
    "test_scripts.py",
    "tracking/test_wandb_mirror.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    for item in items:
        if str(item.path.relative_to(Path(__file__).parent)).startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty documents of a simple language, one per line of JSON."""
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
        config: TrainConfig = load("train", [*TINY, f"data.path={corpus_file}", f"data.root={data_root}", *overrides])
        return config

    return make
