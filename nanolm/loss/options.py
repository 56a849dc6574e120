"""The choices of a loss: the options of the objective, the reduction, and the per-token statistics."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from nanolm.errors import ConfigError

Reduction = Literal["sum", "mean", "none"]
Statistics = Literal["none", "basic", "full"]


@dataclass(frozen=True)
class LossOptions:
    """How logits u (for a language model u = hWᵀ + b) become an objective, applied in this order:

    - s = softcap · tanh(u / softcap), or s = u where softcap is None
    - z = s / temperature, the logits of the model's distribution p = softmax(z)
    - q = (1 - label_smoothing) · (soft target or one-hot) + label_smoothing / V, the target distribution
    - objective = lse(z) - q·z + z_loss · lse(z)², with lse(z) = ln Σ exp(z)

    label_smoothing is Szegedy et al. 2016 (arXiv:1512.00567), z_loss is PaLM's (arXiv:2204.02311, section 5),
    softcap is Gemma 2's (arXiv:2408.00118). Tokens whose target equals ignore_index count nowhere.

    Raises ConfigError where a value is outside its range.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    temperature: float = 1.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        expect(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)", self.label_smoothing)
        expect(0 <= self.z_loss < math.inf, "z_loss", "a finite number >= 0", self.z_loss)
        if self.softcap is not None:
            expect(0 < self.softcap < math.inf, "softcap", "a finite number > 0, or None for no cap", self.softcap)
        expect(0 < self.temperature < math.inf, "temperature", "a finite number > 0", self.temperature)

    @property
    def scoring(self) -> "LossOptions":
        """These options with the NLL as the objective: no label smoothing and no z-loss."""
        return replace(self, label_smoothing=0.0, z_loss=0.0)

    def at_temperature(self, temperature: float) -> "LossOptions":
        """Return these options with z divided by a further ``temperature``."""
        return replace(self, temperature=self.temperature * temperature)


def expect(condition: bool, name: str, expected: str, found: object) -> None:
    """Raise ConfigError unless ``condition`` holds for the argument or option ``name``."""
    if not condition:
        raise ConfigError(f"{name}: expected {expected}, found {found}")


def check_choice(name: str, value: str, choices: object) -> None:
    """Raise ConfigError unless ``value`` is one of the strings of the Literal ``choices``."""
    if value not in get_args(choices):
        raise ConfigError(f"{name}: expected one of {get_args(choices)}, found {value!r}")
