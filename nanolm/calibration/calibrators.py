"""Other maps from a model's probabilities to better ones, beside the temperature, for tasks of few classes.

- vector scaling: a scale and a shift for each class, z_k → a_k z_k + b_k (Guo et al. 2017, arXiv:1706.04599)
- inverse smoothing: a model at the optimum of label smoothing says q = (1-ε) p + ε/V where p is true, so that
  p = (q - ε/V) / (1-ε) restores it exactly. Where q < ε/V that is negative and is floored.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanolm.calibration.temperature import CalibrationRefused, fit_temperature_from_logits
from nanolm.errors import ConfigError, NonFiniteError
from nanolm.loss import LossOptions, NLLResult, softmax_nll
from nanolm.loss.dense import soft_capped
from nanolm.loss.rows import rows_per_chunk
from nanolm.metrics.meter import CalibrationMeter

MAX_CLASSES = 1000
FLOOR = 1e-6


@dataclass(frozen=True)
class VectorScaling:
    """(V,) scales and shifts of the logits, float64."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def fit(cls, logits: Tensor, targets: Tensor) -> "VectorScaling":
        """Minimise the NLL of (N, V) calibration logits with (N,) class indices, a convex problem, by L-BFGS.

        A ridge of 1e-6 on the changes keeps a class without examples where it is. A class that a logit of minus
        infinity excludes stays excluded.

        Raises:
            ConfigError: more than 1000 classes: the fit would learn the calibration data by heart.
            CalibrationRefused: no tokens.
            NonFiniteError: a logit is NaN or plus infinity, or a target's is minus infinity: no map of it can be right.
        """
        num_classes = logits.shape[1]
        if num_classes > MAX_CLASSES:
            raise ConfigError(f"vector scaling: expected at most {MAX_CLASSES} classes, found {num_classes}")
        valid = targets != LossOptions().ignore_index
        z, targets = logits.detach().double()[valid], targets[valid]
        if len(z) == 0:
            raise CalibrationRefused("vector scaling cannot be fitted to no tokens; the calibration split is empty")
        if not softmax_nll(z, targets).objective.isfinite():
            raise NonFiniteError(
                "vector scaling cannot be fitted: the logits of some tokens are NaN or infinite, or exclude the target"
            )
        scale, shift = torch.ones(num_classes, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64)
        parameters = [scale.requires_grad_(), shift.requires_grad_()]
        optimizer = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def objective() -> Tensor:
            optimizer.zero_grad()
            nll = softmax_nll(_scaled(z, scale, shift), targets, reduction="mean").objective
            total = nll + 1e-6 * ((scale - 1).square().sum() + shift.square().sum())
            total.backward()  # type: ignore[no-untyped-call]
            return total

        with torch.enable_grad():
            optimizer.step(objective)  # type: ignore[no-untyped-call]
        if not (scale.isfinite().all() and shift.isfinite().all()):
            raise NonFiniteError("vector scaling cannot be fitted: the logits are too large for float64")
        return cls(scale.detach(), shift.detach())

    def __call__(self, logits: Tensor) -> Tensor:
        """(N, V) logits, scaled and shifted."""
        return _scaled(logits.double(), self.scale, self.shift)


