"""Rates and times that a person reads: tokens per second now, seconds so far, seconds left."""

import time
from collections import deque
from collections.abc import Callable


class Throughput:
    """Tokens per second over the newest steps, so that a slow start or an old pause does not linger.

    A rate since the start would take hours to notice that a machine has slowed down.
    """

    def __init__(self, window_seconds: float = 10.0) -> None:
        """``window_seconds``: the newest steps that together lasted at least so long are counted."""
        self._window = window_seconds
        self._steps: deque[tuple[int, float]] = deque()
        self._tokens = 0
        self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> float:
        """Count one step of so many tokens that took so many seconds; tokens per second of the window."""
        self._steps.append((tokens, seconds))
        self._tokens += tokens
        self._seconds += seconds
        while self._seconds - self._steps[0][1] >= self._window:
            old_tokens, old_seconds = self._steps.popleft()
            self._tokens -= old_tokens
            self._seconds -= old_seconds
        return self._tokens / max(self._seconds, 1e-9)


class Stopwatch:
    """Seconds accumulated over all starts of a run."""

    def __init__(self, before: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """``before``: the seconds of earlier starts, as the last line's ``train/seconds`` says; runs at once."""
        self._clock = clock
        self._start = clock() - before

    @property
    def seconds(self) -> float:
        return self._clock() - self._start


def seconds_left(
    step: int, steps_per_second: float, elapsed: float, max_steps: int | None, max_seconds: float | None
) -> float | None:
    """Seconds until the first of the two limits is reached, or None where neither tells.

    ``elapsed``: seconds so far, over all starts, which ``max_seconds`` limits.
    """
    limits = []
    if max_steps is not None and steps_per_second > 0:
        limits.append((max_steps - step) / steps_per_second)
    if max_seconds is not None:
        limits.append(max_seconds - elapsed)
    return max(0.0, min(limits)) if limits else None
