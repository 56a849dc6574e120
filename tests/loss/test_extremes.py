"""The ends of the range: huge, equal, infinite and missing logits; empty and fully ignored batches; NaN."""

import math

import pytest
import torch

from nanolm.loss import LossOptions, bernoulli_nll, linear_nll, softmax_nll
from tests.loss.problems import assert_same, make_problem

OPTIONS = [LossOptions(), LossOptions(label_smoothing=0.1, z_loss=1e-4), LossOptions(softcap=30.0)]


def both(logits, targets, options=LossOptions(), bias=None):  # noqa: B008
    """The dense loss of logits, and the fused one of logits · identity, each with the inputs it depends on."""
    hidden = logits.clone().requires_grad_()
    weight = torch.eye(logits.shape[1], dtype=logits.dtype, requires_grad=True)
    whole = logits if bias is None else logits + bias
    yield softmax_nll(whole.requires_grad_(), targets, options=options), (whole,)
    for statistics in ("basic", "full"):
        yield linear_nll(hidden, weight, targets, bias, None, options, statistics=statistics), (hidden, weight)


def assert_no_nan(result, inputs):
    for name in ("objective", "nll", "confidence", "entropy", "sum_squared_probabilities", "logit_variance"):
        value = getattr(result, name)
        assert value is None or not value.isnan().any(), name
    for gradient in torch.autograd.grad(result.objective, inputs):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("num_classes", [5, 300])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [1e4, 3e38])
def test_huge_logits(scale, options, num_classes):
    if scale == 3e38 and options.z_loss:
        options = LossOptions(label_smoothing=0.1)  # (3e38)² is infinite, and so is its gradient
    logits = torch.full((3, num_classes), -scale)
    logits[:, 2] = scale
    targets = torch.tensor([2, 0, 2])
    for result, inputs in both(logits, targets, options):
        assert_no_nan(result, inputs[:1] if scale == 3e38 else inputs)  # the weight's gradient sums several 3e38
        assert result.confidence.tolist() == pytest.approx([1.0] * 3)
        assert result.entropy.tolist() == pytest.approx([0.0] * 3, abs=1e-6)
        assert result.correct.tolist() == [True, False, True]
        assert result.nll[0] == 0
        if options.softcap is None:
            assert result.nll[1] == (2e4 if scale == 1e4 else math.inf)


def test_huge_equal_logits():
    uniform = torch.full((2,), math.log(300))
    for result, inputs in both(torch.full((2, 300), 3e38), torch.tensor([0, 299])):
        assert_no_nan(result, inputs)
        torch.testing.assert_close((result.nll, result.entropy), (uniform, uniform))
        assert result.correct.tolist() == [True, False]


def test_entropy_at_logits_of_ten_thousand_is_not_lost():
    """Two classes share the probability; the rounding of h·(rW) there is a thousandth of a nat, its bounds hold."""
    logits = torch.zeros(1, 300)
    logits[0, :2] = 1e4
    for result, inputs in both(logits, torch.tensor([5])):
        assert_no_nan(result, inputs)
        assert result.entropy.item() == pytest.approx(math.log(2), abs=5e-3)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_minus_infinity_in_the_bias(options):
    bias = torch.zeros(300)
    bias[7] = -math.inf
    logits = torch.randn(4, 300)
    for result, inputs in both(logits, torch.tensor([0, 1, 2, -100]), options, bias):
        assert_no_nan(result, inputs)
        if options.softcap is None and not options.label_smoothing:
            kept = torch.cat([logits[:, :7], logits[:, 8:]], dim=1)
            torch.testing.assert_close(result.nll, softmax_nll(kept, torch.tensor([0, 1, 2, -100])).nll)
        if options.label_smoothing:
            assert result.objective == math.inf  # a share of the target lies where the model excludes it
    for result, inputs in both(logits, torch.tensor([7, 1, 2, 3]), LossOptions(), bias):
        assert_no_nan(result, inputs)
        assert result.nll[0] == math.inf


