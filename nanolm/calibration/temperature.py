"""The temperature that minimises the NLL, found exactly without ever keeping (tokens, vocabulary) logits.

For logits s and β = 1/T the mean NLL of softmax(βs) is convex in β, with

    dNLL/dβ = E[E_p s - s_y],        d²NLL/dβ² = E[Var_p s]

(Guo et al. 2017, arXiv:1706.04599, for the method). In z = βs, which is what a loss reports on, these read

    β dNLL/dβ = E[NLL - entropy],    β² d²NLL/dβ² = E[Var_p z]

so that Newton's step is β ← β (1 - mean entropy gap / mean logit variance), and one pass of the loss with full
statistics gives all of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanolm.errors import DataError, NonFiniteError
from nanolm.loss import LossOptions, NLLResult, bernoulli_nll, linear_nll, softmax_nll
from nanolm.metrics.intervals import estimate
from nanolm.metrics.records import Calibration, Curve, Interval

LOWEST, HIGHEST = 0.02, 50.0
TOLERANCE = 1e-5
CURVE_RATIOS = np.geomspace(0.5, 2.0, 13)
"""Temperatures of the plotted curve, relative to the fitted one."""
_MAX_STEPS = 60
_TOKENS_AT_ONCE = 1 << 14

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
NO_OPTIONS = LossOptions()


class CalibrationRefused(DataError):
    """The data have no temperature that a fit could be trusted with."""


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature; NLL in nats per token.

    Attributes:
        low, high: its 95 % interval over the units, symmetric in ln T; None if they are too few.
        nll: on the fitting data at T = 1.
        gradient: dNLL/d ln β at the fitted temperature; 0 at the exact optimum.
    """

    temperature: float
    low: float | None
    high: float | None
    nll: float
    nll_at_temperature: float
    gradient: float
    num_tokens: int

    def record(self, split: str, nll_at: Callable[[float], float]) -> Calibration:
        """Return the content of ``calibration.json``, with ``nll_at`` at each temperature of the plotted curve."""
        temperatures = (self.temperature * CURVE_RATIOS).tolist()
        return Calibration(
            temperature=Interval(self.temperature, self.low, self.high),
            nll=self.nll,
            nll_at_temperature=self.nll_at_temperature,
            gradient=self.gradient,
            split=split,
            num_tokens=self.num_tokens,
            curve=Curve(temperature=temperatures, nll=[nll_at(temperature) for temperature in temperatures]),
        )


def fit_temperature(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    options: LossOptions = NO_OPTIONS,
    units: Integers | None = None,
    blocks: bool = False,
    heartbeat: Callable[[], None] = lambda: None,
) -> TemperatureFit:
    """Fit the temperature of softmax(hidden @ weight.T + bias); it divides what ``options`` make of the logits.

    Args:
        hidden: (N, D) hidden states of the calibration tokens.
        weight: (V, D) of the head; bias: (V,) or None.
        targets: (N,) class indices, or options.ignore_index.
        options: softcap and temperature are the model's own; smoothing and z-loss play no part.
        units: (N,) the document of each token, for an interval that accounts for dependence within documents.
        blocks: whether the units are neighbouring blocks of a text, as for ``intervals.estimate``.
        heartbeat: called before each part of a pass over the tokens; an exception from it aborts the fit.

    Raises:
        CalibrationRefused: no valid token, or the best temperature is outside [0.02, 50].
        NonFiniteError: a logit is NaN or plus infinity, or a target's is minus infinity.
    """

    def score(temperature: float, part: slice) -> NLLResult:
        heartbeat()
        scaled = options.at_temperature(temperature)
        return linear_nll(hidden[part], weight, targets[part], bias, options=scaled, statistics="full")

    return _fit(score, len(hidden), units, blocks)


def fit_temperature_from_logits(
    logits: Tensor, targets: Tensor, options: LossOptions = NO_OPTIONS, units: Integers | None = None
) -> TemperatureFit:
    """Fit the temperature of a classifier: (N, V) logits with class indices, or (N,) log-odds with 0 and 1.

    Raises:
        CalibrationRefused, NonFiniteError: as ``fit_temperature``.
    """

    def score(temperature: float, part: slice) -> NLLResult:
        scaled = options.at_temperature(temperature)
        if logits.dim() == 1:
            return bernoulli_nll(logits[part], targets[part], scaled)
        return softmax_nll(logits[part], targets[part], options=scaled)

    return _fit(score, len(logits), units, blocks=False)


@torch.no_grad()
def nll_curve(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperatures: Sequence[float] | Floats,
    bias: Tensor | None = None,
    options: LossOptions = NO_OPTIONS,
) -> Floats:
    """Return the (K,) mean NLL in nats per token at each of K temperatures."""
    results = [
        linear_nll(hidden, weight, targets, bias, options=options.at_temperature(float(temperature)), statistics="none")
        for temperature in temperatures
    ]
    return np.array([float(result.nll.double().sum()) / max(int(result.count), 1) for result in results])


