"""Compare finished runs: means over seeds, and differences with their intervals. See --help."""

import os
import sys

# Python looks into the folder of a script first, where tokenize.py would stand in for the standard library's module.
# It looks into the clone instead, so that a clone runs its own code where another nanolm is installed too.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from nanolm.config import command_line
from nanolm.config.schema_compare import CompareConfig


def task(config: CompareConfig) -> None:
    """Compare, print a table, leave a CSV file and a page."""
    from nanolm.comparison import compare_runs
    from nanolm.report.comparison import write_comparison_page

    compare_runs(config, write_comparison_page)


if __name__ == "__main__":
    sys.exit(command_line.run("compare", task))
