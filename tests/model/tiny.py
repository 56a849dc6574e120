"""The model that the tests of the decoder and its optimizers share."""

from typing import Any

import torch

from nanolm.config.schema import ModelConfig
from nanolm.model import GPT


def tiny_config(**changes: Any) -> ModelConfig:
    """Two blocks, width 32, four query heads that share two key and value heads."""
    keys: dict[str, Any] = {
        "name": "tiny",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": None,
        "intermediate_size": 48,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "dropout": 0.0,
    }
    return ModelConfig(**keys | changes)


def random_model(vocab_size: int, std: float = 0.2, **changes: Any) -> GPT:
    """A model with no weight at its initial value: fresh ones hold zeros and ones that would hide mistakes."""
    torch.manual_seed(0)
    model = GPT(tiny_config(**changes), vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * std + (parameter.ndim == 1))
    return model.eval()
