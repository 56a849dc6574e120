import gc
import itertools
import json
import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanolm.config.schema import EvaluateConfig, ModelConfig
from nanolm.device import resolve_compute
from nanolm.evaluation import (
    Extras,
    calibrator_cells,
    evaluate,
    fit_on_split,
    frequency_groups,
    temperature_by_size,
    windows,
)
from nanolm.evaluation.calibrated import InverseSmoothing
from nanolm.evaluation.groups import position_group, position_names
from nanolm.loss import LossOptions
from nanolm.metrics.measurement import read_units
from nanolm.metrics.sums import column
from nanolm.model import GPT

CPU = resolve_compute("cpu", "fp32")
VOCAB = 17
MODEL = ModelConfig(
    name="test",
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=None,
    intermediate_size=32,
    tie_word_embeddings=False,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    initializer_range=0.5,
    dropout=0.3,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = GPT(MODEL, VOCAB)
    for parameter in model.parameters():  # the zero-initialised projections too, so that context matters
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def make_split(document_lengths, seed=0):
    """A token split in memory: stream of end-of-text (0), documents, end-of-text after each."""
    generator = np.random.default_rng(seed)
    stream = [0]
    first_target = []
    for length in document_lengths:
        first_target.append(len(stream) - 1)
        stream += [*generator.integers(1, VOCAB, length - 1).tolist(), 0]
    tokens = np.array(stream, dtype=np.int64)
    documents = SimpleNamespace(
        first_target=np.array(first_target, dtype=np.int64),
        num_tokens=np.array(document_lengths, dtype=np.int64),
        num_bytes=np.array([3 * (length - 1) for length in document_lengths], dtype=np.int64),
    )
    return SimpleNamespace(
        name="val",
        num_tokens=len(tokens) - 1,
        num_documents=len(document_lengths),
        num_bytes=int(documents.num_bytes.sum()),
        read=lambda start, length: tokens[start : start + length],
        documents=documents,
        bytes_of_id=np.array([0, *[3] * (VOCAB - 1)]),
        tokens=tokens,
    )


def run(model, split, sequence_length=8, stride=None, batch_size=3, loss=LossOptions(), **kwargs):  # noqa: B008
    config = EvaluateConfig(stride=stride, batch_size=batch_size)
    return evaluate(model, split, sequence_length, config, loss, resolve_compute("cpu", "fp32"), **kwargs)


@given(num_tokens=st.integers(1, 300), sequence_length=st.integers(1, 40), data=st.data())
def test_windows_score_every_target_once_with_the_promised_context(num_tokens, sequence_length, data):
    stride = data.draw(st.integers(1, sequence_length))
    scored = []
    for window in windows(num_tokens, sequence_length, stride):
        assert window.start <= window.first_scored < window.end <= num_tokens
        assert window.end - window.start == min(sequence_length, num_tokens)
        scored += range(window.first_scored, window.end)
        assert window.start == 0 or window.first_scored - window.start >= sequence_length - stride
    assert scored == list(range(num_tokens))


@pytest.mark.parametrize("stride", [None, 8, 5, 1])
@pytest.mark.parametrize("lengths", [[1], [30], [4, 1, 13, 2, 9]])
def test_every_token_is_scored_as_a_pass_of_its_own_scores_it(model, stride, lengths):
    """The oracle: one forward pass and one log-softmax in float64 for each token."""
    split = make_split(lengths)
    evaluation = run(model, split, sequence_length=8, stride=stride, extras=Extras(temperature=1.5))

    exact = GPT(MODEL, VOCAB).double().eval()
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    found = {name: [] for name in ("nll", "confidence", "correct", "entropy", "brier", "nll_at_temperature")}
    for window in windows(split.num_tokens, 8, stride or 8):
        for target in range(window.first_scored, window.end):
            context = torch.from_numpy(split.tokens[window.start : target + 1])
            logits = exact(context[None])[0, -1] @ exact.head_weight.T
            log_probabilities = logits.log_softmax(-1)
            probabilities = log_probabilities.exp()
            answer = split.tokens[target + 1]
            found["nll"].append(-log_probabilities[answer].item())
            found["confidence"].append(probabilities.max().item())
            found["correct"].append(int(probabilities.argmax()) == answer)
            found["entropy"].append(-(probabilities * log_probabilities).sum().item())
            found["brier"].append((probabilities - torch.eye(VOCAB)[answer]).square().sum().item())
            found["nll_at_temperature"].append(-(logits / 1.5).log_softmax(-1)[answer].item())
    ends = np.cumsum([0, *lengths])
    for name, values in found.items():
        expected = [sum(values[first:last]) for first, last in itertools.pairwise(ends)]
        np.testing.assert_allclose(column(evaluation.documents, name), expected, rtol=2e-5, atol=1e-6)
        if evaluation.blocks is not None:
            np.testing.assert_allclose(column(evaluation.blocks, name).sum(), sum(expected), rtol=2e-5)
    nll, correct = found["nll"], found["correct"]

    metrics = evaluation.metrics()
    total_bytes = sum(3 * (length - 1) for length in lengths)
    if total_bytes:
        assert metrics["bits_per_byte"] == pytest.approx(sum(nll) / math.log(2) / total_bytes, rel=1e-5)
    assert metrics["nll"] == pytest.approx(np.mean(nll), rel=1e-5)  # the mean over tokens, not over documents
    assert metrics["perplexity"] == pytest.approx(math.exp(np.mean(nll)), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(correct))
    values = evaluation.values()
    assert values["entropy_gap"] == pytest.approx(np.mean(nll) - np.mean(found["entropy"]), abs=1e-5)
    assert values["calibration_error"] == pytest.approx(np.mean(nll) - np.mean(found["nll_at_temperature"]), abs=1e-5)
    assert values["ece"] == pytest.approx(evaluation.meter.ece(), abs=1e-7)


def test_the_number_of_windows_per_pass_changes_nothing(model):
    split = make_split([20, 33, 5])
    few, many = (run(model, split, batch_size=size).metrics() for size in (1, 100))
    assert few == pytest.approx(many, rel=1e-6)


def test_smoothing_and_z_loss_play_no_part(model):
    split = make_split([20, 33, 5])
    plain, regularised = run(model, split), run(model, split, loss=LossOptions(label_smoothing=0.3, z_loss=0.1))
    assert plain.metrics() == regularised.metrics()


def test_softcap_and_temperature_are_part_of_the_model(model):
    split = make_split([20, 33, 5])
    assert run(model, split).metrics()["nll"] != run(model, split, loss=LossOptions(temperature=3.0)).metrics()["nll"]
    assert run(model, split).metrics()["nll"] != run(model, split, loss=LossOptions(softcap=1.0)).metrics()["nll"]


def test_evaluation_draws_no_random_number_and_keeps_the_mode(model):
    split = make_split([20, 33, 5])
    model.train()
    before = torch.random.get_rng_state()
    first, second = run(model, split), run(model, split)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    assert first.metrics() == second.metrics()  # dropout is off


def test_progress_counts_to_the_end_and_can_end_it(model):
    split = make_split([20, 33, 5])
    calls = []
    run(model, split, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (58, 58)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)

    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    model.train()
    with pytest.raises(Stop):
        run(model, split, progress=stop)
    assert model.training


def test_files_hold_the_sums(model, tmp_path):
    evaluation = run(model, make_split([120, 133, 5]), stride=4)
    evaluation.write_documents(tmp_path / "documents-val.npz")
    with np.load(tmp_path / "documents-val.npz") as documents:
        np.testing.assert_array_equal(documents["num_tokens"], [120, 133, 5])
        np.testing.assert_array_equal(documents["num_bytes"], [357, 396, 12])
        np.testing.assert_array_equal(documents["nll_sum"], column(evaluation.documents, "nll"))
        np.testing.assert_array_equal(documents["bin_count"].sum(axis=1), [120, 133, 5])
        assert documents["block_num_tokens"].sum() == 258
        assert "nll_at_temperature_sum" not in documents
    content = json.loads(json.dumps(evaluation.as_json(step=7)))
    nll = content["nll"]
    assert nll["low"] < nll["value"] == evaluation.metrics()["nll"] < nll["high"]
    assert content["smooth_ece"]["low"] is None  # no interval for what is no function of sums
    expected = {"split": "val", "step": 7, "num_tokens": 258, "num_documents": 3, "num_bytes": 765}
    assert expected.items() <= content.items()
    assert (content["sequence_length"], content["stride"]) == (8, 4)
    assert "given this text" in content["intervals"]


def test_memory_does_not_grow_with_the_split(model):
    """A float32 kept per token would be 4 bytes. Garbage is taken at each batch, so that its moment plays no part."""
    peaks = []
    run(model, make_split([300]))
    lengths = (13_000, 104_000)
    for length in lengths:
        split = make_split([length])
        tracemalloc.start()
        run(model, split, sequence_length=32, batch_size=16, progress=lambda *_: gc.collect(0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < lengths[1] - lengths[0], peaks


def test_documents_are_the_units_where_there_are_several(model):
    evaluation = run(model, make_split([4] * 30))
    assert evaluation.blocks is None
    assert "30 documents" in evaluation.about_intervals
    low, high = (evaluation.intervals()["perplexity"].low, evaluation.intervals()["perplexity"].high)
    nll = evaluation.intervals()["nll"]
    assert (low, high) == pytest.approx((math.exp(nll.low), math.exp(nll.high)))


def test_blocks_have_the_bytes_of_their_own_tokens(model):
    split = make_split([100, 187, 33])
    split.bytes_of_id = np.arange(VOCAB)  # unequal, so that a share by tokens would show
    evaluation = run(model, split)
    np.testing.assert_array_equal(column(evaluation.blocks, "bytes"), split.tokens[1:].reshape(64, 5).sum(axis=1))


def test_slices_have_the_intervals_of_their_own_sums(model):
    split = make_split([9] * 40)
    evaluation = run(model, split, extras=Extras(groups=frequency_groups(split, VOCAB, end_of_text_id=0)))
    for group in (*evaluation.slices["frequency"], *evaluation.slices["position"]):
        gap, confidence = group.intervals["entropy_gap"], group.intervals["confidence_gap"]
        assert gap.value == pytest.approx(group.metrics["entropy_gap"], abs=1e-6)
        assert confidence.value == pytest.approx(group.metrics["confidence"] - group.metrics["accuracy"], abs=1e-6)
        assert gap.low is None or gap.low < gap.value < gap.high
    assert any(group.intervals["entropy_gap"].low is not None for group in evaluation.slices["position"])


def test_slices_divide_the_split(model):
    split = make_split([20, 33, 5])
    evaluation = run(model, split, extras=Extras(groups=frequency_groups(split, VOCAB, end_of_text_id=0)))
    for kind in ("frequency", "position"):
        slices = evaluation.slices[kind]
        assert sum(group.num_tokens for group in slices) == 58
        whole = sum(group.num_tokens * group.metrics["nll"] for group in slices) / 58
        assert whole == pytest.approx(evaluation.metrics()["nll"])
    assert {group.name: group.num_tokens for group in evaluation.slices["frequency"]}["after end of text"] == 3


def test_deciles_of_frequency_each_hold_about_a_tenth_of_the_text():
    generator = np.random.default_rng(0)
    tokens = np.append(0, generator.integers(1, 1001, 100_000))
    train = SimpleNamespace(num_tokens=100_000, read=lambda start, length: tokens[start : start + length])
    groups = frequency_groups(train, 1001, end_of_text_id=0)
    shares = np.bincount(groups.of_id[tokens[1:]], minlength=11) / 100_000
    np.testing.assert_allclose(shares[:10], 0.1, atol=0.002)
    assert shares[10] == 0
    counts = np.bincount(tokens[1:], minlength=1001)
    means = [counts[1:][groups.of_id[1:] == decile].mean() for decile in range(10)]
    assert means == sorted(means, reverse=True)


def test_positions_are_grouped_by_powers_of_two():
    names = position_names(10)
    assert names == ["0", "1", "2–3", "4–7", "8–9"]
    assert [names[group] for group in position_group(np.arange(10))] == [
        "0", "1", "2–3", "2–3", "4–7", "4–7", "4–7", "4–7", "8–9", "8–9"
    ]  # fmt: skip
    assert position_names(1) == ["0"]


def test_inverse_smoothing_restores_a_smoothed_model_exactly():
    """A head that says q = (1-ε)p + ε/V for a known p, inverted: the NLL of p, computed apart."""
    generator = np.random.default_rng(3)
    p = generator.dirichlet(np.full(6, 0.5), size=40)
    epsilon = 0.2
    q = (1 - epsilon) * p + epsilon / 6
    targets = torch.from_numpy(generator.integers(0, 6, 40))
    hidden = torch.from_numpy(np.log(q))  # the head is the identity: logits are hidden
    inverse = InverseSmoothing(epsilon)
    inverse.add(hidden[:25], torch.eye(6, dtype=torch.float64), targets[:25], LossOptions())
    inverse.add(2 * hidden[25:], torch.eye(6, dtype=torch.float64), targets[25:], LossOptions(temperature=2.0))
    floored = np.maximum(p, 1e-6)
    floored /= floored.sum(axis=1, keepdims=True)
    expected = -np.log(floored[np.arange(40), targets]).mean()
    assert inverse.meter.metrics()["nll"] == pytest.approx(expected, rel=1e-6)
    assert inverse.share_floored == pytest.approx((p < 1e-6).mean())


def test_an_evaluation_of_a_smoothed_model_has_a_row_for_each_calibrator(model):
    split = make_split([40, 50, 60])
    extras = Extras(temperature=1.3, label_smoothing=0.1)
    evaluation = evaluate(model, split, 8, EvaluateConfig(None, 4), LossOptions(), CPU, extras=extras)
    content = evaluation.as_json(step=1)
    assert content["num_classes"] == VOCAB
    plain, scaled, inverted = content["calibrators"]
    assert [row["calibrator"] for row in (plain, scaled, inverted)] == ["none", "temperature", "inverse smoothing"]
    assert plain["nll"] == pytest.approx(content["nll"]["value"])
    assert scaled["nll"] == pytest.approx(content["nll_at_temperature"]["value"])
    assert inverted["accuracy"] == pytest.approx(plain["accuracy"])  # the map keeps the order
    assert "floored" in inverted["note"]
    assert len(calibrator_cells(content["calibrators"])) == 4


class Bigram(torch.nn.Module):
    """Log-probabilities of the next token, times 1.5: a model that is too sure of what ``split_of_bigram`` draws."""

    def __init__(self, log_probabilities):
        super().__init__()
        self.table = 1.5 * torch.from_numpy(log_probabilities).float()
        self.head_weight = torch.eye(len(log_probabilities))

    def forward(self, ids):
        return self.table[ids]


def split_of_bigram(log_probabilities, length, seed):
    split, generator, token = make_split([length]), np.random.default_rng(seed), 0
    tokens = [token]
    for _ in range(length):
        token = generator.choice(VOCAB, p=np.exp(log_probabilities[token]))
        tokens.append(token)
    split.read = lambda start, count: np.array(tokens[start : start + count])
    return split


def test_a_temperature_from_all_tokens_is_that_of_the_fit_and_from_few_scatters():
    table = np.log(np.random.default_rng(0).dirichlet(np.full(VOCAB, 0.3), size=VOCAB) + 1e-9)
    table -= np.log(np.exp(table).sum(axis=1, keepdims=True))
    model = Bigram(table)
    calibration, val = split_of_bigram(table, 500, seed=1), split_of_bigram(table, 100, seed=2)
    how = (8, EvaluateConfig(None, 4), LossOptions(), CPU)
    sizes = temperature_by_size(model, calibration, val, [500, 24, 501], *how)
    assert [entry["num_tokens"] for entry in sizes] == [24, 500]  # 501 are more than there are
    whole = fit_on_split(model, calibration, *how).fit.temperature
    assert whole == pytest.approx(1.5, abs=0.3)
    assert [draw["temperature"] for draw in sizes[1]["draws"]] == pytest.approx([whole] * 5, rel=1e-4)
    assert len({draw["temperature"] for draw in sizes[0]["draws"]}) == 5
    at_whole = evaluate(model, val, *how, extras=Extras(temperature=whole)).values()
    assert sizes[1]["draws"][0]["nll"] == pytest.approx(at_whole["nll_at_temperature"], rel=1e-4)
    assert sizes[0]["nll_at_one"] == pytest.approx(at_whole["nll"], rel=1e-5)
    assert temperature_by_size(model, calibration, val, [24], *how) == sizes[:1]


def test_sums_come_back_from_the_file(model, tmp_path):
    for lengths in ([40, 50], [9] * 32):  # blocks, documents
        evaluation = evaluate(model, make_split(lengths), 8, EvaluateConfig(None, 4), LossOptions(), CPU)
        evaluation.write_documents(tmp_path / "documents.npz")
        units = evaluation.documents if evaluation.blocks is None else evaluation.blocks
        read, blocks = read_units(tmp_path / "documents.npz")
        assert blocks == (evaluation.blocks is not None)
        fitted = column(read, "nll_at_temperature")
        assert np.isnan(fitted).all()
        fitted[:] = 0
        np.testing.assert_array_equal(read, units)
