"""Every figure against an independent implementation, or its definition written out."""

import math

import numpy as np
import pytest
import relplot
import sklearn.metrics
import torch
import torchmetrics.functional.classification as torchmetrics

from nanolm.loss import LossOptions, bernoulli_nll, linear_nll, softmax_nll
from nanolm.metrics import CalibrationMeter
from nanolm.metrics.meter import FINE_BINS
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


def test_equal_width_figures_agree_with_torchmetrics(case):
    meter, probabilities, targets, *_ = case
    metrics = meter.metrics()
    for norm, name in (("l1", "ece"), ("l2", "rmsce"), ("max", "mce")):
        theirs = torchmetrics.multiclass_calibration_error(
            probabilities, targets, num_classes=probabilities.shape[1], n_bins=15, norm=norm
        )
        assert metrics[name] == pytest.approx(theirs.item(), abs=1e-6)
    for num_bins in (10, 15, 20):
        if FINE_BINS % num_bins == 0:
            theirs = torchmetrics.multiclass_calibration_error(
                probabilities, targets, num_classes=probabilities.shape[1], n_bins=num_bins
            )
            assert meter.ece(num_bins) == pytest.approx(theirs.item(), abs=1e-6)
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


def test_over_and_underconfidence_are_the_parts_of_ece(case):
    meter, *_ = case
    metrics = meter.metrics()
    assert metrics["overconfidence"] + metrics["underconfidence"] == pytest.approx(metrics["ece"])
    gap = metrics["overconfidence"] - metrics["underconfidence"]
    assert gap == pytest.approx(metrics["confidence"] - metrics["accuracy"], abs=1e-8)


def test_equal_mass_bins_within_one_fine_bin_of_the_definition(case):
    meter, _, _, confidence, correct = case
    order = np.argsort(confidence)
    gaps = np.array_split((confidence - correct)[order], 15)
    exact = sum(abs(gap.sum()) for gap in gaps) / len(confidence)
    # At each of 14 boundaries at most a fine bin's tokens, and one of array_split's rounding, are elsewhere.
    crowd = np.bincount((confidence * FINE_BINS).astype(int)).max() + 1
    assert meter.metrics()["ece_equal_mass"] == pytest.approx(exact, abs=2 * 14 * crowd / len(confidence))
    if len(confidence) == 3000:
        assert meter.metrics()["ece_equal_mass"] == pytest.approx(exact, abs=2e-3)


def test_aurc_within_ties_of_a_fine_bin(case):
    meter, _, _, confidence, correct = case
    errors = np.cumsum(~correct[np.argsort(-confidence, kind="stable")])
    exact = (errors / np.arange(1, len(errors) + 1)).mean()
    assert meter.metrics()["aurc"] == pytest.approx(exact, abs=0.01)
    # with ties as they are in the fine bins, averaged over their orders
    generator = np.random.default_rng(0)
    fine = (confidence * FINE_BINS).astype(int)
    averages = []
    for _ in range(200):
        shuffled = generator.permutation(len(fine))
        ordered = shuffled[np.argsort(-fine[shuffled], kind="stable")]
        averages.append((np.cumsum(~correct[ordered]) / np.arange(1, len(fine) + 1)).mean())
    spread = 4 * np.std(averages) / math.sqrt(200) + 1e-9
    assert meter.metrics()["aurc"] == pytest.approx(np.mean(averages), abs=spread)


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


def test_debiased_figures_are_what_their_formulas_say(case):
    meter, *_ = case
    masses = meter._fine().equal_mass(15)
    count, confidence, accuracy = masses.count, masses.confidence / masses.count, masses.correct / masses.count
    squares = (confidence - accuracy) ** 2 - accuracy * (1 - accuracy) / (count - 1)
    expected = math.sqrt(max(0, np.average(squares, weights=count)))
    assert meter.metrics()["rmsce_debiased"] == pytest.approx(expected, abs=1e-9)

    generator = np.random.default_rng(0)
    noisy = generator.normal(accuracy, np.sqrt(accuracy * (1 - accuracy) / count), (200_000, 15))
    plugin = np.average(abs(confidence - accuracy), weights=count)
    bias = np.average(abs(confidence - noisy).mean(axis=0), weights=count) - plugin
    assert meter.metrics()["ece_equal_mass_debiased"] == pytest.approx(max(0, plugin - bias), abs=1e-3)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 14, 15, 29, 30, 31])
def test_a_sample_that_is_all_wrong_is_as_wrong_as_it_is_confident(num_tokens):
    """There is no noise to take off: every error of calibration is the confidence, however few tokens there are."""
    logits = torch.tensor([[math.log(9), 0.0]]).expand(num_tokens, 2)
    metrics = CalibrationMeter().update(softmax_nll(logits, torch.ones(num_tokens, dtype=torch.long))).metrics()
    for name in ("ece", "rmsce", "mce", "ece_equal_mass", "ece_equal_mass_debiased", "rmsce_debiased"):
        assert metrics[name] == pytest.approx(0.9, abs=1e-6), name


def test_debiasing_takes_the_bias_away_where_the_truth_is_zero():
    plain, debiased, squared = [], [], []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(300, 4, generator=generator, dtype=torch.float64)
        targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
        metrics = CalibrationMeter().update(softmax_nll(logits, targets)).metrics()
        plain.append(metrics["ece_equal_mass"])
        debiased.append(metrics["ece_equal_mass_debiased"])
        squared.append(metrics["rmsce_debiased"])
    assert np.mean(plain) > 0.07
    assert np.mean(debiased) < 0.65 * np.mean(plain)
    assert np.median(squared) < 0.5 * np.mean(plain)


def test_the_split_of_the_top_label_brier_score_is_exact(case):
    meter, _, _, confidence, correct = case
    metrics = meter.metrics()
    score = ((confidence - correct) ** 2).mean()
    assert metrics["top_label_brier"] == pytest.approx(score, abs=1e-6)
    parts = (metrics[f"top_label_{part}"] for part in ("reliability", "resolution", "uncertainty"))
    reliability, resolution, uncertainty = parts
    assert reliability - resolution + uncertainty == pytest.approx(score, abs=1e-6)
    assert uncertainty == pytest.approx(correct.mean() * (1 - correct.mean()))

    # Stephenson's generalised resolution: Murphy's, less the variance and plus twice the covariance within bins
    bins = np.minimum((confidence * 15).astype(int), 14)
    expected = 0.0
    for number in np.unique(bins):
        c, y = confidence[bins == number], correct[bins == number].astype(float)
        within = 2 * ((c - c.mean()) * (y - y.mean())).mean() - ((c - c.mean()) ** 2).mean()
        expected += len(c) * ((y.mean() - correct.mean()) ** 2 + within)
    assert resolution == pytest.approx(expected / len(confidence), abs=1e-6)


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
