"""Score a split of a corpus with a checkpoint. See --help."""

import os
import sys

# Python looks for modules in a script's folder first, where tokenize.py would hide the one of the standard library.
# Look in the clone instead, so that it runs its own code even where another nanolm is installed.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from nanolm.config import command_line
from nanolm.config.schema import EvaluateScriptConfig


def task(config: EvaluateScriptConfig) -> None:
    """Leave the evaluation's files and print its table."""
    from nanolm.inference import evaluate_checkpoint

    evaluate_checkpoint(config)


if __name__ == "__main__":
    sys.exit(command_line.run("evaluate", task))
