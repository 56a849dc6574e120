"""The device and the precision of a run's arithmetic."""

import contextlib
import time
from dataclasses import dataclass

import torch

from nanolm.errors import ConfigError


@dataclass(frozen=True)
class Compute:
    """A device and the precision of its matrix products.

    Weights, gradients and the loss are float32; ``autocast_dtype`` is None where the products are too.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the model's matrix products run in this precision."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def __str__(self) -> str:
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        precision = "float32" if self.autocast_dtype is None else str(self.autocast_dtype).removeprefix("torch.")
        return f"{kind}, {precision}"


def resolve_compute(device: str, precision: str) -> Compute:
    """Turn ``trainer.device`` and ``trainer.precision`` into a device and a dtype.

    ``auto`` is CUDA where there is one, with bfloat16 autocast; else the CPU in float32. Raises ConfigError where
    ``device`` is cuda and torch finds none.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("device: expected a CUDA device, found none; use auto or cpu")
    kind = ("cuda" if has_cuda else "cpu") if device == "auto" else device
    low_precision = precision == "bf16" or (precision == "auto" and kind == "cuda")
    return Compute(torch.device(kind), torch.bfloat16 if low_precision else None)


def measure_peak_flops(compute: Compute, size: int = 1024, seconds: float = 0.2) -> float:
    """Measure the floating-point operations per second of a large square matrix product: 100 % for MFU.

    It is measured on the machine of the run instead of read from a data sheet, so that MFU means the same on every
    processor. The best of several repetitions counts, since noise only slows a product down. The operands are random,
    because a processor may multiply equal numbers faster, and drawn from a generator of their own.
    """
    size = size if compute.device.type == "cpu" else 8 * size
    dtype = compute.autocast_dtype or torch.float32
    generator = torch.Generator(compute.device).manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator, device=compute.device).to(dtype) for _ in range(2))
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        start = time.perf_counter()
        left @ right
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
