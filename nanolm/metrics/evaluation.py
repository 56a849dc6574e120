"""The record of an evaluation: a typed object in the program, JSON in ``evaluation*.json``."""

import math
from typing import Any

from pydantic import ConfigDict, Field, model_serializer, model_validator

from nanolm.files import Count
from nanolm.metrics.definitions import METRICS
from nanolm.metrics.records import (
    Calibration,
    CalibrationSize,
    CalibratorRow,
    Interval,
    Record,
    Reliability,
    Slice,
)


class Evaluation(Record):
    """The content of ``evaluation*.json``, where the metrics are keys like any other, by their own names."""

    model_config = ConfigDict(extra="ignore")

    split: str
    step: Count
    num_tokens: Count
    num_documents: Count
    num_bytes: Count | None = None
    num_classes: Count
    sequence_length: Count | None = None
    stride: Count | None = None
    intervals: str
    """the units that the intervals are computed over, in words"""
    metrics: dict[str, Interval]
    reliability: dict[str, Reliability]
    """at T = 1 under "1", and at the fitted temperature under "fitted" """
    calibrators: list[CalibratorRow] = Field([])
    slices: dict[str, list[Slice]] = Field({})
    calibration: Calibration | None = None
    calibration_sizes: list[CalibrationSize] = Field([])
    corpus: str | None = None
    """fingerprint of the text that was scored"""
    teacher: dict[str, Any] | None = None
    """the teacher's configuration by dotted names"""

    def value(self, metric: str) -> float | None:
        """Return a metric; None if it does not exist or is not finite."""
        found = self.metrics.get(metric)
        return found.value if found is not None and math.isfinite(found.value) else None

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "metrics" in content:
            return content
        return content | {"metrics": {name: content[name] for name in METRICS if name in content}}

    @model_serializer(mode="wrap")
    def _flatten(self, handler: Any) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        flat: dict[str, Any] = {}
        for key, value in content.items():
            flat |= value if key == "metrics" else {key: value}
        return flat
