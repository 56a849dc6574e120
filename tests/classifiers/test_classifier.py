import numpy as np
import pytest
import torch

from nanolm.classifiers.classifier import Classifier, as_softmax_logits, classification_nll, margins


def test_log_odds_and_their_softmax_are_the_same_task():
    z, y = torch.tensor([-3.0, 0.5, 2.0], dtype=torch.float64), torch.tensor([0, 0, 1])
    binary, softmax = classification_nll(z, y), classification_nll(as_softmax_logits(z), y)
    torch.testing.assert_close(binary.nll, softmax.nll)
    torch.testing.assert_close(binary.entropy, softmax.entropy)


def test_margins_are_right_minus_the_largest_other():
    torch.testing.assert_close(
        margins(torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]), torch.tensor([1, 2])), torch.tensor([1.0, -1.0])
    )
    torch.testing.assert_close(margins(torch.tensor([2.0, 2.0]), torch.tensor([1, 0])), torch.tensor([2.0, -2.0]))


def test_a_linear_model_begins_at_even_odds_and_biases_are_not_penalised():
    model = Classifier(4, 3)
    assert torch.equal(model(torch.randn(2, 4, dtype=torch.float64)), torch.zeros(2, 3, dtype=torch.float64))
    torch.nn.init.ones_(model.layers[0].weight)
    torch.nn.init.ones_(model.layers[0].bias)
    assert model.weight_norm() == pytest.approx(np.sqrt(12))
    result = classification_nll(model(torch.zeros(2, 4, dtype=torch.float64)), torch.tensor([0, 1]))
    assert model.penalised(result, 0.5).item() == pytest.approx(np.log(3) + 0.25 * 12)


def test_a_hidden_layer_is_the_two_products_and_a_rectifier():
    model = Classifier(4, 3, hidden_size=5)
    x = torch.randn(2, 4, dtype=torch.float64)
    first, last = model.layers[0], model.layers[3]
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ last.weight.T + last.bias)
    assert model.weight_norm() == pytest.approx(
        (first.weight.square().sum() + last.weight.square().sum()).sqrt().item()
    )
    assert Classifier(4, None, hidden_size=5)(x).shape == (2,)
