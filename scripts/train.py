"""Train a language model: text in; a trained, measured model out. See --help."""

import os
import sys

# Python looks for modules in a script's folder first, where tokenize.py would hide the one of the standard library.
# Look in the clone instead, so that it runs its own code even where another nanolm is installed.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from pathlib import Path

from nanolm.config import command_line
from nanolm.config.schema import TrainConfig


def task(config: TrainConfig, run_dir: Path, command: str) -> int:
    """Train in a run directory, or continue what is there."""
    from nanolm.train import train

    return train(config, run_dir, command)


def summarize(sweep: Path) -> None:
    """Print the table at the end of a sweep, and write its page."""
    from nanolm.comparison import summarize_sweep

    summarize_sweep(sweep)


if __name__ == "__main__":
    sys.exit(command_line.run("train", task, summarize=summarize))
