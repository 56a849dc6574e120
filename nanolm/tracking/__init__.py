"""Where a run's metrics go: ``metrics.jsonl`` first, which is the truth, then the console and wandb."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from nanolm.config.schema import BaselineConfig, TrainConfig
from nanolm.tracking.console import Console
from nanolm.tracking.metrics_file import Line, MetricsFile, Scalar, read_metrics
from nanolm.tracking.rates import Throughput
from nanolm.tracking.wandb_mirror import Reliability, WandbMirror

__all__ = ["Console", "Line", "MetricsFile", "Scalar", "Throughput", "Tracker", "read_metrics"]


@dataclasses.dataclass(frozen=True)
class Tracker:
    """The metrics file of a run with its two mirrors.

    Only the metrics file can stop a run, with an OSError; a mirror that fails costs a line of warning.
    """

    metrics: MetricsFile
    console: Console
    wandb: WandbMirror

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, config: TrainConfig | BaselineConfig, run_directory: Path, resume_step: int | None, console: Console
    ) -> Iterator[Self]:
        """Track a run in its directory, which exists, while the block runs; its exception gives wandb the exit code.

        ``resume_step`` is that of ``MetricsFile``. Raises DataError where the metrics file does not fit it.
        """
        metrics = MetricsFile(run_directory / "metrics.jsonl", resume_step)
        if metrics.num_dropped:
            console.note(
                f"{metrics.path.name}: dropped {metrics.num_dropped:,} line(s) after step {metrics.step:,} that an "
                "interrupted start had written; they are written again"
            )
        wandb = WandbMirror(config.wandb, metrics.path, config.name, dataclasses.asdict(config), console.note)
        exit_code = 0
        try:
            yield cls(metrics, console, wandb)
        except BaseException as error:
            exit_code = getattr(error, "exit_code", 1)
            raise
        finally:
            try:
                metrics.close()
            finally:
                console.close()
                wandb.close(exit_code)

    def log(self, line: Line) -> None:
        """Record one step: ``step``, ``tokens`` and the metrics by the names of the contract."""
        self.metrics.write(line)
        self.console.step(line)

    def amend(self, values: Line) -> None:
        """Add metrics to the line of the last step; online, wandb does not get them."""
        self.console.step(self.metrics.amend(values))

    def sync(self) -> None:
        """Flush all lines to the disk; called before a checkpoint is published."""
        self.metrics.sync()

    def note(self, text: str) -> None:
        """Print a message for the user while the run goes on."""
        self.console.note(text)

    def summary(self, title: str, rows: Sequence[tuple[str, str | float, str]], values: Mapping[str, Scalar]) -> None:
        """Print the final table of (name, value, unit or explanation) and send ``values`` to wandb's summary."""
        self.console.table(title, rows)
        self.wandb.summary(values)

    def report(self, path: Path, reliability: Reliability) -> None:
        """Show the finished report and the lines of its reliability diagram at wandb."""
        self.wandb.report(path, reliability)
