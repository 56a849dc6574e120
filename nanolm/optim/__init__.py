"""Muon, AdamW, and the schedule of their learning rates."""

from nanolm.optim.groups import Optimizers, build_optimizer
from nanolm.optim.muon import Muon
from nanolm.optim.schedule import learning_rate_factor

__all__ = ["Muon", "Optimizers", "build_optimizer", "learning_rate_factor"]
