"""Text in, text out: drawing continuations of a prompt from a model and its tokenizer."""

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

    Args:
        model: on ``compute.device``.
        tokenizer: the one the model was trained with.
        config: prompt, length and how to draw.
        seed: seed of a generator of its own; text number i depends on ``seed`` and i alone.
        context: the longest context that the model was trained on, in tokens.
        loss: the softcap and temperature that the model was trained under are part of its probabilities.
        compute: where to run.

    Raises:
        DataError: as ``encode_prompt``.
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
    """Why a sample has nothing to read after its prompt, in words; None where it has something."""
    drawn = text.removeprefix(prompt)
    if drawn.strip():
        return None
    return "nothing but white space was drawn" if drawn else "the model ended the document right after the prompt"


def with_temperature(config: Config, fitted: float | None, reason: str) -> Config:
    """The configuration with a number where it says ``temperature=fitted``.

    Raises:
        ConfigError: it says so and there is no fitted temperature, for this reason.
    """
    if config.temperature != "fitted":
        return config
    if fitted is None:
        raise ConfigError(f"temperature=fitted: {reason}; or give a number, such as temperature=1.0")
    return replace(config, temperature=fitted)


def encode_prompt(tokenizer: Tokenizer, config: SamplingConfig) -> list[int]:
    """The ids that ``sample`` starts from: an end-of-text and the prompt.

    Raises:
        DataError: the tokenizer cannot represent the prompt.
    """
    try:
        return [tokenizer.end_of_text_id, *tokenizer.encode(config.prompt).tolist()]
    except DataError as error:
        raise DataError(f"prompt: {error}") from None
