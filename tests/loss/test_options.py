"""Wrong arguments are refused by name, before anything is computed."""

import math

import pytest
import torch

from nanolm.errors import ConfigError
from nanolm.loss import LossOptions, bernoulli_nll, linear_nll, softmax_nll
from tests.loss.problems import make_problem


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("label_smoothing", (-0.1, 1.0, 1.5, math.nan)),
        ("z_loss", (-1e-9, math.nan, math.inf)),
        ("softcap", (0.0, -30.0, math.nan, math.inf)),
        ("temperature", (0.0, -1.0, math.nan, math.inf)),
    ],
)
def test_values_outside_their_range(name, values):
    for value in values:
        with pytest.raises(ConfigError, match=name) as error:
            LossOptions(**{name: value})
        assert repr(value) in str(error.value)


def test_scoring_and_a_further_temperature():
    options = LossOptions(0.1, 0.01, 30.0, 2.0, ignore_index=3)
    assert options.scoring.at_temperature(1.5) == LossOptions(softcap=30.0, temperature=3.0, ignore_index=3)
    with pytest.raises(AttributeError):
        options.temperature = 2.0


@pytest.mark.parametrize("target", [13, -1, -101])
def test_targets_out_of_range_are_named_with_their_position(target):
    p = make_problem()
    p.targets[7] = target
    for call in (lambda: linear_nll(*p.arguments), lambda: softmax_nll(p.logits, p.targets)):
        with pytest.raises(ConfigError, match=rf"targets\[7\].*{target}$"):
            call()


@pytest.mark.parametrize("target", [-0.1, 1.1, math.nan])
def test_binary_targets_out_of_range(target):
    with pytest.raises(ConfigError, match=r"targets\[1\]"):
        bernoulli_nll(torch.zeros(3), torch.tensor([0.0, target, 1.0]))


P = make_problem()
GOOD = {"hidden": P.hidden, "weight": P.weight, "targets": P.targets}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", P.hidden[None]),
        ("hidden", P.hidden[:, :4]),
        ("hidden", P.hidden.detach().long()),
        ("weight", P.weight[0]),
        ("weight", P.weight[:0]),
        ("bias", P.weight[:3, 0]),
        ("targets", P.targets.double()),
        ("targets", P.targets[:3]),
        ("soft_targets", P.hidden.detach()),
        ("soft_targets", torch.zeros(11, 13, requires_grad=True)),
        ("reduction", "avg"),
        ("statistics", "all"),
    ],
)
def test_wrong_shapes_dtypes_and_choices(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        linear_nll(**GOOD | {name: value})


def test_wrong_shapes_of_logits():
    three = torch.zeros(3, dtype=torch.long)
    for loss, logits in ((softmax_nll, torch.zeros(3, 0)), (bernoulli_nll, torch.zeros(3, 2))):
        with pytest.raises(ConfigError, match=r"^logits: "):
            loss(logits, three)
    with pytest.raises(ConfigError, match=r"^targets: "):
        bernoulli_nll(torch.zeros(3), three[:2])
