"""Everything that a training step changes, and so everything that a checkpoint must hold."""

from dataclasses import dataclass, field
from typing import Any

import torch

from nanolm.errors import CheckpointError, NonFiniteError
from nanolm.metrics import TrailingCalibration
from nanolm.model import GPT
from nanolm.optim import Optimizers
from nanolm.tracking import Line


@dataclass
class TrainingState:
    """The model, its optimizers and its counters.

    Batches, learning rates and dropout are pure functions of the seed and the step: there is no position in the
    data and no random state to save.
    """

    model: GPT
    optimizers: Optimizers
    step: int = 0
    """Steps completed, skipped ones included."""
    tokens: int = 0
    """Target tokens seen."""
    seconds: float = 0.0
    """Wall time of training, evaluations and checkpoints included, over all starts of the run."""
    skipped_steps: int = 0
    """Steps whose gradient was not finite, so that they left the weights as they were."""
    skipped_in_a_row: int = 0
    """How many of them were the last ones."""
    trailing: TrailingCalibration = field(default_factory=TrailingCalibration)
    """Confidence and accuracy of the last 65,536 tokens or more, for ``train/ece``."""
    unlogged: Line = field(default_factory=dict)
    """Metrics of the last completed step while its evaluation is under way; then they are logged as one line."""

    def check_finite(self) -> None:
        """Look at every weight and every moment of the optimizers.

        Finite gradients are no promise: an update may overflow, or divide 0 by 0 where epsilon is too small.

        Raises:
            NonFiniteError: naming the first tensor that is not finite.
        """
        tensors = [*self.model.state_dict().items(), *self.optimizers.moments()]
        for name, tensor in tensors:
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(
                    f"step {self.step:,}: expected finite weights and moments, found NaN or infinity in {name}: an "
                    "update made it so, though its gradient was finite. Nothing was published since."
                )

    def state_dict(self) -> dict[str, Any]:
        """All but the weights, which have a file of their own: tensors, numbers, lists and dictionaries."""
        return {
            "optimizers": self.optimizers.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "trailing": self.trailing.state_dict(),
            "unlogged": self.unlogged,
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave.

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
        self.step = int(stored["step"])
        self.tokens = int(stored["tokens"])
        self.seconds = float(stored["seconds"])
        self.skipped_steps = int(stored["skipped_steps"])
        self.skipped_in_a_row = int(stored["skipped_in_a_row"])
        self.trailing.load_state_dict(stored["trailing"])
        self.unlogged = dict(stored["unlogged"])
