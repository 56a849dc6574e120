"""Score a sentence under a language model: the surprisal of each token, and the alternatives to it."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanolm.config.schema import FirstPrinciplesConfig
from nanolm.device import resolve_compute
from nanolm.errors import DataError
from nanolm.loss import softmax_nll
from nanolm.loss.dense import model_logits
from nanolm.loss.reference import Array
from nanolm.objective import loss_options
from nanolm.training import find_checkpoint

NUM_LIKELY = 8
"""most likely tokens that are kept of each place"""


@dataclass(frozen=True)
class ScoredSentence:
    """A text of N tokens, each with the probability that a model gave it after those before.

    Attributes:
        tokens: the tokens as they are displayed, in quotes.
        log_probabilities: (N,) ln p(token | tokens before), in nats.
        entropies: (N,) expected surprisal of the next token, in nats.
        likely: at each place the most likely tokens, each with its probability.
        most_open: (V,) probabilities at the place of the largest entropy.
        num_bytes: UTF-8 bytes of these tokens.
        model: a description of the model.
    """

    tokens: Sequence[str]
    log_probabilities: Array
    entropies: Array
    likely: Sequence[Sequence[tuple[str, float]]]
    most_open: Array
    num_bytes: int
    model: str


def score_sentence(config: FirstPrinciplesConfig) -> ScoredSentence:
    """Score the sentence under the checkpoint that the configuration names, else under a bigram of its characters.

    A checkpoint's sentence begins a document: its first token is predicted from an end-of-text.

    Raises:
        NanolmError: no such checkpoint; its tokenizer cannot represent the sentence; it is longer than the context.
    """
    if config.checkpoint is None:
        return bigram_sentence(config.sentence)
    checkpoint = find_checkpoint(config.checkpoint)
    tokenizer, context = checkpoint.tokenizer, checkpoint.config.trainer.sequence_length
    try:
        ids = [tokenizer.end_of_text_id, *tokenizer.encode(config.sentence).tolist()]
    except DataError as error:
        raise DataError(f"sentence: {error}") from None
    if len(ids) - 1 > context:
        raise DataError(f"sentence: expected at most {context} tokens, the context of the model, found {len(ids) - 1}")
    compute, options = resolve_compute(config.device, config.precision), loss_options(checkpoint.config.loss)
    model = checkpoint.load_model(compute.device)
    with torch.no_grad(), compute.autocast():
        hidden = model(torch.tensor([ids[:-1]], device=compute.device))[0].float()
    head = model.head_weight.detach().float()
    return _score(
        (model_logits((state @ head.T).double().cpu(), options) for state in hidden),
        ids[1:],
        lambda token: displayed(tokenizer.decode_bytes([token])),
        num_bytes=len(config.sentence.encode()),
        model=f"{checkpoint.path}, after step {checkpoint.step:,}, the sentence taken for the beginning of a document",
    )


def bigram_sentence(sentence: str) -> ScoredSentence:
    """Score the characters of a text after the first under a bigram counted on that very text.

    p(c | previous) = (count + 1) / (count of previous + V), with V different characters.
    """
    pairs, kinds = Counter(itertools.pairwise(sentence)), sorted(set(sentence))
    counts = torch.tensor([[pairs[before, after] + 1.0 for after in kinds] for before in kinds], dtype=torch.float64)
    logits, ids = counts.log(), [kinds.index(character) for character in sentence]
    return _score(
        (logits[before] for before in ids[:-1]),
        ids[1:],
        lambda kind: repr(kinds[kind]),
        num_bytes=len(sentence[1:].encode()),
        model="a character bigram, counted on the sentence itself with one added to each count, given the first "
        "character",
    )


def _score(
    logits: Iterable[Tensor], ids: Sequence[int], display: Callable[[int], str], num_bytes: int, model: str
) -> ScoredSentence:
    """Score token ids from the (V,) logits of each place, of which only one is held at a time."""
    log_probabilities, entropies, likely, most_open = list[float](), list[float](), [], torch.zeros(1)
    for z, target in zip(logits, ids, strict=True):
        result, p = softmax_nll(z[None], torch.tensor([target])), z.softmax(dim=0)
        assert result.entropy is not None, "a loss from logits has every statistic"
        if result.entropy > max(entropies, default=-1.0):
            most_open = p
        log_probabilities.append(-result.nll.item())
        entropies.append(result.entropy.item())
        best = p.argsort(descending=True, stable=True)[:NUM_LIKELY].tolist()
        likely.append([(display(token), p[token].item()) for token in best])
    return ScoredSentence(
        tokens=[display(token) for token in ids],
        log_probabilities=np.array(log_probabilities),
        entropies=np.array(entropies),
        likely=likely,
        most_open=most_open.numpy(),
        num_bytes=num_bytes,
        model=model,
    )


def displayed(token: bytes) -> str:
    """Return a token in quotes; if it is only part of a character, as bytes."""
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(token)
