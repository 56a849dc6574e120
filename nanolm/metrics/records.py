"""What a run leaves about its predictions: typed here, JSON in the files.

Each record is validated where it is read, since people and other programs may have changed the file. A number that is
not finite is null in JSON, which has no NaN, and NaN here.
"""

import math
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from nanolm.files import Count

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Record(BaseModel):
    """A part of a file: immutable, with exactly these keys and types."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Interval(Record):
    """A metric with its 95 % interval; ``low`` and ``high`` are None if there is none."""

    value: Number
    low: float | None = None
    high: float | None = None

    def __init__(self, /, *numbers: float | None, **named: Any) -> None:
        # pydantic calls it too, with whatever keys a file holds
        super().__init__(**dict(zip(("value", "low", "high"), numbers, strict=False)), **named)

    def __str__(self) -> str:
        return f"{self:#.4g}" if math.isfinite(self.value) else "not finite"

    def __format__(self, spec: str) -> str:
        if not spec:
            return str(self)
        text = format(self.value, spec)
        return text if self.low is None or self.high is None else f"{text} [{self.low:{spec}}, {self.high:{spec}}]"


class Reliability(Record):
    """Count, mean confidence and accuracy of each of equal bins of confidence; all are 0 in an empty bin."""

    count: list[Count]
    confidence: list[float]
    accuracy: list[float]


class Slice(Record):
    """Metrics of one group of tokens; ``confidence_gap`` is confidence - accuracy."""

    name: str
    num_tokens: Count
    nll: Number
    accuracy: Number
    confidence: Number
    entropy: Number
    entropy_gap: Interval
    confidence_gap: Interval


class CalibratorRow(Record):
    """Metrics under one map of the probabilities; NaN if not measured, as all are if the map could not be fitted."""

    calibrator: str
    note: str = ""
    nll: Number = math.nan
    ece: Number = math.nan
    smooth_ece: Number = math.nan
    brier: Number = math.nan
    accuracy: Number = math.nan
    confidence: Number = math.nan
    entropy_gap: Number = math.nan


class Draw(Record):
    """A temperature fitted on a part of the calibration split, and the NLL at it; null if the fit was refused."""

    temperature: float | None
    nll: float | None
    num_refused: Count = 0


class CalibrationSize(Record):
    """Temperatures fitted on parts of the calibration split that all hold this many tokens."""

    num_tokens: Count
    nll_at_one: float
    draws: list[Draw]


class Curve(Record):
    """NLL in nats per token at each of several temperatures."""

    temperature: list[float]
    nll: list[Number]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.temperature) != len(self.nll):
            raise ValueError(f"expected as many NLLs as temperatures, {len(self.temperature)}, found {len(self.nll)}")
        return self


class Calibration(Record):
    """The content of ``calibration.json``: a fitted temperature, or the reason why there is none."""

    temperature: Interval | None
    reason: str | None = None
    nll: Number = math.nan
    nll_at_temperature: Number = math.nan
    gradient: Number = math.nan
    split: str | None = None
    num_tokens: Count = 0
    curve: Curve | None = None

    @classmethod
    def none(cls, reason: str) -> Self:
        """Return a record without a temperature, for this reason."""
        return cls(temperature=None, reason=reason)

    @model_validator(mode="after")
    def _temperature_or_reason(self) -> Self:
        if (self.temperature is None) == (self.reason is None):
            raise ValueError("expected either a temperature or the reason why there is none")
        if self.temperature is not None and not 0 < self.temperature.value < math.inf:
            raise ValueError(f"temperature.value: expected a number above 0, found {self.temperature.value}")
        return self

    @property
    def value(self) -> float | None:
        """The temperature without its interval."""
        return None if self.temperature is None else self.temperature.value
