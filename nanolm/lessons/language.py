"""Language models: a sentence as a product of conditional probabilities, its alternatives, its perplexity."""

import math

import numpy as np
import torch

from nanolm.lessons.sentence import ScoredSentence
from nanolm.lessons.step import Step
from nanolm.loss import reference as exact
from nanolm.loss import softmax_nll


def chain_rule(scored: ScoredSentence) -> Step:
    """Multiply a sentence's probability from conditional ones, and add up its surprisal over tokens."""
    step = Step(
        title="A sentence, token by token",
        formula="ln p(x₁ … xₙ) = Σ ln p(xₜ | x₁ … xₜ₋₁)",
        about="The chain rule of step 1, with no independence assumed: each token has its probability given those "
        "before it. That holds for any text and any model. A language model is a softmax classifier of the next token, "
        f"and its training loss is the mean of this column of surprisals. Here: {scored.model}.",
    )
    logs = scored.log_probabilities
    surprisals, so_far, places = -logs, np.cumsum(-logs), range(1, len(logs) + 1)
    step.column("place", places)
    step.column("token", scored.tokens, "words")
    step.column("probability", np.exp(logs), "digits")
    step.column("surprisal (nats)", surprisals, "z.3f")
    step.column("so far", so_far, "z.3f")
    few = min(20, int(np.searchsorted(so_far, 700)))  # a float64 holds the product of so many
    by_product, by_sum = -math.log(exact.joint_probability(np.exp(logs[:few]))), surprisals[:few].sum()
    step.identity(f"-ln of the product of the first {few} = the sum of their surprisals", by_product, by_sum, 1e-9)
    step.identity("the last sum = the sequence's NLL", so_far[-1], exact.sequence_nll(logs), 1e-9)
    step.plot("token", "surprisal (nats)")
    step.bars("each token", places, surprisals, scored.tokens)
    step.level("mean", exact.average_token_nll(logs))
    return step


def continuations(scored: ScoredSentence) -> Step:
    """Show the entropy of every place, and the likely continuations, of which the text holds one."""
    logs, entropies, p = scored.log_probabilities, scored.entropies, scored.most_open
    place = int(entropies.argmax())
    step = Step(
        title="One text, many plausible continuations",
        formula="H(p(· | x₁ … xₜ₋₁)) = Σ p(x | x₁ … xₜ₋₁) · -ln p(x | x₁ … xₜ₋₁)",
        about="The model gives a probability to every token at every place; the text holds one token. The entropy of "
        "a place is the surprisal that the model expects there: near 0 where only one continuation is plausible, ln V "
        "where all V are equally so. A surprisal above it is no mistake of the model: where several continuations are "
        "plausible, the one that was written has to cost something; the training loss still takes it as the whole "
        f"truth. Over this text the mean surprisal is {-logs.mean():.3f} and the mean entropy {entropies.mean():.3f} "
        f"nats. The plot shows the place of the largest entropy, {place + 1}: the text goes on with "
        f"{scored.tokens[place]}, to which the model gives {math.exp(logs[place]):.3g}.",
    )
    step.column("place", range(1, len(logs) + 1))
    step.column("token", scored.tokens, "words")
    step.column("surprisal (nats)", -logs, "z.3f")
    step.column("entropy (nats)", entropies, "z.3f")
    likely = [", ".join(f"{name} {q:.3f}" for name, q in candidates[:3]) for candidates in scored.likely]
    step.column("most likely", likely, "words")
    step.identity("at the place of the plot, the probabilities of all tokens sum to 1", p.sum(), 1, 1e-9)
    step.identity("there, the entropy of softmax_nll = Σ p · -ln p", entropies[place], exact.entropy(p), 1e-9)
    names, probabilities = zip(*scored.likely[place], strict=True)
    step.plot(f"the most likely tokens at place {place + 1}", "probability")
    step.bars("probability", range(len(names)), probabilities, names)
    return step


def perplexity(scored: ScoredSentence) -> Step:
    """Compute exp(mean NLL), the number of equally likely choices that would cost as much."""
    step = Step(
        title="Perplexity: an NLL as a number of choices",
        formula="PPL = exp(-1/n Σ ln p(xₜ | …)) = (Π p)^(-1/n)",
        about="A model that knows nothing of k tokens has perplexity k; the less surprised, the lower. It depends on "
        "what a token is; bits per byte, the NLL of all the text over its bytes, does not, and compares models of "
        "different tokenizers.",
    )
    logs, kinds = scored.log_probabilities, (2, 10, 256, 50_257)
    uniform = [softmax_nll(torch.zeros(1, k, dtype=torch.float64), torch.tensor([0])).nll.item() for k in kinds]
    mean = exact.average_token_nll(logs)
    nll = np.array([*uniform, mean])
    bits_per_byte = exact.sequence_nll(logs) / math.log(2) / max(scored.num_bytes, 1)
    step.column("model", [*(f"uniform over {k:,}" for k in kinds), "the sentence above"])
    step.column("NLL (nats per token)", nll, "z.4f")
    step.column("perplexity", np.exp(nll), ",.2f")
    step.column("bits per token", nll / math.log(2), "z.3f")
    step.column("bits per byte", ["-"] * len(kinds) + [f"{bits_per_byte:z.3f}"])
    for k, found in zip(kinds, uniform, strict=True):
        step.identity(f"exp(NLL), uniform over {k:,}", math.exp(found), k, 1e-9)
    found, inverse_mean = exact.perplexity(logs), np.prod(np.exp(-logs / len(logs)))
    step.identity("the sentence's PPL = exp of its mean NLL = (Π p)^(-1/n)", found, inverse_mean, 1e-9)
    grid = np.linspace(0, max(6.0, mean + 1), 61)
    step.plot("NLL (nats per token)", "perplexity", yscale="log")
    step.line("exp(NLL)", grid, np.exp(grid))
    step.dots("the sentence above", [mean], [math.exp(mean)])
    return step
