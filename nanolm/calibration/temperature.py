"""The temperature that makes probabilities fit, exactly, with no (tokens, vocabulary) logits kept.

For logits s and β = 1/T the mean NLL of softmax(βs) is convex in β, with

    dNLL/dβ = E[E_p s - s_y],        d²NLL/dβ² = E[Var_p s]

(Guo et al. 2017, arXiv:1706.04599, for the method). In z = βs, which is what a loss reports on, these read

    β dNLL/dβ = E[NLL - entropy],    β² d²NLL/dβ² = E[Var_p z]

so that Newton's step is β ← β (1 - mean entropy gap / mean logit variance), and one pass of the loss with full
statistics gives all of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanolm.errors import DataError, NonFiniteError
from nanolm.loss import LossOptions, NLLResult, bernoulli_nll, linear_nll, softmax_nll
from nanolm.metrics.intervals import estimate

LOWEST, HIGHEST = 0.02, 50.0
TOLERANCE = 1e-5
_MAX_STEPS = 60
_TOKENS_AT_ONCE = 1 << 14

Floats = npt.NDArray[np.float64]


class CalibrationRefused(DataError):
    """The data have no temperature that a fit could be trusted with."""


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature. NLL in nats per token."""

    temperature: float
    low: float | None
    high: float | None
    """95 % interval over the units, symmetric in ln T; None where they are too few"""
    nll: float
    """on the fitting data at T = 1"""
    nll_at_temperature: float
    gradient: float
    """dNLL/d ln β at the fitted temperature; 0 at the exact optimum"""
    num_tokens: int
    num_passes: int


@dataclass(frozen=True)
class _Scores:
    """A pass at one temperature: mean NLL, and the entropy gap and logit variance of each token, in float64."""

    nll: float
    gap: Floats
    logit_variance: Floats

    @property
    def gradient(self) -> float:
        return float(self.gap.mean())

    @property
    def variance(self) -> float:
        return float(self.logit_variance.mean())


def fit_temperature(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
    units: npt.NDArray[np.int64] | None = None,
    progress: Callable[[int], None] = lambda passes: None,
    blocks: bool = False,
) -> TemperatureFit:
    """Fit the temperature of softmax(hidden @ weight.T + bias); it divides what ``options`` make of the logits.

    Args:
        hidden: (N, D) hidden states of the calibration tokens.
        weight: (V, D) of the head; bias: (V,) or None.
        targets: (N,) class indices, or options.ignore_index.
        options: softcap and temperature are the model's own; smoothing and z-loss play no part.
        units: (N,) the document of each token, for an interval that knows that tokens of one depend on each other.
        progress: called before each pass with the number of passes so far; an exception from it aborts the fit.
        blocks: the units are neighbouring blocks of a text, as for ``intervals.estimate``.

    Raises:
        CalibrationRefused: no valid token, or the best temperature is outside [0.02, 50] (all right, or all wrong).
        NonFiniteError: a logit is NaN or plus infinity, or a target's is minus infinity.
    """

    def score(temperature: float, part: slice) -> NLLResult:
        scaled = replace(options, temperature=options.temperature * temperature)
        return linear_nll(hidden[part], weight, targets[part], bias, options=scaled, statistics="full")

    return _fit(score, len(hidden), units, progress, blocks)


def fit_temperature_from_logits(
    logits: Tensor,
    targets: Tensor,
    options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
    units: npt.NDArray[np.int64] | None = None,
) -> TemperatureFit:
    """``fit_temperature`` for a classification task: (N, V) logits with class indices, or (N,) log-odds with 0 and 1.

    Raises:
        CalibrationRefused, NonFiniteError: as ``fit_temperature``.
    """

    def score(temperature: float, part: slice) -> NLLResult:
        scaled = replace(options, temperature=options.temperature * temperature)
        if logits.dim() == 1:
            return bernoulli_nll(logits[part], targets[part], scaled)
        return softmax_nll(logits[part], targets[part], options=scaled)

    return _fit(score, len(logits), units, lambda passes: None, blocks=False)


@torch.no_grad()
def nll_curve(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperatures: Sequence[float] | Floats,
    bias: Tensor | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
) -> Floats:
    """(K,) mean NLL in nats per token at each of K temperatures."""
    found = []
    for temperature in temperatures:
        scaled = replace(options, temperature=options.temperature * float(temperature))
        result = linear_nll(hidden, weight, targets, bias, options=scaled, statistics="none")
        found.append(float(result.nll.double().sum()) / max(int(result.count), 1))
    return np.array(found)


