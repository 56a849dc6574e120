"""Every metric against an independent implementation, or its definition written out."""

import math

import numpy as np
import pytest
import relplot
import sklearn.metrics
import torch
import torchmetrics.functional.classification as torchmetrics

from nanolm.loss import LossOptions, bernoulli_nll, linear_nll, softmax_nll
from nanolm.metrics import CalibrationMeter
from tests.metrics.test_meter import predictions

SIZES = [(3000, 5, 2.0), (400, 30, 0.5), (50, 3, 3.0)]


@pytest.fixture(params=SIZES, ids=str)
def case(request):
    """Metrics, probabilities, targets, and confidence and correctness sorted by nothing."""
    logits, targets = predictions(*request.param)
    probabilities = logits.double().softmax(dim=1)
    confidence, first = probabilities.max(dim=1)
    meter = CalibrationMeter().update(softmax_nll(logits, targets))
    return meter, probabilities, targets, confidence.numpy(), (first == targets).numpy()


def test_ece_agrees_with_torchmetrics(case):
    meter, probabilities, targets, *_ = case
    for num_bins in (10, 15, 20):
        theirs = torchmetrics.multiclass_calibration_error(
            probabilities, targets, num_classes=probabilities.shape[1], n_bins=num_bins
        )
        assert meter.ece(num_bins) == pytest.approx(theirs.item(), abs=1e-6)
    assert meter.metrics()["ece"] == pytest.approx(meter.ece())
    with pytest.raises(ValueError, match="expected a divisor"):
        meter.ece(7)


def test_torchmetrics_gives_confidence_one_a_bin_that_we_do_not():
    """Too sure at 1 and too unsure just below it, the two cancel in one bin and add in two."""
    logits = torch.tensor([200.0, 200.0, 4.0, 4.0])
    targets = torch.tensor([1, 0, 1, 1])
    metrics = CalibrationMeter().update(bernoulli_nll(logits, targets)).metrics()
    confidence = logits.sigmoid().double().numpy()
    assert metrics["ece"] == pytest.approx(abs(confidence.mean() - 0.75), abs=1e-6)
    theirs = torchmetrics.binary_calibration_error(torch.from_numpy(confidence), targets, n_bins=15)
    assert theirs.item() == pytest.approx(metrics["ece"] + 2 * (2 - confidence[2:].sum()) / 4, abs=1e-6)


def test_proper_scores_agree_with_scikit_learn(case):
    meter, probabilities, targets, *_ = case
    metrics = meter.metrics()
    labels = list(range(probabilities.shape[1]))
    assert metrics["nll"] == pytest.approx(sklearn.metrics.log_loss(targets, probabilities, labels=labels), abs=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["nll"]))
    brier = (probabilities - torch.nn.functional.one_hot(targets, len(labels))).square().sum(dim=1).mean().item()
    assert metrics["brier"] == pytest.approx(brier, abs=1e-6)
    entropy = torch.special.entr(probabilities).sum(dim=1).mean().item()
    assert metrics["entropy"] == pytest.approx(entropy, abs=1e-6)
    assert metrics["entropy_gap"] == pytest.approx(metrics["nll"] - entropy, abs=1e-6)


def test_the_binary_brier_score_is_twice_scikit_learns():
    torch.manual_seed(0)
    logits = torch.randn(1000) * 3
    targets = (torch.rand(1000) < 0.4).long()
    metrics = CalibrationMeter().update(bernoulli_nll(logits, targets)).metrics()
    theirs = sklearn.metrics.brier_score_loss(targets, logits.double().sigmoid())
    assert metrics["brier"] == pytest.approx(2 * theirs, abs=1e-6)


@pytest.mark.parametrize("case", [SIZES[0], SIZES[1]], indirect=True, ids=str)
def test_smooth_ece_agrees_with_its_authors(case):
    meter, _, _, confidence, correct = case
    correct = correct.astype(float)
    relplot_ece = relplot.metrics.smooth_ece
    # their search, to more digits than the three that it takes by itself
    width = relplot.metrics.search_param(lambda a: a < relplot_ece(confidence, correct, a), refine=20)
    assert meter.metrics()["smooth_ece"] == pytest.approx(relplot_ece(confidence, correct, width), abs=1e-4)
    assert meter.metrics()["smooth_ece"] == pytest.approx(relplot.smECE(confidence, correct), abs=1e-3)


def test_smooth_ece_is_the_fixed_point_of_its_definition(case):
    """An independent evaluation of the reflected kernel at the width that was found, by direct summation."""
    meter, _, _, confidence, correct = case
    width = meter.metrics()["smooth_ece"]
    grid = (np.arange(4000) + 0.5) / 4000
    smoothed = np.zeros_like(grid)
    for mirror in (confidence, -confidence, 2 - confidence, 2 + confidence, confidence - 2):
        kernel = np.exp(-0.5 * ((grid[:, None] - mirror) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        smoothed += kernel @ (correct - confidence) / len(confidence)
    assert np.abs(smoothed).mean() == pytest.approx(width, abs=1e-4)


def test_the_three_losses_feed_it_alike():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(400, 6), torch.randn(2, 6), torch.randint(2, (400,))
    logits = hidden @ weight.T
    fused = linear_nll(hidden, weight, targets, options=LossOptions(), statistics="full")
    meters = [
        CalibrationMeter().update(result).metrics()
        for result in (fused, softmax_nll(logits, targets), bernoulli_nll(logits[:, 1] - logits[:, 0], targets))
    ]
    assert meters[1] == pytest.approx(meters[0], abs=2e-6)
    assert meters[2] == pytest.approx(meters[1], abs=2e-6)
