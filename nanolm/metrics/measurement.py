"""Predictions of a split, measured: every metric with its interval, for a language model and a classifier alike.

A unit is what counts as independent and stays together: a document with its tokens, or an example with its repeats.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nanolm.errors import DataError
from nanolm.files import write_atomically
from nanolm.loss import NLLResult
from nanolm.metrics.definitions import METRICS, bin_gaps, bin_noise, of_rows
from nanolm.metrics.evaluation import Evaluation
from nanolm.metrics.intervals import ece_interval, interval
from nanolm.metrics.meter import CalibrationMeter
from nanolm.metrics.records import Calibration, CalibratorRow, Interval, Slice
from nanolm.metrics.tally import BINNED, SUMS, WIDTH, Floats, Tally, column

Integers = npt.NDArray[np.int64]


class Measurement:
    """Sums over the predictions of a split: per document, per block where documents are few, and over all of them."""

    def __init__(
        self,
        split: str,
        about_intervals: str,
        num_documents: int,
        num_blocks: int = 0,
        at_temperature: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Begin with no predictions.

        Args:
            about_intervals: the units that the intervals are computed over, in words.
            num_documents: documents of a text, or examples of a classifier.
            num_blocks: blocks of the text, if the documents are too few for an interval over them.
            at_temperature: whether each result comes with one at the fitted temperature.
        """
        self.split, self.about_intervals = split, about_intervals
        self._documents = Tally(num_documents, device=device)
        self._blocks = Tally(num_blocks, device=device) if num_blocks else None
        self.meter = CalibrationMeter(device)
        self.meter_at_temperature = CalibrationMeter(device) if at_temperature else None
        self.slices: dict[str, list[Slice]] = {}
        self.calibrators: list[CalibratorRow] = []

    def add(
        self,
        result: NLLResult,
        document: Integers,
        block: Integers | None = None,
        num_bytes: Integers | None = None,
        scaled: NLLResult | None = None,
    ) -> None:
        """Add N predictions, all of them valid.

        Args:
            result: with full statistics.
            document, block: (N,) numbers of the units that they belong to.
            num_bytes: (N,) bytes of text of each token.
            scaled: the same predictions at the fitted temperature.

        Raises:
            NonFiniteError: a statistic is NaN.
        """
        device = result.nll.device
        self.meter.update(result)
        if self.meter_at_temperature is not None and scaled is not None:
            self.meter_at_temperature.update(scaled)
        counted = None if num_bytes is None else torch.as_tensor(num_bytes, device=device)
        for tally, unit in ((self._documents, document), (self._blocks, block)):
            if tally is not None and unit is not None:
                tally.add(result, torch.as_tensor(unit, device=device), counted, scaled)

    @property
    def documents(self) -> Floats:
        """(num_documents, WIDTH) sums, see ``nanolm.metrics.tally``."""
        return self._documents.rows()

    @property
    def blocks(self) -> Floats | None:
        """(num_blocks, WIDTH) sums, in the order of the text."""
        return None if self._blocks is None else self._blocks.rows()

    def metrics(self) -> dict[str, float]:
        """Return every metric of the whole split, without the intervals; DataError if there are no predictions."""
        return of_rows(self.documents.sum(axis=0)) | {"smooth_ece": self.meter.smooth_ece()}

    def intervals(self) -> dict[str, Interval]:
        """Return every metric of the whole split with its 95 % interval, if it has one.

        Those at the fitted temperature take that temperature as given.

        Raises:
            DataError: there are no predictions.
        """
        smooth_ece = Interval(self.meter.smooth_ece())
        return intervals_of(self.documents, self.blocks) | {"smooth_ece": smooth_ece}

    def evaluation(
        self,
        *,
        step: int,
        num_classes: int,
        calibration: Calibration | None = None,
        record: type[Evaluation] = Evaluation,
        **about: Any,
    ) -> Evaluation:
        """Return the record of the evaluation; ``about`` are further keys of its class ``record``."""
        documents, metrics = self.documents, self.intervals()
        reliability = {"1": self.meter.reliability()}
        if self.meter_at_temperature is not None:
            reliability["fitted"] = self.meter_at_temperature.reliability()
            if calibration is not None and calibration.temperature is not None:
                metrics["temperature"] = calibration.temperature
        num_bytes = float(column(documents, "bytes").sum())
        return record(
            split=self.split,
            step=step,
            num_tokens=int(column(documents, "tokens").sum()),
            num_documents=len(documents),
            num_bytes=None if math.isnan(num_bytes) else int(num_bytes),
            num_classes=num_classes,
            intervals=self.about_intervals,
            metrics={name: metrics[name] for name in METRICS if name in metrics},
            reliability=reliability,
            calibrators=self.calibrators,
            slices=self.slices,
            calibration=calibration,
            **about,
        )

    def write_units(self, path: Path) -> None:
        """Write the sums per document, and per block if there are blocks, to an ``.npz`` file.

        Arrays are ``num_tokens``, ``num_bytes``, ``num_correct``, for every other sum its name with ``_sum``, and
        (num_documents, 15) ``bin_count``, ``bin_confidence``, ``bin_correct``; those of blocks begin with ``block_``.
        Statistics that were not measured are left out. ``read_units`` reads the file.
        """
        tables = {"": self.documents} | ({} if self.blocks is None else {"block_": self.blocks})
        arrays: dict[str, Any] = {}
        for prefix, rows in tables.items():
            for name in (*SUMS, *BINNED):
                values = column(rows, name)
                if not np.isnan(values).any():
                    whole = name in ("tokens", "bytes", "correct", "bin_count", "bin_correct")
                    arrays[prefix + _stored_name(name)] = values.astype(np.int64) if whole else values
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_atomically(path, content.getvalue())


