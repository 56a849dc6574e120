"""How many calibration tokens a temperature needs: fitted on parts of the split, judged on val."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nanolm.calibration.temperature import CalibrationRefused, fit_temperature, nll_curve
from nanolm.config.schema import EvaluateConfig
from nanolm.data import TokenSplit
from nanolm.device import Compute
from nanolm.evaluation.temperature import hidden_states
from nanolm.loss import LossOptions
from nanolm.model import GPT
from nanolm.seeds import derive_seed

NUM_DRAWS = 5
JUDGED_TOKENS = 1 << 15


@torch.no_grad()
def temperature_by_size(
    model: GPT,
    calibration: TokenSplit,
    val: TokenSplit,
    sizes: Sequence[int],
    sequence_length: int,
    config: EvaluateConfig,
    loss: LossOptions,
    compute: Compute,
    look_for_signal: Callable[..., None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Fit the temperature on random windows of the calibration split, five draws of each size.

    Args:
        sizes: tokens of each draw; the last window of a draw is cut. Sizes above the split's are left out.
        look_for_signal: called between two fits; what it raises ends the study.

    Returns:
        for each size ``num_tokens``, and ``draws``: for each its ``temperature`` and the ``nll`` on val (2^15 tokens at
        most, in nats) at it, both null where the fit was refused; and ``nll_at_one``, that at T = 1.
    """
    kept = hidden_states(model, calibration, sequence_length, config, compute, progress=look_for_signal)
    judged = hidden_states(model, val, sequence_length, config, compute, JUDGED_TOKENS, look_for_signal)

    def judge(temperature: float) -> float:
        return float(nll_curve(judged.hidden, model.head_weight, judged.targets, [temperature], options=loss)[0])

    def draw(size: int, number: int) -> dict[str, float | None]:
        look_for_signal()
        chosen = torch.from_numpy(_random_windows(len(kept), size, sequence_length, derive_seed(size, number)))
        part = chosen.to(kept.hidden.device)
        try:
            fit = fit_temperature(kept.hidden[part], model.head_weight, kept.targets[part], options=loss)
        except CalibrationRefused:
            return {"temperature": None, "nll": None}
        return {"temperature": fit.temperature, "nll": judge(fit.temperature)}

    with compute.autocast():
        at_one = judge(1.0)
        return [
            {"num_tokens": size, "nll_at_one": at_one, "draws": [draw(size, number) for number in range(NUM_DRAWS)]}
            for size in sorted(sizes)
            if size <= len(kept)
        ]


def _random_windows(num_tokens: int, size: int, length: int, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of ``size`` tokens: whole windows of ``length`` drawn without replacement, the last one cut."""
    starts = np.random.default_rng(seed).permutation(np.arange(0, num_tokens, length))
    numbers = (starts[:, None] + np.arange(length)).ravel()
    return numbers[numbers < num_tokens][:size]
