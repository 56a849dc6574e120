"""Check that the files, folders and devices that a configuration names are on this machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanolm.config.convert import flatten
from nanolm.config.keys import combined, leaves
from nanolm.errors import ConfigError
from nanolm.files import glob_paths


def check_inputs(config: Any) -> None:
    """Check that the files and the device that a configuration names are there; reads no data.

    Raises:
        ConfigError: with one line for each that is not.
    """
    values, problems = flatten(config), []
    for name, key in leaves(type(config)).items():
        if key.place and (value := values.get(name)) is not None:
            is_there, expected = CHECKS[key.place]
            if not is_there(value):
                details = "" if key.place == "device" else _details(value)
                problems.append(f"{name}: expected {expected}, found {value!r}{details}")
    if problems:
        raise ConfigError(combined(problems))


def tilde(path: str) -> str:
    """Return a hint for a path that no shell has expanded."""
    return "; the shell leaves ~ alone after =, so write $HOME" if path.startswith("~") else ""


def _details(path: str) -> str:
    kind = "is a folder" if os.path.isdir(path) else "is a file" if os.path.exists(path) else "is not there"
    return tilde(path) or f", which {kind}, seen from {os.getcwd()}"


def _is_corpus(path: str) -> bool:
    is_file = os.path.exists(path) and not os.path.isdir(path)  # a pipe is welcome too
    return is_file or any(map(os.path.isfile, glob_paths(Path(path))))


def _has_device(device: str) -> bool:
    if device != "cuda":  # torch takes a second to import
        return True
    import torch

    return torch.cuda.is_available()


CHECKS: dict[str, tuple[Callable[[str], bool], str]] = {
    "run": (os.path.isdir, "a run directory such as runs/NAME/TIME, or one of its checkpoints/step-…"),
    "baseline": (os.path.isdir, "the run directory of a finished baseline"),
    "corpus": (_is_corpus, "a file, or a glob such as 'texts/*.txt' that matches one"),
    "csv": (os.path.isfile, "a CSV file"),
    "output": (lambda path: not path.startswith("~"), "a folder"),
    "device": (_has_device, "auto or cpu, since torch finds no CUDA device"),
}
"""For each ``key(..., place=NAME)``: whether the place is there, and what a message expects."""
