"""A run that is killed at random moments, again and again, beside one that is left alone.

    python tests/faults/soak.py [--kills 100] [--seed 0]

Each start of the killed run gets SIGKILL after a random number of steps, some during its start-up; the same command
starts it again. When it has been killed often enough it may end, and its weights, optimizer state and metrics (but for
times and rates) must be those of the straight run, bit for bit. Exit code 1 if they are not.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
TIMES = ("train/seconds", "train/tokens_per_second", "train/mfu")
TEXT = "Whatever is done in these few lines is done again and again, in another order. "


def arguments(folder: Path, name: str, max_steps: int) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "scripts" / "train.py"),
        "data=text",
        f"data.path={folder / 'text.txt'}",
        "tokenizer=byte",
        "model.hidden_size=32",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.num_key_value_heads=1",
        "model.intermediate_size=48",
        "model.dropout=0.1",
        "trainer.device=cpu",
        f"trainer.max_steps={max_steps}",
        "trainer.batch_size=4",
        "trainer.micro_batch_size=3",
        "trainer.sequence_length=16",
        "trainer.eval_every=20",
        "trainer.checkpoint_every=5",
        "sample.max_new_tokens=5",
        "wandb.mode=disabled",
        f"hydra.run.dir={folder / name}",
    ]


def start(folder: Path, name: str, max_steps: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments(folder, name, max_steps),
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def steps_of(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def result(run_dir: Path) -> tuple[list[dict[str, object]], dict[str, object]]:
    """What must be equal: metrics without times, and everything in the last checkpoint."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    checkpoint = max((run_dir / "checkpoints").glob("step-*"))
    state = torch.load(checkpoint / "training_state.pt", weights_only=True)
    del state["seconds"]
    return metrics, {"weights": (checkpoint / "model.safetensors").read_bytes(), "state": str(state)}


def kill_after(process: subprocess.Popen[bytes], run_dir: Path, steps: int, delay: float) -> bool:
    """SIGKILL once so many more steps are in the metrics file, and after a delay; whether it was still running."""
    target = steps_of(run_dir) + steps
    while process.poll() is None and steps_of(run_dir) < target:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def soak(kills: int, seed: int, steps_per_kill: int = 12, say: bool = True) -> bool:
    """Whether a run that is killed so often ends as the straight one; a kill that came too late is no success."""
    max_steps = 2 * kills * steps_per_kill
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text(TEXT * 200, encoding="utf-8")
        straight = start(folder, "straight", max_steps)
        _, errors = straight.communicate()
        assert straight.returncode == 0, errors.decode()
        for kill in range(kills):
            process = start(folder, "killed", max_steps)
            early = generator.random() < 0.2
            steps = 0 if early else generator.randint(1, 2 * steps_per_kill)
            was_running = kill_after(process, folder / "killed", steps, generator.uniform(0, 3.0 if early else 0.05))
            _, errors = process.communicate()
            if say:
                print(f"kill {kill + 1}: {steps_of(folder / 'killed')} steps are in metrics.jsonl", flush=True)
            if not was_running:
                print(errors.decode(), file=sys.stderr)
                return False
        last = start(folder, "killed", max_steps)
        _, errors = last.communicate()
        if last.returncode != 0:
            print(errors.decode(), file=sys.stderr)
            return False
        return result(folder / "straight") == result(folder / "killed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    same = soak(given.kills, given.seed)
    print("the killed run is the straight run, bit for bit" if same else "the promise is broken")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
