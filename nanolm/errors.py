"""The errors that nanolm raises for its users, each with the exit code that a script ends with.

A user's mistake is one of these and its message names the file or key, what was expected, what was
found and what to do next. A broken invariant of our own is an ``assert``.
"""


class NanolmError(Exception):
    """Anything nanolm tells its user in words instead of a traceback."""

    exit_code = 1


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


class NonFiniteError(NanolmError):
    """Losses or gradients were NaN or infinite for too many steps in a row."""
