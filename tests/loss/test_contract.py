"""The losses against the formula of the contract, written out a second time, with autograd for its gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from nanolm.loss import LossOptions, linear_nll, softmax_nll

N, D, V = 37, 8, 1500  # more columns than the narrowest two-stage search, and no multiple of its blocks
OPTIONS = [LossOptions(*each) for each in itertools.product((0.0, 0.2), (0.0, 0.1), (None, 3.0), (1.0, 1.7))]


def textbook(logits, targets, options, soft_targets):
    """Objective, NLL and statistics of each token, straight from the definition."""
    z = logits if options.softcap is None else options.softcap * torch.tanh(logits / options.softcap)
    z = z / options.temperature
    valid = targets != options.ignore_index
    one_hot = F.one_hot(targets.clamp(min=0), logits.shape[1]).to(z.dtype)
    q = one_hot if soft_targets is None else soft_targets
    q = (1 - options.label_smoothing) * q + options.label_smoothing / logits.shape[1]
    lse, p = z.logsumexp(1), z.softmax(1)
    return {
        "objective": ((lse - (q * z).sum(1) + options.z_loss * lse**2) * valid).sum(),
        "nll": (lse - (one_hot * z).sum(1)) * valid,
        "confidence": p.amax(1),
        "correct": (z.argmax(1) == targets) & valid,
        "entropy": -(p * p.log()).sum(1),
        "sum_squared_probabilities": (p**2).sum(1),
        "logit_variance": (p * z**2).sum(1) - (p * z).sum(1) ** 2,
    }


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", ["plain", "bias", "soft", "bias and soft"])
@pytest.mark.parametrize("dense", [False, True])
def test_a_loss_is_the_textbook(options, form, dense):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    leaves = [normal(N, D), normal(V, D), *([normal(V)] if "bias" in form else [])]
    targets = torch.randint(V, (N,), generator=generator)
    targets[[3, 11]] = options.ignore_index
    soft = 1.3 * normal(N, V).softmax(1) if "soft" in form else None  # the formula holds for any sum
    for leaf in leaves:
        leaf.requires_grad_()
    expected = textbook(F.linear(*leaves), targets, options, soft)
    if dense:
        result = softmax_nll(F.linear(*leaves), targets, soft, options)
    else:
        result = linear_nll(*leaves[:2], targets, *(leaves[2:] or [None]), soft, options, statistics="full")
    for name, value in expected.items():
        torch.testing.assert_close(getattr(result, name), value, rtol=1e-9, atol=1e-9, msg=name)
    gradients = (torch.autograd.grad(objective, leaves) for objective in (result.objective, expected["objective"]))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
    assert (result.count, result.nll[[3, 11]].tolist()) == (N - 2, [0, 0])
