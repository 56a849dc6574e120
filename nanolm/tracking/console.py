"""What a person sees: progress and notes on standard error, results on standard output.

On a terminal, progress is a live bar with its figures. Everywhere else (a file, a pipe, ``TERM=dumb``,
``NO_COLOR``) it is plain lines without a single control code. Whatever is said here goes to the ``nanolm``
logger too, so that ``train.log`` tells the same story. A text may be a stranger's: control characters are
written out, but for results that go elsewhere than to a terminal, which are exact.
"""

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from nanolm.errors import visible
from nanolm.tracking.metrics_file import Line
from nanolm.tracking.rates import seconds_left

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table

logger = logging.getLogger("nanolm")
# What a library does so that Python does not print its messages a second time where no log is set up.
logger.addHandler(logging.NullHandler())

SECONDS_BETWEEN_FRAMES = 0.2
SECONDS_BETWEEN_PLAIN_LINES = 5.0


def is_live(stream: TextIO) -> bool:
    """Whether a stream is a terminal that may be drawn on."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


class Console:
    """Progress of the training steps and of other long work, notes, and results.

    A display that breaks (a closed terminal, a full log partition) goes silent; it never stops the work.
    Results are what the user asked for, so there an error is an error; the scripts print on streams that have none
    (``nanolm.config.streams``), when all files are written.
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
        """The limits tell the time left; ``log_every`` is the number of steps between plain lines."""
        self._max_steps = max_steps
        self._max_seconds = max_seconds
        self._log_every = log_every
        self._stderr = stderr or sys.stderr
        self._stdout = stdout or sys.stdout
        self._bar = _Bar(self._stderr) if is_live(self._stderr) else None
        self._val_nll: float | None = None
        self._first_step: int | None = None
        self._unsaid: str | None = None

    def step(self, line: Line) -> None:
        """Show a line of the metrics file."""
        step, elapsed = int(_number(line, "step")), _number(line, "train/seconds", 0.0)
        if "val/nll" in line:
            self._val_nll = _number(line, "val/nll")
        fraction, count = self._position(step, elapsed)
        left = self._left(line, step, elapsed)
        figures = self._figures(line)
        text = " | ".join([count, *figures, *left])
        if self._bar:
            self._bar.show(fraction, [count, *left, f"{duration(elapsed)} so far"], figures)
        self._first_step = self._first_step or step
        due = step % self._log_every == 0 or step in (self._first_step, self._max_steps) or "val/nll" in line
        self._unsaid = None if due else text
        if due:
            self._say(text, above_bar=False)

    def note(self, text: str) -> None:
        """Tell the user something, above the bar where there is one; safe to call from any thread."""
        self._say(text)

    def result(self, text: str) -> None:
        """Print what the user asked for (a sample, a path) on standard output."""
        self.pause()
        for line in text.splitlines():
            logger.info("%s", visible(line))
        _print(visible(text) if self._stdout.isatty() else text, self._stdout)

    def table(self, title: str, rows: Sequence[tuple[str, str | float, str]]) -> None:
        """Print a table of (name, value, unit or explanation) on standard output."""
        self.pause()
        cells = [(name, value if isinstance(value, str) else number(value), about) for name, value, about in rows]
        plain = _plain_table(title, cells)
        for line in plain:
            logger.info("%s", line)
        if is_live(self._stdout):
            import rich.console

            # A table wider than the terminal is folded by rich; the plain one is left to whoever reads it.
            rich.console.Console(file=self._stdout, highlight=False, markup=False).print(_rich_table(title, cells))
        else:
            _print("\n".join(plain), self._stdout)

    @contextlib.contextmanager
    def progress(self, title: str, unit: str = "bytes") -> Iterator[Callable[[int, int | None], None]]:
        """Yield ``update(done, total)`` for work that is counted in bytes or in anything else."""
        start = last = time.monotonic()
        text = ""

        def update(done: int, total: int | None = None) -> None:
            nonlocal last, text
            now = time.monotonic()
            rate = done / max(now - start, 1e-9)
            total = None if total is not None and done > total else total  # it was an estimate, and it was wrong
            fraction = done / total if total else 0.0
            name = f"{title} ({fraction:.0%})" if total else title
            figures = [_amount(done, total, unit), _rate(rate, unit)]
            left = [f"{duration((total - done) / rate)} left"] if total and rate else []
            text = " | ".join([name, *figures, *left])
            if self._bar:
                self._bar.show(fraction, [name, *left], figures)
            elif now - last >= SECONDS_BETWEEN_PLAIN_LINES:
                last = now
                self._say(text)

        try:
            yield update
        finally:
            if text:
                self._say(text, above_bar=False)
            self.pause()

    def pause(self) -> None:
        """Leave the bar as it stands and say the last line if it was held back; the next step draws a new bar."""
        if self._unsaid:
            self._say(self._unsaid, above_bar=False)
            self._unsaid = None
        if self._bar:
            self._bar.stop()

    close = pause

    def _position(self, step: int, elapsed: float) -> tuple[float, str]:
        """The share of the run that is done, by the limit that is nearer, and the step in words."""
        fractions = []
        if self._max_steps:
            fractions.append(step / self._max_steps)
        if self._max_seconds:
            fractions.append(elapsed / self._max_seconds)
        fraction = min(1.0, max(fractions, default=0.0))
        count = f"step {step:,}/{self._max_steps:,}" if self._max_steps else f"step {step:,}"
        return fraction, f"{count} ({fraction:.0%})" if fractions else count

    def _figures(self, line: Line) -> list[str]:
        nll = _number(line, "train/nll")
        figures = [f"nll {nll:.3f}", f"ppl {number(math.exp(nll) if nll < 700 else nll)}"]
        if self._val_nll is not None:
            figures.append(f"val {self._val_nll:.3f}")
        if line.get("train/tokens_per_second"):
            figures.append(f"{_number(line, 'train/tokens_per_second'):,.0f} tok/s")
        return figures

    def _left(self, line: Line, step: int, elapsed: float) -> list[str]:
        steps_per_second = _number(line, "train/tokens_per_second", 0.0) * step / _number(line, "tokens")
        left = seconds_left(step, steps_per_second, elapsed, self._max_steps, self._max_seconds)
        return [] if left is None else [f"{duration(left)} left"]

    def _say(self, text: str, *, above_bar: bool = True) -> None:
        """Log a line and print it, unless a bar shows it already."""
        text = visible(text)
        logger.info("%s", text)
        with contextlib.suppress(OSError, ValueError):
            if self._bar is None:
                _print(text, self._stderr)
            elif above_bar:
                self._bar.print_above(text)


