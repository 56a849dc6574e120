import torch

from nanolm.classifiers.classifier import as_softmax_logits, build_model, classification_nll, margins
from nanolm.config import load


def test_log_odds_and_their_softmax_are_the_same_task():
    z, y = torch.tensor([-3.0, 0.5, 2.0], dtype=torch.float64), torch.tensor([0, 0, 1])
    binary, softmax = classification_nll(z, y), classification_nll(as_softmax_logits(z), y)
    torch.testing.assert_close(binary.nll, softmax.nll)
    torch.testing.assert_close(binary.entropy, softmax.entropy)


def test_margins_are_the_right_logit_minus_the_largest_other():
    torch.testing.assert_close(
        margins(torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]), torch.tensor([1, 2])), torch.tensor([1.0, -1.0])
    )
    torch.testing.assert_close(margins(torch.tensor([2.0, 2.0]), torch.tensor([1, 0])), torch.tensor([2.0, -2.0]))


def test_a_linear_model_starts_at_even_odds():
    model = build_model(load("baseline", ["task=softmax", "task.model=linear"]).task, 4, 3)
    assert torch.equal(model(torch.randn(2, 4, dtype=torch.float64)), torch.zeros(2, 3, dtype=torch.float64))


def test_a_hidden_layer_is_two_products_and_a_rectifier():
    model = build_model(load("baseline", ["task=softmax", "task.hidden_size=5"]).task, 4, 3)
    x = torch.randn(2, 4, dtype=torch.float64)
    first, last = model[0], model[3]
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ last.weight.T + last.bias)
    assert build_model(load("baseline", ["task.model=mlp"]).task, 4, 2)(x).shape == (2,)  # binary: log-odds
