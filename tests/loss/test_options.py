"""Wrong arguments are refused in words, before anything is computed."""

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


def test_options_are_frozen():
    with pytest.raises(AttributeError):
        LossOptions().temperature = 2.0


@pytest.mark.parametrize("target", [13, -1, -101])
def test_targets_out_of_range_are_named_with_their_position(target):
    problem = make_problem()
    problem.targets[7] = target
    for call in (
        lambda: linear_nll(problem.hidden, problem.weight, problem.targets),
        lambda: softmax_nll(problem.hidden @ problem.weight.T, problem.targets),
    ):
        with pytest.raises(ConfigError, match=rf"targets\[7\].*\[0, 13\).*found {target}$"):
            call()


@pytest.mark.parametrize("target", [-0.1, 1.1, math.nan])
def test_binary_targets_out_of_range(target):
    with pytest.raises(ConfigError, match=r"targets\[1\].*\[0, 1\]"):
        bernoulli_nll(torch.zeros(3), torch.tensor([0.0, target, 1.0]))


def test_wrong_shapes_dtypes_and_choices():
    p = make_problem()
    n, v = 11, 13
    wrong = {
        "hidden: expected shape": lambda: linear_nll(p.hidden[None], p.weight, p.targets),
        "hidden: expected shape .N, D.": lambda: linear_nll(p.hidden[:, :4], p.weight, p.targets),
        "hidden: expected floating": lambda: linear_nll(p.hidden.detach().long(), p.weight, p.targets),
        "weight: expected": lambda: linear_nll(p.hidden, p.weight[0], p.targets),
        "V >= 1": lambda: linear_nll(p.hidden, p.weight[:0], p.targets),
        "bias: expected shape": lambda: linear_nll(p.hidden, p.weight, p.targets, p.weight[:3, 0]),
        "targets: expected int32": lambda: linear_nll(p.hidden, p.weight, p.targets.double()),
        r"targets: expected shape \(N,\) = \(11,\), found \(3,\)": lambda: linear_nll(
            p.hidden, p.weight, p.targets[:3]
        ),
        "soft_targets: expected shape": lambda: linear_nll(p.hidden, p.weight, p.targets, None, p.hidden.detach()),
        "soft_targets: expected a constant": lambda: linear_nll(
            p.hidden, p.weight, p.targets, None, torch.zeros(n, v, requires_grad=True)
        ),
        "reduction: expected one of 'sum'": lambda: linear_nll(p.hidden, p.weight, p.targets, reduction="avg"),
        "statistics: expected": lambda: linear_nll(p.hidden, p.weight, p.targets, statistics="all"),
        "logits: expected shape .N, V.": lambda: softmax_nll(torch.zeros(3, 0), torch.zeros(3, dtype=torch.long)),
        "logits: expected shape .N,.": lambda: bernoulli_nll(torch.zeros(3, 2), torch.zeros(3)),
        "targets: expected shape": lambda: bernoulli_nll(torch.zeros(3), torch.zeros(2)),
    }
    for message, call in wrong.items():
        with pytest.raises(ConfigError, match=message):
            call()
