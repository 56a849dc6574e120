"""A run that is killed at random moments, again and again, alongside one that is left alone.

    python tests/faults/soak.py [--kills 100] [--seed 0]

Each start of the killed run gets SIGKILL after a random number of steps, some during its start-up; the same command
starts it again. After the last kill it may end, and its metrics (but for times and rates), evaluation, weights and
training state must be those of the straight run, bit for bit. Exit code 1 if they are not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # for a start as a script

from tests.faults.runs import TINY, outcome  # noqa: E402

TEXT = "Whatever is done in these few lines is done again and again, in another order. "


def start(folder: Path, name: str, max_steps: int) -> subprocess.Popen[bytes]:
    """Start the run of this name, or continue it."""
    overrides = [
        "data=text",
        f"data.path={folder / 'text.txt'}",
        "model.dropout=0.1",
        f"trainer.max_steps={max_steps}",
        "trainer.micro_batch_size=3",
        "trainer.eval_every=20",
        "trainer.checkpoint_every=5",
        f"hydra.run.dir={folder / name}",
    ]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *TINY, *overrides],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run that must end well."""
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the run ended with exit code {process.returncode}:\n{errors.decode()}")


def num_steps(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(process: subprocess.Popen[bytes], run_dir: Path, steps: int, delay: float) -> None:
    """Send SIGKILL once so many more steps are in the metrics file, and after a delay; it must hit a living run."""
    target = num_steps(run_dir) + steps
    while process.poll() is None and num_steps(run_dir) < target:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the kill came too late, exit code {process.returncode}:\n{errors.decode()}")


def soak(kills: int, seed: int, steps_per_kill: int = 12, report: bool = True) -> bool:
    """Return whether a run that is killed so often ends as the straight one."""
    max_steps = 2 * kills * steps_per_kill
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        straight, killed = folder / "straight", folder / "killed"
        (folder / "text.txt").write_text(TEXT * 200, encoding="utf-8")
        finish(start(folder, "straight", max_steps))
        for kill in range(kills):
            early = generator.random() < 0.2
            steps = 0 if early else generator.randint(1, 2 * steps_per_kill)
            delay = generator.uniform(0, 3.0 if early else 0.05)
            kill_after(start(folder, "killed", max_steps), killed, steps, delay)
            if report:
                print(f"kill {kill + 1}: {num_steps(killed)} steps are in metrics.jsonl", flush=True)
        finish(start(folder, "killed", max_steps))
        return outcome(straight) == outcome(killed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    same = soak(given.kills, given.seed)
    print("the killed run is the straight run, bit for bit" if same else "the two runs differ")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
