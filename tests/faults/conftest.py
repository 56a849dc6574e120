"""What tests of faults compare with: runs that were left alone, each made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nanolm.config.schema import TrainConfig
from tests.faults.runs import outcome, run


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainConfig], dict[str, object]]:
    """``straight(config)``: the outcome of a run of this configuration that nothing disturbed."""
    found: dict[TrainConfig, dict[str, object]] = {}

    def make(config: TrainConfig) -> dict[str, object]:
        if config not in found:
            run_dir: Path = tmp_path_factory.mktemp("straight") / "run"
            run(config, run_dir)
            found[config] = outcome(run_dir)
        return found[config]

    return make
