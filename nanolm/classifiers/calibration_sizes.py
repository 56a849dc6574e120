"""How many calibration examples a temperature needs: fitted on parts of each fold's inner split, judged on its fold."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanolm.calibration import CalibrationMeter, fit_temperature_from_logits
from nanolm.calibration.temperature import CalibrationRefused
from nanolm.classifiers.classifier import classification_nll
from nanolm.classifiers.cross_validation import CrossValidation, FoldModel
from nanolm.evaluation.calibration_sizes import NUM_DRAWS
from nanolm.loss import LossOptions
from nanolm.seeds import derive_seed


def temperature_by_size(validation: CrossValidation, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Fit each fold's temperature on random examples of its inner split, five draws of each size.

    Args:
        validation: finished.
        sizes: examples of each draw; sizes above the smallest inner split are left out.

    Returns:
        as ``nanolm.evaluation.temperature_by_size``: ``num_tokens`` (examples of a fold), ``nll_at_one`` and ``draws``,
        each with the geometric mean of the folds' ``temperature``, the pooled out-of-fold ``nll`` at them, and
        ``num_refused``: folds that had no temperature and count with T = 1. A draw that every fold refused has null
        for both.
    """
    at_one = validation.score().metrics()["nll"]
    folds = [_logits(model) for model in validation.models]
    smallest = min(len(targets) for (_, targets), _ in folds)
    return [
        {
            "num_tokens": size,
            "nll_at_one": at_one,
            "draws": [_draw(validation, folds, size, number) for number in range(NUM_DRAWS)],
        }
        for size in sorted(sizes)
        if size <= smallest
    ]


Scored = tuple[Tensor, Tensor]
"""Logits with their targets."""


def _logits(model: FoldModel) -> tuple[Scored, Scored]:
    """Those of the inner split and of the scored examples, which every draw needs."""
    features, targets = model.scored
    return (model.calibration_logits(), model.calibration[1]), (model.learner.logits(features), targets)


def _draw(
    validation: CrossValidation, folds: Sequence[tuple[Scored, Scored]], size: int, number: int
) -> dict[str, Any]:
    meter, temperatures, scoring = CalibrationMeter(), [], validation.scoring
    for place, ((logits, targets), scored) in enumerate(folds):
        generator = np.random.default_rng(derive_seed(validation.config.seed, 3, size, number, place))
        chosen = torch.from_numpy(generator.permutation(len(targets))[:size])
        temperatures.append(_fit(logits[chosen], targets[chosen], scoring))
        softer = replace(scoring, temperature=scoring.temperature * (temperatures[-1] or 1.0))
        meter.update(classification_nll(*scored, softer))
    fitted = [temperature for temperature in temperatures if temperature is not None]
    num_refused = len(temperatures) - len(fitted)
    if not fitted:
        return {"temperature": None, "nll": None, "num_refused": num_refused}
    mean = math.exp(sum(map(math.log, fitted)) / len(fitted))
    return {"temperature": mean, "nll": meter.metrics()["nll"], "num_refused": num_refused}


def _fit(logits: Tensor, targets: Tensor, scoring: LossOptions) -> float | None:
    try:
        return fit_temperature_from_logits(logits, targets, scoring).temperature
    except CalibrationRefused:
        return None
