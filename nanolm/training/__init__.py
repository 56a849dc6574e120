"""The parts of a training run: the step and its state, the objective, checkpoints; ``nanolm.train`` is the run."""

from nanolm.training.checkpoint import Checkpoint, find_checkpoint

__all__ = ["Checkpoint", "find_checkpoint"]
