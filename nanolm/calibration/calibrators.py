"""Other maps from a model's probabilities to better ones, alongside the temperature, for tasks of few classes.

- vector scaling: a scale and a shift for each class, z_k → a_k z_k + b_k (Guo et al. 2017, arXiv:1706.04599)
- inverse smoothing: at the optimum of label smoothing a model predicts q = (1-ε) p + ε/V where p is true, so that
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
from nanolm.loss.dense import model_logits
from nanolm.loss.rows import multiply, product_dtype, rows_per_chunk, without_autocast
from nanolm.metrics import CalibrationMeter, CalibratorRow

MAX_CLASSES = 1000
FLOOR = 1e-6

Scored = tuple[Tensor, Tensor]
"""(N, V) logits with (N,) targets"""


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
            ConfigError: more than 1000 classes: the fit would memorise the calibration data.
            CalibrationRefused: there is no valid example.
            NonFiniteError: a logit is NaN or plus infinity, or a target's is minus infinity.
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
                "vector scaling cannot be fitted: some logits are NaN or infinite, or exclude the target"
            )
        scale, shift = z.new_ones(num_classes, requires_grad=True), z.new_zeros(num_classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([scale, shift], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

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
        """Scale and shift (N, V) logits."""
        return _scaled(logits.double(), self.scale, self.shift)


def _scaled(z: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return scale · z + shift; minus infinity stays as it is, even if scale <= 0, and has no gradient."""
    excluded = z == -math.inf
    return torch.where(excluded, -math.inf, scale * z.masked_fill(excluded, 0) + shift)


def invert_smoothing(logits: Tensor, label_smoothing: float) -> tuple[Tensor, float]:
    """Return the (N, V) logits of p = (q - ε/V) / (1-ε) for those of q, and the share of probabilities floored.

    A p below 1e-6, the floor, is set to it, and each row is divided by its sum, which is 1 if nothing was floored.

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
    """Score tokens of a language model under the inverse map, some rows of logits at a time.

    Args:
        hidden: (N, D) hidden states; weight: (V, D) of the head; targets: (N,) class indices.
        options: softcap and temperature of the model.
        label_smoothing: ε of the objective that it was trained with.

    Yields:
        the results of neighbouring rows, and the share of their probabilities that was floored.
    """
    # The same product as in the loss: on CUDA one of low precision keeps its float32 sums.
    dtype = product_dtype(hidden, weight)
    hidden, weight, wide = hidden.to(dtype), weight.to(dtype), torch.promote_types(dtype, torch.float32)
    num_rows = rows_per_chunk(len(hidden), 3 * weight.shape[0] * torch.float64.itemsize, hidden.device)
    for part, target in zip(torch.split(hidden, num_rows), torch.split(targets, num_rows), strict=True):
        with without_autocast(hidden.device):
            logits = multiply(part, weight.t(), out=part.new_empty(len(part), len(weight), dtype=wide)).double()
        restored, floored = invert_smoothing(model_logits(logits, options), label_smoothing)
        yield softmax_nll(restored, target), floored


def compare_calibrators(folds: Sequence[tuple[Scored, Scored]], label_smoothing: float = 0.0) -> list[CalibratorRow]:
    """Return one row for each calibrator: fitted on the first set of each fold, scored on the second, folds pooled.

    If a calibrator cannot be fitted in some of the folds, these are scored as they are and its note says so; if in
    none of them, its row has the reason as its note and no metrics.
    """
    # Each maps logits, fitted on others, and may return a number that its note reports in this format.
    Map = Callable[[Scored, Tensor], tuple[Tensor, float | None]]
    calibrators: dict[str, tuple[Map, str]] = {
        "none": (lambda fitting, logits: (logits, None), ""),
        "temperature": (_temperature, "T = {:.4f}"),
        "vector scaling": (lambda fitting, logits: (VectorScaling.fit(*fitting)(logits), None), ""),
    }
    if label_smoothing:
        calibrators["inverse smoothing"] = (
            lambda fitting, logits: invert_smoothing(logits, label_smoothing),
            "share of probabilities floored: {:.2%}",
        )
    rows = []
    for name, (apply, template) in calibrators.items():
        meter, numbers, refusals = CalibrationMeter(), [], []
        for fitting, (logits, targets) in folds:
            mapped, number = logits, None
            try:
                mapped, number = apply(fitting, logits)
            except (ConfigError, CalibrationRefused, NonFiniteError) as error:
                refusals.append(str(error))
            numbers += [] if number is None else [number]
            meter.update(softmax_nll(mapped, targets))
        if len(refusals) == len(folds):
            rows.append(CalibratorRow(calibrator=name, note=refusals[0]))
            continue
        notes = [template.format(min(numbers))] if numbers else []
        if numbers and max(numbers) > min(numbers):
            notes = [f"{notes[0]} to {template.format(max(numbers)).rpartition(' ')[2]}"]
        notes += [f"not fitted in {len(refusals)} of {len(folds)} folds"] if refusals else []
        rows.append(calibrator_row(name, meter, "; ".join(notes)))
    return rows


def calibrator_row(name: str, meter: CalibrationMeter, note: str = "") -> CalibratorRow:
    """Return the row of a calibrator whose predictions a meter has measured."""
    metrics = {key: value for key, value in meter.metrics().items() if key in CalibratorRow.model_fields}
    return CalibratorRow(calibrator=name, note=note, **metrics)


def _temperature(fitting: Scored, logits: Tensor) -> tuple[Tensor, float]:
    temperature = fit_temperature_from_logits(*fitting).temperature
    return logits.double() / temperature, temperature