def _scaled(z: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale · z + shift; minus infinity stays as it is, for a scale of 0 or less too, and has no gradient."""
    excluded = z == -math.inf
    return torch.where(excluded, -math.inf, scale * z.masked_fill(excluded, 0) + shift)


def invert_smoothing(logits: Tensor, label_smoothing: float) -> tuple[Tensor, float]:
    """(N, V) logits of q to logits of p = (q - ε/V) / (1-ε), and the share of probabilities that was floored.

    What is below 1e-6, the floor, is set to it, and each row is divided by its sum: without a floored entry it is 1.

    Raises:
        ConfigError: the smoothing is outside [0, 1).
        NonFiniteError: a logit is NaN or plus infinity, or all of a row are minus infinity.
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing: expected a number in [0, 1), found {label_smoothing}")
    p = (logits.double().softmax(dim=1) - label_smoothing / logits.shape[1]) / (1 - label_smoothing)
    if p.isnan().any():
        raise NonFiniteError("label smoothing cannot be inverted: the logits of some tokens are NaN or infinite")
    floored = p < FLOOR
    p = p.clamp(min=FLOOR)
    share = float(floored.double().mean()) if p.numel() else 0.0
    return (p / p.sum(dim=1, keepdim=True)).log(), share


@torch.no_grad()
def smoothing_inverted(
    hidden: Tensor, weight: Tensor, targets: Tensor, options: LossOptions, label_smoothing: float
) -> Iterator[tuple[NLLResult, float]]:
    """Tokens of a language model under the inverse map, some rows of logits at a time.

    Args:
        hidden: (N, D) hidden states; weight: (V, D) of the head; targets: (N,) class indices.
        options: softcap and temperature of the model.
        label_smoothing: ε of the objective that it was trained with.

    Yields:
        the results of neighbouring rows, and the share of their probabilities that was floored.
    """
    num_rows = rows_per_chunk(len(hidden), 3 * weight.shape[0] * torch.float64.itemsize, hidden.device)
    for start in range(0, len(hidden), num_rows):
        rows = slice(start, start + num_rows)
        logits = torch.nn.functional.linear(hidden[rows], weight).double()
        logits = soft_capped(logits, options.softcap) / options.temperature
        restored, floored = invert_smoothing(logits, label_smoothing)
        yield softmax_nll(restored, targets[rows]), floored


Scored = tuple[Tensor, Tensor]
"""(N, V) logits with (N,) targets"""


def compare_calibrators(fitting: Scored, scoring: Scored, label_smoothing: float = 0.0) -> list[dict[str, str | float]]:
    """One row for each calibrator: fitted on one set of (N, V) logits and (N,) targets, scored on another.

    Rows hold ``calibrator``, the meter's figures on the scored set, and ``note``. A calibrator that cannot be fitted
    has its reason as its note and no figures.
    """
    return compare_calibrators_over_folds([(fitting, scoring)], label_smoothing)


def compare_calibrators_over_folds(
    folds: Sequence[tuple[Scored, Scored]], label_smoothing: float = 0.0
) -> list[dict[str, str | float]]:
    """``compare_calibrators`` with the scored sets of several folds pooled, each calibrated by its own fitting set.

    Where a calibrator cannot be fitted in some of the folds, these are scored as they are and its note says so.
    """
    calibrators = [
        Calibrator("none", lambda fitting, logits: (logits, None)),
        Calibrator("temperature", _temperature, "T = ", ".4f"),
        Calibrator("vector scaling", lambda fitting, logits: (VectorScaling.fit(*fitting)(logits), None)),
    ]
    if label_smoothing:
        invert = lambda fitting, logits: invert_smoothing(logits, label_smoothing)  # noqa: E731
        calibrators.append(Calibrator("inverse smoothing", invert, "share of probabilities floored: ", ".2%"))
    return [_row(calibrator, folds) for calibrator in calibrators]


@dataclass(frozen=True)
class Calibrator:
    """A map of logits that may be fitted, and the number that it is told by."""

    name: str
    apply: Callable[[Scored, Tensor], tuple[Tensor, float | None]]
    """fitted on the first, applied to the second; may raise ConfigError, CalibrationRefused or NonFiniteError"""
    about: str = ""
    spec: str = ""

    def note(self, numbers: Sequence[float]) -> str:
        """The numbers of all folds in words: the one, or the least and the largest."""
        ends = dict.fromkeys(format(number, self.spec) for number in (min(numbers), max(numbers)))
        return self.about + " to ".join(ends)


def _temperature(fitting: Scored, logits: Tensor) -> tuple[Tensor, float]:
    temperature = fit_temperature_from_logits(*fitting).temperature
    return logits.double() / temperature, temperature


def _row(calibrator: Calibrator, folds: Sequence[tuple[Scored, Scored]]) -> dict[str, str | float]:
    meter, numbers, refusals = CalibrationMeter(), [], []
    for fitting, (logits, targets) in folds:
        try:
            mapped, number = calibrator.apply(fitting, logits)
            numbers += [] if number is None else [number]
        except (ConfigError, CalibrationRefused, NonFiniteError) as error:
            mapped = logits
            refusals.append(str(error))
        meter.update(softmax_nll(mapped, targets))
    if len(refusals) == len(folds):
        return {"calibrator": calibrator.name, "note": refusals[0]}
    notes = [calibrator.note(numbers)] if numbers else []
    if refusals:
        notes.append(f"not fitted in {len(refusals)} of {len(folds)} folds")
    return {"calibrator": calibrator.name, **meter.metrics(), "note": "; ".join(notes)}
