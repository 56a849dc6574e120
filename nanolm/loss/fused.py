"""The loss of a language model's head, from hidden states and weights: no (tokens, vocabulary) logits are kept.

It is ``reference.softmax_objective``, with its gradients, made fast. Tokens are taken in chunks. For the rows h of a
chunk, with target t, y the one-hot row of the target and g the gradient that reaches a token's objective:

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
variance of the logits is wanted, z is kept beside p and a pass over it gives the moments. With a softcap or soft
targets the logit gradient is formed element by element.

The products run in the dtype of the inputs, or autocast's; logits, probabilities, statistics and the accumulation of dW
are float32, or float64 for float64 inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanolm.loss.options import LossOptions, Reduction, Statistics, check_choice, expect
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
    without_autocast,
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
    """Compute the negative log-likelihood of tokens under softmax(hidden @ weight.T + bias), memory independent of N.

    hidden: (N, D) floating point
    weight: (V, D) floating point; bias: (V,) or None
    targets: (N,) int32 or int64 in [0, V), or options.ignore_index
    soft_targets: (N, V) target distributions, constants, that take the one-hot's place in the objective; or an object
        that gives them chunk by chunk, see SoftTargets
    options, reduction: see LossOptions; "sum", "mean" over valid tokens (0 over none) or "none"
    statistics: "none" gives objective, nll, valid and count; "basic" adds confidence, correct and, where a gradient is
        formed, entropy; "full" adds entropy in any case, sum_squared_probabilities and logit_variance

    Differentiable, once, in hidden, weight and bias. Gradients are formed together with the loss and only scaled in
    backward. With reduction="none", and in a second backward with retain_graph, the gradient of the weight is
    recomputed, since tokens' gradients may be scaled differently: a fourth and a fifth product.

    Raises ConfigError for wrong shapes, dtypes, choices and, on the CPU, targets out of range.
    """
    if torch.compiler.is_compiling():  # a graph break: traced, the code below would be slower
        eager: Callable[..., NLLResult] = torch.compiler.disable(linear_nll)  # type: ignore[no-untyped-call]
        return eager(hidden, weight, targets, bias, soft_targets, options, reduction, statistics)
    check_choice("reduction", reduction, Reduction)
    check_choice("statistics", statistics, Statistics)
    expect(hidden.dim() == 2, "hidden", "shape (N, D)", tuple(hidden.shape))
    expect(weight.dim() == 2 and len(weight) > 0, "weight", "shape (V, D) with V >= 1", tuple(weight.shape))
    num_tokens, num_classes = len(hidden), len(weight)
    expect_shape("hidden", hidden, (num_tokens, weight.shape[1]), "(N, D)")
    expect_shape("weight", weight, tuple(weight.shape), "(V, D)")
    if bias is not None:
        expect_shape("bias", bias, (num_classes,), "(V,)")
    if soft_targets is not None:
        expect_soft_targets(soft_targets, (num_tokens, num_classes))
    indices, mask = class_targets(targets, num_tokens, num_classes, options.ignore_index)

    inputs = (hidden, weight, bias)
    graph = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    dtype = product_dtype(hidden, weight)
    request = _Request(indices, mask, soft_targets, options, reduction, statistics, dtype, graph)
    objective, nll, *fields = _LinearNLL.apply(*inputs, request)  # type: ignore[no-untyped-call]
    valid = torch.ones_like(indices, dtype=torch.bool) if mask is None else mask
    count = valid.sum()
    if reduction == "mean":
        objective = objective / count.clamp(min=1)
    return NLLResult(objective, nll, valid, count, *fields)


@dataclass(frozen=True)
class _Request:
    """The arguments of one call of linear_nll, except its differentiable inputs."""

    targets: Tensor  # (N,) int64, 0 where ignored
    mask: Tensor | None  # (N,) bool, False where ignored; None where no token is
    soft_targets: Tensor | SoftTargets | None  # (N, V)
    options: LossOptions
    reduction: Reduction
    statistics: Statistics
    product_dtype: torch.dtype
    graph: bool  # whether gradients can be asked for later


class _LinearNLL(torch.autograd.Function):
    """Map (hidden, weight, bias) to the objective, summed or (N,), the NLL and the statistics; these have no gradient.

    The gradients of a sum lack only one factor, so they are formed together with it. Those of single tokens lack a
    factor each: hidden's can be scaled row by row, but the weight's is a sum over tokens and must be formed in
    backward. Formed gradients are scaled in place and returned without a copy, so a second backward forms them anew.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, request: _Request
    ) -> tuple[Tensor | None, ...]:
        wanted = [needed and request.graph for needed in ctx.needs_input_grad[:3]]
        if request.reduction == "none":
            wanted[1:] = False, False
        with without_autocast(hidden.device):
            one_pass = _Pass(request, (hidden, weight, bias), wanted, request.statistics)
            objective, *others = one_pass.run()
        ctx.request, ctx.gradients = request, one_pass.gradients
        ctx.save_for_backward(hidden, weight, bias)
        ctx.mark_non_differentiable(*(field for field in others if field is not None))
        assert objective is not None
        return objective if request.reduction == "none" else objective.sum(), *others

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        single = not torch.is_grad_enabled()
        expect(single, "linear_nll", "create_graph=False (softmax_nll can be differentiated twice)", "True")
        inputs, gradients = ctx.saved_tensors, ctx.gradients
        ctx.gradients = [None, None, None]
        # On the CPU reading the factor is free, and it is 1 where the loss is the last node of the graph.
        if upstream.dim() or upstream.device.type != "cpu" or upstream != 1:
            for formed in gradients:
                if formed is not None:
                    formed.mul_(upstream[:, None] if upstream.dim() else upstream)
        needed = zip(ctx.needs_input_grad[:3], gradients, strict=True)
        missing = [need and formed is None for need, formed in needed]
        if any(missing):
            with without_autocast(upstream.device):
                late = _Pass(ctx.request, inputs, missing, "none", upstream.expand(len(inputs[0])))
                late.run()
            gradients = [a if b is None else b for a, b in zip(late.gradients, gradients, strict=True)]
        cast = (g if g is None else g.to(tensor.dtype) for g, tensor in zip(gradients, inputs, strict=True))
        return *cast, None


