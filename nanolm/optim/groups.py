"""Assign each parameter to an optimizer, and step all optimizers as one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nanolm.config.schema import MuonConfig, OptimizerConfig
from nanolm.errors import CheckpointError
from nanolm.model.gpt import GPT
from nanolm.optim.muon import Muon

# The tensors that each optimizer keeps for a parameter: those of its shape, and numbers.
MOMENTS = {"muon": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}
COUNTERS: dict[str, tuple[str, ...]] = {"muon": (), "adamw": ("step",)}
# What a stored state must have in common with the optimizers that take it over; the rate is the configuration's.
SETTINGS = ("params", "weight_decay", "momentum", "num_iterations", "betas", "eps")
MOST_LISTED = 8


class Optimizers:
    """Several optimizers, each with its own peak rate, that step together."""

    def __init__(self, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        self.by_name = optimizers
        self._peak_rates = {
            name: [float(group["lr"]) for group in optimizer.param_groups] for name, optimizer in optimizers.items()
        }

    def step(self, factor: float) -> None:
        """Update every parameter at ``factor``, see ``learning_rate_factor``, times its peak rate.

        The caller checks first that all gradients are finite.
        """
        for name, optimizer in self.by_name.items():
            for group, peak_rate in zip(optimizer.param_groups, self._peak_rates[name], strict=True):
                group["lr"] = factor * peak_rate
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self.by_name.values():
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return moments and counters of every optimizer by name: tensors, numbers and strings only."""
        return {name: optimizer.state_dict() for name, optimizer in self.by_name.items()}

    def moments(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every moment that exists by now, with a name for messages."""
        for name, state in self.state_dict().items():
            for number, kept in state["state"].items():
                yield from ((f"{key} of parameter {number} of {name}", kept[key]) for key in MOMENTS[name])

    def num_moment_bytes(self) -> int:
        """Count the bytes of all moments once every parameter has them."""
        return sum(p.nbytes * len(MOMENTS[name]) for name in self.by_name for p in self._parameters(name))

    def load_state_dict(self, state: dict[str, Any], *, updated: bool = True) -> None:
        """Restore a ``state_dict``; the peak rates remain those of this configuration.

        ``updated``: whether the state was taken after a step, so that it must have moments. Raises CheckpointError if
        the state is that of other optimizers or another model, or is incomplete.
        """
        now = self.state_dict()
        for name in self.by_name if updated else ():
            counters = dict.fromkeys(COUNTERS[name], torch.zeros(()))
            moments = [dict.fromkeys(MOMENTS[name], parameter) | counters for parameter in self._parameters(name)]
            now[name]["state"] = dict(enumerate(moments))
        expected, found = _outline(now), _outline(state)
        differences = [
            f"  {key}: {found.get(key, 'nothing')} in the stored state, {expected.get(key, 'nothing')} now"
            for key in expected | found
            if expected.get(key) != found.get(key)
        ]
        if differences:
            lines = "\n".join(differences[:MOST_LISTED])
            raise CheckpointError(f"the optimizer state is not this model's ({len(differences)} differences):\n{lines}")
        for name, optimizer in self.by_name.items():
            optimizer.load_state_dict(state[name])

    def _parameters(self, name: str) -> list[nn.Parameter]:
        return [parameter for group in self.by_name[name].param_groups for parameter in group["params"]]


def _outline(state: dict[str, Any]) -> dict[str, object]:
    """Name the settings of every group and the shape of every moment and counter in a state of ``Optimizers``."""
    outline: dict[str, object] = {"optimizers": sorted(state)}
    for name, one in state.items():
        for number, group in enumerate(one.get("param_groups", ())):
            outline |= {f"{name}: {key} of group {number}": group[key] for key in SETTINGS if key in group}
        for number, kept in one.get("state", {}).items():
            outline |= {f"{name}: {key} of parameter {number}": list(kept[key].shape) for key in kept}
    return outline


def build_optimizer(model: GPT, config: OptimizerConfig) -> Optimizers:
    """Make the optimizers of ``config.name`` for a model, with each parameter in exactly one of them.

    ============================================  ===========  =========  ============
    parameters                                    ``muon``     ``adamw``  weight decay
    ============================================  ===========  =========  ============
    matrices of the blocks (q, k, v, o, ...)      Muon         AdamW      yes
    embedding and head (one matrix if tied)       AdamW        AdamW      yes
    RMSNorm weights                               AdamW        AdamW      no
    ============================================  ===========  =========  ============

    Query, key and value projections are separate matrices, orthogonalised one by one.
    """
    blocks = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    in_blocks = {id(parameter) for parameter in blocks}
    vocabulary = [p for p in model.parameters() if p.ndim == 2 and id(p) not in in_blocks]
    norms = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    if not isinstance(config, MuonConfig):
        return Optimizers({"adamw": _adamw(blocks + vocabulary, norms, config)})
    muon = Muon(blocks, lr=config.matrix_learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
    return Optimizers({"muon": muon, "adamw": _adamw(vocabulary, norms, config)})


def _adamw(decayed: list[nn.Parameter], not_decayed: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": not_decayed, "weight_decay": 0.0}]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)
