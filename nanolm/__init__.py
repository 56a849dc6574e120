"""nanolm: train small language models whose log-likelihoods and probabilities can be trusted."""

__version__ = "0.1.0"
