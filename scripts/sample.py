"""Draw text from a checkpoint: prompt in, text out. See --help."""

import os
import sys

# Python looks into the folder of a script first, where tokenize.py would stand in for the standard library's module.
# It looks into the clone instead, so that a clone runs its own code where another nanolm is installed too.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from nanolm.config import command_line
from nanolm.config.schema import SampleScriptConfig


def task(config: SampleScriptConfig) -> None:
    """Print the texts."""
    from nanolm.inference import sample_checkpoint

    sample_checkpoint(config)


if __name__ == "__main__":
    sys.exit(command_line.run("sample", task))
