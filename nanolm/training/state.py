"""Everything that a training step changes, and so everything that a checkpoint must hold."""

from dataclasses import dataclass, field
from typing import Any

import torch

from nanolm.errors import CheckpointError, NonFiniteError
from nanolm.metrics import TrailingCalibration
from nanolm.model import GPT
from nanolm.optim import Optimizers

COUNTERS = {"step": int, "tokens": int, "seconds": float, "skipped_steps": int, "skipped_in_a_row": int}


@dataclass
class TrainingState:
    """The model, its optimizers and its counters.

    Batches, learning rates and dropout are pure functions of the seed and the step: there is no position in the
    data and no random state to save.

    Attributes:
        step: steps completed, skipped ones included.
        tokens: target tokens seen.
        seconds: wall time of training, evaluations and checkpoints included, over all starts of the run.
        skipped_steps: steps whose gradient was not finite, so that they left the weights as they were.
        skipped_in_a_row: how many of them were the last ones.
        trailing: the steps that ``train/ece`` is measured on.
    """

    model: GPT
    optimizers: Optimizers
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    trailing: TrailingCalibration = field(default_factory=TrailingCalibration)

    def check_finite(self) -> None:
        """Check every weight and every moment of the optimizers.

        Finite gradients are no guarantee: an update may overflow, or divide 0 by 0 if epsilon is too small.

        Raises:
            NonFiniteError: naming the first tensor that is not finite.
        """
        for name, tensor in [*self.model.state_dict().items(), *self.optimizers.moments()]:
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(
                    f"step {self.step:,}: expected finite weights and moments, found NaN or infinity in {name}: an "
                    "update made it so, though its gradient was finite. Nothing was published since."
                )

    def num_bytes(self) -> int:
        """Return the bytes of weights and moments, whether there are moments yet or not."""
        weights: int = sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())
        return weights + self.optimizers.num_moment_bytes()

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the weights, which have a file of their own: tensors, numbers, lists, dictionaries."""
        counters = {name: getattr(self, name) for name in COUNTERS}
        return counters | {"optimizers": self.optimizers.state_dict(), "trailing": self.trailing.state_dict()}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            CheckpointError: a part is missing or unknown, or belongs to another model or optimizer.
        """
        expected = self.state_dict().keys()
        if stored.keys() != expected:
            missing, unknown = (sorted(map(str, keys)) for keys in (expected - stored.keys(), stored.keys() - expected))
            raise CheckpointError(
                f"not a training state: missing {', '.join(missing) or 'nothing'}, "
                f"unknown {', '.join(unknown) or 'nothing'}"
            )
        updated = int(stored["step"]) > int(stored["skipped_steps"])
        self.optimizers.load_state_dict(stored["optimizers"], updated=updated)
        self.trailing.load_state_dict(stored["trailing"])
        for name, kind in COUNTERS.items():
            setattr(self, name, kind(stored[name]))
