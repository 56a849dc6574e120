"""From joint probability to the training of a language model, each identity computed live. See --help."""

import os
import sys

# Python looks into the folder of a script first, where tokenize.py would stand in for the standard library's module.
# It looks into the clone instead, so that a clone runs its own code where another nanolm is installed too.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from pathlib import Path

from nanolm.config import command_line
from nanolm.config.schema_first_principles import FirstPrinciplesConfig


def task(config: FirstPrinciplesConfig, run_dir: Path, command: str) -> int:
    """Walk the path and leave its page in the run directory."""
    from nanolm.lessons import run_first_principles
    from nanolm.lessons.page import write_first_principles_page

    return run_first_principles(config, run_dir, write_first_principles_page)


if __name__ == "__main__":
    sys.exit(command_line.run("first_principles", task))
