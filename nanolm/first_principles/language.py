"""A sentence as a product of conditional probabilities, and its perplexity."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nanolm.first_principles.step import Curve, Identity, Plot, Step, figure
from nanolm.loss import reference as exact
from nanolm.loss import softmax_nll


@dataclass(frozen=True)
class ScoredSentence:
    """A text cut into tokens, each with the probability that a model gave it after those before.

    Attributes:
        tokens: the tokens as they are shown, in quotes.
        log_probabilities: ln p(token | tokens before), in nats.
        num_bytes: UTF-8 bytes of the text that these tokens stand for.
        model: where the probabilities come from, in words.
    """

    tokens: Sequence[str]
    log_probabilities: Sequence[float]
    num_bytes: int
    model: str


def bigram_sentence(sentence: str) -> ScoredSentence:
    """The characters of a text under a bigram that was counted on that very text, one added to each count.

    The first character is given; every later one has p(c | previous) = (count + 1) / (count of previous + V), with V
    different characters.
    """
    pairs, singles = Counter(itertools.pairwise(sentence)), Counter(sentence[:-1])
    num_kinds = len(set(sentence))
    log_probabilities = [
        math.log((pairs[before, after] + 1) / (singles[before] + num_kinds))
        for before, after in itertools.pairwise(sentence)
    ]
    return ScoredSentence(
        [repr(character) for character in sentence[1:]],
        log_probabilities,
        len(sentence[1:].encode()),
        "a character bigram, counted on the sentence itself with one added to each count, given the first character",
    )


def chain_rule(scored: ScoredSentence) -> Step:
    """The probability of a sentence is a product of conditional ones, its surprisal a sum over tokens."""
    logs = np.array(scored.log_probabilities)
    total = np.cumsum(-logs)
    rows = [
        (str(place), token, figure(math.exp(log)), f"{-log:z.3f}", f"{so_far:z.3f}")
        for place, (token, log, so_far) in enumerate(zip(scored.tokens, logs, total, strict=True), 1)
    ]
    # The product of as many as a float64 holds, twenty at most.
    few = min(20, int(np.searchsorted(total, 700)))
    places = list(range(1, len(logs) + 1))
    return Step(
        title="A sentence, token by token",
        formula="ln p(x₁ … xₙ) = Σ ln p(xₜ | x₁ … xₜ₋₁)",
        about="The same step from a joint probability to a product, with no independence assumed: each token has its "
        "probability given those before it. That holds for any text and any model. A language model is a softmax "
        "classifier of the next token, and its training loss is the mean of this column of surprisals. Here: "
        f"{scored.model}.",
        table=(("place", "token", "probability", "surprisal (nats)", "so far"), *rows),
        identities=(
            Identity(
                f"-ln of the product of the first {few} = the sum of their surprisals",
                -math.log(exact.joint_probability(np.exp(logs[:few]))),
                float(-logs[:few].sum()),
                1e-9,
            ),
            Identity("the last sum = the sequence's NLL", float(total[-1]), exact.sequence_nll(logs), 1e-9),
        ),
        plot=Plot(
            "token",
            "surprisal (nats)",
            (Curve("each token", places, (-logs).tolist(), style="bars"),),
            levels=(("mean", exact.average_token_nll(logs)),),
            names=scored.tokens,
        ),
    )


def perplexity(scored: ScoredSentence) -> Step:
    """exp(mean NLL): the number of equally likely choices that would cost as much."""
    kinds = (2, 10, 256, 50_257)
    uniform = [softmax_nll(torch.zeros(1, k, dtype=torch.float64), torch.tensor([0])).nll.item() for k in kinds]
    logs = np.array(scored.log_probabilities)
    mean = exact.average_token_nll(logs)
    bits_per_byte = exact.sequence_nll(logs) / math.log(2) / max(scored.num_bytes, 1)
    grid = np.linspace(0, max(6.0, mean + 1), 61)
    return Step(
        title="Perplexity: an NLL as a number of choices",
        formula="PPL = exp(-1/n Σ ln p(xₜ | …)) = (Π p)^(-1/n)",
        about="A model that knows nothing of k tokens has perplexity k; the less surprised, the lower. It depends on "
        "what a token is; bits per byte, the NLL of all the text over its bytes, does not, and compares models of "
        "different tokenizers.",
        table=(
            ("model", "NLL (nats per token)", "perplexity", "bits per token", "bits per byte"),
            *(
                (f"uniform over {k:,}", f"{nll:.4f}", f"{math.exp(nll):,.2f}", f"{nll / math.log(2):.3f}", "-")
                for k, nll in zip(kinds, uniform, strict=True)
            ),
            (
                "the sentence above",
                f"{mean:z.4f}",
                f"{exact.perplexity(logs):,.2f}",
                f"{mean / math.log(2):z.3f}",
                f"{bits_per_byte:z.3f}",
            ),
        ),
        identities=(
            *(
                Identity(f"exp(NLL), uniform over {k:,}", math.exp(nll), k, 1e-9)
                for k, nll in zip(kinds, uniform, strict=True)
            ),
            Identity(
                "the sentence's PPL = exp of its mean NLL = (Π p)^(-1/n)",
                exact.perplexity(logs),
                float(np.prod(np.exp(-logs / len(logs)))),
                1e-9,
            ),
        ),
        plot=Plot(
            "NLL (nats per token)",
            "perplexity",
            (
                Curve("exp(NLL)", grid.tolist(), np.exp(grid).tolist()),
                Curve("the sentence above", [mean], [math.exp(mean)], style="dots"),
            ),
            ylog=True,
        ),
    )
