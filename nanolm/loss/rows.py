"""Operations on rows of logits: (C, V) arrays so large that every pass over one counts.

They make ``fused`` fast and leave its mathematics readable: the position of the maximum at the cost of the maximum,
moments computed block by block within the processor's cache, products that accumulate in float32.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanolm.loss.options import LossOptions

# A block of the maximum's search; and below this many columns torch's own single-stage search is faster.
_BLOCK_COLUMNS = 128
_MIN_COLUMNS_FOR_TWO_STAGES = 256

CACHE_BYTES = 4 * 2**20  # of a block of rows that stays in the processor's cache


@dataclass(frozen=True)
class Workspace:
    """Bytes of logits to work on at a time: enough for ``rows`` rows, between the fewest and the most.

    On the CPU newly allocated memory costs a page fault for every page, so fewer bytes are faster as long as the
    products have rows enough; a GPU needs more rows to be busy (docs/numerics.md).
    """

    fewest_bytes: int
    most_bytes: int
    rows: int


WORKSPACES = {"cpu": Workspace(16 * 2**20, 100 * 2**20, 512), "cuda": Workspace(512 * 2**20, 512 * 2**20, 0)}


def rows_per_chunk(num_tokens: int, bytes_per_row: int, device: torch.device) -> int:
    """Choose the number of rows of nearly equal chunks that each fit the device's workspace."""
    workspace = WORKSPACES.get(device.type, WORKSPACES["cuda"])
    num_bytes = min(workspace.most_bytes, max(workspace.fewest_bytes, workspace.rows * bytes_per_row))
    num_chunks = max(1, -(-num_tokens * bytes_per_row // num_bytes))
    return max(1, -(-num_tokens // num_chunks))


def first_max(z: Tensor) -> tuple[Tensor, Tensor]:
    """Find the maximum of each row of (C, V), (C, 1), and the first position that holds it, (C, 1) int64.

    torch's max with positions takes three to four times as long as the one without. So one pass takes the maxima of
    blocks, and only the first block that holds the row's maximum is searched.
    """
    num_columns = z.shape[1]
    if num_columns < _MIN_COLUMNS_FOR_TWO_STAGES:
        return z.max(dim=1, keepdim=True)
    num_blocks, remainder = divmod(num_columns, _BLOCK_COLUMNS)
    whole = z[:, : num_columns - remainder].unflatten(1, (num_blocks, _BLOCK_COLUMNS))  # type: ignore[no-untyped-call]
    block_maxima = whole.amax(dim=2)
    if remainder:
        block_maxima = torch.cat([block_maxima, z[:, -remainder:].amax(dim=1, keepdim=True)], dim=1)
    maximum, block = block_maxima.max(dim=1, keepdim=True)
    # The last block is widened to the left; what it gains lies in a block whose maximum is smaller.
    start = (block * _BLOCK_COLUMNS).clamp(max=num_columns - _BLOCK_COLUMNS)
    columns = start + torch.arange(_BLOCK_COLUMNS, device=z.device)
    return maximum, start + z.gather(1, columns).argmax(dim=1, keepdim=True)


def moments(z: Tensor, maximum: Tensor, first: Tensor, p: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute p at ``first``, E_p[z - m], Var_p[z] and Σ p², each (C, 1), for p = softmax(z) and m = max z.

    -inf times a p of 0 is 0. The variance is E_p[(z - m)²] - E_p[z - m]²: little cancels, since the mean is at most
    ln V below 0. Where p is None, it is formed block by block and stays in the cache.
    """
    # Below this, exp(z - m) is 0 and so is p; raising z - m to it changes nothing but what would be -inf.
    floor = 2 * math.log(torch.finfo(z.dtype).tiny)
    found = []
    for rows, shifted, weighted, buffer in _cached_rows(z, num_buffers=3):
        part = torch.softmax(z[rows], dim=1, out=buffer) if p is None else p[rows]
        torch.sub(z[rows], maximum[rows], out=shifted).clamp_(min=floor)
        torch.mul(part, shifted, out=weighted)
        mean = weighted.sum(dim=1)
        second_moment = weighted.mul_(shifted).sum(dim=1)
        confidence, norm = part.gather(1, first[rows]).squeeze(1), torch.linalg.vector_norm(part, dim=1)
        found.append(torch.stack([confidence, mean, (second_moment - mean.square()).clamp_(min=0), norm.square()]))
    confidence, mean, variance, squares = torch.cat(found, dim=1)[:, :, None]
    return confidence, mean, variance, squares


def expectation(q: Tensor, z: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Σ q (z - m) and Σ q, each (C, 1), for weights q and logits z (C, V) and m (C, 1); 0 · anything is 0."""
    expectations, totals = [], []
    for rows, weights, weighted in _cached_rows(z, num_buffers=2):
        weights.copy_(q[rows])
        torch.sub(z[rows], maximum[rows], out=weighted).masked_fill_(weights == 0, 0)
        expectations.append(weighted.mul_(weights).sum(dim=1, keepdim=True))
        totals.append(weights.sum(dim=1, keepdim=True))
    return torch.cat(expectations), torch.cat(totals)


def entropy_from_gap(nll: Tensor, gap: Tensor, log_sum: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
    """Compute the entropy nll - gap, clamped to its bounds where rounding at large logits moved it; all (C, 1).

    It is at least the min-entropy -ln p_max = log_sum. It is at most that of d = 1 - p_max spread evenly over the other
    classes, -(1-d) ln(1-d) - d ln d + d ln(V-1), whose first term is at most d.
    """
    largest = torch.finfo(nll.dtype).max
    entropy = nll.clamp(max=largest) - gap.clamp(max=largest)  # where both are infinite: unknown, but not NaN
    rest = 1 - confidence
    upper = torch.special.entr(rest).add_(rest, alpha=1 + math.log(max(1, num_classes - 1)))
    return entropy.clamp_(min=log_sum, max=torch.maximum(upper, log_sum))


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of the product of hidden states and a head's weight: theirs, or autocast's where it is on."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    device = hidden.device.type
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast, for code that has chosen every dtype itself."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def head_logits(h: Tensor, weight: Tensor, bias: Tensor | None, options: LossOptions, out: Tensor) -> Tensor:
    """Write z = s / temperature with s = softcap · tanh(u / softcap), u = hWᵀ + b, into ``out`` (C, V); return it.

    A temperature without a softcap costs no pass.
    """
    softcap, temperature = options.softcap, options.temperature
    divisor = temperature if softcap is None else softcap
    z = multiply(h, weight.t(), out=out, scale=1 / divisor)
    if bias is not None:
        z += bias / divisor
    if softcap is not None:
        z.tanh_().mul_(softcap / temperature)
    return z


def multiply(a: Tensor, b: Tensor, out: Tensor, *, scale: float = 1.0, accumulate: bool = False) -> Tensor:
    """Write scale · ab into ``out``, or add it; return it. ``out`` may have a wider dtype than a and b.

    In that case CUDA keeps the float32 sums of its low-precision product; torch's CPU product rounds them once.
    """
    if a.dtype == out.dtype:
        return torch.addmm(out, a, b, beta=int(accumulate), alpha=scale, out=out)
    product = torch.mm(a, b, out_dtype=out.dtype) if a.is_cuda else torch.mm(a, b)
    return out.add_(product, alpha=scale) if accumulate else out.copy_(product).mul_(scale)


def _cached_rows(z: Tensor, num_buffers: int) -> Iterator[tuple[Any, ...]]:
    """Yield slices of rows of z that fit the cache, each with buffers of its shape; on a GPU one slice of all."""
    num_rows, num_columns = z.shape
    step = max(1, num_rows)
    if z.device.type == "cpu":
        step = max(1, min(step, CACHE_BYTES // (num_columns * z.element_size())))
    buffers = z.new_empty((num_buffers, step, num_columns))
    for start in range(0, max(1, num_rows), step):
        length = min(step, num_rows - start)
        yield slice(start, start + length), *buffers[:, :length]
