"""From the probability of a dataset to the training of a language model, each identity computed as it is told.

Every module holds one stretch of the path as functions that return a ``Step``; ``run_first_principles`` is what
``scripts/first_principles.py`` calls.
"""

from nanolm.lessons.run import run_first_principles, walk
from nanolm.lessons.step import COLUMNS_OF_WORDS, Curve, Identity, Plot, Step

__all__ = ["COLUMNS_OF_WORDS", "Curve", "Identity", "Plot", "Step", "run_first_principles", "walk"]
