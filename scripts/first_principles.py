"""From joint probability to the training of a language model, each identity computed live. See --help."""

import os
import sys

# Python looks for modules in a script's folder first, where tokenize.py would hide the one of the standard library.
# Look in the clone instead, so that it runs its own code even where another nanolm is installed.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from pathlib import Path

from nanolm.config import command_line
from nanolm.config.schema import FirstPrinciplesConfig


def task(config: FirstPrinciplesConfig, run_dir: Path, command: str) -> int:
    """Walk the path and leave its page in the run directory."""
    from nanolm.lessons import run_first_principles

    return run_first_principles(config, run_dir)


if __name__ == "__main__":
    sys.exit(command_line.run("first_principles", task))
