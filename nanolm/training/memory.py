"""Batches that do not fit in memory: refused before the first step if that is certain, with what would fit."""

import contextlib
import math
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from nanolm.config.schema import TrainerConfig
from nanolm.data import Loader
from nanolm.errors import OutOfMemoryError, out_of_memory
from nanolm.training.state import TrainingState

MARGIN = 0.7
"""Share of the free memory that activations may take in a suggestion: a backward pass needs some in addition."""
MEASURED_TOKENS = 64

Forward = Callable[[Tensor, Tensor], object]
"""(B, T) inputs and targets to anything that holds on to the graph of the forward pass"""


class MemoryGuard:
    """What is known about the memory that a micro-batch needs."""

    def __init__(self, state: TrainingState, loader: Loader, trainer: TrainerConfig, forward: Forward) -> None:
        self._state, self._loader, self._trainer, self._forward = state, loader, trainer, forward

    def require(self) -> None:
        """Refuse what the memory of a CPU cannot hold: there the system would kill the run without a word.

        A GPU reports by itself that its memory is full.

        Raises:
            OutOfMemoryError: with the size that would fit.
        """
        device = self._state.model.head_weight.device
        if device.type != "cpu":
            return
        per_token, free = self._bytes_per_token(), free_memory(device)
        needed = per_token * self._micro_batch_size * self._trainer.sequence_length
        if needed > free:
            reason = f"its activations take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free"
            raise self._too_large(per_token, free, reason)

    @contextlib.contextmanager
    def explain(self) -> Iterator[None]:
        """Turn an allocation that fails in a step into an error with an estimate of what would fit."""
        try:
            yield
            return
        except (MemoryError, RuntimeError) as error:
            if (reason := out_of_memory(error)) is None:
                raise
        # Outside of the handler, whose traceback holds the tensors of the step.
        state = self._state
        state.optimizers.zero_grad()
        gradients = sum(parameter.numel() * parameter.element_size() for parameter in state.model.parameters())
        moments = 0 if state.step else state.optimizers.num_moment_bytes()
        free = max(0.0, free_memory(state.model.head_weight.device) - gradients - moments)
        raise self._too_large(self._bytes_per_token(), free, reason)

    @property
    def _micro_batch_size(self) -> int:
        return self._trainer.micro_batch_size or self._trainer.batch_size

    def _bytes_per_token(self) -> float:
        """Measure what autograd keeps of a forward pass for the backward pass.

        On one and two short sequences: what does not grow with them, above all the weights, cancels.
        """
        inputs, targets = (rows[:, :MEASURED_TOKENS] for rows in self._loader.rows(0, 0, 1))
        self._state.model.train()
        try:
            one, two = (self._saved_bytes(inputs.repeat(n, 1), targets.repeat(n, 1)) for n in (1, 2))
        except (MemoryError, RuntimeError) as error:
            if out_of_memory(error) is None:
                raise
            return math.inf
        return (two - one) / inputs.numel()

    def _saved_bytes(self, inputs: Tensor, targets: Tensor) -> int:
        weights = {parameter.untyped_storage().data_ptr() for parameter in self._state.model.parameters()}
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = self._forward(inputs, targets)  # held until all are counted, so that no address is used twice
        total = sum(storages.values())
        del result
        return total

    def _too_large(self, per_token: float, free: float, reason: str) -> OutOfMemoryError:
        size, length = self._micro_batch_size, self._trainer.sequence_length
        # Half of what failed at most, whatever the estimate says.
        sequences = min(MARGIN * free / max(per_token * length, 1.0), size / 2)
        if sequences >= 1:
            fits = f"About trainer.micro_batch_size={_power_of_two(sequences)} would fit"
        elif sequences * length >= 1:
            tokens = _power_of_two(sequences * length)
            fits = f"About trainer.micro_batch_size=1 trainer.sequence_length={tokens} would fit"
        else:
            fits = "Not even one token would fit: choose a smaller model"
        return OutOfMemoryError(
            f"a micro-batch of {size:,} sequences of {length:,} tokens does not fit in memory: {reason}. {fits} (an "
            "estimate). A smaller trainer.micro_batch_size leaves the batch and its gradient as they are; a smaller "
            "trainer.sequence_length or model takes less memory too."
        )


def _power_of_two(number: float) -> int:
    return 1 << int(math.log2(number))


def free_memory(device: torch.device) -> float:
    """Return the bytes that can still be allocated; on the CPU at most, by what Linux reports, else infinity."""
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
