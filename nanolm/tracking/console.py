"""The console: progress and notes on standard error, results on standard output.

On a terminal, progress is a live bar with metrics below it. Everywhere else (a file, a pipe, ``TERM=dumb``,
``NO_COLOR``) it is plain lines without control codes. Everything goes to the ``nanolm`` logger as well, and so into
``train.log``. Text may be untrusted: control characters are escaped, except in results that do not go to a terminal,
which are exact.
"""

import contextlib
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from nanolm.errors import visible
from nanolm.tracking.metrics_file import Line
from nanolm.tracking.tables import aligned

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

logger = logging.getLogger("nanolm")
logger.addHandler(logging.NullHandler())  # without it, Python prints the messages a second time where no log is set up

SECONDS_BETWEEN_FRAMES = 0.2
SECONDS_BETWEEN_PLAIN_LINES = 5.0


class Console:
    """Show the progress of training steps and of other long work, notes, and results.

    A display that breaks (a closed terminal, a full log partition) goes silent and never stops the work. A result that
    cannot be printed is an error, because it is what the user asked for.
    """

    def __init__(
        self,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        log_every: int = 1,
        *,
        stderr: TextIO | None = None,
        stdout: TextIO | None = None,
    ) -> None:
        """Prepare for a run with these limits; ``log_every`` is the number of steps between plain lines."""
        self._max_steps, self._max_seconds, self._log_every = max_steps, max_seconds, log_every
        self._stderr, self._stdout = stderr or sys.stderr, stdout or sys.stdout
        plain = not self._stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
        self._bar = None if plain else _Bar(self._stderr)
        self._val_nll: float | None = None
        self._first_step: int | None = None
        self._held_back: str | None = None

    def step(self, line: Line) -> None:
        """Show a line of the metrics file."""
        step, elapsed = int(_number(line, "step")), _number(line, "train/seconds", 0.0)
        nll, tokens_per_second = _number(line, "train/nll"), _number(line, "train/tokens_per_second", 0.0)
        if "val/nll" in line:
            self._val_nll = _number(line, "val/nll")
        self._first_step = self._first_step or step

        position, fractions, seconds_left = f"step {step:,}", [], []
        if self._max_steps:
            position += f"/{self._max_steps:,}"
            fractions.append(step / self._max_steps)
            if tokens_per_second > 0:
                seconds_left.append((self._max_steps - step) * _number(line, "tokens") / step / tokens_per_second)
        if self._max_seconds:
            fractions.append(elapsed / self._max_seconds)
            seconds_left.append(self._max_seconds - elapsed)
        fraction = min(1.0, max(fractions, default=0.0))
        position += f" ({fraction:.0%})" if fractions else ""
        times = [f"{duration(max(0.0, min(seconds_left)))} left"] if seconds_left else []

        metrics = [f"nll {nll:.3f}", f"ppl {number(math.exp(nll) if nll < 700 else nll)}"]
        metrics += [] if self._val_nll is None else [f"val {self._val_nll:.3f}"]
        metrics += [f"{tokens_per_second:,.0f} tok/s"] if tokens_per_second else []
        due = step % self._log_every == 0 or step in (self._first_step, self._max_steps) or "val/nll" in line
        self._show(fraction, [position, *times], metrics, due)

    @contextlib.contextmanager
    def progress(self, title: str, unit: str = "bytes") -> Iterator[Callable[[int, int | None], None]]:
        """Yield ``update(done, total)``, which shows the progress of work that is counted in ``unit``."""
        scale, digits, name = (1e6, 1, "MB") if unit == "bytes" else (1, 0, unit)
        start = last = time.monotonic()

        def update(done: int, total: int | None = None) -> None:
            nonlocal last
            now = time.monotonic()
            rate = done / max(now - start, 1e-9)
            fraction, position, amount = 0.0, [title], f"{done / scale:,.{digits}f}"
            if total and done <= total:  # it may be an estimate that was too low
                fraction = done / total
                position = [f"{title} ({fraction:.0%})"]
                position += [f"{duration((total - done) / rate)} left"] if rate else []
                amount += f"/{total / scale:,.{digits}f}"
            due = now - last >= SECONDS_BETWEEN_PLAIN_LINES
            last = now if due else last
            self._show(fraction, position, [f"{amount} {name}", f"{rate / scale:,.{digits}f} {name}/s"], due)

        try:
            yield update
        finally:
            self.close()

    def note(self, text: str) -> None:
        """Print a message for the user, above the bar where there is one; safe to call from any thread."""
        self._print_line(text, above_bar=True)

    def result(self, text: str) -> None:
        """Print a result (a sample, a path) on standard output."""
        self.close()
        for line in text.splitlines():
            logger.info("%s", visible(line))
        _print(visible(text) if self._stdout.isatty() else text, self._stdout)

    def table(self, title: str, rows: Sequence[tuple[str, str | float, str]]) -> None:
        """Print a table of (name, value, unit or explanation) on standard output."""
        cells = [(name, value if isinstance(value, str) else number(value), about) for name, value, about in rows]
        width = shutil.get_terminal_size().columns if self._stdout.isatty() else None
        self.result(aligned(title, [("metric", "value", "note"), *cells], width=width))

    def close(self) -> None:
        """Leave the bar on the screen and print the last line if it was held back; the next step draws a new bar."""
        if self._held_back:
            self._print_line(self._held_back)
        self._held_back = None
        if self._bar:
            self._bar.stop()

    def _show(self, fraction: float, position: list[str], metrics: list[str], due: bool) -> None:
        """Draw the state on the bar; log and print it as a plain line where one is due."""
        if self._bar:
            self._bar.show(fraction, " | ".join(position), " | ".join(metrics))
        text = " | ".join([position[0], *metrics, *position[1:]])
        self._held_back = None if due else text
        if due:
            self._print_line(text)

    def _print_line(self, text: str, *, above_bar: bool = False) -> None:
        """Log a line and print it, unless a bar shows it already."""
        text = visible(text)
        logger.info("%s", text)
        with contextlib.suppress(OSError, ValueError):
            if self._bar is None:
                _print(text, self._stderr)
            elif above_bar:
                self._bar.print_above(text)


