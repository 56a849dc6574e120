"""Which optimizer updates which parameter, and all of them as one."""

from typing import Any

import torch
from torch import nn

from nanolm.config.schema import OptimizerConfig
from nanolm.errors import CheckpointError
from nanolm.model.gpt import GPT
from nanolm.optim.muon import Muon


class Optimizers:
    """Several optimizers, each with its own peak rate, that step together."""

    def __init__(self, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self._peak_rates = {
            name: [float(group["lr"]) for group in optimizer.param_groups] for name, optimizer in optimizers.items()
        }

    def step(self, factor: float) -> None:
        """Update every parameter at ``factor`` times its peak rate (``learning_rate_factor`` gives it).

        Gradients must be finite: the caller looks before it steps.
        """
        for name, optimizer in self._optimizers.items():
            for group, peak_rate in zip(optimizer.param_groups, self._peak_rates[name], strict=True):
                group["lr"] = factor * peak_rate
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Moments and counters of every optimizer, by its name: tensors, numbers and strings only."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken; peak rates stay those of this configuration.

        Raises CheckpointError if the state is of other optimizers or of another model.
        """
        if state.keys() != self._optimizers.keys():
            raise CheckpointError(
                f"the optimizer state holds {sorted(state)}, expected {sorted(self._optimizers)}; "
                "continue with the optimizer= that the checkpoint was trained with"
            )
        for name, optimizer in self._optimizers.items():
            try:
                optimizer.load_state_dict(state[name])
            except ValueError as error:
                raise CheckpointError(f"the {name} state does not fit this model: {error}") from error


def build_optimizer(model: GPT, config: OptimizerConfig) -> Optimizers:
    """The optimizers of ``config.name`` for every parameter of the model, each parameter in exactly one.

    ============================================  ===========  =========  ============
    parameters                                    ``muon``     ``adamw``  weight decay
    ============================================  ===========  =========  ============
    matrices of the blocks (q, k, v, o, ...)      Muon         AdamW      yes
    embedding and head (one matrix if tied)       AdamW        AdamW      yes
    RMSNorm weights                               AdamW        AdamW      no
    ============================================  ===========  =========  ============

    Query, key and value projections are matrices of their own and are orthogonalised one by one.
    """
    blocks = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    in_blocks = {id(parameter) for parameter in blocks}
    vocabulary = [p for p in model.parameters() if p.ndim == 2 and id(p) not in in_blocks]
    norms = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    if config.name == "adamw":
        return Optimizers({"adamw": _adamw(blocks + vocabulary, norms, config)})
    assert config.matrix_learning_rate is not None, "optimizer.matrix_learning_rate is checked with the configuration"
    muon = Muon(blocks, lr=config.matrix_learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
    return Optimizers({"muon": muon, "adamw": _adamw(vocabulary, norms, config)})


def _adamw(decayed: list[nn.Parameter], not_decayed: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)
