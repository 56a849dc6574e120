"""What an evaluation of a language model found, and the table that a person reads of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nanolm.evaluation.calibrated import InverseSmoothing, calibrator_rows
from nanolm.metrics.intervals import Interval
from nanolm.metrics.measurement import Measurement, finite, interval_json
from nanolm.metrics.sums import STATISTICS, column

MEANINGS = {
    "nll": "nats per token, end-of-text included",
    "perplexity": "exp(NLL)",
    "bits_per_byte": "all NLL / ln 2 / UTF-8 bytes of the text",
    "accuracy": "share of tokens where the most likely one is right",
    "confidence": "mean probability of the most likely token; above accuracy: overconfident",
    "ece": "mean distance of confidence and accuracy in 15 equal bins; noise raises it",
    "ece_debiased": "the same without what noise adds; 0: noise alone explains it",
    "smooth_ece": "the same without bins (kernel of fitted width); noise raises it",
    "brier": "Σ (probability - outcome)² over the vocabulary",
    "entropy": "nats per token that the model expects to lose",
    "entropy_gap": "NLL - entropy; above 0: a higher temperature lowers the NLL",
    "temperature": "T of the lowest NLL on the calibration split",
    "nll_at_temperature": "NLL with the logits divided by T",
    "calibration_error": "NLL - NLL at T: what this T gains here; below 0 it costs",
    "refinement": "NLL at T: what is left",
}
"""The metrics of the table, in its order; ``evaluation.json`` holds more.

Entropy gap and temperature speak of the whole distribution, ECE and confidence of the most likely token alone: a model
can be overconfident in the one and underconfident in the other.
"""

DURING_TRAINING = tuple(name for name in tuple(MEANINGS)[:11] if name != "ece_debiased")
"""Those that training logs for val: all but what needs an interval or a fitted temperature."""


@dataclass(frozen=True)
class Slice:
    """Metrics of one group of tokens; ``intervals`` holds those of its entropy gap and its confidence - accuracy."""

    name: str
    num_tokens: int
    metrics: dict[str, float]
    intervals: dict[str, Interval]

    def as_json(self) -> dict[str, Any]:
        """Its part of ``evaluation.json``."""
        metrics = {name: finite(value) for name, value in self.metrics.items()}
        intervals = {name: interval_json(found) for name, found in self.intervals.items()}
        return {"name": self.name, "num_tokens": self.num_tokens, **metrics, **intervals}


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measurement):
    """A language model on a split; the tokens include each document's end-of-text."""

    statistics: ClassVar = STATISTICS

    sequence_length: int
    stride: int
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    num_classes: int = 0
    """size of the vocabulary"""
    inverse_smoothing: InverseSmoothing | None = None

    def metrics(self) -> dict[str, float]:
        """The figures that training logs for val."""
        values = self.values()
        return {name: values[name] for name in DURING_TRAINING}

    def as_json(self, step: int, temperature: Interval | None = None) -> dict[str, Any]:
        """The content of ``evaluation.json``; null where a value is not finite or an interval does not exist.

        Args:
            step: the checkpoint's.
            temperature: the fitted one that was scored, if any.
        """
        return {
            "split": self.split,
            "step": step,
            "num_tokens": self.num_tokens,
            "num_documents": len(self.documents),
            "num_bytes": int(column(self.documents.sum(axis=0), "bytes")),
            "num_classes": self.num_classes,
            "sequence_length": self.sequence_length,
            "stride": self.stride,
            "intervals": self.about_intervals,
            **self.figures_json(temperature),
            "reliability": self.reliability_json(),
            "calibrators": calibrator_rows(self, self.inverse_smoothing),
            "slices": {kind: [group.as_json() for group in found] for kind, found in self.slices.items()},
        }


def table(content: dict[str, Any]) -> tuple[str, list[tuple[str, str | float, str]]]:
    """Title and rows (name, value with its interval, meaning) of the table that a person reads of a JSON content."""
    step, num_tokens = content["step"], content["num_tokens"]
    title = f"{content['split']} after {step:,} steps: {num_tokens:,} tokens, each scored once; {content['intervals']}"
    return title, table_rows(content, MEANINGS)


def table_rows(content: Mapping[str, Any], meanings: Mapping[str, str]) -> list[tuple[str, str | float, str]]:
    """(name, value with its interval, meaning) of those of the figures that a JSON content has."""
    return [(name, interval_text(content[name]), meaning) for name, meaning in meanings.items() if name in content]


def summary_values(content: dict[str, Any]) -> dict[str, float | None]:
    """``<split>/<name>`` to value, for wandb's summary, of a JSON content."""
    split = content["split"]
    return {f"{split}/{name}": entry["value"] for name, entry in content.items() if is_interval(entry)}


def is_interval(entry: object) -> bool:
    """Whether an entry of a JSON content is a figure."""
    return isinstance(entry, dict) and entry.keys() == {"value", "low", "high"}


def interval_text(entry: dict[str, float | None]) -> str:
    """``4.257 [4.230, 4.291]``, without brackets where there is no interval."""
    value, low, high = (entry[part] for part in ("value", "low", "high"))
    if value is None:
        return "not finite"
    text = f"{value:#.4g}"
    return text if low is None or high is None else f"{text} [{low:#.4g}, {high:#.4g}]"
