"""A trained model at work on text: every token of a split scored exactly once, and the temperature fitted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanolm.calibration.calibrators import calibrator_row, smoothing_inverted
from nanolm.calibration.temperature import CalibrationRefused, fit_temperature, nll_curve
from nanolm.config.schema import EvaluateConfig, LossConfig
from nanolm.data import Tokenizer, TokenSplit
from nanolm.device import Compute
from nanolm.errors import NanolmError, NonFiniteError
from nanolm.evaluation.slices import FREQUENCY_NAMES, SlicedSums, frequency_groups, position_group, position_names
from nanolm.evaluation.windows import Batch, Window, read_batches, windows
from nanolm.loss import LossOptions, linear_nll
from nanolm.metrics import Calibration, CalibrationMeter, CalibrationSize, Evaluation, Measurement, independent_units
from nanolm.metrics.records import Draw
from nanolm.model import GPT
from nanolm.seeds import derive_seed
from nanolm.stop import StopSignal

MAX_TOKENS = 1 << 18
"""Tokens of the calibration split that the temperature is fitted on at most, evenly spread over it."""
CURVE_TOKENS, JUDGED_TOKENS = 1 << 12, 1 << 15
"""Tokens that the curve of NLL against T is computed on, and that temperatures are compared on, at most."""
NUM_DRAWS = 5


@dataclass(frozen=True)
class Extras:
    """What a final evaluation measures in addition to those during training.

    Attributes:
        calibration: every token is scored once more at its temperature, if it has one.
        frequency_group: (V,) group of each id, for metrics of slices; see ``frequency_groups``.
        label_smoothing: if above 0, every token is scored once more with this smoothing inverted.
    """

    calibration: Calibration | None = None
    frequency_group: npt.NDArray[np.int64] | None = None
    label_smoothing: float = 0.0

    @classmethod
    def all(cls, calibration: Calibration, train: TokenSplit, tokenizer: Tokenizer, loss: LossConfig) -> "Extras":
        """Return all extras of a trained model.

        Args:
            train: the split whose frequencies make the slices.
            loss: the objective of the training. Its smoothing can be inverted only without a teacher: with one the
                optimum is another, which the inverse map does not know.
        """
        smoothing = 0.0 if loss.distillation.teacher else loss.label_smoothing
        groups = frequency_groups(train, tokenizer.vocab_size, tokenizer.end_of_text_id)
        return cls(calibration, groups, smoothing)


NO_EXTRAS = Extras()
Progress = Callable[[int, int], None]
"""Called with the targets scored so far and their total."""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class _HiddenStates:
    """(N, D) hidden states, the input of the model's head, with their (N,) targets and units."""

    hidden: Tensor
    targets: Tensor
    unit: npt.NDArray[np.int64]
    blocks: bool

    def nll_at(self, head: Tensor, loss: LossOptions, max_tokens: int) -> Callable[[float], float]:
        """Return the function from a temperature to the mean NLL of the first tokens at it."""
        hidden, targets = self.hidden[:max_tokens], self.targets[:max_tokens]
        return lambda temperature: float(nll_curve(hidden, head, targets, [temperature], options=loss)[0])


