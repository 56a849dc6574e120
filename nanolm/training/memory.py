"""Batches that do not fit in memory: refused before the first step where that is certain, with what would fit."""

import contextlib
import math
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from nanolm.config.schema import TrainerConfig
from nanolm.data import Loader
from nanolm.errors import OutOfMemoryError
from nanolm.model import GPT

MARGIN = 0.7
"""Share of the free memory that activations may take in an advice: a backward pass needs some beside them."""
MEASURED_TOKENS = 64


def activation_bytes(forward: Callable[[torch.Tensor, torch.Tensor], object], model: GPT, loader: Loader) -> float:
    """Bytes a token that autograd keeps of a forward pass for the backward pass.

    Measured on one and two short sequences: what does not grow with them, the weights above all, falls out.
    """
    device = model.head_weight.device
    inputs, targets = (rows[:, :MEASURED_TOKENS].to(device) for rows in loader.rows(0, 0, 1))
    model.train()
    one, two = (_saved_bytes(partial(forward, inputs.repeat(n, 1), targets.repeat(n, 1)), model) for n in (1, 2))
    return (two - one) / inputs.numel()


def _saved_bytes(forward: Callable[[], object], model: GPT) -> int:
    apart = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # held until all are counted, so that no storage takes the place of another
    total = sum(storages.values())
    del result
    return total


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated there; on the CPU at most, by what Linux tells, else infinity."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError, KeyError):
        memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(sum(1024 * int(memory[name].split()[0]) for name in ("MemAvailable", "SwapFree")))
    with contextlib.suppress(OSError, ValueError):
        pages = [int(number) for number in Path("/proc/self/statm").read_text().split()[:2]]
        virtual, resident = (number * resource.getpagesize() for number in pages)
        if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
            found.append(limit - virtual)
        for file in ("memory.max", "memory/memory.limit_in_bytes"):  # a container's, of either version of cgroups
            with contextlib.suppress(OSError, ValueError):
                found.append(int(Path("/sys/fs/cgroup", file).read_text()) - resident)
    return max(0.0, min(found))


def too_large(trainer: TrainerConfig, per_token: float, free: float, reason: str) -> OutOfMemoryError:
    """The error for a micro-batch that does not fit, with an estimate of what does.

    Args:
        trainer: the sizes that were asked for.
        per_token: bytes of activations.
        free: bytes that can be allocated for a micro-batch.
        reason: how it was found out.
    """
    size, length = trainer.micro_batch_size or trainer.batch_size, trainer.sequence_length
    # Half of what failed at most, whatever the estimate says.
    sequences = min(MARGIN * free / max(per_token * length, 1.0), size / 2)
    if sequences >= 1:
        fits = f"About trainer.micro_batch_size={_power_of_two(sequences)} would fit"
    elif sequences * length >= 1:
        fits = f"About trainer.micro_batch_size=1 trainer.sequence_length={_power_of_two(sequences * length)} would fit"
    else:
        fits = "Not even one token would fit: choose a smaller model"
    return OutOfMemoryError(
        f"a micro-batch of {size:,} sequences of {length:,} tokens does not fit in memory: {reason}. {fits} (an "
        "estimate). A smaller trainer.micro_batch_size leaves the batch and its gradient as they are; a smaller "
        "trainer.sequence_length or model takes less memory too."
    )


def _power_of_two(number: float) -> int:
    return 1 << int(math.log2(number))
