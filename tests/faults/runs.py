"""A run in this process, and what two runs must have in common to be the same run."""

import importlib.util
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from nanolm.config import command_line
from nanolm.config.schema import TrainConfig
from nanolm.training import find_checkpoint, train
from nanolm.training.loop import TrainingLoop

TIMES = {"train/seconds", "train/tokens_per_second", "train/mfu"}
ROOT = Path(__file__).parents[2]
TINY = [
    "data=jsonl",
    "tokenizer=byte",
    "model.hidden_size=32",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "model.intermediate_size=48",
    "trainer.device=cpu",
    "trainer.batch_size=4",
    "trainer.sequence_length=16",
    "sample.max_new_tokens=5",
    "wandb.mode=disabled",
]
"""A run of a second on JSON lines, but for its text, its length and its directory."""
COMMAND = "python scripts/train.py seed=0 hydra.run.dir=runs/one"


def no_report(run_dir: Path, content: dict[str, object]) -> bytes:
    """In place of the report, whose figures take longer than a whole tiny run."""
    return b""


def run(config: TrainConfig, run_dir: Path) -> int:
    """The exit code of a run, or what it raises."""
    run_dir.mkdir(exist_ok=True)
    return train(config, run_dir, COMMAND, no_report)


def run_script(name: str, arguments: Sequence[str]) -> int:
    """The exit code of ``scripts/<name>.py`` with these arguments, in this process."""
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


def metrics(run_dir: Path) -> list[dict[str, object]]:
    """The lines of ``metrics.jsonl`` without what the clock decides."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def plain(value: object) -> object:
    """Tensors as their type, shape and bytes, so that two states can be compared to the bit with ``==``."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def outcome(run_dir: Path) -> dict[str, object]:
    """Metrics, training state and weights of a run's newest checkpoint, to be compared to the bit."""
    checkpoint = find_checkpoint(run_dir)
    state = torch.load(checkpoint.path / "training_state.pt", weights_only=True)
    del state["seconds"]
    state["unlogged"] = {name: value for name, value in state["unlogged"].items() if name not in TIMES}
    weights = safetensors.torch.load_file(checkpoint.path / "model.safetensors")
    return {"metrics": metrics(run_dir), "state": plain(state), "weights": plain(weights)}


class Stopped(TrainingLoop):
    """A loop that gets a real SIGTERM at the start of the step after ``at`` steps."""

    at = -1

    def step(self):
        if self.state.step == self.at:
            signal.raise_signal(signal.SIGTERM)
        return super().step()


def stop_after(monkeypatch, config: TrainConfig, run_dir: Path, step: int) -> None:
    """Run until so many steps are done, then stop by a signal."""
    with monkeypatch.context() as patch:
        patch.setattr("nanolm.training.run.TrainingLoop", Stopped)
        patch.setattr(Stopped, "at", step)
        assert run(config, run_dir) == 3
    assert find_checkpoint(run_dir).step == step
