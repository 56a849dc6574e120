"""A loss that forms its gradients in the forward pass, as a node of torch's autograd graph."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanolm.errors import ConfigError


class Gradients(NamedTuple):
    """Gradients in the dtype they are accumulated in, None where there is none; or, as bool, which are needed."""

    hidden: Any = None
    weight: Any = None
    bias: Any = None


# (hidden, weight, bias, scale, needs, statistics) to per-token fields, the objective (N,) first, and the gradients of
# Σ scale·objective over the valid tokens; scale (N,), or None for 1. Without statistics only the gradients matter.
Evaluate = Callable[
    [Tensor, Tensor, Tensor | None, Tensor | None, Gradients, bool], tuple[tuple[Tensor | None, ...], Gradients]
]


class LinearNLL(torch.autograd.Function):
    """(hidden, weight, bias) to the objective, summed or (N,), and the statistics, which have no gradient.

    The gradients of a sum only wait for one factor, so they are formed together with it. Those of tokens on their own
    wait for a factor each: hidden's can be scaled row by row, but the weight's is a sum over tokens and must be formed
    in backward. Formed gradients are scaled in place and handed over, not copied, so a second backward forms them anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        evaluate: Evaluate,
        per_token: bool,
        graph: bool,
    ) -> tuple[Tensor | None, ...]:
        needs = Gradients(*(needed and graph for needed in ctx.needs_input_grad[:3]))
        if per_token:
            needs = needs._replace(weight=False, bias=False)
        (objective, *statistics), ctx.gradients = evaluate(hidden, weight, bias, None, needs, True)
        assert objective is not None
        ctx.evaluate = evaluate
        ctx.save_for_backward(hidden, weight, bias)
        ctx.mark_non_differentiable(*(field for field in statistics if field is not None))
        return objective if per_token else objective.sum(), *statistics

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ConfigError(
                "linear_nll: expected a backward pass with create_graph=False, found True; its gradients cannot be "
                "differentiated again. softmax_nll(torch.nn.functional.linear(hidden, weight, bias), ...) can"
            )
        hidden, weight, bias = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, Gradients()
        # On the CPU a look at the factor is free, and it is 1 where the loss is the last node of the graph.
        if upstream.dim() or upstream.device.type != "cpu" or upstream != 1:
            for formed in gradients:
                if formed is not None:
                    formed.mul_(upstream[:, None] if upstream.dim() else upstream)
        needed = zip(ctx.needs_input_grad[:3], gradients, strict=True)
        missing = Gradients(*(need and formed is None for need, formed in needed))
        if any(missing):
            _, late = ctx.evaluate(hidden, weight, bias, upstream.expand(len(hidden)), missing, False)
            gradients = [formed if formed is not None else new for formed, new in zip(gradients, late, strict=True)]
        inputs = zip(gradients, (hidden, weight, bias), strict=True)
        cast = (None if gradient is None else gradient.to(tensor.dtype) for gradient, tensor in inputs)
        return *cast, None, None, None
