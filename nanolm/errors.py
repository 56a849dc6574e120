"""The errors that nanolm raises for its users, each with the exit code that a script ends with.

A user's mistake is one of these and its message names the file or key, what was expected, what was
found and what to do next. A broken invariant of our own is an ``assert``.
"""

import re

# All that commands a terminal, hides text on it or reorders it; line breaks and tabs are text.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")


def visible(text: str) -> str:
    """The text with its control characters written out, such as ``\\x1b``: names of files and texts of strangers."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


# What torch says in a RuntimeError, on the CPU and on CUDA; OutOfMemoryError of torch is one of them.
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|_ALLOC_FAILED", re.IGNORECASE)


def out_of_memory(error: BaseException) -> str | None:
    """What an allocation that failed said of itself, in one line; None for any other error."""
    is_one = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)))
    return (str(error).strip() or "no memory is left").splitlines()[0][:300] if is_one else None


def sentence(error: Exception) -> str:
    """The text of an error with a full stop, so that another sentence can follow it."""
    text = str(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."


class NanolmError(Exception):
    """Anything nanolm tells its user in words instead of a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        return visible(super().__str__())


class ConfigError(NanolmError, ValueError):
    """A configuration key or value, or an argument of a public function, is wrong."""

    exit_code = 2


class DataError(NanolmError):
    """A corpus, a tokenizer or a prepared shard is missing, unreadable or not what it claims to be."""

    exit_code = 2


class CheckpointError(NanolmError):
    """A checkpoint is missing, damaged, or does not belong to this run."""

    exit_code = 2


class StorageError(NanolmError):
    """The disk is full or fails, or has no room for what a run must write: nothing that is wrong with the input."""


class OutOfMemoryError(NanolmError):
    """The memory of the machine or of the GPU has no room for what was asked for."""


class NonFiniteError(NanolmError):
    """Losses or gradients were NaN or infinite for too many steps in a row."""