class _Bar:
    """Two live lines on a terminal: the bar with the position, and the figures; cut to the width."""

    def __init__(self, stream: TextIO) -> None:
        import rich.console

        # No highlighting and no markup: a note may hold any brackets.
        self._console = rich.console.Console(file=stream, force_terminal=True, highlight=False, markup=False)
        self._live: Live | None = None
        self._state: tuple[float, list[str], list[str]] = (0.0, [], [])
        self._drawn = 0.0

    def show(self, fraction: float, position: list[str], figures: list[str]) -> None:
        """Keep the newest state and draw it a few times a second: drawing takes time from the training."""
        from rich.live import Live

        self._state = (fraction, position, figures)
        now = time.monotonic()
        if self._live is not None and now - self._drawn < SECONDS_BETWEEN_FRAMES:
            return
        self._drawn = now
        with contextlib.suppress(OSError, ValueError):
            if self._live is None:
                # Standard output stays what it is: it may be a pipe while the bar is on a terminal.
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
        from rich.table import Table
        from rich.text import Text

        fraction, position, figures = self._state
        where = _fit(position, self._console.width)
        grid = Table.grid(padding=(0, 1))
        room = min(40, self._console.width - len(where) - 1)
        if room >= 5:
            grid.add_row(ProgressBar(completed=100 * fraction, width=room), Text(where, no_wrap=True))
        else:
            grid.add_row(Text(where, no_wrap=True))
        return Group(grid, Text(_fit(figures, self._console.width), no_wrap=True))


def _fit(parts: list[str], width: int) -> str:
    """As many of the parts, the most important first, as a line of this width holds; at least one, cut."""
    while len(parts) > 1 and len(" | ".join(parts)) > width:
        parts = parts[:-1]
    return " | ".join(parts)[:width]


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``42 s``, ``3 min 20 s``, ``2 h 05 min``, ``1 d 3 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def number(value: float) -> str:
    """Four significant digits, or all digits before the point: ``24.93``, ``0.04120``, ``1,543,210``."""
    if isinstance(value, int) or 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:#.4g}"


def _number(line: Line, key: str, default: float = math.nan) -> float:
    value = line.get(key, default)
    return float(value) if isinstance(value, int | float) else math.nan


def _amount(done: int, total: int | None, unit: str) -> str:
    scale, name = (1e6, "MB") if unit == "bytes" else (1, unit)
    digits = 1 if unit == "bytes" else 0
    of = f"/{total / scale:,.{digits}f}" if total else ""
    return f"{done / scale:,.{digits}f}{of} {name}"


def _rate(rate: float, unit: str) -> str:
    return f"{rate / 1e6:,.1f} MB/s" if unit == "bytes" else f"{rate:,.0f} {unit}/s"


def _plain_table(title: str, cells: list[tuple[str, str, str]]) -> list[str]:
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(2)]
    rows = [f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {about}".rstrip() for name, value, about in cells]
    return [title, *rows]


def _rich_table(title: str, cells: list[tuple[str, str, str]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _print(text: str, stream: TextIO) -> None:
    """Print text even where the stream's encoding lacks a character of it."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
