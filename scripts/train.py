"""Train a language model: text in; a trained, measured model out. See --help."""

import os
import sys

# Python looks into the folder of a script first, where tokenize.py would stand in for the standard library's module.
# It looks into the clone instead, so that a clone runs its own code where another nanolm is installed too.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from pathlib import Path

from nanolm.config import command_line
from nanolm.config.schema import TrainConfig


def task(config: TrainConfig, run_dir: Path, command: str) -> int:
    """Train in a run directory, or continue what is there."""
    from nanolm.report import write_evaluation_report, write_run_report
    from nanolm.training import train

    return train(config, run_dir, command, write_run_report, write_evaluation_report)


def summarize(sweep: Path) -> None:
    """The table at the end of a sweep, and its page."""
    from nanolm.comparison import summarize_sweep
    from nanolm.report.comparison import write_comparison_page

    summarize_sweep(sweep, write_comparison_page)


if __name__ == "__main__":
    sys.exit(command_line.run("train", task, summarize=summarize))
