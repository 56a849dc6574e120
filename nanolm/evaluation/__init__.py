"""Evaluation of a language model: its text cut into windows, every token scored once, and the temperature fitted."""

from nanolm.evaluation.scorer import Extras, Scorer
from nanolm.evaluation.windows import windows

__all__ = ["Extras", "Scorer", "windows"]
