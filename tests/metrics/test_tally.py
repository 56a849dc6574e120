import gc

import numpy as np
import pytest
import torch

from nanolm.errors import DataError
from nanolm.loss import linear_nll, softmax_nll
from nanolm.metrics import NUM_BINS, WIDTH, CalibrationMeter, Tally, TrailingCalibration, column, read_units
from nanolm.metrics.definitions import of_rows
from nanolm.metrics.tally import BINNED
from tests.metrics.test_meter import part, predictions

LOGITS, TARGETS = predictions(1000)
RESULT = softmax_nll(LOGITS, TARGETS)


def test_a_row_holds_the_sums_of_its_group():
    """Against sums written out in NumPy, at T = 1 and at another temperature."""
    group, num_bytes = torch.arange(1000) % 3, torch.arange(1000) % 7
    rows = Tally(4).add(RESULT, group, num_bytes, softmax_nll(LOGITS / 2, TARGETS)).rows()
    assert rows.shape == (4, WIDTH)
    assert not rows[3].any()
    p = LOGITS.double().softmax(dim=1).numpy()
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == TARGETS.numpy()
    of_target = p[np.arange(1000), TARGETS]
    halved = (LOGITS.double() / 2).log_softmax(dim=1).numpy()[np.arange(1000), TARGETS]
    values = {
        "tokens": np.ones(1000),
        "bytes": num_bytes.numpy(),
        "nll": -np.log(of_target),
        "confidence": confidence,
        "correct": correct,
        "entropy": -(p * np.log(p)).sum(axis=1),
        "brier": (p**2).sum(axis=1) - 2 * of_target + 1,
        "nll_at_temperature": -halved,
    }
    for number in range(3):
        chosen = (group == number).numpy()
        for name, value in values.items():
            assert column(rows, name)[number] == pytest.approx(value[chosen].sum(), rel=1e-6), name
        edges = np.linspace(0, 1, 16)
        for name, weights in (
            ("bin_count", np.ones(1000)),
            ("bin_confidence", confidence),
            ("bin_correct", 1.0 * correct),
        ):
            expected, _ = np.histogram(confidence[chosen], edges, weights=weights[chosen])
            np.testing.assert_allclose(column(rows, name)[number], expected, atol=1e-6)


def test_what_a_result_lacks_is_missing_from_then_on():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(20, 4), torch.randn(9, 4), torch.randint(9, (20,))
    meter, basic = CalibrationMeter(), {"nll", "perplexity", "accuracy", "confidence", "ece", "smooth_ece"}
    meter.update(linear_nll(hidden, weight, targets, statistics="full"))
    assert meter.metrics().keys() == basic | {"entropy", "entropy_gap", "brier"}
    with pytest.raises(ValueError, match="none"):
        meter.update(linear_nll(hidden, weight, targets, statistics="none"))
    assert meter.update(linear_nll(hidden, weight, targets)).metrics().keys() == basic


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage", ["array", "cut", "scalar", "shape", "text", "zip", "method"])
def test_a_damaged_file_of_sums_is_named(tmp_path, damage):
    """Bits flipped in the directory of the archive too; no file stays open."""
    path, sums = tmp_path / "documents-val.npz", {f"num_{name}": np.ones(9) for name in ("tokens", "correct")}
    sums |= {f"{name}_sum": np.ones(9) for name in ("nll", "confidence", "entropy", "brier")}
    sums |= {name: np.ones((9, NUM_BINS)) for name in BINNED}
    np.savez(path, **sums)
    assert read_units(path)[0].shape == (9, WIDTH)
    content = path.read_bytes()
    match damage:
        case "array":
            with open(path, "wb") as file:
                np.save(file, np.ones(9))
        case "cut":
            path.write_bytes(content[:-30])
        case "scalar":
            np.savez(path, **sums | {"num_tokens": np.array(9)})
        case "shape":
            np.savez(path, **sums | {"nll_sum": np.ones(1)})
        case "text":
            np.savez(path, **sums | {"nll_sum": np.full(9, "1")})
        case "zip":
            path.write_bytes(content[:4])
        case "method":
            place = content.index(b"PK\x01\x02") + 10
            path.write_bytes(content[:place] + b"\x63" + content[place + 1 :])
    with pytest.raises(DataError, match=path.name):
        read_units(path)
    gc.collect()


def test_ignored_tokens_count_nowhere_and_micro_batches_add_up():
    ignored = TARGETS.clone()
    ignored[::3] = -100
    kept = ignored != -100
    expected = Tally().add(softmax_nll(LOGITS[kept], TARGETS[kept])).rows()
    np.testing.assert_allclose(Tally().add(softmax_nll(LOGITS, ignored)).rows(), expected, rtol=1e-12)
    merged = Tally().add(part(RESULT, slice(0, 300))).merge(Tally().add(part(RESULT, slice(300, 1000))))
    np.testing.assert_allclose(merged.rows(), Tally().add(RESULT).rows(), rtol=1e-12)


def test_the_trailing_window_reads_what_a_meter_of_its_steps_reads():
    window = TrailingCalibration(window=300)
    assert "ece" not in of_rows(window.total())
    for start in range(0, 1000, 100):
        window.add(Tally().add(part(RESULT, slice(start, start + 100))).rows()[0])
        first = max(0, start - 200)  # the last three steps hold 300 tokens
        expected = CalibrationMeter().update(part(RESULT, slice(first, start + 100))).ece()
        assert of_rows(window.total())["ece"] == pytest.approx(expected, abs=1e-12)


def test_a_restored_window_continues_bit_by_bit():
    straight, stopped = TrailingCalibration(window=250), TrailingCalibration(window=250)
    for start in range(0, 1000, 50):
        step = Tally().add(part(RESULT, slice(start, start + 50))).rows()[0]
        straight.add(step)
        resumed = TrailingCalibration(window=250)
        resumed.load_state_dict(stopped.state_dict())
        resumed.add(step)
        stopped = resumed
        np.testing.assert_array_equal(stopped.total(), straight.total())
    with pytest.raises(ValueError, match="trailing"):
        stopped.load_state_dict({"steps": torch.zeros(2, 3, 15, dtype=torch.int64)})
