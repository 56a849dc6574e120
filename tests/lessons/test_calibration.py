import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from nanolm.lessons import calibration


def rows_of(step):
    """Each model's metrics by their names."""
    return [dict(zip(step.table[0][1:], map(float, row[1:]), strict=True)) for row in step.table[1:]]


def test_ece_and_entropy_gap_are_what_their_definitions_say(cells, curve):
    step = calibration.reliability(0)
    p, labels = calibration.draw_halves(0)[1]
    q = (2 * p.log()).softmax(dim=1)
    expected = float(multiclass_calibration_error(q, labels, calibration.NUM_CLASSES, n_bins=10, norm="l1"))
    of_bins, of_gap, _ = step.identities
    assert of_bins.left == pytest.approx(expected, abs=1e-6)
    assert np.dot(cells(step, "share of predictions"), cells(step, "distance")) == pytest.approx(expected, abs=2e-4)
    gap = np.mean(-np.log(q.numpy()[np.arange(len(q)), labels])) - np.mean(scipy.special.entr(q.numpy()).sum(axis=1))
    assert of_gap.right == pytest.approx(gap, abs=1e-6)
    for name in ("ECE", "entropy gap", "confidence", "accuracy"):
        assert name in step.about
    confidence, accuracy = curve(step, "the truth")
    assert accuracy[1:] == pytest.approx(confidence[1:], abs=0.08)  # bins hold tens to thousands of predictions
    confidence, accuracy = curve(step, "its logits doubled")
    assert np.all(accuracy < confidence)


@pytest.mark.parametrize("seed", [0, 1, 14])  # of 25 seeds, 14 has the T farthest from 2
def test_the_temperature_is_fitted_on_one_half_and_measured_on_the_other(seed):
    step = calibration.held_out_temperature(seed)
    assert all(identity.holds for identity in step.identities)
    (p_fit, labels_fit), (p, labels) = ((part.numpy() for part in half) for half in calibration.draw_halves(seed))

    def nll(temperature, p, labels):
        return -scipy.special.log_softmax(2 * np.log(p) / temperature, axis=1)[np.arange(len(p)), labels].mean()

    best = scipy.optimize.minimize_scalar(nll, bounds=(1, 4), args=(p_fit, labels_fit), options={"xatol": 1e-6}).x
    assert step.identities[1].left == pytest.approx(best, abs=1e-4)
    truth, doubled, fixed = rows_of(step)
    assert fixed["NLL"] == pytest.approx(nll(best, p, labels), abs=1e-4)
    assert 0 < abs(fixed["entropy gap"]) < 0.08  # it would be 0 on the draws that T was fitted on
    assert truth["accuracy"] == doubled["accuracy"] == pytest.approx(np.mean(p.argmax(axis=1) == labels), abs=1e-4)
    # The sums of an ECE in 15 bins are at least the distance of their totals.
    assert doubled["ECE"] >= doubled["confidence"] - doubled["accuracy"] - 1e-4
    assert doubled["ECE"] > 0.15
    assert doubled["entropy gap"] > 0.5
    assert fixed["NLL"] < doubled["NLL"]
    assert fixed["ECE"] < 0.04


def test_the_gap_and_ece_disagree():
    truth, q, sharpened = rows_of(calibration.top_label_and_whole())
    assert truth["ECE"] == truth["entropy gap"] == 0
    assert q["confidence"] > q["accuracy"]
    assert q["entropy gap"] < 0
    assert sharpened["NLL"] < q["NLL"]
    assert sharpened["ECE"] > q["ECE"]


def test_the_halves_share_no_draw_and_follow_their_probabilities():
    fitted, (p, labels) = calibration.draw_halves(5)
    assert len(fitted[1]) == len(labels) == calibration.NUM_DRAWS // 2
    assert not torch.equal(fitted[0], p)
    observed = np.bincount(labels.numpy(), minlength=10)
    variance = (p * (1 - p)).sum(dim=0).numpy()
    assert np.all(np.abs(observed - p.sum(dim=0).numpy()) < 5 * np.sqrt(variance))
    assert not torch.equal(labels, calibration.draw_halves(6)[1][1])
