"""Stopping on request: SIGTERM, Ctrl-C or a closed terminal end a run after its last step, with a checkpoint."""

import signal
from types import FrameType
from typing import Self

# the exit code of a run that stopped on request, after a checkpoint
STOPPED = 3


class StopRequested(Exception):
    """Raised between two pieces of work after a signal asked the run to stop."""


class StopSignal:
    """A context in which the first SIGINT, SIGTERM or SIGHUP is remembered instead of ending the process.

    The run asks ``check()`` wherever it could stop without losing a completed step. A second signal acts as
    it always does, at once: what was published before stays valid. Not so a second SIGHUP: a terminal that is closed
    sends several. A SIGHUP that was ignored from the start, as nohup has it, stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(*self._previous)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore(*self._previous.keys() - {signal.SIGHUP})

    def _restore(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            signal.signal(number, self._previous.pop(number))

    def check(self) -> None:
        """Raise StopRequested if a signal has come."""
        if self.received is not None:
            raise StopRequested(self.received.name)
