"""Keep a failing standard output or error from ending the work.

A stream may be closed from the start, full, a pipe without a reader, or a terminal that has gone. From its first
failure on, a display drops what is written to it, whoever writes: our console, Python's warnings and tracebacks,
Hydra, or a progress bar of a library.
"""

import contextlib
import io
import logging
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from nanolm.errors import StorageError

logger = logging.getLogger(__name__)


class _Display(io.FileIO):
    """A file descriptor whose writes never fail; ``error`` is the first error, after which it drops all data."""

    error: OSError | None = None

    def __init__(self, descriptor: int, title: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.title = title

    def write(self, data: Any, /) -> int:
        try:
            while self.error is None:
                if (written := super().write(data)) is not None:
                    return written
                select.select([], [self], [])  # wait for a full pipe that does not block
        except OSError as error:
            self.error = error
            logger.info("%s is gone (%s); continuing without it", self.title, error.strerror)
        return memoryview(data).nbytes


@contextlib.contextmanager
def displays() -> Iterator[None]:
    """Make displays of ``sys.stdout`` and ``sys.stderr`` while this block runs, unless they were replaced before."""
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)  # takes the free number 0, which no file of ours should
    before = sys.stdout, sys.stderr
    sys.stdout = _display(sys.stdout, sys.__stdout__, "standard output")
    sys.stderr = _display(sys.stderr, sys.__stderr__, "standard error")
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _display(stream: TextIO | None, original: TextIO | None, title: str) -> TextIO:
    if stream is None:
        # Python found the descriptor closed. This takes its number, so that no file of ours gets it; it is not open
        # for writing, so the first write fails and is logged as any other.
        descriptor = os.open(os.devnull, os.O_RDONLY)
    elif stream is original:
        stream.flush()
        descriptor = stream.fileno()
    else:
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Display(descriptor, title)),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=True,
    )


def require_output() -> None:
    """Check that all output arrived, for a command whose output is its result; a closed pipe is no error.

    Raises:
        StorageError: standard output is closed, full or failing.
    """
    sys.stdout.flush()
    display = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = display.error if isinstance(display, _Display) else None
    if error is not None and not isinstance(error, BrokenPipeError):
        raise StorageError(f"standard output: {error.strerror}; the output is incomplete")
