"""``metrics.jsonl``, the truth of a run: one line of JSON for each step, in order.

Steps count from 1: line s is what the run knew after s optimizer steps. Keys stand in one order, ``step``
and ``tokens`` first and the rest by name. A float is written with the digits that bring the very same
float back. JSON has no NaN and no infinity, so a value that is not finite is written as ``null``.

A line is handed to the operating system at once, so a killed process loses none. ``sync`` hands them to
the disk: called before a checkpoint is published, it makes sure that no power cut leaves a checkpoint
whose lines are missing. Lines that a killed start wrote after its last checkpoint are written again by
the next one, so opening the file cuts it behind the checkpoint's line. Nothing but the end of the
file is ever touched: a cut is a change of length, which needs no space on a full disk and is there or not.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nanolm.errors import DataError
from nanolm.files import sync

Scalar = int | float | str | bool | None
Line = dict[str, Scalar]


class MetricsFile:
    """The file, open for the lines of the next steps.

    Attributes:
        step: the step of the last line, 0 in a new file.
        last: the last line, or None in a new file. What accumulates over all starts of a run
            (``tokens``, ``train/seconds``) goes on from here.
        num_dropped: lines, whole or torn, that an interrupted start had left behind that step.
    """

    def __init__(self, path: Path, resume_step: int | None) -> None:
        """Open the file behind the line of ``resume_step``.

        Args:
            path: the file; its folder exists.
            resume_step: the step of the checkpoint that the run goes on from; 0 where it starts again
                because it was interrupted before its first checkpoint; None for a run that must be new.

        Raises:
            DataError: lines up to ``resume_step`` are missing, damaged or out of order (nothing is changed
                then); or the run must be new and the file holds lines.
            OSError: the file cannot be read or written.
        """
        self.path = path
        self.step = 0
        self.last: Line | None = None
        self.num_dropped = 0
        self._size = self._measure(resume_step)
        # Unbuffered, so that the error of a full disk appears at the line that it hits.
        self._file: BinaryIO | None = open(path, "ab", buffering=0)  # noqa: SIM115
        self._file.truncate(self._size)

    def _measure(self, resume_step: int | None) -> int:
        """Check the lines up to ``resume_step``; the number of bytes they take."""
        if not self.path.exists():
            if resume_step:
                raise DataError(f"{self.path}: expected the metrics of steps 1 to {resume_step}, found no such file")
            return 0
        if resume_step is None:
            if self.path.stat().st_size:
                raise DataError(
                    f"{self.path}: this folder already holds the metrics of a run. "
                    "Choose another folder for a new run, or continue that one with trainer.resume=auto."
                )
            return 0
        size = 0
        with open(self.path, "rb") as file:
            for step in range(1, resume_step + 1):
                raw = file.readline()
                self.last = _parse(raw, self.path, step)
                found = self.last.get("step")
                if found != step:
                    raise DataError(f"{self.path}, line {step}: expected step {step}, found step {found}")
                self.step = step
                size += len(raw)
            self.num_dropped = sum(1 for _ in file)
        return size

    def write(self, line: Line) -> None:
        """Append the line of the next step.

        Raises:
            OSError: the disk is full or fails. What was written of the line is taken back where the disk
                still allows it; else the next start cuts it off.
        """
        assert self._file is not None, "the metrics file is closed"
        assert line["step"] == self.step + 1, f"expected the line of step {self.step + 1}, got step {line['step']}"
        rest = memoryview(_format(line))
        size = self._size + len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise OSError(error.errno, os.strerror(error.errno or 0), str(self.path)) from error
        self._size = size
        self.step += 1
        self.last = line

    def sync(self) -> None:
        """Have the disk hold every line written so far; called before a checkpoint is published."""
        assert self._file is not None, "the metrics file is closed"
        sync(self._file.fileno())

    def close(self) -> None:
        """Sync and close; a second call does nothing."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None


def read_metrics(path: Path) -> list[Line]:
    """All whole lines of a metrics file; a last line that is still being written is left out.

    Raises:
        DataError: there is no such file, or a line before the last is damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a metrics file, found none. A run directory holds one as metrics.jsonl")
    return list(_whole_lines(path))


def _whole_lines(path: Path) -> Iterator[Line]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.endswith(b"\n"):
                yield _parse(raw, path, number)


def _parse(raw: bytes, path: Path, number: int) -> Line:
    if not raw.endswith(b"\n"):
        found = "an unfinished line" if raw else "the end of the file"
        raise DataError(f"{path}, line {number}: expected the metrics of step {number}, found {found}")
    try:
        line = json.loads(raw)
    except ValueError:
        line = None
    if not isinstance(line, dict):
        raise DataError(f"{path}, line {number}: expected one JSON object, found {raw[:80]!r}")
    return line


def _format(line: Line) -> bytes:
    ordered = {key: line[key] for key in ("step", "tokens")} | {key: line[key] for key in sorted(line)}
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in ordered.items()}
    return json.dumps(finite, allow_nan=False, separators=(", ", ": ")).encode() + b"\n"
