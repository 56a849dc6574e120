"""Compare finished runs: means over seeds, and differences with their intervals. See --help."""

import os
import sys

# Python looks for modules in a script's folder first, where tokenize.py would hide the one of the standard library.
# Look in the clone instead, so that it runs its own code even where another nanolm is installed.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from nanolm.config import command_line
from nanolm.config.schema import CompareConfig


def task(config: CompareConfig) -> None:
    """Compare runs: print a table, write a CSV file and a page."""
    from nanolm.comparison import compare_runs

    compare_runs(config)


if __name__ == "__main__":
    sys.exit(command_line.run("compare", task))
