"""Which optimizer updates which parameter, and all of them as one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nanolm.config.schema import OptimizerConfig
from nanolm.errors import CheckpointError
from nanolm.model.gpt import GPT
from nanolm.optim.muon import Muon

MOMENTS = {"muon": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}
"""Tensors of a parameter's shape that each optimizer keeps for it."""
COUNTERS: dict[str, tuple[str, ...]] = {"muon": (), "adamw": ("step",)}

MOST_TOLD = 8


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

    def moments(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every moment that there is by now, with a name for messages."""
        for name, state in self.state_dict().items():
            for number, kept in state["state"].items():
                yield from ((f"{key} of parameter {number} of {name}", kept[key]) for key in MOMENTS[name])

    def num_moment_bytes(self) -> int:
        """Bytes of all moments once every parameter has them."""
        return sum(
            parameter.numel() * parameter.element_size() * len(MOMENTS[name])
            for name, optimizer in self._optimizers.items()
            for group in optimizer.param_groups
            for parameter in group["params"]
        )

    def load_state_dict(self, state: dict[str, Any], *, updated: bool = True) -> None:
        """Continue exactly where ``state_dict`` was taken; peak rates stay those of this configuration.

        Args:
            state: what ``state_dict`` gave.
            updated: whether there was a step before, so that there must be moments.

        Raises CheckpointError if the state is of other optimizers or of another model, or incomplete.
        """
        if state.keys() != self._optimizers.keys():
            raise CheckpointError(
                f"the optimizer state holds {sorted(state)}, expected {sorted(self._optimizers)}; "
                "continue with the optimizer= that the checkpoint was trained with"
            )
        differences = [
            f"  {name}: {difference}"
            for name, optimizer in self._optimizers.items()
            for difference in _differences(name, optimizer, state[name], updated)
        ]
        if differences:
            more = [f"  and {len(differences) - MOST_TOLD} more"] if len(differences) > MOST_TOLD else []
            raise CheckpointError(
                "the optimizer state is not that of this model:\n" + "\n".join(differences[:MOST_TOLD] + more)
            )
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])


def _differences(name: str, optimizer: torch.optim.Optimizer, state: Any, updated: bool) -> Iterator[str]:
    """What a stored state lacks, or has otherwise; torch itself compares the sizes of the groups and no more."""
    if not isinstance(state, dict) or {"state", "param_groups"} - state.keys():
        yield f"expected state and param_groups, found {sorted(state) if isinstance(state, dict) else state!r:.80}"
        return
    groups, stored_groups = optimizer.param_groups, state["param_groups"]
    sizes, stored_sizes = ([len(group["params"]) for group in found] for found in (groups, stored_groups))
    if sizes != stored_sizes:
        yield f"groups of {stored_sizes} parameters there, of {sizes} now"
        return
    for number, (group, stored) in enumerate(zip(groups, stored_groups, strict=True)):
        for key in sorted(group.keys() & stored.keys() - {"params", "lr"}):
            if group[key] != stored[key]:
                yield f"{key} of group {number}: {stored[key]!r} there, {group[key]!r} now"
    parameters = [parameter for group in groups for parameter in group["params"]]
    if unknown := state["state"].keys() - set(range(len(parameters))):
        yield f"moments of parameters {sorted(unknown, key=str)}, which this model does not have"
    for number, parameter in enumerate(parameters if updated else []):
        stored = state["state"].get(number, {})
        shape = list(parameter.shape)
        for key in (*MOMENTS[name], *COUNTERS[name]):
            found, wanted = stored.get(key), [] if key in COUNTERS[name] else shape
            if not isinstance(found, torch.Tensor):
                yield f"{key} of parameter {number}, of shape {shape}, is missing"
            elif list(found.shape) != wanted:
                yield f"{key} of parameter {number}: shape {list(found.shape)} there, {wanted} now"


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