def test_soft_targets_where_the_model_excludes_a_class():
    bias = torch.zeros(5)
    bias[3] = -math.inf
    soft = torch.tensor([[0.5, 0.5, 0, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    hidden, weight, targets = torch.randn(2, 4, requires_grad=True), torch.randn(5, 4), torch.tensor([0, 1])
    for result in (
        linear_nll(hidden, weight, targets, bias, soft, reduction="none"),
        softmax_nll(hidden @ weight.T + bias, targets, soft, reduction="none"),
    ):
        assert result.objective[0].isfinite()
        assert result.objective[1] == math.inf
        assert torch.autograd.grad(result.objective[0], hidden)[0].isfinite().all()


def test_certainty_keeps_its_digits():
    logits = torch.tensor([[20.0, 0.0, 0.0]], dtype=torch.float64)
    expected = math.log1p(2 * math.exp(-20))
    for result, _ in both(logits, torch.tensor([0])):
        assert result.nll.item() == pytest.approx(expected, rel=1e-7)
    assert bernoulli_nll(torch.tensor([80.0]), torch.tensor([1])).nll.item() == pytest.approx(math.exp(-80), rel=1e-6)


def test_one_class():
    for result, inputs in both(torch.randn(3, 1), torch.zeros(3, dtype=torch.long)):
        assert_no_nan(result, inputs)
        assert result.objective == 0
        assert result.confidence.tolist() == [1, 1, 1]
        assert result.correct.all()
        assert result.entropy.tolist() == [0, 0, 0]


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_no_tokens(reduction):
    hidden, weight = torch.randn(0, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    nothing = torch.empty(0, dtype=torch.long)
    for statistics in ("none", "basic", "full"):
        result = linear_nll(hidden, weight, nothing, reduction=reduction, statistics=statistics)
        assert result.objective.sum() == result.count == len(result.nll) == 0
        gradients = torch.autograd.grad(result.objective.sum(), (hidden, weight))
        torch.testing.assert_close(gradients, (torch.zeros(0, 4), torch.zeros(7, 4)))
    dense = softmax_nll(torch.randn(0, 7), nothing, reduction=reduction)
    binary = bernoulli_nll(torch.randn(0), nothing, reduction=reduction)
    assert dense.objective.sum() == binary.objective.sum() == 0


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("options", [*OPTIONS, LossOptions(label_smoothing=0.1, softcap=5.0)], ids=str)
def test_all_tokens_ignored(reduction, options):
    p, logits = make_problem(bias=True, dtype=torch.float32), torch.randn(11, 2, requires_grad=True)
    p.targets.fill_(-100)
    for result, inputs in (
        (linear_nll(*p.arguments, options, reduction), p.inputs),
        (softmax_nll(logits, p.targets, None, options, reduction), [logits]),
        (bernoulli_nll(logits[:, 0], p.targets, options, reduction), [logits]),
    ):
        assert result.objective.sum() == result.count == 0
        assert not result.nll.any()
        assert not result.correct.any()
        assert not any(gradient.any() for gradient in torch.autograd.grad(result.objective.sum(), inputs))


@pytest.mark.parametrize("statistics", ["none", "basic", "full"])
def test_nan_surfaces(statistics):
    p = make_problem(num_classes=300, dtype=torch.float32)
    with torch.no_grad():
        p.hidden[2, 1] = math.nan
    result = linear_nll(*p.arguments, statistics=statistics)
    assert result.objective.isnan()
    hidden, weight = torch.autograd.grad(result.objective, p.inputs)
    for field in (result.nll, result.confidence, result.entropy, hidden.sum(dim=1)):
        assert field is None or field.isnan().nonzero().tolist() == [[2]]
    assert weight.isnan().all()
    assert bernoulli_nll(torch.tensor([math.nan]), torch.tensor([1])).nll.isnan().all()


def test_nan_at_an_ignored_token_is_not_hidden_from_the_weight():
    p = make_problem(dtype=torch.float32)
    with torch.no_grad():
        p.hidden[1] = math.nan  # ignored
    result = linear_nll(*p.arguments)
    assert result.objective.isfinite()
    assert torch.autograd.grad(result.objective, p.weight)[0].isnan().any()


def test_int32_targets():
    p = make_problem()
    assert_same(linear_nll(p.hidden, p.weight, p.targets.int()), linear_nll(*p.arguments))
    assert_same(softmax_nll(p.logits, p.targets.int()), softmax_nll(p.logits, p.targets))


@pytest.mark.parametrize("soft", [False, True])
def test_non_contiguous_input(set_chunk, soft):
    set_chunk(4)
    p = make_problem(bias=True, soft=soft)

    def strided(tensor):
        return tensor if tensor is None else torch.stack([tensor, tensor], dim=-1)[..., 0]

    arguments = [strided(p.hidden), strided(p.weight.T).T, *map(strided, (p.targets, p.bias, p.soft_targets))]
    assert not arguments[0].is_contiguous()
    result, expected = linear_nll(*arguments, statistics="full"), linear_nll(*p.arguments, statistics="full")
    assert_same(result, expected, tolerance=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(each.objective, p.inputs) for each in (result, expected)))


@pytest.mark.parametrize("options", [LossOptions(), LossOptions(temperature=2.0), LossOptions(softcap=30.0)], ids=str)
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("z", [-math.inf, -3e38, -1e7, -100.0, 0.0, 100.0, 1e7, 3e38])
def test_extreme_logits_mean_the_same_to_all_three_losses(z, target, options):
    """The log-odds z, the logits [0, z], and a head whose second row is z: equal statistics and equal gradients."""
    targets, one = torch.tensor([target]), torch.ones(1, 1)
    odds = torch.tensor([z], requires_grad=True)
    logits = torch.tensor([[0.0, z]], requires_grad=True)
    bias = torch.tensor([0.0, z], requires_grad=True)
    found = [
        (bernoulli_nll(odds, targets, options), odds),
        (softmax_nll(logits, targets, options=options), logits),
        (linear_nll(one, torch.zeros(2, 1), targets, bias, options=options, statistics="full"), bias),
    ]
    gradients = [torch.autograd.grad(result.objective, leaf)[0].flatten()[-1] for result, leaf in found]
    for (result, _), gradient in zip(found, gradients, strict=True):
        assert_same(found[0][0], result, tolerance=1e-5)
        torch.testing.assert_close(gradients[0], gradient)
        assert gradient.isfinite()
        assert not result.entropy.isnan().any()


@pytest.mark.parametrize("z", [1e4, 3e38, math.inf])
def test_huge_binary_logits(z):
    logits, targets = torch.tensor([z, -z, z, -z], requires_grad=True), torch.tensor([1, 0, 0, 1])
    result = bernoulli_nll(logits, targets)
    assert result.nll.tolist() == [0, 0, pytest.approx(z), pytest.approx(z)]
    assert result.entropy.tolist() == result.logit_variance.tolist() == [0] * 4
    assert torch.autograd.grad(result.objective, logits)[0].tolist() == [0, 0, 1, -1]
    cold = bernoulli_nll(logits, targets, LossOptions(temperature=0.1, label_smoothing=0.1))
    assert not torch.stack([cold.nll, cold.entropy]).isnan().any()
