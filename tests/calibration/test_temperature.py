import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from nanolm.calibration import fit_temperature, fit_temperature_from_logits, nll_curve
from nanolm.calibration.temperature import CalibrationRefused
from nanolm.loss import LossOptions, softmax_nll

TRUTH = 1.7


def synthetic(num_tokens=4000, width=8, num_classes=12, seed=0, bias=False, softcap=None):
    """Hidden states, weight, bias and targets: y is drawn from softmax(z), the model says 1.7 z."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(num_classes, width, generator=generator, dtype=torch.float64) * 0.7
    shift = torch.randn(num_classes, generator=generator, dtype=torch.float64) if bias else None
    u = torch.nn.functional.linear(hidden, weight, shift)
    z = (u if softcap is None else softcap * torch.tanh(u / softcap)) / TRUTH
    targets = torch.multinomial(z.softmax(dim=1), 1, generator=generator).squeeze(1)
    return hidden, weight, shift, targets, u


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_the_temperature_of_synthetic_truth_is_found(bias, softcap):
    hidden, weight, shift, targets, _ = synthetic(bias=bias, softcap=softcap, seed=1)
    fit = fit_temperature(hidden, weight, targets, shift, LossOptions(softcap=softcap))
    assert fit.low < TRUTH < fit.high
    assert fit.high - fit.low < 0.25
    assert fit.nll_at_temperature < fit.nll
    assert abs(fit.gradient) < 1e-5
    assert fit.num_tokens == 4000


def test_it_is_the_minimum_that_another_optimizer_finds():
    hidden, weight, _, targets, u = synthetic(seed=3)
    fit = fit_temperature(hidden, weight, targets)
    theirs = minimize_scalar(
        lambda t: torch.nn.functional.cross_entropy(u / t, targets).item(), bounds=(0.1, 10), options={"xatol": 1e-9}
    )
    assert fit.temperature == pytest.approx(theirs.x, abs=2e-5)
    assert fit.nll_at_temperature == pytest.approx(theirs.fun, abs=1e-9)
    assert fit.nll == pytest.approx(torch.nn.functional.cross_entropy(u, targets).item(), abs=1e-9)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_it_is_found_from_far_away(scale):
    hidden, weight, _, targets, _ = synthetic()
    reference = fit_temperature(hidden, weight, targets)
    fit = fit_temperature(hidden, weight * scale, targets)
    assert fit.temperature == pytest.approx(scale * reference.temperature, abs=2e-5 * max(1, scale))
    assert fit.nll_at_temperature == pytest.approx(reference.nll_at_temperature, abs=1e-9)


def test_the_models_own_temperature_is_applied_first_and_smoothing_not_at_all():
    hidden, weight, _, targets, _ = synthetic()
    plain = fit_temperature(hidden, weight, targets)
    scaled = fit_temperature(hidden, weight, targets, options=LossOptions(temperature=0.5, label_smoothing=0.2))
    assert scaled.temperature == pytest.approx(2 * plain.temperature, abs=4e-5)


def test_logits_give_what_hidden_states_give():
    hidden, weight, _, targets, u = synthetic()
    one, other = fit_temperature(hidden, weight, targets), fit_temperature_from_logits(u, targets)
    assert other.temperature == pytest.approx(one.temperature, abs=1e-6)
    assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-6)


def test_a_binary_task_is_softmax_of_zero_and_z():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3000, generator=generator, dtype=torch.float64) * 2
    targets = (torch.rand(3000, generator=generator) < torch.sigmoid(z / TRUTH)).long()
    one = fit_temperature_from_logits(z, targets)
    two = fit_temperature_from_logits(torch.stack([torch.zeros_like(z), z], dim=1), targets)
    assert one.low < TRUTH < one.high
    assert one.temperature == pytest.approx(two.temperature, abs=1e-6)


def test_ignored_tokens_play_no_part():
    hidden, weight, _, targets, _ = synthetic()
    ignored = targets.clone()
    ignored[1::2] = -100
    units = np.arange(4000) // 10
    some = fit_temperature(hidden, weight, ignored, units=units)
    alone = fit_temperature(hidden[::2], weight, targets[::2], units=units[::2])
    assert vars(some) == pytest.approx(vars(alone), abs=1e-9)


def test_the_interval_covers_and_knows_of_dependent_tokens():
    """Documents of 20 identical tokens: as 20 independent ones, they seem to say more than they do."""
    documents = {"hits": 0, "naive": 0}
    for seed in range(200):
        hidden, weight, _, targets, _ = synthetic(num_tokens=150, num_classes=4, seed=seed)
        hidden, targets = hidden.repeat_interleave(20, dim=0), targets.repeat_interleave(20)
        units = np.arange(150).repeat(20)
        for name, fit in (
            ("hits", fit_temperature(hidden, weight, targets, units=units)),
            ("naive", fit_temperature(hidden, weight, targets)),
        ):
            documents[name] += fit.low < TRUTH < fit.high
    assert 182 <= documents["hits"] <= 198
    assert documents["naive"] < 100


def test_the_curve_is_convex_in_one_over_t_and_lowest_at_the_fit():
    hidden, weight, _, targets, _ = synthetic()
    fit = fit_temperature(hidden, weight, targets)
    beta = np.linspace(0.2, 2.0, 40)
    curve = nll_curve(hidden, weight, targets, 1 / beta)
    assert (np.diff(curve, 2) > 0).all()
    assert nll_curve(hidden, weight, targets, [1.0, fit.temperature]) == pytest.approx(
        [fit.nll, fit.nll_at_temperature]
    )
    assert fit.nll_at_temperature <= curve.min()


HIDDEN, WEIGHT, _, _, U = synthetic(num_tokens=50)
RIGHT = U.argmax(dim=1)


@pytest.mark.parametrize(
    ("weight", "targets", "word"),
    [
        (WEIGHT, RIGHT, "correct"),
        (WEIGHT, U.argmin(dim=1), "wrong"),
        (torch.zeros_like(WEIGHT), RIGHT, "equal"),
        (WEIGHT[:1], torch.zeros(50, dtype=torch.long), "equal"),
        (30 * WEIGHT, RIGHT, "correct"),  # no variance is left at the end of the bracket
        (1e6 * WEIGHT, RIGHT, "apart"),
        (WEIGHT, torch.full((50,), -100), "no tokens"),
    ],
)
def test_predictions_that_no_temperature_fits_are_refused(weight, targets, word):
    with pytest.raises(CalibrationRefused, match=word):
        fit_temperature(HIDDEN, weight, targets)
    with pytest.raises(CalibrationRefused, match="no tokens"):
        fit_temperature(HIDDEN[:0], weight, targets[:0])


def test_accuracy_does_not_change_and_the_gap_closes():
    _, _, _, targets, u = synthetic()
    fit = fit_temperature_from_logits(u, targets)
    before, after = (softmax_nll(u, targets, options=LossOptions(temperature=t)) for t in (1.0, fit.temperature))
    assert torch.equal(before.correct, after.correct)
    assert (before.nll - before.entropy).mean() > 0.1
    assert abs((after.nll - after.entropy).mean()) < 1e-5


def test_an_exception_from_the_heartbeat_ends_the_fit():
    calls = iter(range(2))
    hidden, weight, _, targets, _ = synthetic()
    with pytest.raises(StopIteration):
        fit_temperature(hidden, weight, targets, heartbeat=lambda: next(calls))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [1.0, 9.0])
def test_predictions_that_are_all_correct_have_no_temperature_whatever_the_precision(dtype, margin):
    """The NLL underflows long before T = 0.02; an optimum found there would be one of the rounding."""
    targets = torch.arange(60) % 3
    logits = margin * torch.nn.functional.one_hot(targets, 3).to(dtype)
    with pytest.raises(CalibrationRefused, match="correct"):
        fit_temperature_from_logits(logits, targets)
    logits[0] = logits[1]  # one wrong among sixty: there is an optimum
    assert 0.02 < fit_temperature_from_logits(logits, targets).temperature < 50
