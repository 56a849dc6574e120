"""``metrics.jsonl``, the truth of a run: one line of JSON for each step, in order.

Steps count from 1: line s is what the run knew after s optimizer steps. ``step`` and ``tokens`` come first and the
other keys in alphabetical order. A float is written with the digits that bring the very same float back. JSON has no
NaN and no infinity, so a value that is not finite is written as ``null``.

A line goes to the operating system at once, so a killed process loses none. ``sync`` flushes the lines to the disk
before a checkpoint is published, so that no power cut leaves a checkpoint whose lines are missing. Lines that a killed
start wrote after its last checkpoint are written again by the next one, so opening the file truncates it after the
checkpoint's line; that is atomic and needs no space on a full disk.
"""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import BinaryIO

from nanolm.errors import DataError
from nanolm.files import sync, write_atomically

Scalar = int | float | str | bool | None
Line = dict[str, Scalar]


class MetricsFile:
    """The file, open for the lines of the next steps.

    ``last`` is the last line, or None in a new file. ``num_dropped`` counts the lines, whole or torn, that an
    interrupted start had written after ``resume_step``.
    """

    def __init__(self, path: Path, resume_step: int | None) -> None:
        """Open the file after the line of ``resume_step``.

        ``resume_step`` is the step of the checkpoint that the run continues from, 0 after an interruption before the
        first checkpoint, or None for a run that must be new.

        Raises DataError where lines up to ``resume_step`` are missing, damaged or out of order (nothing is changed
        then), or where the run must be new and the file holds lines; OSError where it cannot be read or written.
        """
        self.path = path
        self.last: Line | None = None
        self.num_dropped = 0
        self._start = self._size = 0  # the offsets at which the last line starts and ends
        self._find_end(resume_step)
        self._file = self._open()
        self._file.truncate(self._size)

    @property
    def step(self) -> int:
        """The step of the last line, 0 in a new file."""
        return int(self.last["step"] or 0) if self.last else 0

    def write(self, line: Line) -> None:
        """Append the line of the next step.

        Raises OSError where the disk is full or fails. A part of the line that was written is removed where the disk
        still allows it; otherwise the next start removes it.
        """
        assert line["step"] == self.step + 1, f"expected the line of step {self.step + 1}, got step {line['step']}"
        data = memoryview(_format(line))
        self._start, size = self._size, self._size + len(data)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise OSError(error.errno, os.strerror(error.errno or 0), str(self.path)) from error
        self._size = size
        self.last = line

    def amend(self, values: Line) -> Line:
        """Add metrics to the last line, whose evaluation was interrupted, and return it.

        The whole file is replaced, so that the line of a published checkpoint is complete at any instant. Raises
        OSError where the disk has no room for a copy of the file, or fails; the old line is still there then.
        """
        assert self.last is not None, "there is no line yet"
        line = self.last | values
        data = self.path.read_bytes()[: self._start] + _format(line)
        write_atomically(self.path, data)
        self._file.close()
        self._file = self._open()
        self._size = len(data)
        self.last = line
        return line

    def sync(self) -> None:
        """Flush every line to the disk."""
        sync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()

    def _open(self) -> BinaryIO:
        # Unbuffered, so that the error of a full disk appears at the line that it hits.
        return open(self.path, "ab", buffering=0)

    def _find_end(self, resume_step: int | None) -> None:
        """Check the lines up to ``resume_step``, and find the last of them."""
        if resume_step is None and self.path.exists() and self.path.stat().st_size:
            raise DataError(
                f"{self.path}: this folder already holds the metrics of a run; choose another folder, or continue "
                "that run with trainer.resume=auto"
            )
        if not self.path.exists():
            if resume_step:
                raise DataError(f"{self.path}: expected the metrics of steps 1 to {resume_step}, found no such file")
            return
        with open(self.path, "rb") as file:
            for step in range(1, (resume_step or 0) + 1):
                raw = file.readline()
                self.last = _parse(raw, self.path, step)
                if (found := self.last.get("step")) != step:
                    raise DataError(f"{self.path}, line {step}: expected step {step}, found step {found}")
                self._start, self._size = self._size, self._size + len(raw)
            self.num_dropped = sum(1 for _ in file)


def read_metrics(path: Path) -> list[Line]:
    """Read all whole lines of a metrics file; a last line that is still being written is left out.

    Raises DataError where there is no such file, or a line before the last is damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a metrics file, found none")
    with open(path, "rb") as file:
        return [_parse(raw, path, number) for number, raw in enumerate(file, start=1) if raw.endswith(b"\n")]


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
