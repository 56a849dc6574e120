"""Runs that tests of faults start from and compare with, each made once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nanolm.config import to_yaml
from nanolm.config.schema import TrainConfig
from tests.faults.runs import outcome, run, stop_after
from tests.faults.untrusted import copy, make_checkpoint, overrides


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainConfig], dict[str, object]]:
    """``straight(config)``: the outcome of a run of this configuration that nothing disturbed."""
    found: dict[str, dict[str, object]] = {}

    def make(config: TrainConfig) -> dict[str, object]:
        key = to_yaml(config)
        if key not in found:
            run_dir: Path = tmp_path_factory.mktemp("straight") / "run"
            assert run(config, run_dir) == 0
            found[key] = outcome(run_dir)
        return found[key]

    return make


@pytest.fixture(scope="session")
def finished_once(tiny, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert run(tiny("trainer.max_steps=4"), run_dir) == 0
    return run_dir


@pytest.fixture
def finished(finished_once, tmp_path):
    """A finished run of 4 steps with the checkpoints of steps 2 and 4: a copy for each test."""
    return shutil.copytree(finished_once, tmp_path / "finished")


@pytest.fixture
def unfinished(finished):
    """The same killed before its last file, ``evaluation.json``."""
    (finished / "evaluation.json").unlink()
    return finished


@pytest.fixture(scope="session")
def stopped_once(tiny, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    stop_after(tiny(), run_dir, 2)
    return run_dir


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run of 6 steps that was stopped after 2: a copy for each test."""
    return shutil.copytree(stopped_once, tmp_path / "stopped")


@pytest.fixture(scope="session")
def original(tmp_path_factory, corpus_file, data_root):
    """A checkpoint of step 1, and the state that it holds."""
    return make_checkpoint(tmp_path_factory.mktemp("original"), overrides(corpus_file, data_root))


@pytest.fixture
def checkpoint(original, tmp_path):
    """A copy of that checkpoint for each test, in a run directory of its own."""
    return copy(original[0], tmp_path / "run" / "checkpoints" / original[0].name)
