"""Checks of the arguments: shapes and dtypes everywhere, the values of targets on the CPU.

On CUDA, reading the values would make the CPU wait for the GPU in every step; there an index out of range ends in
CUDA's own asynchronous assertion.
"""

from typing import Protocol

import torch
from torch import Tensor

from nanolm.errors import ConfigError
from nanolm.loss.options import expect


class SoftTargets(Protocol):
    """(N, V) target distributions that are formed when a chunk of them is needed, and need not exist together."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, V)"""
        ...

    def __getitem__(self, rows: slice) -> Tensor:
        """Form the (C, V) distributions of these tokens: constants, and the same at every call."""
        ...


def expect_shape(name: str, tensor: Tensor, shape: tuple[int, ...], symbols: str) -> None:
    """Raise ConfigError unless ``tensor`` is floating point and of ``shape``, written ``symbols`` in the docstrings."""
    if not tensor.is_floating_point() or tensor.shape != shape:  # not ``expect``: a message takes a microsecond
        found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ConfigError(f"{name}: expected floating point of shape {symbols} = {shape}, found {found}")


def expect_constant(name: str, tensor: Tensor) -> None:
    """Raise ConfigError where a gradient is wanted for a tensor that the losses take as a constant."""
    wants_gradient = torch.is_grad_enabled() and tensor.requires_grad
    expect(not wants_gradient, name, f"a constant, such as {name}.detach()", "requires_grad=True")


def expect_soft_targets(soft_targets: Tensor | SoftTargets, shape: tuple[int, int]) -> None:
    """Raise ConfigError unless ``soft_targets`` are constants of ``shape`` (N, V)."""
    if isinstance(soft_targets, Tensor):
        expect_shape("soft_targets", soft_targets, shape, "(N, V)")
        expect_constant("soft_targets", soft_targets)
    found = tuple(soft_targets.shape)
    expect(found == shape, "soft_targets", f"shape (N, V) = {shape}", found)


def class_targets(
    targets: Tensor, num_tokens: int, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor | None]:
    """Turn (N,) int32 or int64 targets into (N,) int64 indices that are safe to gather with, and a (N,) bool mask.

    The mask is False at ignored tokens, whose index becomes 0; it is None where all are known to be valid. Raises
    ConfigError for another dtype or shape and, on the CPU, for a target outside [0, V) that is not ignored.
    """
    expect(targets.dtype in (torch.int32, torch.int64), "targets", "int32 or int64 class indices", targets.dtype)
    _expect_length(targets, num_tokens)
    on_cpu = targets.device.type == "cpu" and num_tokens > 0
    if on_cpu:
        lowest, highest = (int(extreme) for extreme in torch.aminmax(targets))
        if lowest >= 0 and highest < num_classes and not lowest <= ignore_index <= highest:
            return targets.long(), None
    valid = targets != ignore_index
    indices = torch.where(valid, targets, 0).long()
    outside = (indices < 0) | (indices >= num_classes)
    if on_cpu:
        _refuse_first(outside, targets, f"a class in [0, {num_classes}) or ignore_index={ignore_index}")
    return indices, valid


def probability_targets(targets: Tensor, num_examples: int, ignore_index: int) -> Tensor:
    """Return the (N,) bool mask of valid examples for (N,) probabilities of class 1, or ``ignore_index``.

    Raises ConfigError for another shape and, on the CPU, for a target outside [0, 1] (NaN included).
    """
    _expect_length(targets, num_examples)
    expect_constant("targets", targets)
    valid = targets != ignore_index
    if targets.device.type == "cpu":
        outside = valid & ~((targets >= 0) & (targets <= 1))
        _refuse_first(outside, targets, f"a probability in [0, 1] or ignore_index={ignore_index}")
    return valid


def _expect_length(targets: Tensor, length: int) -> None:
    if targets.shape != (length,):
        raise ConfigError(f"targets: expected shape (N,) = ({length},), found {tuple(targets.shape)}")


def _refuse_first(outside: Tensor, targets: Tensor, expected: str) -> None:
    """Raise ConfigError for the first target that is ``outside``, if there is one."""
    for position in outside.nonzero()[:1, 0].tolist():
        raise ConfigError(f"targets[{position}]: expected {expected}, found {targets[position].item()}")
