"""Every parameter in exactly one optimizer, and a resume that changes no bit."""

import io

import pytest
import torch
import torch.nn.functional as F

from nanolm.config.schema import AdamWConfig, MuonConfig
from nanolm.errors import CheckpointError
from nanolm.model import GPT
from nanolm.optim import Muon, Optimizers, build_optimizer
from tests.model.tiny import tiny_config

SHARED = {"learning_rate": 3e-3, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
MUON = MuonConfig(**SHARED, matrix_learning_rate=2e-2, momentum=0.95)
ADAMW = AdamWConfig(**SHARED)
each_optimizer = pytest.mark.parametrize("config", [MUON, ADAMW], ids=["muon", "adamw"])


def new_model(tied: bool = True) -> GPT:
    torch.manual_seed(0)
    return GPT(tiny_config(tie_word_embeddings=tied), 61)


def train(model: GPT, optimizers: Optimizers, first: int, last: int) -> None:
    for step in range(first, last):
        tokens = torch.randint(61, (4, 17), generator=torch.Generator().manual_seed(step))
        logits = F.linear(model(tokens[:, :-1]), model.head_weight)
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizers.step(factor=1 - step / 10)
        optimizers.zero_grad()


@each_optimizer
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_one_group(config, tied):
    model, found = new_model(tied), {}
    for optimizer in build_optimizer(model, config).by_name.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert id(parameter) not in found
                found[id(parameter)] = (type(optimizer), group["weight_decay"])
    assert ("lm_head.weight" in dict(model.named_parameters())) is not tied
    for name, parameter in model.named_parameters():
        kind = Muon if "proj" in name and config is MUON else torch.optim.AdamW
        assert found.pop(id(parameter)) == (kind, 0.0 if "norm" in name else 0.1), name
    assert not found


@each_optimizer
def test_every_parameter_moves_and_factor_zero_moves_none(config):
    model = new_model(tied=False)
    optimizers = build_optimizer(model, config)
    train(model, optimizers, 0, 2)  # the first step's gradients vanish behind zero-initialised projections
    for step, moves in ((2, True), (10, False)):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        train(model, optimizers, step, step + 1)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) is not moves, name


@each_optimizer
def test_resume_changes_no_bit(config):
    straight, stopped, resumed = new_model(), new_model(), new_model()
    train(straight, build_optimizer(straight, config), 0, 6)

    optimizers = build_optimizer(stopped, config)
    train(stopped, optimizers, 0, 3)
    file = io.BytesIO()
    torch.save({"model": stopped.state_dict(), "optimizer": optimizers.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
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
        zero_grad = oracle.zero_grad

        def step(self, factor: float) -> None:
            oracle.step()
            schedule.step()

    train(theirs, Oracle(), 0, 4)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4, msg=name)


def test_another_optimizers_state_is_refused():
    optimizers = build_optimizer(new_model(), MUON)
    adamw, untied, fresh = (
        build_optimizer(model, config).state_dict()
        for model, config in ((new_model(), ADAMW), (new_model(tied=False), MUON), (new_model(), MUON))
    )
    optimizers.load_state_dict(fresh, updated=False)
    for state, updated, word in (
        (adamw, True, "adamw"),
        (untied, False, "params"),
        (fresh, True, "momentum_buffer"),
    ):
        with pytest.raises(CheckpointError, match=word):
            optimizers.load_state_dict(state, updated=updated)
