"""A sentence as a product of conditional probabilities, what could have come instead, and perplexity."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nanolm.lessons.step import Curve, Identity, Plot, Step, figure
from nanolm.loss import reference as exact
from nanolm.loss import softmax_nll

NUM_LIKELY = 8
"""tokens that are kept of each place; a table shows the first three"""


@dataclass(frozen=True)
class ScoredSentence:
    """A text cut into tokens, each with the probability that a model gave it after those before.

    Attributes:
        tokens: the tokens as they are shown, in quotes.
        log_probabilities: ln p(token | tokens before), in nats.
        entropies: at each place the expected surprisal of the next token, in nats.
        likely: at each place the most likely tokens, as they are shown, each with its probability.
        most_open: (V,) the probabilities at the place of the largest entropy.
        num_bytes: UTF-8 bytes of the text that these tokens stand for.
        model: where the probabilities come from, in words.
    """

    tokens: Sequence[str]
    log_probabilities: Sequence[float]
    entropies: Sequence[float]
    likely: Sequence[Sequence[tuple[str, float]]]
    most_open: Sequence[float]
    num_bytes: int
    model: str


def bigram_sentence(sentence: str) -> ScoredSentence:
    """The characters of a text under a bigram that was counted on that very text, one added to each count.

    The first character is given; every later one has p(c | previous) = (count + 1) / (count of previous + V), with V
    different characters.
    """
    pairs, singles = Counter(itertools.pairwise(sentence)), Counter(sentence[:-1])
    kinds = sorted(set(sentence))
    after = {
        before: [(pairs[before, character] + 1) / (singles[before] + len(kinds)) for character in kinds]
        for before in set(sentence[:-1])
    }
    distributions = [after[before] for before in sentence[:-1]]
    entropies = [exact.entropy(distribution) for distribution in distributions]
    names = [repr(character) for character in kinds]
    return ScoredSentence(
        tokens=[repr(character) for character in sentence[1:]],
        log_probabilities=[
            math.log(distribution[kinds.index(character)])
            for distribution, character in zip(distributions, sentence[1:], strict=True)
        ],
        entropies=entropies,
        likely=[
            sorted(zip(names, distribution, strict=True), key=lambda pair: -pair[1])[:NUM_LIKELY]
            for distribution in distributions
        ],
        most_open=distributions[int(np.argmax(entropies))],
        num_bytes=len(sentence[1:].encode()),
        model="a character bigram, counted on the sentence itself with one added to each count, given the first "
        "character",
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
        about="The chain rule of step 1, with no independence assumed: each token has its probability given those "
        "before it. That holds for any text and any model. A language model is a softmax classifier of the next token, "
        "and its training loss is the mean of this column of surprisals. Here: "
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


def continuations(scored: ScoredSentence) -> Step:
    """Every place has many plausible continuations, of which the text shows one."""
    surprisals, entropies = -np.array(scored.log_probabilities), np.array(scored.entropies)
    place = int(entropies.argmax())
    p = np.array(scored.most_open)
    logits = np.log(np.maximum(p, np.finfo(float).tiny))
    ours = softmax_nll(torch.from_numpy(logits)[None], torch.tensor([0])).entropy
    assert ours is not None, "a loss from logits has every statistic"
    observed, log = scored.tokens[place], scored.log_probabilities[place]
    candidates = scored.likely[place]
    return Step(
        title="One text, many plausible continuations",
        formula="H(p(· | x₁ … xₜ₋₁)) = Σ p(x | x₁ … xₜ₋₁) · -ln p(x | x₁ … xₜ₋₁)",
        about="The model gives a probability to every token at every place; the text holds one token. The entropy of "
        "a place is the surprisal that the model expects there: near 0 where only one continuation is plausible, ln V "
        "where all V are equally so. A surprisal above the entropy is no mistake of the model: where several "
        "continuations are plausible, the one that was written has to cost something. The training loss takes the one "
        f"token as the whole truth all the same. Over this text the mean surprisal is {surprisals.mean():.3f} and the "
        f"mean entropy {entropies.mean():.3f} nats. The plot shows the place where the entropy is largest, "
        f"{place + 1}: the text goes on with {observed}, to which the model gives {math.exp(log):.3g}.",
        table=(
            ("place", "token", "surprisal (nats)", "entropy (nats)", "most likely"),
            *(
                (
                    str(number),
                    token,
                    f"{-log:z.3f}",
                    f"{entropy:z.3f}",
                    ", ".join(f"{name} {probability:.3f}" for name, probability in likely[:3]),
                )
                for number, (token, log, entropy, likely) in enumerate(
                    zip(scored.tokens, scored.log_probabilities, entropies, scored.likely, strict=True), 1
                )
            ),
        ),
        identities=(
            Identity("at the place of the plot, the probabilities of all tokens sum to 1", float(p.sum()), 1.0, 1e-9),
            Identity("there, the entropy of softmax_nll = Σ p · -ln p", float(ours), exact.entropy(p), 1e-9),
        ),
        plot=Plot(
            f"the most likely tokens at place {place + 1}",
            "probability",
            (Curve("probability", list(range(len(candidates))), [found for _, found in candidates], style="bars"),),
            names=[name for name, _ in candidates],
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
