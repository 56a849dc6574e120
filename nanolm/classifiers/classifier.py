"""Classifiers in torch, with the losses and the temperature fit of a language model."""

import torch
from torch import Tensor, nn

from nanolm.calibration import fit_temperature_from_logits
from nanolm.calibration.temperature import CalibrationRefused
from nanolm.classifiers.folds import Indices
from nanolm.config.schema import TaskConfig
from nanolm.loss import LossOptions, NLLResult, bernoulli_nll, softmax_nll
from nanolm.metrics import Calibration

Scored = tuple[Tensor, Tensor]
"""(N, V) logits, or (N,) log-odds of class 1 in a binary task, with the (N,) labels"""


def build_model(task: TaskConfig, num_features: int, num_classes: int) -> nn.Sequential:
    """Return a model from features to logits, in float64: linear, or with one hidden layer of rectified units.

    A linear model starts at 0, where all classes are equally likely; a hidden layer needs torch's random start.
    """
    is_binary, layers = task.name == "binary", list[nn.Module]()
    if task.model == "mlp":
        layers = [nn.Linear(num_features, task.hidden_size, dtype=torch.float64), nn.ReLU(), nn.Dropout(task.dropout)]
        num_features = task.hidden_size
    last = nn.Linear(num_features, 1 if is_binary else num_classes, dtype=torch.float64)
    if task.model == "linear":
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last, *([nn.Flatten(0)] if is_binary else []))  # (N, 1) to (N,)


def classification_nll(
    logits: Tensor,
    targets: Tensor,
    options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
    soft_targets: Tensor | None = None,
) -> NLLResult:
    """Return the mean ``bernoulli_nll`` of (N,) log-odds, or the mean ``softmax_nll`` of (N, V) logits.

    Args:
        soft_targets: (N,) probabilities of class 1, or (N, V), that replace the classes in the objective.
    """
    if logits.dim() == 1:
        return bernoulli_nll(logits, targets if soft_targets is None else soft_targets, options, "mean")
    return softmax_nll(logits, targets, soft_targets, options, "mean")


def calibrate(scored: Scored, options: LossOptions, units: Indices | None = None) -> Calibration:
    """Fit the temperature, or record why there is none; ``units`` (N,) number the examples, for its interval."""
    try:
        fit = fit_temperature_from_logits(*scored, options, units)
    except CalibrationRefused as error:
        return Calibration.none(str(error))
    return fit.record(
        "calibration",
        lambda temperature: float(classification_nll(*scored, options.at_temperature(temperature)).nll.mean()),
    )


def as_softmax_logits(logits: Tensor) -> Tensor:
    """Return (N, V) logits as they are, and (N,) log-odds z as [0, z]."""
    return logits if logits.dim() == 2 else torch.stack([torch.zeros_like(logits), logits], dim=1)


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the (N,) logits of the right classes minus the largest others; above 0 where the model is right."""
    logits = as_softmax_logits(logits)
    right = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return right.squeeze(1) - others.amax(dim=1)
