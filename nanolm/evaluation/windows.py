"""How a split is cut into windows, so that every token is scored exactly once with its context stated.

The split is one stream, ``<end-of-text> document <end-of-text> document … <end-of-text>``; its targets are all
tokens but the first. A window of ``sequence_length`` tokens slides over it by ``stride`` targets and scores those that
no window before it has scored. So every target, except at the start of the split, has at least
``sequence_length - stride`` tokens of context before the token it is predicted from, earlier documents included.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nanolm.data import TokenSplit


@dataclass(frozen=True)
class Window:
    """Targets ``first_scored`` to ``end`` are scored from inputs ``start`` to ``end``."""

    start: int
    first_scored: int
    end: int


def windows(num_tokens: int, sequence_length: int, stride: int) -> Iterator[Window]:
    """Yield windows that score each of ``num_tokens`` targets exactly once.

    All are ``sequence_length`` long unless the split is shorter: the last is moved back to end where the split ends.
    """
    scored = 0
    while scored < num_tokens:
        end = min(max(scored + stride, sequence_length), num_tokens)
        yield Window(max(0, end - sequence_length), scored, end)
        scored = end


@dataclass(frozen=True)
class Batch:
    """Windows of one forward pass; B windows of T tokens with S scored targets in all."""

    tokens: torch.Tensor
    """(B, T + 1) int64 ids; inputs are all but the last, targets all but the first"""
    is_scored: torch.Tensor
    """(B, T) bool"""
    position: npt.NDArray[np.int64]
    """(S,) number of each scored target in the split"""
    offset: npt.NDArray[np.int64]
    """(S,) tokens of its window before the one that it is predicted from"""


def read_batches(split: TokenSplit, chosen: Iterable[Window], size: int) -> Iterator[Batch]:
    """Read the windows of a split, ``size`` at a time."""
    remaining = iter(chosen)
    while group := list(itertools.islice(remaining, size)):
        tokens = np.stack([split.read(window.start, window.end - window.start + 1) for window in group])
        position = np.stack([np.arange(window.start, window.end) for window in group])
        is_scored = position >= np.array([[window.first_scored] for window in group])
        offset = np.broadcast_to(np.arange(position.shape[1]), position.shape)
        yield Batch(torch.from_numpy(tokens), torch.from_numpy(is_scored), position[is_scored], offset[is_scored])
