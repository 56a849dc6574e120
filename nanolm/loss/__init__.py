"""The negative log-likelihood of binary, softmax and language-model tasks, with the statistics for calibration.

``reference`` is the mathematics, ``dense`` computes it from given logits, ``fused`` from hidden states and the weight
of a language model's head, with no logits kept. The package imports torch, NumPy and ``nanolm.errors`` only, so it can
be copied into another project.
"""

from nanolm.loss.dense import bernoulli_nll, softmax_nll
from nanolm.loss.distillation import Distillation, TeacherTargets, distilled_linear_nll
from nanolm.loss.fused import linear_nll
from nanolm.loss.options import LossOptions
from nanolm.loss.result import NLLResult

__all__ = [
    "Distillation",
    "LossOptions",
    "NLLResult",
    "TeacherTargets",
    "bernoulli_nll",
    "distilled_linear_nll",
    "linear_nll",
    "softmax_nll",
]