class _Bar:
    """Two live lines on a terminal: the bar with the position, and the metrics; cut to the width."""

    def __init__(self, stream: TextIO) -> None:
        import rich.console

        # No highlighting and no markup: a note may hold any brackets.
        self._console = rich.console.Console(file=stream, force_terminal=True, highlight=False, markup=False)
        self._live: Live | None = None
        self._state = (0.0, "", "")
        self._drawn = 0.0

    def show(self, fraction: float, position: str, metrics: str) -> None:
        """Keep the newest state and draw it a few times a second, since drawing takes time from the training."""
        from rich.live import Live

        self._state = (fraction, position, metrics)
        now = time.monotonic()
        if self._live is not None and now - self._drawn < SECONDS_BETWEEN_FRAMES:
            return
        self._drawn = now
        with contextlib.suppress(OSError, ValueError):
            if self._live is None:
                # Standard output may be a pipe while the bar is on a terminal.
                self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
                self._live.start()
            self._live.update(self._render(), refresh=True)

    def print_above(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text), soft_wrap=True)

    def stop(self) -> None:
        """Draw the last state, leave it on the screen, and give the cursor back."""
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError, ValueError):
                live.update(self._render(), refresh=True)
                live.stop()

    def _render(self) -> "Group":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Column, Table
        from rich.text import Text

        fraction, position, metrics = self._state
        grid = Table.grid(Column(max_width=40), Column(no_wrap=True), padding=(0, 1), collapse_padding=True)
        grid.add_row(ProgressBar(completed=100 * fraction), Text(position, overflow="ellipsis"))
        return Group(grid, Text(metrics, no_wrap=True, overflow="ellipsis"))


def duration(seconds: float) -> str:
    """Format seconds for people: ``42 s``, ``3 min 20 s``, ``2 h 05 min``, ``1 d 3 h``."""
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole_seconds:02d} s" if minutes else f"{whole_seconds} s"


def number(value: float) -> str:
    """Format four significant digits, or all digits before the point: ``24.93``, ``0.04120``, ``1,543,210``."""
    if isinstance(value, int) or 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:#.4g}"


def _number(line: Line, key: str, default: float = math.nan) -> float:
    value = line.get(key, default)
    return float(value) if isinstance(value, int | float) else math.nan


def _print(text: str, stream: TextIO) -> None:
    """Print text, and escape characters that the stream's encoding lacks."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
