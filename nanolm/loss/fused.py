"""The loss of a language model's head, from hidden states and weights: no (tokens, vocabulary) logits are kept.

Tokens are taken in chunks. For the rows h of a chunk, with target t, g the gradient that reaches a token's objective
and y the one-hot row of its target:

    z = hWᵀ + b                       the logits: the first matrix product
    m = max z                         and its first position, which decides ``correct`` exactly
    p = softmax(z)                    in place of z; p at the maximum is 1/S with S = Σ exp(z - m)
    lse = m + ln S,  nll = lse - z_t,  confidence = 1/S
    r = p - y                         in place of p: the gradient of nll with respect to z
    dh = g rW,  dW += rᵀ(gh)          the second and the third product

Everything else follows without touching the vocabulary again. The logit gradient of the whole objective
lse - q·z + λ lse², with q = (1-ε)y + ε/V and a = 1 + 2λ lse, is

    a p - q  =  a r + (a - 1 + ε) y - ε/V

so smoothing and z-loss only scale r and add a row of W, and a multiple of W's mean row, to dh, and the transpose of
that to dW; and the mean logit that smoothing needs is h times the mean row. Last, h·(rW) = E_p[z] - z_t, so that

    entropy = lse - E_p[z] = nll - h·(rW)

costs one dot product of length D per token. It is also why NLL minus entropy, the entropy gap, is the derivative of NLL
in ln(1/temperature). Where this shortcut does not hold (a bias, a softcap, soft targets, no gradient for h), or the
variance of the logits is wanted, z is kept beside p and a pass over it gives the moments.

The products run in the dtype of the inputs, or autocast's; logits, probabilities, statistics and the accumulation of dW
are float32, or float64 for float64 inputs.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nanolm.errors import ConfigError
from nanolm.loss.autograd import Gradients, LinearNLL
from nanolm.loss.options import LossOptions, Reduction, Statistics, check_choice
from nanolm.loss.result import NLLResult
from nanolm.loss.rows import (
    entropy_from_gap,
    expectation,
    first_max,
    head_logits,
    moments,
    multiply,
    product_dtype,
    rows_per_chunk,
)
from nanolm.loss.targets import SoftTargets, class_targets, expect_shape, expect_soft_targets


def linear_nll(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    soft_targets: Tensor | SoftTargets | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
    reduction: Reduction = "sum",
    statistics: Statistics = "basic",
) -> NLLResult:
    """Negative log-likelihood of tokens under softmax(hidden @ weight.T + bias), memory independent of N.

    hidden: (N, D) floating point
    weight: (V, D) floating point; bias: (V,) or None
    targets: (N,) int32 or int64 in [0, V), or options.ignore_index
    soft_targets: (N, V) target distributions, constants, that take the one-hot's place in the objective; or an object
        that gives them chunk by chunk, see SoftTargets
    options, reduction: see LossOptions; "sum", "mean" over valid tokens (0 over none) or "none"
    statistics: "none" leaves objective, nll, valid and count; "basic" adds confidence, correct and, where a gradient is
        formed, entropy; "full" adds entropy in any case, sum_squared_probabilities and logit_variance

    Differentiable, once, in hidden, weight and bias. Gradients are formed together with the loss and only scaled in
    backward. With reduction="none", and in a second backward with retain_graph, the gradient of the weight is
    recomputed, since tokens' gradients may be scaled differently: a fourth and a fifth product.

    Raises ConfigError for wrong shapes, dtypes, choices and, on the CPU, targets out of range.
    """
    if torch.compiler.is_compiling():  # a graph break: what is traced below would be worse than what is written
        opaque = torch.compiler.disable(_linear_nll)  # type: ignore[no-untyped-call]
        return opaque(hidden, weight, targets, bias, soft_targets, options, reduction, statistics)  # type: ignore[no-any-return]
    return _linear_nll(hidden, weight, targets, bias, soft_targets, options, reduction, statistics)


def _linear_nll(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    soft_targets: Tensor | SoftTargets | None,
    options: LossOptions,
    reduction: Reduction,
    statistics: Statistics,
) -> NLLResult:
    check_choice("reduction", reduction, Reduction)
    check_choice("statistics", statistics, Statistics)
    if hidden.dim() != 2:
        raise ConfigError(f"hidden: expected shape (N, D), found {tuple(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ConfigError(f"weight: expected shape (V, D) with V >= 1, found {tuple(weight.shape)}")
    num_tokens, num_classes = hidden.shape[0], weight.shape[0]
    expect_shape("hidden", hidden, (num_tokens, weight.shape[1]), "(N, D)")
    expect_shape("weight", weight, tuple(weight.shape), "(V, D)")
    if bias is not None:
        expect_shape("bias", bias, (num_classes,), "(V,)")
    if soft_targets is not None:
        expect_soft_targets(soft_targets, (num_tokens, num_classes))
    indices, mask = class_targets(targets, num_tokens, num_classes, options.ignore_index)

    inputs = (hidden, weight, bias)
    graph = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    head = _Head(options, statistics, indices, mask, soft_targets, product_dtype(hidden, weight), graph)
    objective, *per_token = LinearNLL.apply(*inputs, head.evaluate, reduction == "none", graph)  # type: ignore[no-untyped-call]
    valid = torch.ones_like(indices, dtype=torch.bool) if mask is None else mask
    count = valid.sum()
    if reduction == "mean":
        objective = objective / count.clamp(min=1)
    return NLLResult(objective, per_token[0], valid, count, *per_token[1:])


def _without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Every dtype here is chosen already; autocast must not choose again."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


class _PerToken(NamedTuple):
    """Fields of NLLResult for a chunk of tokens, (C, 1), or for all, (N,); those that nobody asked for are None."""

    objective: Tensor
    nll: Tensor
    confidence: Tensor | None = None
    correct: Tensor | None = None
    entropy: Tensor | None = None
    sum_squared_probabilities: Tensor | None = None
    logit_variance: Tensor | None = None


@dataclass(frozen=True)
class _Head:
    """What is constant in one call of linear_nll."""

    options: LossOptions
    statistics: Statistics
    targets: Tensor  # (N,) int64, 0 where ignored
    mask: Tensor | None  # (N,) bool, False where ignored; None where no token is
    soft_targets: Tensor | SoftTargets | None  # (N, V)
    product_dtype: torch.dtype
    graph: bool  # whether gradients will be asked for

    def evaluate(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        needs: Gradients,
        statistics: bool,
    ) -> tuple[_PerToken, Gradients]:
        """See ``nanolm.loss.autograd.Evaluate``."""
        with _without_autocast(hidden.device):
            return _Pass(self, hidden, weight, bias, scale, needs, self.statistics if statistics else "none").run()


class _Pass:
    """One pass over the chunks of N tokens; ``scale``, (N,) or None, multiplies the tokens' gradients."""

    def __init__(
        self,
        head: _Head,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        needs: Gradients,
        statistics: Statistics,
    ) -> None:
        self.head, self.options, self.statistics = head, head.options, statistics
        dtype = torch.promote_types(head.product_dtype, torch.float32)
        self.hidden = hidden  # (N, D)
        self.weight = weight.to(head.product_dtype)  # (V, D)
        self.bias = None if bias is None else bias.to(dtype)  # (V,)
        self.scale = self._gradient_scale(scale, dtype)
        # With a softcap or soft targets the logit gradient is no longer linear in p - y: each element is formed.
        self.linear = self.options.softcap is None and head.soft_targets is None
        if self.linear and self.options.label_smoothing:
            self.mean_row = self.weight.mean(dim=0, dtype=dtype)  # (D,)

        self.entropy_from_product = statistics == "basic" and bool(needs.hidden) and self.linear and bias is None
        asks_entropy = statistics == "full" or (statistics == "basic" and head.graph)
        self.takes_moments = asks_entropy and not self.entropy_from_product
        self.forms_gradients = any(needs)
        # z and p where gradients need p, and moments or tanh' need z after it; else p in z's place, or never whole
        keeps_both = self.forms_gradients and (self.takes_moments or self.options.softcap is not None)
        num_buffers = 2 if keeps_both else 1
        num_classes = weight.shape[0]
        self.num_rows = rows_per_chunk(len(hidden), num_buffers * num_classes * dtype.itemsize, hidden.device)
        self.workspace = hidden.new_empty((num_buffers, self.num_rows, num_classes), dtype=dtype)
        self.gradients = Gradients(
            *(
                tensor.new_empty(tensor.shape, dtype=dtype) if tensor is not None and needed else None
                for tensor, needed in zip((hidden, weight, bias), needs, strict=True)
            )
        )

    def _gradient_scale(self, scale: Tensor | None, dtype: torch.dtype) -> Tensor | float:
        """The caller's scale, 0 at ignored tokens, times dz/ds = 1 / temperature: (N, 1), or a number for all."""
        temperature = self.options.temperature
        if self.head.mask is not None:
            scale = self.head.mask if scale is None else torch.where(self.head.mask, scale, 0)
        elif scale is None:
            if self.bias is None and not self.options.label_smoothing:
                return 1 / temperature
            scale = self.hidden.new_ones(len(self.hidden))
        return scale.to(dtype)[:, None] / temperature

    def run(self) -> tuple[_PerToken, Gradients]:
        starts = range(0, max(1, len(self.hidden)), self.num_rows)
        chunks = [self._chunk(slice(start, start + self.num_rows)) for start in starts]
        if self.linear and self.options.label_smoothing:
            self._subtract_uniform_part()
        return _PerToken(*(_joined(column) for column in zip(*chunks, strict=True))), self.gradients  # type: ignore[arg-type]

    def _chunk(self, rows: slice) -> _PerToken:
        """What is asked for about the tokens of one chunk; their gradients join ``self.gradients``."""
        options = self.options
        targets = self.head.targets[rows, None]
        h = self.hidden[rows].to(self.weight.dtype)
        soft_targets = None if self.head.soft_targets is None else self.head.soft_targets[rows]
        z = head_logits(h, self.weight, self.bias, options, out=self.workspace[0, : len(h)])
        maximum, first = first_max(z)
        to_target = maximum - z.gather(1, targets)  # m - z_t
        to_expected = self._to_expected_logit(rows, z, maximum, to_target, soft_targets)  # m - q·z
        mean = variance = squares = None
        p = None
        if self.forms_gradients or not self.takes_moments:
            p = torch.softmax(z, dim=1, out=self.workspace[-1, : len(h)])  # in z's place unless both are kept
            confidence = p.gather(1, first)  # 1/S
        if self.takes_moments:
            confidence, mean, variance, squares = moments(z, maximum, first, p)
        log_sum = -confidence.log()  # ln S
        nll = log_sum + to_target
        objective = nll if to_expected is to_target else log_sum + to_expected
        slope: Tensor | float = 1.0  # a
        if options.z_loss:
            log_normalizer = log_sum + maximum  # lse
            objective = objective + options.z_loss * log_normalizer.square()
            slope = 1 + 2 * options.z_loss * log_normalizer

        entropy = None if mean is None else log_sum - mean
        if self.forms_gradients:
            assert p is not None, "formed above"
            if self.linear:
                entropy_gap = self._add_linear_gradients(rows, h, p, targets, slope)
                if entropy_gap is not None:
                    entropy = entropy_from_gap(nll, entropy_gap, log_sum, confidence, p.shape[1])
            else:
                self._add_elementwise_gradients(rows, h, z, p, targets, soft_targets, slope)

        correct = first == targets
        if self.head.mask is not None:
            mask = self.head.mask[rows, None]
            objective, nll, correct = torch.where(mask, objective, 0), torch.where(mask, nll, 0), correct & mask
        if self.statistics == "none":
            return _PerToken(objective, nll)
        if self.statistics == "basic":
            return _PerToken(objective, nll, confidence, correct, entropy)
        return _PerToken(objective, nll, confidence, correct, entropy, squares, variance)

    def _to_expected_logit(
        self, rows: slice, z: Tensor, maximum: Tensor, to_target: Tensor, soft_targets: Tensor | None
    ) -> Tensor:
        """m - q·z, (C, 1), for the target distribution q."""
        result = to_target
        if soft_targets is not None:
            expected, total = expectation(soft_targets, z, maximum)
            result = (1 - total) * maximum - expected
        smoothing = self.options.label_smoothing
        if not smoothing:
            return result
        if self.linear:
            mean = self.hidden[rows].to(z.dtype) @ self.mean_row[:, None] / self.options.temperature
            if self.bias is not None:
                mean += self.bias.mean() / self.options.temperature
        else:
            mean = z.mean(dim=1, keepdim=True)
        return (1 - smoothing) * result + smoothing * (maximum - mean)

    def _add_linear_gradients(
        self, rows: slice, h: Tensor, p: Tensor, targets: Tensor, slope: Tensor | float
    ) -> Tensor | None:
        """Gradients from a r + (a - 1 + ε) y - ε/V with r = p - y; in dW the last part waits for all chunks.

        Returns h·(rW) / temperature = E_p[z] - z_t, (C, 1), where it gives the entropy.
        """
        gradients, smoothing, scale = self.gradients, self.options.label_smoothing, self._scale(rows)
        r = p.scatter_add_(1, targets, p.new_full((1, 1), -1).expand_as(targets))
        low_r, wide_h = r.to(h.dtype), h.to(p.dtype)
        scaled_slope = scale * slope
        moves_target = bool(smoothing or self.options.z_loss)
        along_target = scaled_slope - (1 - smoothing) * scale  # the scaled a - 1 + ε

        entropy_gap = None
        if gradients.hidden is not None:
            dh = multiply(low_r, self.weight, out=gradients.hidden[rows])
            if self.entropy_from_product:
                entropy_gap = (wide_h * dh).sum(dim=1, keepdim=True) / self.options.temperature
            _scale_in_place(dh, scaled_slope)
            if moves_target:
                dh += along_target * self.weight[targets.squeeze(1)]
            if smoothing:
                dh -= smoothing * scale * self.mean_row
        self._add_products(rows, low_r, r, wide_h, scaled_slope)
        if moves_target and gradients.weight is not None:
            gradients.weight.index_add_(0, targets.squeeze(1), along_target * wide_h)
        if moves_target and gradients.bias is not None:
            assert isinstance(along_target, Tensor)
            gradients.bias.index_add_(0, targets.squeeze(1), along_target.squeeze(1))
        return entropy_gap

    def _subtract_uniform_part(self) -> None:
        """In dW and db, the part -ε/V of the logit gradient: the same multiple of Σ scale·h in every row."""
        assert isinstance(self.scale, Tensor)
        share = self.scale * (self.options.label_smoothing / len(self.weight))
        if self.gradients.weight is not None:
            self.gradients.weight.sub_(share.t() @ self.hidden.to(share.dtype))
        if self.gradients.bias is not None:
            self.gradients.bias.sub_(share.sum())

    def _add_elementwise_gradients(
        self,
        rows: slice,
        h: Tensor,
        z: Tensor,
        p: Tensor,
        targets: Tensor,
        soft_targets: Tensor | None,
        slope: Tensor | float,
    ) -> None:
        """Gradients from (a p - q) ds/du, formed in place of p and z."""
        smoothing, softcap, scale = self.options.label_smoothing, self.options.softcap, self._scale(rows)
        residual = p
        _scale_in_place(residual, slope)
        if soft_targets is None:
            residual.scatter_add_(1, targets, p.new_full((1, 1), smoothing - 1).expand_as(targets))
        else:
            residual.sub_(soft_targets, alpha=1 - smoothing)
        if smoothing:
            residual -= smoothing / p.shape[1]
        if softcap is not None:
            hyperbolic = z.mul_(self.options.temperature / softcap)  # tanh(u / softcap)
            residual *= hyperbolic.square_().neg_().add_(1)

        low_residual = residual.to(h.dtype)
        if self.gradients.hidden is not None:
            _scale_in_place(multiply(low_residual, self.weight, out=self.gradients.hidden[rows]), scale)
        self._add_products(rows, low_residual, residual, h.to(p.dtype), scale)

    def _add_products(
        self, rows: slice, low_residual: Tensor, residual: Tensor, h: Tensor, scale: Tensor | float
    ) -> None:
        """dW += residualᵀ (scale h) and db += residualᵀ scale; the first chunk writes where the others add."""
        accumulate = rows.start > 0
        if self.gradients.weight is not None:
            scaled = h if isinstance(scale, float) and scale == 1 else scale * h
            multiply(low_residual.t(), scaled.to(low_residual.dtype), out=self.gradients.weight, accumulate=accumulate)
        if self.gradients.bias is not None:
            assert isinstance(scale, Tensor)
            multiply(residual.t(), scale, out=self.gradients.bias[:, None], accumulate=accumulate)

    def _scale(self, rows: slice) -> Tensor | float:
        return self.scale[rows] if isinstance(self.scale, Tensor) else self.scale


def _scale_in_place(tensor: Tensor, factor: Tensor | float) -> None:
    if isinstance(factor, Tensor) or factor != 1:
        tensor *= factor


def _joined(column: tuple[Tensor | None, ...]) -> Tensor | None:
    """(C, 1) of all chunks as (N,); one chunk needs no copy."""
    if column[0] is None:
        return None
    return (column[0] if len(column) == 1 else torch.cat(column)).squeeze(1)  # type: ignore[arg-type]
