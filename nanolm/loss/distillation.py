"""Learn from a teacher's probabilities as well as from the targets (Hinton et al. 2015, arXiv:1503.02531).

With z the student's logits and z' the teacher's, each after its own softcap and temperature, and τ > 0:

    objective = (1 - w) · hard + w · τ² · H(p', p),    p = softmax(z/τ),    p' = softmax(z'/τ)

where hard is the objective without a teacher, smoothing and z-loss included, and H(p', p) = -Σ p' ln p.

Why τ²: ∂H/∂z = (p - p')/τ, and for large τ p - p' is itself about (z - z')/(τV) for logits of mean 0, so the gradient
of τ²·H stays near (z - z')/V: the two parts keep their proportion when τ is changed.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanolm.loss.dense import model_logits
from nanolm.loss.fused import linear_nll
from nanolm.loss.options import LossOptions, Reduction, Statistics, expect
from nanolm.loss.result import NLLResult
from nanolm.loss.rows import head_logits, product_dtype
from nanolm.loss.targets import SoftTargets


@dataclass(frozen=True)
class Distillation:
    """The share w of the soft part in the objective, and τ, by which both models' logits are divided in it.

    Raises ConfigError where a value is outside its range.
    """

    weight: float
    temperature: float

    def __post_init__(self) -> None:
        expect(0 <= self.weight <= 1, "weight", "a number in [0, 1]", self.weight)
        expect(0 < self.temperature < math.inf, "temperature", "a finite number > 0", self.temperature)

    def softened(self, options: LossOptions) -> LossOptions:
        """Return the options that lead from the student's or the teacher's u to z/τ."""
        return options.scoring.at_temperature(self.temperature)

    def combine(self, hard: NLLResult, soft: NLLResult) -> NLLResult:
        """Mix the two objectives, reduced alike; the objective of ``soft`` is H(p', p).

        The statistics are those of ``hard``: they describe softmax(z) and the targets, not the teacher.
        """
        soft_share = self.weight * self.temperature**2
        return replace(hard, objective=(1 - self.weight) * hard.objective + soft_share * soft.objective)


class TeacherTargets:
    """SoftTargets that form p' from a teacher's hidden states, a chunk of tokens at a time.

    hidden: (N, D') of the teacher; weight: (V, D'), its head's; both are taken as constants
    options: ``Distillation.softened`` of the teacher's own
    """

    def __init__(self, hidden: Tensor, weight: Tensor, options: LossOptions) -> None:
        dtype = product_dtype(hidden, weight)
        self._hidden, self._weight, self._options = hidden.detach().to(dtype), weight.detach().to(dtype), options
        self.shape = (len(hidden), len(weight))  # (N, V)

    def __getitem__(self, rows: slice) -> Tensor:
        """Form (C, V) probabilities, in float64 for float64 states and else float32."""
        h = self._hidden[rows]
        z = h.new_empty((len(h), len(self._weight)), dtype=torch.promote_types(h.dtype, torch.float32))
        return torch.softmax(head_logits(h, self._weight, None, self._options, out=z), dim=1, out=z)


def soft_probabilities(logits: Tensor, options: LossOptions) -> Tensor:
    """Compute constant p' from a teacher's logits (N, V), or (N,) of class 1 from its log-odds (N,).

    options: ``Distillation.softened`` of the teacher's own
    """
    z = model_logits(logits.detach(), options)
    return z.sigmoid() if z.dim() == 1 else z.softmax(dim=1)


def distilled_linear_nll(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    teacher: Tensor | SoftTargets,
    distillation: Distillation,
    options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
    reduction: Reduction = "sum",
    statistics: Statistics = "basic",
) -> NLLResult:
    """Compute ``linear_nll`` of the student's head with a teacher's distributions p', (N, V), in the objective.

    The distributions at z and at z/τ differ, so the student's head is computed twice, and the teacher's once. With
    ``TeacherTargets`` only a chunk of p' exists at a time; the gradient of the weight, (V, D), exists twice until the
    two are added. The other arguments, the result and the errors are those of ``linear_nll``.
    """
    hard = linear_nll(hidden, weight, targets, None, None, options, reduction, statistics)
    soft = linear_nll(hidden, weight, targets, None, teacher, distillation.softened(options), reduction, "none")
    return distillation.combine(hard, soft)
