"""The rate of training over the newest steps."""

from collections import deque


class Throughput:
    """Tokens per second over the newest steps, so that a slow start or an old pause does not linger."""

    def __init__(self, window_seconds: float = 10.0) -> None:
        """Count the newest steps that together lasted at least ``window_seconds``."""
        self._window = window_seconds
        self._steps: deque[tuple[int, float]] = deque()
        self._tokens, self._seconds = 0, 0.0

    def add(self, tokens: int, seconds: float) -> float:
        """Count a step of ``tokens`` that took ``seconds``; return the tokens per second of the window."""
        self._steps.append((tokens, seconds))
        self._tokens += tokens
        self._seconds += seconds
        while self._seconds - self._steps[0][1] >= self._window:
            old_tokens, old_seconds = self._steps.popleft()
            self._tokens -= old_tokens
            self._seconds -= old_seconds
        return self._tokens / max(self._seconds, 1e-9)