def intervals_of(documents: Floats, blocks: Floats | None = None) -> dict[str, Interval]:
    """Return every metric that follows from sums with its 95 % interval, over blocks if there are any.

    Args:
        documents: (num_documents, WIDTH) sums; blocks: (num_blocks, WIDTH) sums of the same predictions.
    """
    units, is_blocks = (documents, False) if blocks is None else (blocks, True)
    found: dict[str, Interval] = {}
    for name, value in of_rows(documents.sum(axis=0)).items():
        metric, bounds = METRICS[name], Interval(value)
        assert metric.of_rows is not None, name
        if name == "ece":
            bounds, debiased = ece_interval(bin_gaps, bin_noise, units, blocks=is_blocks)
            if math.isfinite(debiased):  # another estimate of the same number
                found["ece_debiased"] = Interval(debiased, bounds.low, bounds.high)
        elif name != "perplexity":
            bounds = interval(metric.of_rows, units, scale=metric.scale, blocks=is_blocks)
        elif (nll := found["nll"]).low is not None and nll.high is not None and nll.high < 700:
            bounds = Interval(value, math.exp(nll.low), math.exp(nll.high))
        found[name] = Interval(value, bounds.low, bounds.high)
    return found


def read_units(path: Path) -> tuple[Floats, bool]:
    """Return the (U, WIDTH) sums of a file by ``write_units``, and whether they are blocks rather than documents.

    Blocks are read if the file has both. Bytes and NLL at the temperature are NaN if the file lacks them.

    Raises:
        DataError: it is no such file.
    """
    try:
        # numpy leaves a file open that it opened itself and that turns out to be damaged
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            prefix = "block_" if "block_num_tokens" in file else ""
            rows = np.full((len(file[f"{prefix}num_tokens"]), WIDTH), np.nan)
            for name in (*SUMS, *BINNED):
                stored = prefix + _stored_name(name)
                if stored in file or name not in ("bytes", "nll_at_temperature"):
                    target = column(rows, name)
                    np.copyto(target, file[stored].reshape(target.shape))
    except (OSError, LookupError, TypeError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected the sums of a run over its documents, found {error!r}") from None
    return rows, bool(prefix)


def _stored_name(name: str) -> str:
    if name in ("tokens", "bytes", "correct"):
        return f"num_{name}"
    return name if name in BINNED else f"{name}_sum"