class _Pass:
    """One pass over the chunks of N tokens: the objective, the NLL and the statistics of each token.

    ``gradients`` holds those of Σ factor · objective in (hidden, weight, bias), where they are ``wanted``; ``factor``
    is the (N,) gradient that arrives from above at the objective of each token, or None for 1.
    """

    def __init__(
        self,
        request: _Request,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        wanted: Sequence[bool],
        statistics: Statistics,
        factor: Tensor | None = None,
    ) -> None:
        hidden, weight, bias = inputs
        dtype = torch.promote_types(request.product_dtype, torch.float32)
        self.request, self.options, self.statistics = request, request.options, statistics
        self.hidden = hidden  # (N, D)
        self.weight = weight.to(request.product_dtype)  # (V, D)
        self.bias = None if bias is None else bias.to(dtype)  # (V,)
        self.scale = self._scale(factor, dtype)
        # With a softcap or soft targets the logit gradient is no longer linear in the rows r of probabilities (see the
        # module): each element is formed.
        self.linear = self.options.softcap is None and request.soft_targets is None
        if self.linear and self.options.label_smoothing:
            self.mean_row = self.weight.mean(dim=0, dtype=dtype)  # (D,)

        asks_entropy = statistics == "full" or (statistics == "basic" and request.graph)
        self.entropy_from_product = statistics == "basic" and wanted[0] and self.linear and bias is None
        self.takes_moments = asks_entropy and not self.entropy_from_product
        self.forms_gradients = any(wanted)
        self.gradients = [
            tensor.new_empty(tensor.shape, dtype=dtype) if tensor is not None and want else None
            for tensor, want in zip(inputs, wanted, strict=True)
        ]
        # z and p where gradients need p, and moments or tanh' need z after it; else p in z's place, or never whole
        keeps_both = self.forms_gradients and (self.takes_moments or self.options.softcap is not None)
        num_buffers = 2 if keeps_both else 1
        self.num_rows = rows_per_chunk(len(hidden), num_buffers * len(weight) * dtype.itemsize, hidden.device)
        self.workspace = hidden.new_empty((num_buffers, self.num_rows, len(weight)), dtype=dtype)

    def _scale(self, factor: Tensor | None, dtype: torch.dtype) -> Tensor | float:
        """Return the factor, 0 at ignored tokens, times dz/ds = 1 / temperature: (N, 1), or a number for all."""
        mask, temperature = self.request.mask, self.options.temperature
        if mask is not None:
            factor = mask if factor is None else torch.where(mask, factor, 0)
        elif factor is None:
            if self.bias is None and not self.options.label_smoothing:
                return 1 / temperature
            factor = self.hidden.new_ones(len(self.hidden))
        return factor.to(dtype)[:, None] / temperature

    def run(self) -> list[Tensor | None]:
        """Compute objective, NLL and statistics, (N,) each, in the order of NLLResult."""
        starts = range(0, max(1, len(self.hidden)), self.num_rows)
        chunks = [self._chunk(slice(start, start + self.num_rows)) for start in starts]
        if self.linear and self.options.label_smoothing:
            self._subtract_uniform_part()
        return [_joined(column) for column in zip(*chunks, strict=True)]

    def _chunk(self, rows: slice) -> tuple[Tensor | None, ...]:
        """Compute the same for one chunk, (C, 1) each, and add its gradients."""
        request, options = self.request, self.options
        targets = request.targets[rows, None]  # (C, 1)
        soft_targets = None if request.soft_targets is None else request.soft_targets[rows]  # (C, V)
        h = self.hidden[rows].to(self.weight.dtype)  # (C, D)
        z = head_logits(h, self.weight, self.bias, options, out=self.workspace[0, : len(h)])  # (C, V)
        maximum, first = first_max(z)  # m
        to_target = maximum - z.gather(1, targets)  # m - z_t
        to_expected = self._to_expected_logit(rows, z, maximum, to_target, soft_targets)  # m - q·z

        mean = squares = variance = p = None
        if self.forms_gradients or not self.takes_moments:
            p = torch.softmax(z, dim=1, out=self.workspace[-1, : len(h)])  # in z's place unless both are kept
            confidence = p.gather(1, first)  # 1/S
        if self.takes_moments:
            confidence, mean, variance, squares = moments(z, maximum, first, p)
        log_sum = -confidence.log()  # ln S
        nll = log_sum + to_target
        objective = log_sum + to_expected
        slope: Tensor | float = 1.0  # a
        if options.z_loss:
            log_normalizer = log_sum + maximum  # lse
            objective = objective + options.z_loss * log_normalizer.square()
            slope = 1 + 2 * options.z_loss * log_normalizer

        entropy = None if mean is None else log_sum - mean
        if self.forms_gradients:
            assert p is not None, "formed above"
            scale = self.scale[rows] if isinstance(self.scale, Tensor) else self.scale
            wide_h = h.to(p.dtype)
            if self.linear:
                r = p.scatter_add_(1, targets, p.new_full((1, 1), -1).expand_as(targets))
                entropy_gap = self._add_products(rows, h, wide_h, r, scale * slope)
                if options.label_smoothing or options.z_loss:
                    self._add_target_part(rows, wide_h, targets.squeeze(1), scale, slope)
                if entropy_gap is not None:
                    entropy = entropy_from_gap(nll, entropy_gap, log_sum, confidence, p.shape[1])
            else:
                residual = self._elementwise_residual(z, p, targets, soft_targets, slope)
                self._add_products(rows, h, wide_h, residual, scale)

        correct = first == targets
        if request.mask is not None:
            mask = request.mask[rows, None]
            objective, nll, correct = torch.where(mask, objective, 0), torch.where(mask, nll, 0), correct & mask
        fields = (objective, nll, confidence, correct, entropy, squares, variance)
        return fields[: {"none": 2, "basic": 5, "full": 7}[self.statistics]]

    def _to_expected_logit(
        self, rows: slice, z: Tensor, maximum: Tensor, to_target: Tensor, soft_targets: Tensor | None
    ) -> Tensor:
        """Compute m - q·z, (C, 1), for the target distribution q."""
        result, smoothing = to_target, self.options.label_smoothing
        if soft_targets is not None:
            expected, total = expectation(soft_targets, z, maximum)
            result = (1 - total) * maximum - expected
        if not smoothing:
            return result
        if self.linear:
            mean = self.hidden[rows].to(z.dtype) @ self.mean_row[:, None] / self.options.temperature
            if self.bias is not None:
                mean += self.bias.mean() / self.options.temperature
        else:
            mean = z.mean(dim=1, keepdim=True)
        return (1 - smoothing) * result + smoothing * (maximum - mean)

    def _elementwise_residual(
        self, z: Tensor, p: Tensor, targets: Tensor, soft_targets: Tensor | None, slope: Tensor | float
    ) -> Tensor:
        """Form (a p - q) ds/du, (C, V), in place of p, with tanh in place of z."""
        smoothing, softcap = self.options.label_smoothing, self.options.softcap
        _scale_in_place(p, slope)
        if soft_targets is None:
            p.scatter_add_(1, targets, p.new_full((1, 1), smoothing - 1).expand_as(targets))
        else:
            p.sub_(soft_targets, alpha=1 - smoothing)
        if smoothing:
            p -= smoothing / p.shape[1]
        if softcap is not None:
            hyperbolic = z.mul_(self.options.temperature / softcap)  # tanh(u / softcap)
            p *= hyperbolic.square_().neg_().add_(1)
        return p

    def _add_products(
        self, rows: slice, h: Tensor, wide_h: Tensor, residual: Tensor, scale: Tensor | float
    ) -> Tensor | None:
        """Form dh = scale (residual W); add residualᵀ (scale h) to dW and residualᵀ scale to db, which chunk 0 sets.

        Return h·(residual W) / temperature = E_p[z] - z_t, (C, 1), where the entropy is taken from it.
        """
        d_hidden, d_weight, d_bias = self.gradients
        low_residual, accumulate, entropy_gap = residual.to(h.dtype), rows.start > 0, None
        if d_hidden is not None:
            dh = multiply(low_residual, self.weight, out=d_hidden[rows])
            if self.entropy_from_product:
                entropy_gap = (wide_h * dh).sum(dim=1, keepdim=True) / self.options.temperature
            _scale_in_place(dh, scale)
        if d_weight is not None:
            scaled = wide_h if isinstance(scale, float) and scale == 1 else scale * wide_h
            multiply(low_residual.t(), scaled.to(h.dtype), out=d_weight, accumulate=accumulate)
        if d_bias is not None:
            assert isinstance(scale, Tensor)
            multiply(residual.t(), scale, out=d_bias[:, None], accumulate=accumulate)
        return entropy_gap

    def _add_target_part(
        self, rows: slice, wide_h: Tensor, targets: Tensor, scale: Tensor | float, slope: Tensor | float
    ) -> None:
        """Add the gradients from (a - 1 + ε) y, and in dh those from -ε/V; dW and db get these after all chunks."""
        smoothing = self.options.label_smoothing
        d_hidden, d_weight, d_bias = self.gradients
        along_target = scale * slope - (1 - smoothing) * scale  # (C, 1)
        assert isinstance(along_target, Tensor)
        if d_hidden is not None:
            dh = d_hidden[rows]
            dh += along_target * self.weight[targets]
            if smoothing:
                dh -= smoothing * scale * self.mean_row
        if d_weight is not None:
            d_weight.index_add_(0, targets, along_target * wide_h)
        if d_bias is not None:
            d_bias.index_add_(0, targets, along_target.squeeze(1))

    def _subtract_uniform_part(self) -> None:
        """Add the part -ε/V of the logit gradient to dW and db: the same multiple of Σ scale·h in every row."""
        _, d_weight, d_bias = self.gradients
        assert isinstance(self.scale, Tensor)
        share = self.scale * (self.options.label_smoothing / len(self.weight))
        if d_weight is not None:
            d_weight.sub_(share.t() @ self.hidden.to(share.dtype))
        if d_bias is not None:
            d_bias.sub_(share.sum())


def _scale_in_place(tensor: Tensor, factor: Tensor | float) -> None:
    if isinstance(factor, Tensor) or factor != 1:
        tensor *= factor


def _joined(column: tuple[Tensor | None, ...]) -> Tensor | None:
    """Join the (C, 1) of all chunks to (N,); one chunk needs no copy."""
    if column[0] is None:
        return None
    return (column[0] if len(column) == 1 else torch.cat(column)).squeeze(1)  # type: ignore[arg-type]
