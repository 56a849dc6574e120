"""The decoder, and drawing text from it."""

from nanolm.model.generate import generate
from nanolm.model.gpt import GPT, KVCache

__all__ = ["GPT", "KVCache", "generate"]
