"""Stopping on request: SIGTERM and Ctrl-C end a run after its last completed step, with a checkpoint."""

import signal
from types import FrameType
from typing import Self


class StopRequested(Exception):
    """Raised between two pieces of work after a signal asked the run to stop."""


class StopSignal:
    """A context in which the first SIGINT or SIGTERM is remembered instead of ending the process.

    The run asks ``check()`` wherever it could stop without losing a completed step. A second signal acts as
    it always does, at once: what was published before stays valid.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def check(self) -> None:
        """Raise StopRequested if a signal has come."""
        if self.received is not None:
            raise StopRequested(self.received.name)