@torch.no_grad()
def _fit(
    score: Callable[[float, slice], NLLResult],
    num_tokens: int,
    units: npt.NDArray[np.int64] | None,
    progress: Callable[[int], None],
    blocks: bool,
) -> TemperatureFit:
    """The fit of anything that can be scored at a temperature, part by part."""
    valid: list[npt.NDArray[np.bool_]] = []
    num_passes = 0

    def evaluate(beta: float) -> _Scores:
        nonlocal num_passes
        progress(num_passes)
        num_passes += 1
        valid.clear()
        nll, gaps, variances = 0.0, [], []
        for start in range(0, num_tokens, _TOKENS_AT_ONCE):
            result = score(1 / beta, slice(start, start + _TOKENS_AT_ONCE))
            assert result.entropy is not None, "statistics are full"
            assert result.logit_variance is not None, "statistics are full"
            kept = result.valid
            valid.append(kept.cpu().numpy())
            nll += float(result.nll.double().sum())
            variances.append(result.logit_variance.double()[kept].cpu().numpy())
            gaps.append((result.nll.double() - result.entropy.double())[kept].cpu().numpy())
        gap, variance = (np.concatenate(parts) if parts else np.zeros(0) for parts in (gaps, variances))
        if len(gap) == 0:
            raise CalibrationRefused("a temperature cannot be fitted to no tokens; the calibration split is empty")
        if not (np.isfinite(gap).all() and np.isfinite(variance).all()):
            raise NonFiniteError(
                "a temperature cannot be fitted: the logits of some tokens are NaN or infinite, or exclude the target"
            )
        if beta == 1 and not variance.any():
            raise CalibrationRefused(
                "the logits of every token are all equal, or so far apart that no probability moves: every temperature "
                "near 1 fits alike"
            )
        return _Scores(nll / len(gap), gap, variance)

    first, beta, scores = _minimise(evaluate)
    temperature = 1 / beta
    # At any T a token whose target is not the largest logit costs ln 2 at least. Where all together cost less, all are
    # right, and the NLL falls until it is too small for a float: there is no optimum, only an underflow.
    if scores.nll * len(scores.gap) < 0.99 * math.log(2):
        raise CalibrationRefused(
            "the predictions of the calibration split are all right: their NLL falls as T does, to 0, and no "
            "temperature fits them"
        )
    if not LOWEST * 1.01 < temperature < HIGHEST / 1.01:
        right = "right" if temperature < 1 else "wrong, or right no more often than by chance"
        raise CalibrationRefused(
            f"the NLL of the calibration split falls up to T = {temperature:.3g}, the end of [{LOWEST:g}, "
            f"{HIGHEST:g}]: the predictions are (nearly) all {right}, and no temperature fits them"
        )
    if scores.nll > first.nll:
        if scores.nll > first.nll + 1e-6 * abs(first.nll):
            raise CalibrationRefused(
                f"NLL {scores.nll:.6f} at the fitted T = {temperature:.5f} is above {first.nll:.6f} at T = 1"
            )
        temperature, scores = 1.0, first  # equal but for rounding: nothing to gain
    half = _half_width(scores, None if units is None else units[np.concatenate(valid)], blocks)
    return TemperatureFit(
        temperature=temperature,
        low=None if half is None else temperature * math.exp(-half),
        high=None if half is None else temperature * math.exp(half),
        nll=first.nll,
        nll_at_temperature=scores.nll,
        gradient=scores.gradient,
        num_tokens=len(scores.gap),
        num_passes=num_passes,
    )


def _minimise(evaluate: Callable[[float], _Scores]) -> tuple[_Scores, float, _Scores]:
    """Newton's method on β, kept within a bracket of the sign change of the gradient, which rises with β.

    Returns the scores at β = 1, the best β, and its scores.
    """
    first = scores = evaluate(1.0)
    beta, low, high = 1.0, 1 / HIGHEST, 1 / LOWEST
    for _ in range(_MAX_STEPS):
        low, high = (beta, high) if scores.gradient < 0 else (low, beta)
        step = beta * (1 - scores.gradient / scores.variance) if scores.variance > 0 else math.inf
        if not low < step < high:  # towards the end of the bracket, on the scale of ln β
            step = math.sqrt(low * high)
        if abs(1 / step - 1 / beta) < TOLERANCE:
            break  # the optimum is no further than that from where the loss was measured
        beta = step
        scores = evaluate(beta)
    return first, beta, scores


def _half_width(scores: _Scores, units: npt.NDArray[np.int64] | None, blocks: bool) -> float | None:
    """Of the 95 % interval of ln T; None where the units are too few or show no curvature.

    The fitted ln T moves with the sums over units as one Newton step from it does, mean gap / mean curvature; in ln T
    the curvature is the logit variance plus the gap.
    """
    columns = np.ones_like(scores.gap), scores.gap, scores.logit_variance + scores.gap
    sums = np.stack(columns, axis=1)
    if units is not None:
        place = np.unique(units, return_inverse=True)[1]
        sums = np.stack([np.bincount(place, column) for column in columns], axis=1)
    found = estimate(lambda totals: totals[..., 1] / totals[..., 2], sums, blocks=blocks)
    half = found.half_width()
    return half if math.isfinite(half) and half < math.log(HIGHEST / LOWEST) else None