class Scorer:
    """Scores text with a model. A pass draws no random number and leaves the model in the mode it was in."""

    def __init__(
        self,
        model: GPT,
        sequence_length: int,
        config: EvaluateConfig,
        loss: LossOptions,
        compute: Compute,
        stop: StopSignal | None = None,
    ) -> None:
        """Keep a model, how its text is cut into windows, and where it runs.

        Args:
            model: anything that maps ids to hidden states, and whose ``head_weight`` maps these to logits.
            sequence_length: tokens per window.
            config: stride, and number of windows per forward pass.
            loss: softcap and temperature of the model; smoothing and z-loss play no part in an NLL.
            stop: once it has received a signal, every pass ends with StopRequested.
        """
        self.model, self.loss, self.compute = model, loss, compute
        self.sequence_length, self.batch_size = sequence_length, config.batch_size
        self.stride = min(config.stride or sequence_length, sequence_length)
        self._stop = stop or StopSignal()

    def evaluate(
        self, split: TokenSplit, step: int, extras: Extras, progress: Progress = no_progress, **about: Any
    ) -> tuple[Measurement, Evaluation]:
        """Score a split; return its sums, and the metrics with their intervals.

        Args:
            step: optimizer steps of the model.
            about: further keys of the evaluation, such as ``corpus``.

        Raises:
            NonFiniteError, StopRequested: as ``measure``.
        """
        measured = self.measure(split, extras, progress)
        return measured, measured.evaluation(
            step=step,
            num_classes=len(self.model.head_weight),
            calibration=extras.calibration,
            sequence_length=self.sequence_length,
            stride=self.stride,
            **about,
        )

    @torch.no_grad()
    def measure(self, split: TokenSplit, extras: Extras = NO_EXTRAS, progress: Progress = no_progress) -> Measurement:
        """Score every token of a split once.

        Raises:
            NonFiniteError: the model's logits are NaN.
            DataError: the split has no tokens.
            StopRequested: a signal came.
        """
        units, device, head = independent_units(split.documents.num_tokens), self.compute.device, self.model.head_weight
        temperature = extras.calibration.value if extras.calibration else None
        measured = Measurement(
            split.name,
            units.description,
            split.num_documents,
            units.count if units.kind == "blocks" else 0,
            at_temperature=temperature is not None,
            device=device,
        )
        inverted, floored = CalibrationMeter(device), 0.0
        by_frequency = SlicedSums(units, FREQUENCY_NAMES, device)
        by_position = SlicedSums(units, position_names(self.sequence_length), device)
        chosen = windows(split.num_tokens, self.sequence_length, self.stride)
        for batch, inputs, targets, hidden in self._hidden_states(split, chosen, progress):
            with self.compute.autocast():
                result = linear_nll(hidden, head, targets, options=self.loss, statistics="full")
                scaled = None
                if temperature is not None:
                    scaled = linear_nll(hidden, head, targets, options=self.loss.at_temperature(temperature))
                if extras.label_smoothing:
                    for part, share in smoothing_inverted(hidden, head, targets, self.loss, extras.label_smoothing):
                        inverted.update(part)
                        floored += share * len(part.nll)
            document = np.searchsorted(split.documents.first_target, batch.position, side="right") - 1
            unit, num_bytes = units.unit_of(batch.position), split.bytes_of_id[targets.cpu().numpy()]
            measured.add(result, document, unit, num_bytes, scaled)
            if extras.frequency_group is not None:
                by_frequency.add(unit, extras.frequency_group[inputs.cpu().numpy()], result)
                by_position.add(unit, position_group(batch.offset), result)
        if extras.frequency_group is not None:
            measured.slices = {"frequency": by_frequency.slices(), "position": by_position.slices()}
        measured.calibrators = [calibrator_row("none", measured.meter)]
        if measured.meter_at_temperature is not None:
            note = "one T, fitted on the calibration split"
            measured.calibrators.append(calibrator_row("temperature", measured.meter_at_temperature, note))
        if extras.label_smoothing:
            share = floored / max(inverted.num_tokens, 1)
            note = f"ε = {extras.label_smoothing:g}; share of probabilities floored: {share:.2%}"
            measured.calibrators.append(calibrator_row("inverse smoothing", inverted, note))
        return measured

    @torch.no_grad()
    def fit_temperature(self, split: TokenSplit | None, progress: Progress = no_progress) -> Calibration:
        """Fit the temperature on windows of a split that do not overlap; hidden states are computed once and kept.

        A fit that is refused is returned with its reason, since it must not cost a run its results.

        Raises:
            StopRequested: a signal came.
        """
        if split is None or split.num_tokens == 0:
            return Calibration.none("this corpus has no calibration split (data.calibration_fraction)")
        head = self.model.head_weight
        try:
            kept = self._keep_hidden_states(split, MAX_TOKENS, progress)
            with self.compute.autocast():
                fit = fit_temperature(
                    kept.hidden,
                    head,
                    kept.targets,
                    options=self.loss,
                    units=kept.unit,
                    blocks=kept.blocks,
                    heartbeat=self._stop.check,
                )
                return fit.record(split.name, kept.nll_at(head, self.loss, CURVE_TOKENS))
        except NanolmError as error:
            return Calibration.none(str(error))

    @torch.no_grad()
    def temperature_by_size(
        self, calibration: TokenSplit, val: TokenSplit, sizes: Sequence[int]
    ) -> list[CalibrationSize]:
        """Fit the temperature on random windows of the calibration split, five draws of each size.

        Each temperature is judged by the NLL at it on val, 2^15 tokens at most. ``sizes``, in tokens, above that of the
        split are left out; the last window of a draw is cut.

        Raises:
            StopRequested: a signal came.
        """
        head = self.model.head_weight
        kept = self._keep_hidden_states(calibration, MAX_TOKENS)
        nll_at = self._keep_hidden_states(val, JUDGED_TOKENS).nll_at(head, self.loss, JUDGED_TOKENS)

        def draw(size: int, number: int) -> Draw:
            generator = np.random.default_rng(derive_seed(size, number))
            starts = generator.permutation(np.arange(0, len(kept.targets), self.sequence_length))
            numbers = (starts[:, None] + np.arange(self.sequence_length)).ravel()
            chosen = torch.from_numpy(numbers[numbers < len(kept.targets)][:size]).to(kept.hidden.device)
            try:
                fit = fit_temperature(
                    kept.hidden[chosen], head, kept.targets[chosen], options=self.loss, heartbeat=self._stop.check
                )
            except (CalibrationRefused, NonFiniteError):
                return Draw(temperature=None, nll=None)
            return Draw(temperature=fit.temperature, nll=nll_at(fit.temperature))

        with self.compute.autocast():
            at_one = nll_at(1.0)
            return [
                CalibrationSize(num_tokens=size, nll_at_one=at_one, draws=[draw(size, i) for i in range(NUM_DRAWS)])
                for size in sorted(sizes)
                if size <= len(kept.targets)
            ]

    def _hidden_states(
        self, split: TokenSplit, chosen: Iterable[Window], progress: Progress
    ) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
        """Yield for each batch of windows its (S,) inputs and targets and (S, D) hidden states, of scored tokens."""
        was_training, done = self.model.training, 0
        self.model.eval()
        try:
            for batch in read_batches(split, chosen, self.batch_size):
                self._stop.check()
                stream, scored = (part.to(self.compute.device) for part in (batch.tokens, batch.is_scored))
                with self.compute.autocast():
                    hidden = self.model(stream[:, :-1])
                yield batch, stream[:, :-1][scored], stream[:, 1:][scored], hidden[scored]
                done += len(batch.position)
                progress(done, split.num_tokens)
        finally:
            self.model.train(was_training)

    def _keep_hidden_states(
        self, split: TokenSplit, max_tokens: int, progress: Progress = no_progress
    ) -> _HiddenStates:
        """Return the states of windows that do not overlap, ``max_tokens`` at most, evenly spread over the split."""
        chosen = list(windows(split.num_tokens, self.sequence_length, self.sequence_length))
        keep = max(1, max_tokens // self.sequence_length)
        if len(chosen) > keep:
            chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, keep).astype(int)]
        units = independent_units(split.documents.num_tokens)
        batches = [
            (hidden, targets, units.unit_of(batch.position))
            for batch, _, targets, hidden in self._hidden_states(split, chosen, progress)
        ]
        hidden, targets, unit = zip(*batches, strict=True)
        return _HiddenStates(torch.cat(hidden), torch.cat(targets), np.concatenate(unit), units.kind == "blocks")
