"""Every parameter in exactly one optimizer, and a resume that changes no bit."""

import io
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nanolm.config.schema import ModelConfig, OptimizerConfig
from nanolm.errors import CheckpointError
from nanolm.model import GPT
from nanolm.optim import Muon, Optimizers, build_optimizer

MODEL = ModelConfig("tiny", 32, 2, 4, 2, None, 48, True, 10000.0, 1e-6, 0.02, 0.0)
MUON = OptimizerConfig("muon", 3e-3, 2e-2, 0.95, 0.9, 0.95, 1e-8, 0.1)
ADAMW = OptimizerConfig("adamw", 3e-3, None, 0.95, 0.9, 0.95, 1e-8, 0.1)


def new_model(tied: bool = True) -> GPT:
    torch.manual_seed(0)
    return GPT(replace(MODEL, tie_word_embeddings=tied), 61)


def train(model: GPT, optimizers: Optimizers, first: int, last: int) -> None:
    for step in range(first, last):
        tokens = torch.randint(61, (4, 17), generator=torch.Generator().manual_seed(step))
        logits = F.linear(model(tokens[:, :-1]), model.head_weight)
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizers.step(factor=1 - step / 10)
        optimizers.zero_grad()


def updates_by_name(model: GPT, config: OptimizerConfig) -> dict[str, tuple[str, float]]:
    """parameter name -> (optimizer, weight decay); fails if a parameter stands in two groups."""
    found: dict[int, tuple[str, float]] = {}
    for name, optimizer in build_optimizer(model, config)._optimizers.items():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert id(parameter) not in found
                found[id(parameter)] = (name, group["weight_decay"])
    names = {name: found.pop(id(parameter)) for name, parameter in model.named_parameters()}
    assert not found
    return names


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [MUON, ADAMW], ids=["muon", "adamw"])
def test_every_parameter_is_in_one_group(config, tied):
    found = updates_by_name(new_model(tied), config)
    assert ("lm_head.weight" in found) is not tied
    for name, (optimizer, weight_decay) in found.items():
        in_block = "proj" in name
        assert optimizer == ("muon" if in_block and config is MUON else "adamw"), name
        assert weight_decay == (0.0 if "norm" in name else 0.1), name


@pytest.mark.parametrize("config", [MUON, ADAMW], ids=["muon", "adamw"])
def test_every_parameter_moves_and_factor_zero_moves_none(config):
    model = new_model(tied=False)
    optimizers = build_optimizer(model, config)
    train(model, optimizers, 0, 2)  # the first step's gradients vanish behind zero-initialised projections
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, optimizers, 2, 3)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, optimizers, 10, 11)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("config", [MUON, ADAMW], ids=["muon", "adamw"])
def test_resume_changes_no_bit(config):
    straight = new_model()
    train(straight, build_optimizer(straight, config), 0, 6)

    stopped = new_model()
    optimizers = build_optimizer(stopped, config)
    train(stopped, optimizers, 0, 3)
    file = io.BytesIO()
    torch.save({"model": stopped.state_dict(), "optimizer": optimizers.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = new_model()
    resumed.load_state_dict(state["model"])
    optimizers = build_optimizer(resumed, config)
    optimizers.load_state_dict(state["optimizer"])
    train(resumed, optimizers, 3, 6)
    for (name, one), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_adamw_agrees_with_torch():
    ours, theirs = new_model(), new_model()
    train(ours, build_optimizer(ours, ADAMW), 0, 4)
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    norms = [p for p in theirs.parameters() if p.ndim == 1]
    oracle = torch.optim.AdamW(
        [{"params": matrices}, {"params": norms, "weight_decay": 0.0}],
        lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False, fused=False,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(oracle, lambda step: 1 - step / 10)

    class Oracle:
        def step(self, factor: float) -> None:
            oracle.step()
            schedule.step()

        def zero_grad(self) -> None:
            oracle.zero_grad()

    train(theirs, Oracle(), 0, 4)
    for (name, one), other in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(one, other[1], atol=2e-5, rtol=1e-4, msg=name)


def test_matrices_of_the_blocks_alone_go_to_muon():
    optimizers = build_optimizer(new_model(), MUON)._optimizers
    assert isinstance(optimizers["muon"], Muon)
    assert len(optimizers["muon"].param_groups[0]["params"]) == 2 * 7


def test_another_optimizers_state_is_refused():
    optimizers = build_optimizer(new_model(), MUON)
    with pytest.raises(CheckpointError, match="adamw"):
        optimizers.load_state_dict(build_optimizer(new_model(), ADAMW).state_dict())
    with pytest.raises(CheckpointError, match=r"adamw: groups of \[2, 9\] parameters there, of \[1, 9\] now"):
        optimizers.load_state_dict(build_optimizer(new_model(tied=False), MUON).state_dict(), updated=False)
