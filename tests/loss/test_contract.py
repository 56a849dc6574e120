"""Every loss against the formula of the contract, written out in float64 with autograd for its gradients."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from nanolm.errors import ConfigError
from nanolm.loss import LossOptions, bernoulli_nll, linear_nll, softmax_nll

N, D, V = 37, 8, 1500  # more columns than the narrowest two-stage search, and no multiple of its blocks
IGNORED = -100

OPTIONS = [
    LossOptions(label_smoothing=smoothing, z_loss=z_loss, softcap=softcap, temperature=temperature)
    for smoothing, z_loss, softcap, temperature in itertools.product((0.0, 0.2), (0.0, 0.1), (None, 3.0), (1.0, 1.7))
]


def textbook(logits, targets, options, soft_targets=None):
    """Objective, NLL and statistics of each token, straight from the definition."""
    z = logits if options.softcap is None else options.softcap * torch.tanh(logits / options.softcap)
    z = z / options.temperature
    valid = targets != options.ignore_index
    one_hot = torch.nn.functional.one_hot(targets.clamp(min=0).long(), logits.shape[1]).to(z.dtype)
    q = one_hot if soft_targets is None else soft_targets
    q = (1 - options.label_smoothing) * q + options.label_smoothing / logits.shape[1]
    lse = z.logsumexp(1)
    p = z.softmax(1)
    nll = lse - (one_hot * z).sum(1)
    return {
        "objective": (lse - (q * z).sum(1) + options.z_loss * lse**2) * valid,
        "nll": nll * valid,
        "confidence": p.amax(1),
        "correct": (z.argmax(1) == targets) & valid,
        "entropy": -(p * p.log()).sum(1),
        "sum_squared_probabilities": (p**2).sum(1),
        "logit_variance": (p * z**2).sum(1) - (p * z).sum(1) ** 2,
    }


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    bias = torch.randn(V, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (N,), generator=generator)
    targets[[3, 11]] = IGNORED
    soft = torch.rand(N, V, generator=generator, dtype=torch.float64)
    return hidden, weight, bias, targets, soft / soft.sum(1, keepdim=True)


def assert_statistics(result, expected, names):
    for name in names:
        found = getattr(result, name)
        valid = expected["nll"] != 0
        assert found.dtype == (torch.bool if name == "correct" else expected["nll"].dtype)
        torch.testing.assert_close(found[valid], expected[name][valid].detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", ["plain", "bias", "soft", "bias and soft"])
def test_linear_nll_is_the_textbook(inputs, options, form):
    hidden, weight, bias, targets, soft = inputs
    bias = bias if "bias" in form else None
    soft = soft if "soft" in form else None
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, *([bias] if bias is not None else []))]
    result = linear_nll(
        leaves[0],
        leaves[1],
        targets,
        leaves[2] if bias is not None else None,
        soft,
        options,
        statistics="full",
    )
    result.objective.backward()

    exact = [tensor.clone().requires_grad_() for tensor in (hidden, weight, *([bias] if bias is not None else []))]
    logits = exact[0] @ exact[1].T + (exact[2] if bias is not None else 0)
    expected = textbook(logits, targets, options, soft)
    expected["objective"].sum().backward()

    torch.testing.assert_close(result.objective, expected["objective"].sum(), rtol=1e-10, atol=1e-10)
    names = ("confidence", "correct", "entropy", "sum_squared_probabilities", "logit_variance")
    assert_statistics(result, expected, ("nll", *names))
    for leaf, oracle in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad, oracle.grad, rtol=1e-8, atol=1e-10)
    assert int(result.count) == N - 2
    torch.testing.assert_close(result.nll[[3, 11]], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("with_soft", [False, True])
def test_softmax_nll_is_the_textbook(inputs, options, with_soft):
    hidden, weight, _, targets, soft = inputs
    logits, exact = ((hidden @ weight.T).requires_grad_() for _ in range(2))
    soft = soft if with_soft else None
    result = softmax_nll(logits, targets, soft, options)
    expected = textbook(exact, targets, options, soft)
    result.objective.backward()
    expected["objective"].sum().backward()
    torch.testing.assert_close(result.objective, expected["objective"].sum())
    torch.testing.assert_close(logits.grad, exact.grad, rtol=1e-8, atol=1e-12)
    names = ("nll", "confidence", "correct", "entropy", "sum_squared_probabilities", "logit_variance")
    assert_statistics(result, expected, names)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bernoulli_nll_is_the_softmax_of_zero_and_z(options):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(2, (50,), generator=generator)
    binary = bernoulli_nll(logits, targets, options=options)
    softmax = softmax_nll(torch.stack([torch.zeros(50, dtype=torch.float64), logits], 1), targets, options=options)
    torch.testing.assert_close(binary.objective, softmax.objective)
    for name in ("nll", "confidence", "correct", "entropy", "sum_squared_probabilities", "logit_variance"):
        torch.testing.assert_close(getattr(binary, name), getattr(softmax, name), msg=name)


def test_sklearn_agrees():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 5)) * 4
    targets = generator.integers(0, 5, 200)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    result = softmax_nll(torch.from_numpy(logits), torch.from_numpy(targets), reduction="mean")
    assert result.objective.item() == pytest.approx(log_loss(targets, probabilities, labels=range(5)), rel=1e-9)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_reductions_and_upstream_gradients(inputs, reduction):
    hidden, weight, _, targets, _ = inputs
    upstream = torch.rand(N, dtype=torch.float64) if reduction == "none" else torch.tensor(0.3, dtype=torch.float64)
    grads = []
    for loss in (
        lambda h, w: linear_nll(h, w, targets, reduction=reduction).objective,
        lambda h, w: softmax_nll(h @ w.T, targets, reduction=reduction).objective,
    ):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss(h, w).backward(upstream)
        grads.append((h.grad, w.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("frozen", [(), (0,), (1,)])
def test_a_frozen_input_and_no_grad(inputs, frozen):
    hidden, weight, _, targets, _ = inputs
    leaves = [tensor.clone().requires_grad_(number not in frozen) for number, tensor in enumerate((hidden, weight))]
    result = linear_nll(*leaves, targets)
    result.objective.backward()
    assert [leaf.grad is None for leaf in leaves] == [number in frozen for number in range(2)]
    with torch.no_grad():
        silent = linear_nll(*leaves, targets)
    torch.testing.assert_close(silent.nll, result.nll, rtol=1e-12, atol=1e-12)
    assert silent.entropy is None
    torch.testing.assert_close(result.entropy, linear_nll(*leaves, targets, statistics="full").entropy)


def test_chunks_change_nothing(inputs, monkeypatch):
    hidden, weight, _, targets, _ = inputs
    results = []
    for rows in (1, 5, N):
        monkeypatch.setattr("nanolm.loss.fused.rows_per_chunk", lambda *_, rows=rows: rows)
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        result = linear_nll(h, w, targets, options=LossOptions(label_smoothing=0.1, z_loss=0.1))
        result.objective.backward()
        results.append((result.nll, result.entropy, result.objective.detach(), h.grad, w.grad))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-10, atol=1e-12)


def test_correct_is_the_first_of_equal_maxima():
    hidden = torch.ones(V, D)
    result = linear_nll(hidden, torch.zeros(V, D), torch.arange(V))  # a head that begins at zero: all logits equal
    assert result.correct.nonzero().flatten().tolist() == [0]
    torch.testing.assert_close(result.nll, torch.full((V,), math.log(V)))
    torch.testing.assert_close(result.confidence, torch.full((V,), 1 / V))


@pytest.mark.parametrize("size", [1e4, 3e38])
def test_extreme_logits_give_finite_or_infinite_values_and_never_nan(size):
    logits = torch.tensor([[size, 0.0, -size], [-size, -size, -size], [size, size, size]])
    hidden = logits.clone().requires_grad_()
    targets = torch.tensor([0, 1, 2])
    for result in (softmax_nll(logits, targets), linear_nll(hidden, torch.eye(3), targets, statistics="full")):
        torch.testing.assert_close(result.nll, torch.tensor([0.0, math.log(3), math.log(3)]))
        torch.testing.assert_close(result.entropy, torch.tensor([0.0, math.log(3), math.log(3)]))
    result.objective.backward()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("targets", [torch.full((4,), IGNORED), torch.empty(0, dtype=torch.int64)])
def test_nothing_to_score_is_zero(targets):
    hidden, weight = torch.randn(len(targets), D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    for reduction in ("sum", "mean"):
        result = linear_nll(hidden, weight, targets, reduction=reduction)
        assert result.objective.item() == 0
        assert int(result.count) == 0
        result.objective.backward()
    assert not weight.grad.any()
    assert not hidden.grad.any()


def test_a_target_out_of_range_is_named():
    with pytest.raises(ConfigError, match=r"1500.*1|1.*1500"):
        linear_nll(torch.randn(3, D), torch.randn(V, D), torch.tensor([0, V, 2]))


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"temperature": 0.0}, {"softcap": 0.0}, {"z_loss": -1.0}],
)
def test_options_out_of_range(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        LossOptions(**options)


def test_nan_is_never_hidden():
    hidden = torch.randn(3, D)
    hidden[1] = float("nan")
    result = linear_nll(hidden.requires_grad_(), torch.randn(V, D), torch.tensor([0, 1, 2]))
    assert result.nll.isnan().tolist() == [False, True, False]
    assert result.objective.isnan()


def test_low_precision_keeps_the_loss_in_float32():
    hidden, weight, targets = torch.randn(64, D), torch.randn(V, D), torch.randint(V, (64,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = linear_nll(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert result.objective.dtype == result.nll.dtype == result.entropy.dtype == torch.float32
    result.objective.backward()
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(result.nll, softmax_nll(hidden @ weight.T, targets).nll, rtol=0.03, atol=0.1)
