"""Fit a classifier by the same loss, and measure it by the same figures, as a language model. See --help."""

import os
import sys

# Python looks into the folder of a script first, where tokenize.py would stand in for the standard library's module.
# It looks into the clone instead, so that a clone runs its own code where another nanolm is installed too.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from pathlib import Path

from nanolm.config import command_line
from nanolm.config.schema_baseline import BaselineConfig


def task(config: BaselineConfig, run_dir: Path, command: str) -> int:
    """Cross-validate in a run directory, unless that was done before."""
    from nanolm.classifiers import run_baseline
    from nanolm.report import write_baseline_report

    return run_baseline(config, run_dir, command, write_baseline_report)


def summarize(sweep: Path) -> None:
    """The table at the end of a sweep, and its page."""
    from nanolm.comparison import summarize_sweep
    from nanolm.report.comparison import write_comparison_page

    summarize_sweep(sweep, write_comparison_page)


if __name__ == "__main__":
    sys.exit(command_line.run("baseline", task, summarize=summarize))
