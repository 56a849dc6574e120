"""Make run directories, log into them, and describe errors of the machine."""

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import nanolm
from nanolm.config.keys import leaves
from nanolm.errors import ConfigError, NanolmError, out_of_memory
from nanolm.files import failure

logger = logging.getLogger(__name__)


def refused_by_machine(schema: type, error: Exception) -> str | None:
    """Describe an error of the operating system or a lack of memory; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        return failure(error)
    if (reason := out_of_memory(error)) is None:
        return None
    keys = [name for name, key in leaves(schema).items() if key.grows_memory]
    return f"out of memory ({reason}); choose a smaller {' or '.join([*keys, 'model'])}, or a machine with more memory"


@contextlib.contextmanager
def run_directory(path: Path, key: str) -> Iterator[None]:
    """Make a run directory for this block; remove it if wrong input (exit code 2) ends the block with only logs in it.

    Args:
        key: the configuration key that names the directory, for messages.

    Raises:
        ConfigError: it cannot be made or written to, or holds a link to a file.
    """
    made = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "no permission to write there")
        for entry in path.iterdir():
            if entry.is_symlink() and not entry.is_dir():  # writing to it would change a file anywhere
                raise OSError(None, f"{entry.name} in it is a link to a file")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{key}: cannot use the folder {str(path)!r} ({reason}); give another") from error
    try:
        yield
    except NanolmError as error:
        if made and error.exit_code == ConfigError.exit_code:
            entries = list(path.iterdir())
            if all(entry.suffix == ".log" or entry.name == ".lock" for entry in entries):
                for entry in entries:
                    entry.unlink()
            with contextlib.suppress(OSError):  # not empty: there are results, or another run lives there
                for folder in made:
                    folder.rmdir()
        raise


class _LogFile(logging.FileHandler):
    """A log handler that ignores errors of the disk, so that logging never hides the error that stopped the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append what is logged in this block to a file: nanolm's from INFO on, other libraries' from WARNING on.

    The error that ends the block is logged too, with its traceback unless it is a NanolmError.
    """
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger(nanolm.__name__)
    level = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        ours.info("nanolm %s: %s", nanolm.__version__, shlex.join(sys.argv))
        yield
    except Exception as error:  # to this handler alone: the console prints it where it is handled
        trace = None if isinstance(error, NanolmError) else (type(error), error, error.__traceback__)
        handler.handle(logging.LogRecord(logger.name, logging.ERROR, __file__, 0, str(error), None, trace))
        raise
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)
        handler.close()
