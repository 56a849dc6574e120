"""Tokenize a corpus into shards with a manifest; prints the folder. See --help."""

import os
import sys

# Python looks into the folder of a script first, where tokenize.py would stand in for the standard library's module.
# It looks into the clone instead, so that a clone runs its own code where another nanolm is installed too.
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
