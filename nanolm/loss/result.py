"""The result that every loss of this package returns, and the reduction of the objective."""

from dataclasses import dataclass

from torch import Tensor

from nanolm.loss.options import Reduction


@dataclass(frozen=True)
class NLLResult:
    """The objective of N tokens (or examples) and the statistics of each token.

    The statistics are detached, float64 for float64 input and float32 otherwise. They describe p = softmax(z), the
    distribution after softcap and temperature, and the hard target; smoothing, soft targets and the z-loss do not
    change them. Those that were not asked for are None.

    objective: what to minimise, in nats: a scalar, or (N,) with reduction="none"; the only differentiable field
    nll: (N,) true negative log-likelihood -ln p[target] in nats; 0 at ignored tokens
    valid: (N,) bool, False at ignored tokens
    count: () int64, number of valid tokens
    confidence: (N,) largest probability
    correct: (N,) bool, whether the first largest logit is the target's; False at ignored tokens
    entropy: (N,) entropy of p in nats
    sum_squared_probabilities: (N,) Σ p², what the Brier score needs in addition to confidence and p[target]
    logit_variance: (N,) variance of z under p, the curvature of the NLL in ln(1 / temperature)
    """

    objective: Tensor
    nll: Tensor
    valid: Tensor
    count: Tensor
    confidence: Tensor | None = None
    correct: Tensor | None = None
    entropy: Tensor | None = None
    sum_squared_probabilities: Tensor | None = None
    logit_variance: Tensor | None = None


def reduce(objective: Tensor, count: Tensor, reduction: Reduction) -> Tensor:
    """Reduce an (N,) objective, 0 at ignored tokens; "mean" is over the ``count`` valid ones, 0 over none."""
    if reduction == "none":
        return objective
    total = objective.sum()
    return total if reduction == "sum" else total / count.clamp(min=1)
