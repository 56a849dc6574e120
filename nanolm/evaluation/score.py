"""One deterministic pass over a split: every token scored exactly once."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from nanolm.config.schema import EvaluateConfig, LossConfig
from nanolm.data import TokenSplit
from nanolm.device import Compute
from nanolm.evaluation.calibrated import InverseSmoothing
from nanolm.evaluation.groups import SlicedSums, TokenGroups, frequency_groups, position_group, position_names
from nanolm.evaluation.result import Evaluation
from nanolm.evaluation.windows import read_batches, windows
from nanolm.loss import LossOptions, NLLResult, linear_nll
from nanolm.metrics import CalibrationMeter
from nanolm.metrics.intervals import independent_units
from nanolm.metrics.measurement import prediction_values
from nanolm.metrics.sums import UnitSums
from nanolm.model import GPT


@dataclass(frozen=True)
class Extras:
    """What a final evaluation has beyond those during training."""

    temperature: float | None = None
    """a fitted temperature at which everything is scored once more"""
    groups: TokenGroups | None = None
    """frequencies of tokens, for slices"""
    label_smoothing: float = 0.0
    """where above 0, everything is scored once more with this smoothing inverted"""


def all_extras(
    temperature: float | None, counted: TokenSplit, vocab_size: int, end_of_text_id: int, loss: LossConfig
) -> Extras:
    """The whole picture of a trained model.

    Args:
        temperature: the fitted one, if any.
        counted: the split whose frequencies make the slices.
        vocab_size, end_of_text_id: of the tokenizer.
        loss: the objective that it was trained with. Its smoothing can be inverted where there was no teacher: beside
            one the optimum is another, which the inverse map does not know.
    """
    smoothing = 0.0 if loss.distillation.teacher else loss.label_smoothing
    return Extras(temperature, frequency_groups(counted, vocab_size, end_of_text_id), smoothing)


@torch.no_grad()
def evaluate(
    model: GPT,
    split: TokenSplit,
    sequence_length: int,
    config: EvaluateConfig,
    loss: LossOptions,
    compute: Compute,
    progress: Callable[[int, int], None] = lambda done, total: None,
    extras: Extras = Extras(),
) -> Evaluation:
    """Score a split. Draws no random number and leaves the model in the mode it was in.

    Args:
        model: any model whose ``head_weight`` maps hidden states to logits.
        split: the tokens, with the documents they belong to.
        sequence_length: tokens per window.
        config: stride and number of windows per forward pass.
        loss: softcap and temperature of the model; smoothing and z-loss play no part in an NLL.
        compute: where to run.
        progress: called with the targets scored so far and their total; what it raises ends the pass.
        extras: a fitted temperature, groups of tokens, a smoothing to invert: the whole picture.

    Raises:
        NonFiniteError: the model's logits are NaN.
    """
    stride = min(config.stride or sequence_length, sequence_length)
    scores = _Scores(split, sequence_length, extras.groups)
    inverted = InverseSmoothing(extras.label_smoothing) if extras.label_smoothing else None
    was_training = model.training
    model.eval()
    try:
        done = 0
        for batch in read_batches(split, windows(split.num_tokens, sequence_length, stride), config.batch_size):
            stream, scored = batch.tokens.to(compute.device), batch.is_scored.to(compute.device)
            with compute.autocast():
                inputs, targets = stream[:, :-1], stream[:, 1:][scored]
                hidden = model(inputs)[scored]
                result = linear_nll(hidden, model.head_weight, targets, options=loss, statistics="full")
                scaled = None
                if extras.temperature is not None:
                    softer = replace(loss, temperature=loss.temperature * extras.temperature)
                    scaled = linear_nll(hidden, model.head_weight, targets, options=softer)
                if inverted:
                    inverted.add(hidden, model.head_weight, targets, loss)
            scores.add(batch.position, batch.offset, inputs[scored], targets, result, scaled)
            done += len(batch.position)
            progress(done, split.num_tokens)
    finally:
        model.train(was_training)
    evaluation = scores.evaluation(stride, scaled=extras.temperature is not None)
    return replace(evaluation, num_classes=len(model.head_weight), inverse_smoothing=inverted)


class _Scores:
    """The sums of a pass."""

    def __init__(self, split: TokenSplit, sequence_length: int, groups: TokenGroups | None) -> None:
        self.split, self.sequence_length, self.groups = split, sequence_length, groups
        self.documents = UnitSums(split.num_documents)
        self.units = independent_units(split.documents.num_tokens)
        self.blocks = UnitSums(self.units.count) if self.units.kind == "blocks" else None
        self.meter, self.meter_at_temperature = CalibrationMeter(), CalibrationMeter()
        self.by_frequency = SlicedSums(self.units, groups.names) if groups else None
        self.by_position = SlicedSums(self.units, position_names(sequence_length)) if groups else None

    def add(
        self,
        position: npt.NDArray[np.int64],
        offset: npt.NDArray[np.int64],
        inputs: torch.Tensor,
        targets: torch.Tensor,
        result: NLLResult,
        scaled: NLLResult | None,
    ) -> None:
        """Add N tokens at these places of the split, with results at temperature 1 and at the fitted one.

        ``inputs``, (N,), are the tokens that the ``targets``, (N,), are predicted from.
        """
        self.meter.update(result)
        values = prediction_values(result, scaled) | {"bytes": self.split.bytes_of_id[targets.cpu().numpy()]}
        if scaled is not None:
            self.meter_at_temperature.update(scaled)
        document = np.searchsorted(self.split.documents.first_target, position, side="right") - 1
        self.documents.add(document, values)
        unit = self.units.unit_of(position)
        if self.blocks is not None:
            self.blocks.add(unit, values)
        if self.groups and self.by_frequency and self.by_position:
            self.by_frequency.add(unit, self.groups.of_id[inputs.cpu().numpy()], result, values)
            self.by_position.add(unit, position_group(offset), result, values)

    def evaluation(self, stride: int, scaled: bool) -> Evaluation:
        """What was summed, as metrics."""
        slices = {"frequency": self.by_frequency, "position": self.by_position}
        return Evaluation(
            split=self.split.name,
            sequence_length=self.sequence_length,
            stride=stride,
            documents=self.documents.values,
            blocks=None if self.blocks is None else self.blocks.values,
            about_intervals=self.units.description,
            meter=self.meter,
            meter_at_temperature=self.meter_at_temperature if scaled else None,
            slices={kind: found.slices() for kind, found in slices.items() if found},
        )
