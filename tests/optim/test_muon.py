"""Muon against the singular value decomposition, against torch's own, and batched against one by one."""

import pytest
import torch

from nanolm.optim.muon import Muon, orthogonalize

SHAPES = [(16, 16), (16, 16), (40, 16), (16, 40), (40, 16), (8, 16)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters_with_gradients() -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(randn(*shape, seed=i)) for i, shape in enumerate(SHAPES)]
    for i, parameter in enumerate(parameters):
        parameter.grad = randn(*parameter.shape, seed=100 + i)
    return parameters


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 80), (3, 80, 32), (2, 1, 40), (2, 40, 1)])
def test_update_is_nearly_orthogonal_and_keeps_the_singular_vectors(shape):
    matrices = randn(*shape)
    found = orthogonalize(matrices, num_iterations=5).double()
    assert found.shape == shape
    u, values, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    inner = u.mT @ found @ vh.mT  # diagonal: the new singular values, in the old vectors
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(inner, torch.diag_embed(diagonal), atol=1e-4, rtol=0)
    large = values > 0.02 * torch.linalg.matrix_norm(matrices.double())[:, None]
    assert large.double().mean() > 0.8
    assert diagonal[large].min() > 0.6
    assert diagonal[large].max() < 1.3


def test_scale_type_and_transposition_of_the_input_do_not_matter():
    matrix = randn(2, 20, 50)
    found = orthogonalize(matrix, 3)
    torch.testing.assert_close(orthogonalize(matrix * 1e4, 3), found, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(orthogonalize(matrix.mT.contiguous(), 3), found.mT, atol=1e-5, rtol=1e-5)
    assert orthogonalize(matrix.double(), 3).dtype == torch.float64
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 4), 3), torch.zeros(2, 4, 4))


def test_batched_equals_one_by_one():
    together, alone = parameters_with_gradients(), parameters_with_gradients()
    optimizers = [Muon(together, lr=0.1, weight_decay=0.1), *(Muon([p], lr=0.1, weight_decay=0.1) for p in alone)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_iterations", [3, 5])
def test_agrees_with_torch(num_iterations):
    """torch.optim.Muon iterates in bfloat16 (8 bits of mantissa), hence the tolerance; the decay is exact."""
    ours, theirs = parameters_with_gradients(), parameters_with_gradients()
    one = Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.2, num_iterations=num_iterations)
    other = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.2, ns_steps=num_iterations)
    for step in range(4):
        before = [parameter.detach().clone() for parameter in ours]
        for mine, yours in zip(ours, theirs, strict=True):
            yours.data.copy_(mine)
            mine.grad = yours.grad = randn(*mine.shape, seed=1000 * step)
        one.step()
        other.step()
        for old, mine, yours in zip(before, ours, theirs, strict=True):
            change, expected = mine - 0.98 * old, yours - 0.98 * old
            assert (change - expected).norm() < 0.03 * expected.norm()


def test_a_parameter_without_a_gradient_stays():
    parameters = parameters_with_gradients()
    parameters[2].grad = None
    before = parameters[2].detach().clone()
    Muon(parameters, lr=0.1, weight_decay=0.5).step()
    assert torch.equal(parameters[2], before)
