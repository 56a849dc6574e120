"""The tiny run of all tests: its command line, running it here, and what two runs share if they are the same run."""

import contextlib
import importlib.util
import json
import pkgutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch

from nanolm.config import command_line
from nanolm.config.schema import TrainConfig
from nanolm.stop import STOPPED
from nanolm.train import train
from nanolm.training import find_checkpoint
from nanolm.training.state import TrainingState

ROOT = Path(__file__).parents[2]
COMMAND = "python scripts/train.py seed=0 hydra.run.dir=runs/one"
TIMES = {"train/seconds", "train/tokens_per_second", "train/mfu"}
TINY = [
    "data=jsonl",
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
"""A run of a second, but for its text and its directory."""


def run(config: TrainConfig, run_dir: Path) -> int:
    """Run without what takes longer than all the rest: page, diagram, and the measurement of the machine's peak."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanolm.train.write_run_page", lambda *_: None)
        patch.setattr("nanolm.train.write_split_page", lambda *_: None)
        patch.setattr("nanolm.training.step.measure_peak_flops", lambda *_: 1e18)
        return train(config, run_dir, COMMAND)


def run_script(name: str, arguments: Sequence[str]) -> int:
    """Run ``scripts/<name>.py`` in this process; return its exit code."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    path = sys.path[:]
    try:
        spec.loader.exec_module(script)
        return command_line.run(name, script.task, arguments, summarize=getattr(script, "summarize", None))
    finally:
        sys.path[:] = path


def nothing(state: TrainingState) -> None:
    """Do nothing."""


@contextlib.contextmanager
def each_step(
    before: Callable[[TrainingState], object] = nothing, after: Callable[[TrainingState], object] = nothing
) -> Iterator[None]:
    """Call a function with the state before each training step of the runs in this block, and one after it.

    Blocks may be nested.
    """
    current = pkgutil.resolve_name("nanolm.train.TrainingStep")

    class Step(current):
        def __call__(self):
            before(self.state)
            line = super().__call__()
            after(self.state)
            return line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanolm.train.TrainingStep", Step)
        yield


def stop_after(config: TrainConfig, run_dir: Path, step: int) -> None:
    """Run until so many steps are done; then a real SIGTERM stops the run."""
    with each_step(before=lambda state: state.step == step and signal.raise_signal(signal.SIGTERM)):
        assert run(config, run_dir) == STOPPED
    assert find_checkpoint(run_dir).step == step


def metrics(run_dir: Path) -> list[dict[str, object]]:
    """Return the lines of ``metrics.jsonl`` without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def evaluation(run_dir: Path, split: str = "") -> dict[str, object]:
    """Return the content of ``evaluation.json``, or of that of a further split."""
    content: dict[str, object] = json.loads((run_dir / f"evaluation{split and '-'}{split}.json").read_text())
    return content


def plain(value: object) -> object:
    """Turn tensors into their type, shape and bytes, so that ``==`` compares two states bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def outcome(run_dir: Path) -> dict[str, object]:
    """Return what must be equal bit for bit at the end of a run: metrics, evaluation, training state and weights."""
    path = find_checkpoint(run_dir).path
    state = torch.load(path / "training_state.pt", weights_only=True)
    del state["seconds"]
    weights = safetensors.torch.load_file(path / "model.safetensors")
    return {
        "metrics": metrics(run_dir),
        "evaluation": evaluation(run_dir),
        "state": plain(state),
        "weights": plain(weights),
    }
