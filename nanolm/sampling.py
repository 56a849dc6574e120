"""Draw continuations of a prompt, as text, from a model and its tokenizer."""

from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from nanolm.config.schema import SamplingConfig
from nanolm.data import Tokenizer
from nanolm.device import Compute
from nanolm.errors import ConfigError, DataError
from nanolm.loss import LossOptions
from nanolm.model import GPT, generate
from nanolm.seeds import derive_seed

Config = TypeVar("Config", bound=SamplingConfig)


def sample(
    model: GPT,
    tokenizer: Tokenizer,
    config: SamplingConfig,
    seed: int,
    context: int,
    loss: LossOptions,
    compute: Compute,
) -> list[str]:
    """Draw ``num_samples`` texts that begin with the prompt, which begins a document: it follows an end-of-text.

    The temperature of ``config`` is a number, see ``with_temperature``. Text number i depends on ``seed`` and i alone.
    ``context`` is the longest that the model was trained on, in tokens. ``loss`` are the options of the training, whose
    softcap and temperature are part of the model's probabilities. Raises DataError where the tokenizer cannot represent
    the prompt.
    """
    prompt_ids = encode_prompt(tokenizer, config)
    assert config.temperature != "fitted", "with_temperature has put a number there"
    texts = []
    for number in range(config.num_samples):
        generator = torch.Generator().manual_seed(derive_seed(seed, number))
        with compute.autocast():
            ids = generate(
                model,
                prompt_ids,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature * loss.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                generator=generator,
                context=context,
                end_of_text_id=tokenizer.end_of_text_id,
                softcap=loss.softcap,
            )
        texts.append(config.prompt + tokenizer.decode(np.asarray(ids)))
    return texts


def why_empty(text: str, prompt: str) -> str | None:
    """Explain why there is no text after the prompt of a sample; None where there is."""
    drawn = text.removeprefix(prompt)
    if drawn.strip():
        return None
    return "only white space was drawn" if drawn else "the model ended the document right after the prompt"


def with_temperature(config: Config, fitted: float | None, reason: str) -> Config:
    """Replace ``temperature=fitted`` in a configuration by the fitted number.

    Raises ConfigError where there is none; ``reason`` says why.
    """
    if config.temperature != "fitted":
        return config
    if fitted is None:
        raise ConfigError(f"temperature=fitted: {reason}; or give a number, such as temperature=1.0")
    return replace(config, temperature=fitted)


def encode_prompt(tokenizer: Tokenizer, config: SamplingConfig) -> list[int]:
    """Encode what ``sample`` starts from: an end-of-text and the prompt.

    Raises DataError where the tokenizer cannot represent the prompt.
    """
    try:
        return [tokenizer.end_of_text_id, *tokenizer.encode(config.prompt).tolist()]
    except DataError as error:
        raise DataError(f"prompt: {error}") from None
