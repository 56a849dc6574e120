"""Reading a ``calibration.json`` that may be damaged, or made by a stranger."""

import math
from typing import Any

from nanolm.files import parse_json


def parse_calibration(data: bytes) -> dict[str, Any]:
    """The content of ``calibration.json`` as ``calibration_json`` makes it: a fitted temperature, or a reason.

    Raises:
        ValueError: it is something else; the message says what was expected and what was found.
    """
    content: dict[str, Any] = _typed(parse_json(data), dict, "the file")
    if "temperature" in content and content["temperature"] is None:
        _typed(content.get("reason"), str, "reason")
        return content
    temperature = _typed(content.get("temperature"), dict, "temperature")
    if not 0 < _number(temperature.get("value"), "temperature.value") < math.inf:
        raise ValueError(f"temperature.value: expected a number above 0, found {temperature['value']!r:.60}")
    for end in ("low", "high"):
        if temperature.get(end) is not None:
            _number(temperature[end], f"temperature.{end}")
    curve = _typed(content.get("curve"), dict, "curve")
    axes = [_typed(curve.get(name), list, f"curve.{name}") for name in ("temperature", "nll")]
    if len(axes[0]) != len(axes[1]):
        raise ValueError(f"curve: expected as many temperatures as NLLs, found {len(axes[0])} and {len(axes[1])}")
    for value in (*axes[0], *axes[1]):
        _number(value, "curve")
    return content


def _typed(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{what}: expected a {kind.__name__}, found {value!r:.60}")
    return value


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or (type(value) is int and abs(value) >= 1 << 63):
        raise ValueError(f"{what}: expected a number, found {value!r:.60}")
    return float(value)
