"""The temperature of a trained model, fitted on the hidden states of its calibration split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nanolm.calibration.temperature import TemperatureFit, fit_temperature, nll_curve
from nanolm.config.schema import EvaluateConfig
from nanolm.data import TokenSplit
from nanolm.device import Compute
from nanolm.errors import NanolmError
from nanolm.evaluation.windows import read_batches, windows
from nanolm.loss import LossOptions
from nanolm.metrics.intervals import Interval, independent_units
from nanolm.model import GPT

MAX_TOKENS = 1 << 18
CURVE_TOKENS = 1 << 12
CURVE_RATIOS = np.geomspace(0.5, 2.0, 13)


@dataclass(frozen=True)
class FittedTemperature:
    """What ``calibration.json`` holds."""

    split: str
    fit: TemperatureFit
    curve: list[tuple[float, float]]
    """(T, NLL at T) over the first tokens of the split, for a figure"""

    @property
    def interval(self) -> Interval:
        """The temperature with its 95 % interval."""
        return Interval(self.fit.temperature, self.fit.low, self.fit.high)

    def as_json(self) -> dict[str, Any]:
        """Plain values by the names of the contract."""
        fit = self.fit
        return {
            "temperature": {"value": fit.temperature, "low": fit.low, "high": fit.high},
            "nll": fit.nll,
            "nll_at_temperature": fit.nll_at_temperature,
            "gradient": fit.gradient,
            "split": self.split,
            "num_tokens": fit.num_tokens,
            "curve": {"temperature": [t for t, _ in self.curve], "nll": [nll for _, nll in self.curve]},
        }


def calibration_json(found: FittedTemperature | str) -> dict[str, Any]:
    """The content of ``calibration.json``: a fitted temperature, or null with the reason."""
    return {"temperature": None, "reason": found} if isinstance(found, str) else found.as_json()


@dataclass(frozen=True)
class HiddenStates:
    """Windows of a split as a model leaves them for its head."""

    hidden: torch.Tensor
    """(N, D)"""
    targets: torch.Tensor
    """(N,)"""
    unit: npt.NDArray[np.int64]
    """(N,) the document or block of each token"""
    blocks: bool
    """whether the units are blocks"""

    def __len__(self) -> int:
        return len(self.targets)


@torch.no_grad()
def hidden_states(
    model: GPT,
    split: TokenSplit,
    sequence_length: int,
    config: EvaluateConfig,
    compute: Compute,
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> HiddenStates:
    """Hidden states of windows that do not overlap, ``max_tokens`` at most, evenly spread over the split."""
    chosen = list(windows(split.num_tokens, sequence_length, sequence_length))
    keep = max(1, max_tokens // sequence_length)
    if len(chosen) > keep:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, keep).astype(int)]
    was_training = model.training
    model.eval()
    hidden, targets, units = [], [], []
    independent = independent_units(split.documents.num_tokens)
    try:
        for batch in read_batches(split, chosen, config.batch_size):
            stream, scored = batch.tokens.to(compute.device), batch.is_scored.to(compute.device)
            with compute.autocast():
                hidden.append(model(stream[:, :-1])[scored])
            targets.append(stream[:, 1:][scored])
            units.append(independent.unit_of(batch.position))
            progress(sum(map(len, units)), len(chosen) * sequence_length)
    finally:
        model.train(was_training)
    return HiddenStates(torch.cat(hidden), torch.cat(targets), np.concatenate(units), independent.kind == "blocks")


@torch.no_grad()
def fit_on_split(
    model: GPT,
    split: TokenSplit,
    sequence_length: int,
    config: EvaluateConfig,
    loss: LossOptions,
    compute: Compute,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FittedTemperature:
    """Fit the temperature on windows of a split that do not overlap, 2^18 tokens at most, evenly spread over it.

    Hidden states are computed once and kept; each step of the fit is one pass of the loss over them.

    Raises:
        NanolmError: the fit is refused, with the reason.
    """
    kept = hidden_states(model, split, sequence_length, config, compute, progress=progress)
    with compute.autocast():
        fit = fit_temperature(
            kept.hidden,
            model.head_weight,
            kept.targets,
            options=loss,
            units=kept.unit,
            blocks=kept.blocks,
            progress=lambda _: progress(len(kept), len(kept)),
        )
        ratios = fit.temperature * CURVE_RATIOS
        curve = nll_curve(
            kept.hidden[:CURVE_TOKENS], model.head_weight, kept.targets[:CURVE_TOKENS], ratios, options=loss
        )
    return FittedTemperature(split.name, fit, list(zip(ratios.tolist(), curve.tolist(), strict=True)))


def try_fit_on_split(
    model: GPT,
    split: TokenSplit | None,
    sequence_length: int,
    config: EvaluateConfig,
    loss: LossOptions,
    compute: Compute,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FittedTemperature | str:
    """``fit_on_split``, or the reason in words why there is no temperature: that must not cost a run its results."""
    if split is None or split.num_tokens == 0:
        return "this corpus has no calibration split (data.calibration_fraction)"
    try:
        return fit_on_split(model, split, sequence_length, config, loss, compute, progress)
    except NanolmError as error:
        return str(error)
