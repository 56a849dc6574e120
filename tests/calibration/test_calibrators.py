import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nanolm.calibration.calibrators import (
    VectorScaling,
    compare_calibrators,
    invert_smoothing,
    smoothing_inverted,
)
from nanolm.calibration.temperature import CalibrationRefused, fit_temperature, fit_temperature_from_logits
from nanolm.errors import ConfigError, NonFiniteError
from nanolm.loss import LossOptions, softmax_nll


def distorted(num_tokens=6000, seed=0):
    """Logits that a scale and a shift for each class would put right, and targets drawn from the truth."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(num_tokens, 4, generator=generator, dtype=torch.float64) * 1.5
    targets = torch.multinomial(truth.softmax(dim=1), 1, generator=generator).squeeze(1)
    scale, shift = torch.tensor([2.0, 0.5, 1.0, 1.5]), torch.tensor([0.5, -0.5, 0.0, 0.3])
    return (truth - shift) / scale, targets, scale, shift


def test_vector_scaling_recovers_a_distortion_of_each_class():
    logits, targets, scale, shift = distorted(40_000)
    fit = VectorScaling.fit(logits, targets)
    torch.testing.assert_close(fit.scale, scale.double(), atol=0.06, rtol=0)
    relative = fit.shift - fit.shift[2]  # a shift of all logits is no change
    torch.testing.assert_close(relative, (shift - shift[2]).double(), atol=0.06, rtol=0)


def test_vector_scaling_finds_the_optimum_that_scikit_learn_finds():
    """Two classes: logistic regression of the classes on (z_0, z_1) has the same likelihood."""
    logits, targets, _, _ = distorted()
    two = targets < 2
    logits, targets = logits[two, :2], targets[two]
    theirs = LogisticRegression(C=1e6, tol=1e-10).fit(logits, targets)
    ours = softmax_nll(VectorScaling.fit(logits, targets)(logits), targets, reduction="mean").objective
    probabilities = torch.from_numpy(theirs.predict_proba(logits))
    assert ours.item() == pytest.approx(-probabilities[range(len(targets)), targets].log().mean().item(), abs=1e-6)


def test_too_many_classes_and_no_tokens_are_refused():
    with pytest.raises(ConfigError, match="at most 1000 classes, found 1001"):
        VectorScaling.fit(torch.zeros(3, 1001), torch.zeros(3, dtype=torch.long))
    with pytest.raises(CalibrationRefused, match="no tokens"):
        VectorScaling.fit(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def test_a_masked_class_changes_no_fit_of_the_others():
    """Minus infinity for a class that never occurs: the fits of the other classes are those without it."""
    logits, targets, _, _ = distorted(2000)
    masked = torch.cat([logits, torch.full((2000, 1), -math.inf)], dim=1)
    plain, fit = VectorScaling.fit(logits, targets), VectorScaling.fit(masked, targets)
    torch.testing.assert_close(fit.scale[:4], plain.scale, atol=1e-5, rtol=0)
    mapped = fit(masked)
    assert (mapped[:, 4] == -math.inf).all()
    torch.testing.assert_close(mapped[:, :4].softmax(dim=1), plain(logits).softmax(dim=1), atol=1e-5, rtol=0)
    temperatures = [fit_temperature_from_logits(z, targets).temperature for z in (logits, masked)]
    assert temperatures[1] == pytest.approx(temperatures[0], rel=1e-9)
    assert invert_smoothing(masked, 0.1)[0].isfinite().all()
    for row in compare_calibrators([((masked, targets), (masked, targets))], 0.1):
        assert all(math.isfinite(value) for value in dict(row).values() if isinstance(value, float)), row


def test_a_mask_of_some_rows_is_fitted_too():
    logits, targets, _, _ = distorted(2000)
    logits[::2, 3] = torch.where(targets[::2] == 3, logits[::2, 3], -math.inf)
    fit = VectorScaling.fit(logits, targets)
    assert fit.scale.isfinite().all()
    assert fit.shift.isfinite().all()
    before, after = (softmax_nll(z, targets, reduction="mean").objective for z in (logits, fit(logits)))
    assert after < before


@pytest.mark.parametrize("fit", [VectorScaling.fit, fit_temperature_from_logits])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_cannot_be_fitted_is_refused_and_never_nan(fit, value):
    logits, targets, _, _ = distorted(100)
    logits[7, targets[7]] = value  # for minus infinity: the target is excluded, so the NLL is infinite at any fit
    with pytest.raises(NonFiniteError, match="cannot be fitted"):
        fit(logits, targets)
    targets[7] = -100  # ignored
    for parameter in vars(fit(logits, targets)).values():
        assert torch.as_tensor(parameter).isfinite().all()


def test_the_temperature_of_a_head_refuses_what_is_not_finite():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(300, 8, generator=generator), torch.randn(5, 8, generator=generator)
    targets = torch.multinomial((hidden @ weight.T / 2).softmax(dim=1), 1, generator=generator).squeeze(1)
    bias = torch.zeros(6)
    bias[5] = -math.inf
    masked = fit_temperature(hidden, torch.cat([weight, weight[:1]]), targets, bias)
    assert masked.temperature == pytest.approx(fit_temperature(hidden, weight, targets).temperature, abs=1e-4)
    hidden[3, 3] = math.nan
    with pytest.raises(NonFiniteError, match="cannot be fitted"):
        fit_temperature(hidden, weight, targets)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_smoothing_of_what_is_not_finite_is_not_inverted(value):
    logits, *_ = distorted(10)
    logits[2, 1] = value
    with pytest.raises(NonFiniteError, match="cannot be inverted"):
        invert_smoothing(logits, 0.1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_inverse_of_smoothing_is_exact(smoothing):
    p = torch.randn(20, 7, dtype=torch.float64).softmax(dim=1)
    q = (1 - smoothing) * p + smoothing / 7
    restored, share = invert_smoothing(q.log(), smoothing)
    torch.testing.assert_close(restored.exp(), p)
    assert share == 0


def test_a_smoothed_language_model_is_restored_from_its_hidden_states():
    """The head is the identity, so that hidden states are logits; the model's own temperature is applied first."""
    generator = torch.Generator().manual_seed(3)
    p = torch.randn(40, 6, generator=generator, dtype=torch.float64).softmax(dim=1)
    targets = torch.randint(6, (40,), generator=generator)
    hidden, head = 2 * (0.8 * p + 0.2 / 6).log(), torch.eye(6, dtype=torch.float64)
    parts = list(smoothing_inverted(hidden, head, targets, LossOptions(temperature=2.0), 0.2))
    found = torch.cat([result.nll for result, _ in parts])
    torch.testing.assert_close(found, -p[range(40), targets].log())
    assert all(share == 0 for _, share in parts)


