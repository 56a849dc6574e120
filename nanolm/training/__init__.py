"""Training: the run, the loop, and checkpoints."""

from nanolm.training.checkpoint import Checkpoint, find_checkpoint
from nanolm.training.run import train

__all__ = ["Checkpoint", "find_checkpoint", "train"]