@dataclass(frozen=True)
class _Pass:
    """The valid tokens at one temperature: their mean NLL, and (M,) float64 entropy gap and logit variance of each.

    Attributes:
        valid: (N,) which of all tokens they are.
    """

    nll: float
    gap: Floats
    logit_variance: Floats
    valid: npt.NDArray[np.bool_]

    @property
    def gradient(self) -> float:
        return float(self.gap.mean())


@torch.no_grad()
def _fit(
    score: Callable[[float, slice], NLLResult], num_tokens: int, units: Integers | None, blocks: bool
) -> TemperatureFit:
    """Fit the temperature of anything that can be scored at a temperature, part by part."""
    parts = [slice(start, start + _TOKENS_AT_ONCE) for start in range(0, num_tokens, _TOKENS_AT_ONCE)]

    def measure(beta: float) -> _Pass:
        return _measure([score(1 / beta, part) for part in parts])

    first = measure(1.0)
    if not first.logit_variance.any():
        raise CalibrationRefused("every T near 1 fits equally well: all logits are equal, or too far apart to matter")
    beta, best = _minimise(measure, first)
    temperature = 1 / beta
    _require_optimum(temperature, first, best)
    if best.nll > first.nll:
        temperature, best = 1.0, first  # equal but for rounding: nothing to gain
    half = _half_width(best, units, blocks)
    return TemperatureFit(
        temperature=temperature,
        low=None if half is None else temperature * math.exp(-half),
        high=None if half is None else temperature * math.exp(half),
        nll=first.nll,
        nll_at_temperature=best.nll,
        gradient=best.gradient,
        num_tokens=len(best.gap),
    )


def _measure(results: Sequence[NLLResult]) -> _Pass:
    columns: list[Floats] = []
    for result in results:
        assert result.entropy is not None, "statistics are full"
        assert result.logit_variance is not None, "statistics are full"
        nll = result.nll.double()
        columns.append(torch.stack([nll, nll - result.entropy, result.logit_variance.double()]).cpu().numpy())
    valid = np.concatenate([result.valid.cpu().numpy() for result in results]) if results else np.zeros(0, bool)
    if not valid.any():
        raise CalibrationRefused("a temperature cannot be fitted to no tokens; the calibration split is empty")
    nll, gap, variance = np.concatenate(columns, axis=1)[:, valid]
    if not (np.isfinite(gap).all() and np.isfinite(variance).all()):
        raise NonFiniteError("a temperature cannot be fitted: some logits are NaN or infinite, or exclude the target")
    return _Pass(float(nll.mean()), gap, variance, valid)


def _minimise(measure: Callable[[float], _Pass], first: _Pass) -> tuple[float, _Pass]:
    """Find the best β by Newton's method, within a bracket of the sign change of the gradient, which rises with β."""
    found, beta, low, high = first, 1.0, 1 / HIGHEST, 1 / LOWEST
    for _ in range(_MAX_STEPS):
        low, high = (beta, high) if found.gradient < 0 else (low, beta)
        variance = float(found.logit_variance.mean())
        step = beta * (1 - found.gradient / variance) if variance > 0 else math.inf
        if not low < step < high:  # towards the end of the bracket, on the scale of ln β
            step = math.sqrt(low * high)
        if abs(1 / step - 1 / beta) < TOLERANCE:
            break  # the optimum is no further than that from where the loss was measured
        beta = step
        found = measure(beta)
    return beta, found


def _require_optimum(temperature: float, first: _Pass, best: _Pass) -> None:
    # At any T a token whose target is not the largest logit costs ln 2 at least. If all together cost less, all are
    # correct, and the NLL falls until it is too small for a float: there is no optimum, only an underflow.
    if best.nll * len(best.gap) < 0.99 * math.log(2):
        raise CalibrationRefused(
            "every prediction on the calibration split is correct, so no T above 0 minimises the NLL"
        )
    if not LOWEST * 1.01 < temperature < HIGHEST / 1.01:
        kind = "correct" if temperature < 1 else "wrong, or correct no more often than by chance"
        raise CalibrationRefused(
            f"the best T is outside [{LOWEST:g}, {HIGHEST:g}]: (nearly) all calibration predictions are {kind}"
        )
    if best.nll > first.nll + 1e-6 * abs(first.nll):
        raise CalibrationRefused(
            f"NLL {best.nll:.6f} at the fitted T = {temperature:.5f} is above {first.nll:.6f} at T = 1"
        )


def _half_width(found: _Pass, units: Integers | None, blocks: bool) -> float | None:
    """Return half the 95 % interval of ln T; None if the units are too few or show no curvature.

    The fitted ln T moves with the sums over units as one Newton step from it does, mean gap / mean curvature; in ln T
    the curvature is the logit variance plus the gap.
    """
    columns = np.ones_like(found.gap), found.gap, found.logit_variance + found.gap
    sums = np.stack(columns, axis=1)
    if units is not None:
        place = np.unique(units[found.valid], return_inverse=True)[1]
        sums = np.stack([np.bincount(place, values) for values in columns], axis=1)
    half = estimate(lambda totals: totals[..., 1] / totals[..., 2], sums, blocks=blocks).half_width()
    return half if math.isfinite(half) and half < math.log(HIGHEST / LOWEST) else None