def test_what_the_inverse_cannot_restore_is_floored_and_counted():
    q = torch.tensor([[0.94, 0.01, 0.05], [0.4, 0.3, 0.3]], dtype=torch.float64)
    restored, share = invert_smoothing(q.log(), 0.1)  # ε/V is 0.033
    assert share == pytest.approx(1 / 6)
    assert restored.isfinite().all()
    torch.testing.assert_close(restored.exp().sum(dim=1), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ConfigError, match="label_smoothing"):
        invert_smoothing(q.log(), 1.0)


def test_the_table_of_a_model_at_the_optimum_of_smoothing():
    """Theory: ECE near ε (E p_max - 1/V) and T < 1 before; restored by the inverse, only in part by T."""
    generator = torch.Generator().manual_seed(0)
    p = (torch.randn(20_000, 5, generator=generator, dtype=torch.float64) * 2).softmax(dim=1)
    targets = torch.multinomial(p, 1, generator=generator).squeeze(1)
    logits = (0.9 * p + 0.1 / 5).log()
    half = 10_000
    fold = (logits[:half], targets[:half]), (logits[half:], targets[half:])
    table = {row.calibrator: row for row in compare_calibrators([fold], label_smoothing=0.1)}
    assert list(table) == ["none", "temperature", "vector scaling", "inverse smoothing"]
    expected = 0.1 * (p.amax(dim=1).mean().item() - 1 / 5)
    assert table["none"].ece == pytest.approx(expected, abs=0.015)
    assert table["none"].accuracy - table["none"].confidence > 0.9 * table["none"].ece  # underconfident in every bin
    assert float(table["temperature"].note.removeprefix("T = ")) < 1
    order = ["inverse smoothing", "temperature", "none"]
    assert sorted(order, key=lambda name: table[name].nll) == order
    assert table["none"].accuracy == table["temperature"].accuracy == table["inverse smoothing"].accuracy


def test_a_calibrator_that_cannot_be_fitted_says_why():
    logits = torch.randn(20, 3)
    (_, temperature, *_) = compare_calibrators([((logits, logits.argmax(dim=1)),) * 2])
    assert math.isnan(temperature.nll)
    assert "correct" in temperature.note


def test_training_with_smoothing_reaches_the_optimum_that_is_inverted():
    """Gradient descent on the smoothed objective of free logits ends at q = (1-ε) y + ε/V."""
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        total = softmax_nll(logits, torch.tensor([1]), options=LossOptions(label_smoothing=0.1)).objective
        total.backward()
        return total

    optimizer.step(objective)
    expected = torch.tensor([[0.025, 0.925, 0.025, 0.025]], dtype=torch.float64)
    torch.testing.assert_close(logits.detach().softmax(dim=1), expected, atol=1e-5, rtol=0)


def test_folds_are_pooled_each_by_its_own_calibrator():
    """The pooled metrics are means over the tokens of all folds, and the note has the range of the temperatures."""
    folds = []
    for seed, scale in ((0, 2.0), (1, 10.0)):
        logits, targets, _, _ = distorted(600 + 300 * seed, seed)
        folds.append(((scale * logits[:300], targets[:300]), (scale * logits[300:], targets[300:])))
    rows = {row.calibrator: row for row in compare_calibrators(folds)}
    alone = [{row.calibrator: row for row in compare_calibrators([fold])} for fold in folds]
    for name, row in rows.items():
        expected = (300 * alone[0][name].nll + 600 * alone[1][name].nll) / 900
        assert row.nll == pytest.approx(expected, rel=1e-6)
    first, second = (one["temperature"].note.removeprefix("T = ") for one in alone)
    assert float(first) < 9 < 10 < float(second)  # as texts they would be in the other order
    assert rows["temperature"].note == f"T = {first} to {second}"


def test_a_fold_that_refuses_a_calibrator_is_scored_as_it_is():
    logits, targets, _, _ = distorted(600)
    sure = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    refused = ((sure, sure.argmax(dim=1)), (sure, targets[:300]))
    fitted = ((logits[:300], targets[:300]), (logits[300:], targets[300:]))
    rows = {row.calibrator: row for row in compare_calibrators([fitted, refused])}
    (_, alone, *_), (none, *_) = compare_calibrators([fitted]), compare_calibrators([refused])
    assert rows["temperature"].nll == pytest.approx((alone.nll + none.nll) / 2, rel=1e-6)
    assert rows["temperature"].note.endswith("; not fitted in 1 of 2 folds")
