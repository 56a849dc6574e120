"""Predictions measured: every metric with its interval, for a language model's tokens and a classifier's examples.

A unit is what counts as independent and stays together: a document with its tokens, or an example with its repeats.
"""

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nanolm.errors import DataError
from nanolm.files import write_atomically
from nanolm.loss import NLLResult
from nanolm.metrics import CalibrationMeter
from nanolm.metrics.intervals import Interval, ece_interval, interval
from nanolm.metrics.sums import (
    AT_TEMPERATURE,
    BINNED,
    COLUMNS,
    NUM_BINS,
    SCALES,
    STATISTICS,
    WIDTH,
    Array,
    bin_gaps,
    bin_noise,
    column,
)


def prediction_values(result: NLLResult, scaled: NLLResult | None = None) -> dict[str, Array]:
    """(N,) values by the names of ``sums.PER_TOKEN``, from full statistics at temperature 1 and at the fitted one."""
    assert result.sum_squared_probabilities is not None, "statistics are full"
    nll = _array(result.nll)
    values = {
        "nll": nll,
        "confidence": _array(result.confidence),
        "correct": _array(result.correct),
        "entropy": _array(result.entropy),
        "brier": _array(result.sum_squared_probabilities) - 2 * np.exp(-nll) + 1,
    }
    return values if scaled is None else values | {"nll_at_temperature": _array(scaled.nll)}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Sums over the units of a split. NLL in nats per prediction."""

    statistics: ClassVar[dict[str, Callable[[Array], Array]]] = {
        name: statistic for name, statistic in STATISTICS.items() if name != "bits_per_byte"
    }

    split: str
    documents: Array
    """(num_documents, WIDTH), see ``nanolm.metrics.sums``; a classifier's documents are its examples"""
    blocks: Array | None = None
    """(num_blocks, WIDTH), in the order of the text, where documents are too few for an interval over them"""
    about_intervals: str
    """what the intervals rest on, in words"""
    meter: CalibrationMeter
    meter_at_temperature: CalibrationMeter | None = None

    @property
    def num_tokens(self) -> int:
        """Predictions scored."""
        return int(column(self.documents, "tokens").sum())

    def values(self) -> dict[str, float]:
        """Every figure of the whole split.

        Both perplexity and bits per byte can be infinite: an exponential that overflows, a split of empty documents.
        """
        total = np.array([math.fsum(values) for values in self.documents.T])
        found = self.meter.metrics() | {name: float(statistic(total)) for name, statistic in self.statistics.items()}
        if self.meter_at_temperature is not None:
            found |= {name: float(statistic(total)) for name, statistic in AT_TEMPERATURE.items()}
        return found

    def intervals(self) -> dict[str, Interval]:
        """95 % intervals over documents, or blocks where these are few, of every metric that has one.

        Those at the fitted temperature take that temperature as given.
        """
        units, blocks = (self.documents, False) if self.blocks is None else (self.blocks, True)
        statistics = self.statistics | (AT_TEMPERATURE if self.meter_at_temperature is not None else {})
        found = {
            name: interval(statistic, units, scale=SCALES.get(name, "log"), blocks=blocks)
            for name, statistic in statistics.items()
            if name not in ("ece", "perplexity", "refinement")
        }
        nll = found["nll"]
        if nll.low is not None and nll.high is not None and nll.high < 700:
            found["perplexity"] = Interval(math.exp(nll.value), math.exp(nll.low), math.exp(nll.high))
        if "nll_at_temperature" in found:
            found["refinement"] = found["nll_at_temperature"]
        found["ece"], without_noise = ece_interval(bin_gaps, bin_noise, units, blocks=blocks)
        values = self.values()
        if math.isfinite(without_noise):  # another estimate of the same number
            values["ece_debiased"], found["ece_debiased"] = without_noise, found["ece"]
        return {
            name: Interval(value, found[name].low, found[name].high) if name in found else Interval(value, None, None)
            for name, value in values.items()
        }

    def figures_json(self, temperature: Interval | None = None) -> dict[str, dict[str, float | None]]:
        """``{name: {"value", "low", "high"}}``; null where a value is not finite or an interval does not exist.

        Args:
            temperature: the fitted one that was scored, if any.
        """
        intervals = self.intervals()
        if self.meter_at_temperature is not None and temperature is not None:
            intervals["temperature"] = temperature
        return {name: interval_json(found) for name, found in intervals.items()}

    def reliability_json(self) -> dict[str, dict[str, list[float]]]:
        """The bins of a reliability diagram at T = 1 and, where everything was scored there too, at the fitted T."""
        reliability = {"1": _reliability(self.meter)}
        if self.meter_at_temperature is not None:
            reliability["fitted"] = _reliability(self.meter_at_temperature)
        return reliability

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


def read_units(path: Path) -> tuple[Array, bool]:
    """(U, WIDTH) sums of a file by ``Measurement.write_documents``, and whether they are blocks rather than documents.

    NLL at a temperature that was not fitted is NaN.

    Raises:
        DataError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            prefix = "block_" if "block_num_tokens" in file else ""
            sums = np.full((len(file[f"{prefix}num_tokens"]), WIDTH), np.nan)
            for name in COLUMNS:
                stored = prefix + _stored_name(name)
                if stored in file or name != "nll_at_temperature":
                    column(sums, name)[:] = file[stored]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected the sums of a run over its documents, found {error!r}") from None
    return sums, bool(prefix)


def interval_json(found: Interval) -> dict[str, float | None]:
    """``{"value", "low", "high"}``; null where a value is not finite or an interval does not exist."""
    return {"value": finite(found.value), "low": finite(found.low), "high": finite(found.high)}


def finite(value: float | None) -> float | None:
    """A value as JSON can hold it: None where it is not finite."""
    return None if value is None or not math.isfinite(value) else value


def _array(values: Any) -> Array:
    """A tensor as float64 on the CPU, where sums of many tokens keep their digits."""
    array: Array = values.double().cpu().numpy()
    return array


def _stored_name(name: str) -> str:
    counts = {"tokens": "num_tokens", "bytes": "num_bytes", "correct": "num_correct"}
    return counts.get(name) or (name if name in BINNED else f"{name}_sum")


def _named(sums: Array, prefix: str) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name in COLUMNS:
        values = column(sums, name)
        whole = name in ("tokens", "bytes", "correct", "bin_count", "bin_correct")
        arrays[prefix + _stored_name(name)] = values.astype(np.int64) if whole else values
    return arrays


def _reliability(meter: CalibrationMeter) -> dict[str, list[float]]:
    bins = meter.reliability(NUM_BINS)
    return {name: np.asarray(getattr(bins, name)).tolist() for name in ("count", "confidence", "accuracy")}
