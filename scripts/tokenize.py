"""Tokenize a corpus into shards with a manifest; prints the folder. See --help."""

import os
import sys

# Python looks for modules in a script's folder first, where tokenize.py would hide the one of the standard library.
# Look in the clone instead, so that it runs its own code even where another nanolm is installed.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if path != HERE)]

from nanolm.config import command_line
from nanolm.config.schema import TokenizeConfig


def task(config: TokenizeConfig) -> None:
    """Prepare the corpus, unless that was done before, and print its folder."""
    from nanolm.data import prepare
    from nanolm.tracking import Console

    console = Console()
    with console.progress(f"tokenizing {config.data.name}") as progress:
        folder = prepare(config.data, config.tokenizer, progress)
    console.result(str(folder))


if __name__ == "__main__":
    sys.exit(command_line.run("tokenize", task))
