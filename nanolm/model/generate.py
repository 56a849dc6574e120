"""Draw text from a model, one token at a time."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanolm.errors import ConfigError
from nanolm.model.gpt import GPT, KVCache


@torch.no_grad()
def generate(
    model: GPT,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator,
    context: int,
    end_of_text_id: int,
    softcap: float | None = None,
) -> list[int]:
    """Continue a prompt by up to ``max_new_tokens`` tokens; an end-of-text ends it and is not returned.

    An empty prompt starts from end-of-text, as documents do in training. An end-of-text never follows another one:
    training has no empty documents, so the model has not learnt that case. ``context`` is the longest window the model
    was trained on: when it is full, its last half is read again from position 0, so that no position is used that
    training has not seen. ``softcap`` is that of the training objective. The model's mode, training or evaluation, is
    restored. The other arguments are those of ``next_token`` and ``candidates``; raises ConfigError where one is out of
    range.
    """
    if context < 1 or max_new_tokens < 0:
        raise ConfigError(f"expected context >= 1 and max_new_tokens >= 0, found {context} and {max_new_tokens}")
    was_training = model.training
    model.eval()
    try:
        tokens = list(prompt_ids) or [end_of_text_id]
        first_new = len(tokens)
        cache, unread = KVCache(context), tokens[-context:]
        while len(tokens) < first_new + max_new_tokens:
            if cache.length + len(unread) > context:
                cache, unread = KVCache(context), tokens[-max(1, context // 2) :]
            hidden = model(torch.tensor([unread], device=model.head_weight.device), cache)
            logits = F.linear(hidden[0, -1], model.head_weight)
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            if tokens[-1] == end_of_text_id:
                logits[end_of_text_id] = -torch.inf
            token = next_token(logits, temperature, top_k, top_p, generator)
            if token == end_of_text_id:
                break
            tokens.append(token)
            unread = [token]
        return tokens[first_new:]
    finally:
        model.train(was_training)


def next_token(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    """Draw one token from logits (V,).

    ``temperature`` divides the logits; 0 takes the most likely token and draws nothing. ``generator`` is the caller's
    own, on the CPU: torch's global random stream is never used.
    """
    if temperature == 0:
        return int(logits.argmax())
    probabilities, tokens = candidates(logits, temperature, top_k, top_p)
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


def candidates(
    logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the probabilities (float64, sum 1) and the ids of the tokens that may be drawn, most likely first.

    ``logits`` are (V,). ``top_k`` keeps the k most likely tokens. ``top_p`` keeps, of those, the shortest run of most
    likely tokens that holds at least this share of the probability (Holtzman et al. 2020, arXiv:1904.09751); 1 keeps
    them all. Among equally likely tokens the lower id comes first. The computation is on the CPU, so that equal logits
    and seeds give equal draws on any device.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature: expected at least 0, found {temperature}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k: expected at least 1, or null for all tokens, found {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p: expected a share in (0, 1], or null for all tokens, found {top_p}")
    logits, tokens = logits.detach().cpu().double().sort(descending=True, stable=True)
    logits, tokens = logits[:top_k], tokens[:top_k]
    probabilities = ((logits - logits[0]) / temperature).softmax(0)  # the shift keeps tiny temperatures finite
    if top_p is not None and top_p < 1:
        mass_before = probabilities.cumsum(0) - probabilities
        num_kept = int((mass_before < top_p).sum())
        probabilities, tokens = probabilities[:num_kept] / probabilities[:num_kept].sum(), tokens[:num_kept]
    return probabilities, tokens
