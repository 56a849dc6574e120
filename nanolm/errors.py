"""The errors that nanolm raises for its users, each with the exit code that a script ends with.

A user's mistake is one of these, and its message names the file or key, what was expected, what was found and what to
do next. A broken invariant of our own is an ``assert``.
"""

import re

# Characters that command a terminal, or hide or reorder text on it; line breaks and tabs are text.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")
# The messages of torch's RuntimeErrors, its OutOfMemoryError included, on the CPU and on CUDA.
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|_ALLOC_FAILED", re.IGNORECASE)


def visible(text: str) -> str:
    """Write out the control characters of untrusted text, such as ``\\x1b``."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def out_of_memory(error: BaseException) -> str | None:
    """Return the reason that a failed allocation gives, in one line; None for any other error."""
    is_one = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)))
    return (str(error).strip() or "no memory is left").splitlines()[0][:300] if is_one else None


def sentence(error: Exception) -> str:
    """Return the text of an error with a full stop, so that another sentence can follow it."""
    text = str(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."


class NanolmError(Exception):
    """An error that is reported to the user by its message, without a traceback."""

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
    """The disk is full or fails, or has no room for what a run must write; the input is not to blame."""


class OutOfMemoryError(NanolmError):
    """The memory of the machine or of the GPU has no room for what was asked for."""


class NonFiniteError(NanolmError):
    """Losses or gradients were NaN or infinite for too many steps in a row."""
