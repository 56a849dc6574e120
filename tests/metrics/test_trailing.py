import torch

from nanolm.loss import softmax_nll
from nanolm.metrics import CalibrationMeter, TrailingCalibration, confidence_histogram
from tests.metrics.test_meter import part, predictions

RESULT = softmax_nll(*predictions(1000))


def test_the_window_reads_what_a_meter_of_its_steps_reads():
    window = TrailingCalibration(window=300)
    assert window.ece() is None
    for start in range(0, 1000, 100):
        window.add(confidence_histogram(part(RESULT, slice(start, start + 100))))
        first = max(0, start - 200)  # the last three steps hold 300 tokens
        expected = CalibrationMeter().update(part(RESULT, slice(first, start + 100))).ece()
        assert abs(window.ece() - expected) < 1e-7


def test_micro_batches_add_up():
    whole = confidence_histogram(RESULT)
    parts = sum(confidence_histogram(part(RESULT, slice(a, a + 250))) for a in range(0, 1000, 250))
    torch.testing.assert_close(parts, whole)
    assert whole[0].sum() == 1000


def test_ignored_tokens_are_not_in_it():
    logits, targets = predictions(50)
    targets[10:] = -100
    ignoring, alone = softmax_nll(logits, targets), softmax_nll(logits[:10], targets[:10])
    torch.testing.assert_close(confidence_histogram(ignoring), confidence_histogram(alone))


def test_a_restored_window_goes_on_bit_by_bit():
    straight, stopped = TrailingCalibration(window=250), TrailingCalibration(window=250)
    for start in range(0, 1000, 50):
        step = confidence_histogram(part(RESULT, slice(start, start + 50)))
        straight.add(step)
        resumed = TrailingCalibration(window=250)
        resumed.load_state_dict(stopped.state_dict())
        resumed.add(step)
        stopped = resumed
        assert stopped.ece() == straight.ece()
