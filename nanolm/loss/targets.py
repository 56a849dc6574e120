"""What a caller hands over, checked: shapes and dtypes everywhere, the values of targets on the CPU.

On CUDA a look at the values would make the CPU wait for the GPU in every step; there an index out of range ends in
CUDA's own asynchronous assertion.
"""

from typing import NoReturn, Protocol

import torch
from torch import Tensor

from nanolm.errors import ConfigError


class SoftTargets(Protocol):
    """(N, V) target distributions that are formed when a chunk of them is needed, and need not exist together."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, V)"""
        ...

    def __getitem__(self, rows: slice) -> Tensor:
        """(C, V) distributions of these tokens: constants, and the same whenever they are asked for."""
        ...


def expect_shape(name: str, tensor: Tensor, shape: tuple[int, ...], symbols: str) -> None:
    """Raise ConfigError unless ``tensor`` is floating point and of ``shape``, which the user knows as ``symbols``."""
    if not tensor.is_floating_point():
        raise ConfigError(f"{name}: expected floating point of shape {symbols}, found {tensor.dtype}")
    if tensor.shape != shape:
        raise ConfigError(f"{name}: expected shape {symbols} = {shape}, found {tuple(tensor.shape)}")


def expect_constant(name: str, tensor: Tensor) -> None:
    """Raise ConfigError where a gradient is wanted for a tensor that the losses take as a constant."""
    if torch.is_grad_enabled() and tensor.requires_grad:
        raise ConfigError(f"{name}: expected a constant, found requires_grad=True; pass {name}.detach()")


def expect_soft_targets(soft_targets: Tensor | SoftTargets, shape: tuple[int, int]) -> None:
    """Raise ConfigError unless ``soft_targets`` are constants of ``shape`` (N, V)."""
    if isinstance(soft_targets, Tensor):
        expect_shape("soft_targets", soft_targets, shape, "(N, V)")
        expect_constant("soft_targets", soft_targets)
    elif tuple(soft_targets.shape) != shape:
        raise ConfigError(f"soft_targets: expected shape (N, V) = {shape}, found {tuple(soft_targets.shape)}")


def class_targets(
    targets: Tensor, num_tokens: int, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor | None]:
    """(N,) int32 or int64 targets to (N,) int64 indices that are safe to gather with, and (N,) bool valid or None.

    Ignored tokens get index 0. None says that all are valid, which only a look at the values can tell. Raises
    ConfigError for another dtype or shape and, on the CPU, for a target outside
    [0, V) that is not ``ignore_index``.
    """
    if targets.dtype not in (torch.int32, torch.int64):
        raise ConfigError(f"targets: expected int32 or int64 class indices, found {targets.dtype}")
    if targets.shape != (num_tokens,):
        raise ConfigError(f"targets: expected shape (N,) = ({num_tokens},), found {tuple(targets.shape)}")
    looks = targets.device.type == "cpu" and num_tokens > 0
    if looks:
        lowest, highest = (int(extreme) for extreme in torch.aminmax(targets))
        if lowest >= 0 and highest < num_classes and not lowest <= ignore_index <= highest:
            return targets.long(), None
    valid = targets != ignore_index
    indices = torch.where(valid, targets, 0).long()
    outside = (indices < 0) | (indices >= num_classes)
    if looks and outside.any():
        _refuse(targets, outside, f"a class in [0, {num_classes}) or ignore_index={ignore_index}")
    return indices, valid


def probability_targets(targets: Tensor, num_examples: int, ignore_index: int) -> Tensor:
    """(N,) bool valid for (N,) targets of a binary task: probabilities of class 1, or ``ignore_index``.

    Raises ConfigError for another shape and, on the CPU, for a target outside [0, 1] (NaN included).
    """
    if targets.shape != (num_examples,):
        raise ConfigError(f"targets: expected shape (N,) = ({num_examples},), found {tuple(targets.shape)}")
    valid = targets != ignore_index
    if targets.device.type == "cpu":
        outside = valid & ~((targets >= 0) & (targets <= 1))
        if outside.any():
            _refuse(targets, outside, f"a probability in [0, 1] or ignore_index={ignore_index}")
    return valid


def _refuse(targets: Tensor, outside: Tensor, expected: str) -> NoReturn:
    position = int(outside.nonzero()[0, 0])
    raise ConfigError(f"targets[{position}]: expected {expected}, found {targets[position].item()}")
