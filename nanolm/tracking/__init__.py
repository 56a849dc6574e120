"""Where a run's numbers go: ``metrics.jsonl`` first, which is the truth, then the console and wandb."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nanolm.config.schema import TrainConfig
from nanolm.config.schema_baseline import BaselineConfig
from nanolm.tracking.console import Console
from nanolm.tracking.metrics_file import Line, MetricsFile, Scalar, read_metrics
from nanolm.tracking.rates import Stopwatch, Throughput
from nanolm.tracking.wandb_mirror import WandbMirror

__all__ = ["Console", "Line", "MetricsFile", "Scalar", "Stopwatch", "Throughput", "Tracker", "read_metrics"]


class Tracker:
    """The metrics file of a run with its two mirrors; a context manager.

    Only the metrics file can stop a run (a full disk must be known); a mirror that fails is a note.
    """

    def __init__(self, metrics: MetricsFile, console: Console, wandb: WandbMirror) -> None:
        self.metrics = metrics
        self.console = console
        self._wandb = wandb
        self._closed = False

    @classmethod
    def open(
        cls,
        config: TrainConfig | BaselineConfig,
        run_directory: Path,
        resume_step: int | None,
        console: Console,
    ) -> Self:
        """Open the tracking of a run directory, which exists.

        Args:
            resume_step: as in ``MetricsFile``: the checkpoint's step, 0 after an interruption before the
                first checkpoint, None for a directory that must not hold a run yet.
            console: the console in use.

        Raises:
            DataError: the metrics file there does not fit ``resume_step``.
        """
        metrics = MetricsFile(run_directory / "metrics.jsonl", resume_step)
        if metrics.num_dropped:
            console.note(
                f"{metrics.path.name}: dropped {metrics.num_dropped:,} line(s) that an interrupted start had written "
                f"behind step {metrics.step:,}; they are written again"
            )
        wandb = WandbMirror(
            config.wandb,
            run_directory=run_directory,
            metrics=metrics.path,
            name=config.name,
            run_config=dataclasses.asdict(config),
            note=console.note,
        )
        return cls(metrics, console, wandb)

    @property
    def last(self) -> Line | None:
        """The newest line, of an earlier start too: where ``tokens`` and ``train/seconds`` go on from."""
        return self.metrics.last

    def log(self, line: Line) -> None:
        """Record one step: ``step``, ``tokens`` and the metrics by the names of the contract.

        Raises:
            OSError: the metrics file could not be written.
        """
        self.metrics.write(line)
        self.console.step(line)

    def sync(self) -> None:
        """Have the disk hold all lines; called before a checkpoint is published."""
        self.metrics.sync()

    def note(self, text: str) -> None:
        """Tell the user something while the run goes on."""
        self.console.note(text)

    def summary(self, title: str, rows: Sequence[tuple[str, str | float, str]], values: Mapping[str, Scalar]) -> None:
        """Print the final table of (name, value, unit or explanation) and send ``values`` to wandb's summary."""
        self.console.table(title, rows)
        self._wandb.summary(values)

    def report(self, path: Path, diagram: bytes, reliability: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Show the finished report on the run's page at wandb, with its reliability diagram as PNG and as lines.

        ``reliability`` maps the name of a line to ``confidence`` and ``accuracy`` of its bins, with their ``count``.
        """
        self._wandb.report(path, diagram, reliability)

    def close(self, exit_code: int) -> None:
        """Close all three, the metrics file first; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self.metrics.close()
        finally:
            self.console.close()
            self._wandb.close(exit_code)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(_exit_code(error))


def _exit_code(error: BaseException | None) -> int:
    """The exit code that a script ends with after this error."""
    if error is None:
        return 0
    code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else 1 if code else 0
