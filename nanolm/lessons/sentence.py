"""A sentence under a trained model: what each of its tokens cost."""

import torch

from nanolm.config.schema_first_principles import FirstPrinciplesConfig
from nanolm.device import resolve_compute
from nanolm.errors import DataError
from nanolm.lessons.language import NUM_LIKELY, ScoredSentence, bigram_sentence
from nanolm.loss import softmax_nll
from nanolm.loss.dense import soft_capped
from nanolm.training import find_checkpoint
from nanolm.training.loop import loss_options


def score_sentence(config: FirstPrinciplesConfig) -> ScoredSentence:
    """The sentence under the checkpoint that the configuration names, else under a bigram of its own characters.

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
        raise DataError(
            f"sentence: expected at most the {context} tokens of context that {checkpoint.path} was trained with, "
            f"found {len(ids) - 1}; give a shorter one"
        )
    compute = resolve_compute(config.device, config.precision)
    model = checkpoint.load_model(compute.device)
    tokens = torch.tensor([ids], device=compute.device)
    options = loss_options(checkpoint.config)
    with torch.no_grad(), compute.autocast():
        hidden = model(tokens[:, :-1])[0]
    log_probabilities: list[float] = []
    entropies: list[float] = []
    likely: list[list[tuple[str, float]]] = []
    most_open = torch.zeros(1)
    for state, target in zip(hidden, ids[1:], strict=True):
        logits = (state.float() @ model.head_weight.float().T).double().cpu()
        result = softmax_nll(logits[None], torch.tensor([target]), options=options, reduction="none")
        assert result.entropy is not None, "a loss from logits has every statistic"
        distribution = (soft_capped(logits, options.softcap) / options.temperature).softmax(dim=0)
        if not entropies or float(result.entropy) > max(entropies):
            most_open = distribution
        log_probabilities.append(-float(result.nll))
        entropies.append(float(result.entropy))
        top = distribution.topk(min(NUM_LIKELY, len(distribution)))
        likely.append(
            [
                (shown(tokenizer.decode_bytes([token])), probability)
                for token, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
        )
    return ScoredSentence(
        tokens=[shown(tokenizer.decode_bytes([token])) for token in ids[1:]],
        log_probabilities=log_probabilities,
        entropies=entropies,
        likely=likely,
        most_open=most_open.tolist(),
        num_bytes=len(config.sentence.encode()),
        model=f"{checkpoint.path}, after step {checkpoint.step:,}, the sentence taken for the beginning of a document",
    )


def shown(token: bytes) -> str:
    """A token in quotes; one that is a part of a character only, as its bytes."""
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(token)
