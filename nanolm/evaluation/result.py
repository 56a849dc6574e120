"""What an evaluation found: values, intervals, and the files that it leaves."""

import io
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nanolm.calibration import CalibrationMeter
from nanolm.calibration.intervals import Interval, bootstrap_interval
from nanolm.evaluation.sums import AT_TEMPERATURE, COLUMNS, NUM_BINS, STATISTICS, Array, column
from nanolm.files import write_atomically

MEANINGS = {
    "nll": "nats per token, end-of-text included",
    "perplexity": "exp(NLL)",
    "bits_per_byte": "all NLL / ln 2 / UTF-8 bytes of the text",
    "accuracy": "share of tokens where the most likely one is right",
    "confidence": "mean probability of the most likely token",
    "ece": "mean distance of confidence and accuracy in 15 equal bins",
    "smooth_ece": "the same without bins (kernel of fitted width)",
    "brier": "Σ (probability - outcome)² over the vocabulary",
    "entropy": "nats per token that the model expects to lose",
    "entropy_gap": "NLL - entropy; above 0 the model is too sure",
    "temperature": "fitted on the calibration split; above 1 the model is too sure",
    "nll_at_temperature": "NLL with the logits divided by it",
    "calibration_error": "NLL - NLL at temperature: what one number mends",
    "refinement": "NLL at temperature: what is left",
}
"""The figures of the table, in its order; ``evaluation.json`` holds more."""

DURING_TRAINING = tuple(MEANINGS)[:10]
"""Those that training logs for val: all but what needs a fitted temperature."""


SIGNED = ("entropy_gap", "calibration_error")
"""Figures that can be below 0."""


@dataclass(frozen=True)
class Slice:
    """Figures of one group of tokens."""

    name: str
    num_tokens: int
    metrics: dict[str, float]

    def as_json(self) -> dict[str, str | float | None]:
        """Its part of ``evaluation.json``."""
        figures = {name: _finite(value) for name, value in self.metrics.items()}
        return {"name": self.name, "num_tokens": self.num_tokens, **figures}


@dataclass(frozen=True)
class Evaluation:
    """Sums over a split. NLL in nats; the tokens include each document's end-of-text."""

    split: str
    sequence_length: int
    stride: int
    documents: Array
    """(num_documents, WIDTH), see ``nanolm.evaluation.sums``"""
    blocks: Array | None
    """(num_blocks, WIDTH) where documents are too few to be resampled"""
    resampling: str
    """what the intervals rest on, in words"""
    meter: CalibrationMeter
    meter_at_temperature: CalibrationMeter | None = None
    slices: dict[str, list[Slice]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens scored."""
        return int(column(self.documents, "tokens").sum())

    def values(self) -> dict[str, float]:
        """Every figure of the whole split.

        Both perplexity and bits per byte can be infinite: an exponential that overflows, a split of empty documents.
        """
        total = np.array([math.fsum(values) for values in self.documents.T])
        found = self.meter.metrics() | {name: float(statistic(total)) for name, statistic in STATISTICS.items()}
        if self.meter_at_temperature is not None:
            found |= {name: float(statistic(total)) for name, statistic in AT_TEMPERATURE.items()}
        return found

    def metrics(self) -> dict[str, float]:
        """The figures that training logs for val."""
        values = self.values()
        return {name: values[name] for name in DURING_TRAINING}

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap intervals over documents, or blocks where these are few, of every figure that has one."""
        units = self.documents if self.blocks is None else self.blocks
        statistics = STATISTICS | (AT_TEMPERATURE if self.meter_at_temperature is not None else {})
        found = {
            name: bootstrap_interval(statistic, units, seed=seed)
            for name, statistic in statistics.items()
            if name not in ("perplexity", "refinement")  # functions of others
        }
        found = {name: _above_zero(found[name]) if name not in SIGNED else found[name] for name in found}
        nll = found["nll"]
        if nll.low is not None and nll.high is not None and nll.high < 700:
            found["perplexity"] = Interval(math.exp(nll.value), math.exp(nll.low), math.exp(nll.high))
        if "nll_at_temperature" in found:
            found["refinement"] = found["nll_at_temperature"]
        return {
            name: Interval(value, found[name].low, found[name].high) if name in found else Interval(value, None, None)
            for name, value in self.values().items()
        }

    def write_documents(self, path: Path) -> None:
        """Leave the sums per document, and per block where there are some, in an ``.npz`` file.

        Arrays are ``tokens`` and ``bytes`` as ``num_tokens`` and ``num_bytes``, ``correct`` as ``num_correct``,
        all others with ``_sum`` at the end, or by their own names where binned, (num_documents, 15).
        """
        arrays = _named(self.documents, "") | ({} if self.blocks is None else _named(self.blocks, "block_"))
        if self.meter_at_temperature is None:
            arrays = {name: array for name, array in arrays.items() if "nll_at_temperature" not in name}
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_atomically(path, content.getvalue())

    def as_json(self, step: int, temperature: Interval | None = None) -> dict[str, Any]:
        """The content of ``evaluation.json``; null where a value is not finite or an interval does not exist.

        Args:
            step: the checkpoint's.
            temperature: the fitted one that was scored, if any.
        """
        intervals = self.intervals()
        if self.meter_at_temperature is not None and temperature is not None:
            intervals["temperature"] = temperature
        total = self.documents.sum(axis=0)
        reliability = {"1": _reliability(self.meter)}
        if self.meter_at_temperature is not None:
            reliability["fitted"] = _reliability(self.meter_at_temperature)
        return {
            "split": self.split,
            "step": step,
            "num_tokens": self.num_tokens,
            "num_documents": len(self.documents),
            "num_bytes": int(column(total, "bytes")),
            "sequence_length": self.sequence_length,
            "stride": self.stride,
            "intervals": self.resampling,
            **{
                name: {"value": _finite(i.value), "low": _finite(i.low), "high": _finite(i.high)}
                for name, i in intervals.items()
            },
            "reliability": reliability,
            "slices": {kind: [group.as_json() for group in found] for kind, found in self.slices.items()},
        }


def table(content: dict[str, Any]) -> tuple[str, list[tuple[str, str | float, str]]]:
    """Title and rows (name, value with its interval, meaning) of the table that a person reads of a JSON content."""
    step, num_tokens = content["step"], content["num_tokens"]
    title = f"{content['split']} after {step:,} steps: {num_tokens:,} tokens, each scored once; {content['intervals']}"
    rows: list[tuple[str, str | float, str]] = []
    for name, meaning in MEANINGS.items():
        if name in content:
            rows.append((name, interval_text(content[name]), meaning))
    return title, rows


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


def _above_zero(interval: Interval) -> Interval:
    return replace(interval, low=None if interval.low is None else max(0.0, interval.low))


def _named(sums: Array, prefix: str) -> dict[str, Any]:
    counts = {"tokens": "num_tokens", "bytes": "num_bytes", "correct": "num_correct"}
    arrays: dict[str, Any] = {}
    for name in COLUMNS:
        values = column(sums, name)
        if name in counts:
            arrays[prefix + counts[name]] = values if prefix and name == "bytes" else values.astype(np.int64)
        elif values.ndim == 2:
            arrays[prefix + name] = values if name == "bin_confidence" else values.astype(np.int64)
        else:
            arrays[f"{prefix}{name}_sum"] = values
    return arrays


def _reliability(meter: CalibrationMeter) -> dict[str, list[float]]:
    bins = meter.reliability(NUM_BINS)
    return {name: np.asarray(getattr(bins, name)).tolist() for name in ("count", "confidence", "accuracy")}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
