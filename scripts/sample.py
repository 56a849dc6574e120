"""Draw text from a checkpoint: prompt in, text out. See --help."""

import os
import sys

# Python looks for modules in a script's folder first, where tokenize.py would hide the one of the standard library.
# Look in the clone instead, so that it runs its own code even where another nanolm is installed.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from nanolm.config import command_line
from nanolm.config.schema import SampleScriptConfig
from nanolm.config.streams import require_output


def task(config: SampleScriptConfig) -> None:
    """Print the texts."""
    from nanolm.inference import sample_checkpoint

    sample_checkpoint(config)
    require_output()  # the texts are all that it leaves


if __name__ == "__main__":
    sys.exit(command_line.run("sample", task))
