import gc
import itertools
import math
import signal
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nanolm.config.schema import EvaluateConfig, ModelConfig
from nanolm.device import resolve_compute
from nanolm.evaluation import Extras, Scorer, windows
from nanolm.evaluation.slices import frequency_groups
from nanolm.loss import LossOptions
from nanolm.metrics import Calibration, Interval, column, read_units
from nanolm.model import GPT
from nanolm.stop import StopRequested, StopSignal

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


def scorer(model, sequence_length=8, stride=None, batch_size=3, loss=LossOptions(), stop=None):  # noqa: B008
    config = EvaluateConfig(stride=stride, batch_size=batch_size)
    return Scorer(model, sequence_length, config, loss, resolve_compute("cpu", "fp32"), stop)


def run(model, split, extras=Extras(), progress=lambda done, total: None, **kwargs):  # noqa: B008
    return scorer(model, **kwargs).measure(split, extras, progress)


def at(temperature):
    return Extras(Calibration(temperature=Interval(temperature)))


@pytest.mark.parametrize("stride", [None, 8, 5, 1])
@pytest.mark.parametrize("lengths", [[1], [30], [4, 1, 13, 2, 9]])
def test_every_token_is_scored_as_a_pass_of_its_own_scores_it(model, stride, lengths):
    """The oracle: one forward pass and one log-softmax in float64 for each token."""
    split = make_split(lengths)
    evaluation = run(model, split, sequence_length=8, stride=stride, extras=at(1.5))

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
    assert metrics["entropy_gap"] == pytest.approx(np.mean(nll) - np.mean(found["entropy"]), abs=1e-5)
    assert metrics["calibration_error"] == pytest.approx(np.mean(nll) - np.mean(found["nll_at_temperature"]), abs=1e-5)
    assert metrics["ece"] == pytest.approx(evaluation.meter.ece(), abs=1e-7)


def test_the_number_of_windows_per_pass_changes_nothing(model):
    split = make_split([20, 33, 5])
    few, many = (run(model, split, batch_size=size).metrics() for size in (1, 100))
    assert few == pytest.approx(many, rel=1e-6)


def test_progress_counts_to_the_end_and_a_signal_ends_every_pass(model):
    split, calls = make_split([20, 33, 5]), []
    run(model, split, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (58, 58)
    assert calls == sorted(calls)
    stop = StopSignal()
    stop.received = signal.SIGTERM
    stopped, model = scorer(model, stop=stop), model.train()
    for work in (
        stopped.measure,
        stopped.fit_temperature,
        lambda split: stopped.temperature_by_size(split, split, [8]),
    ):
        with pytest.raises(StopRequested):
            work(split)
        assert model.training


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


def test_blocks_have_the_bytes_of_their_own_tokens(model):
    split = make_split([100, 187, 33])
    split.bytes_of_id = np.arange(VOCAB)  # unequal, so that a share by tokens would show
    evaluation = run(model, split)
    np.testing.assert_array_equal(column(evaluation.blocks, "bytes"), split.tokens[1:].reshape(64, 5).sum(axis=1))


def test_documents_are_the_units_if_there_are_several(model):
    measured = run(model, make_split([4] * 30))
    assert measured.blocks is None
    assert "30 documents" in measured.about_intervals
    intervals = measured.intervals()
    assert math.log(intervals["perplexity"].low) == pytest.approx(intervals["nll"].low)
    assert math.log(intervals["perplexity"].high) == pytest.approx(intervals["nll"].high)


def test_the_evaluation_and_its_file_of_sums(model, tmp_path):
    split = make_split([120, 133, 5])
    measured, evaluation = scorer(model, stride=4).evaluate(split, 7, Extras(), corpus="abc")
    assert (evaluation.split, evaluation.step, evaluation.num_tokens, evaluation.num_documents) == ("val", 7, 258, 3)
    assert (evaluation.num_bytes, evaluation.num_classes, evaluation.corpus) == (765, VOCAB, "abc")
    assert (evaluation.sequence_length, evaluation.stride) == (8, 4)
    assert "given this text" in evaluation.intervals
    nll = evaluation.metrics["nll"]
    assert nll.low < nll.value == measured.metrics()["nll"] < nll.high
    assert evaluation.metrics["smooth_ece"].low is None  # no interval for what is no function of sums
    measured.write_units(tmp_path / "documents-val.npz")
    with np.load(tmp_path / "documents-val.npz") as documents:
        np.testing.assert_array_equal(documents["num_tokens"], [120, 133, 5])
        np.testing.assert_array_equal(documents["num_bytes"], [357, 396, 12])
        np.testing.assert_array_equal(documents["nll_sum"], column(measured.documents, "nll"))
        assert documents["block_num_tokens"].sum() == 258
        assert "nll_at_temperature_sum" not in documents


@pytest.mark.parametrize("lengths", [[40, 50, 200], [9] * 32], ids=["blocks", "documents"])
def test_sums_come_back_from_the_file(model, tmp_path, lengths):
    measured = run(model, make_split(lengths))
    measured.write_units(tmp_path / "documents.npz")
    units = measured.documents if measured.blocks is None else measured.blocks
    read, blocks = read_units(tmp_path / "documents.npz")
    assert blocks == (measured.blocks is not None)
    np.testing.assert_array_equal(read, units)


def test_slices_divide_the_split_and_have_intervals_of_their_own_sums(model):
    split = make_split([9] * 40)
    measured = run(model, split, Extras(frequency_group=frequency_groups(split, VOCAB, end_of_text_id=0)))
    for slices in measured.slices.values():
        assert sum(group.num_tokens for group in slices) == 360
        whole = sum(group.num_tokens * group.nll for group in slices) / 360
        assert whole == pytest.approx(measured.metrics()["nll"])
        for group in slices:
            assert group.entropy_gap.value == pytest.approx(group.nll - group.entropy, abs=1e-9)
            assert group.confidence_gap.value == pytest.approx(group.confidence - group.accuracy, abs=1e-9)
            assert group.entropy_gap.low is None or group.entropy_gap.low < group.entropy_gap.high
    assert any(group.entropy_gap.low is not None for group in measured.slices["position"])
    assert {group.name: group.num_tokens for group in measured.slices["frequency"]}["after end of text"] == 40


def test_a_smoothed_model_has_a_row_for_each_calibrator(model):
    measured = run(model, make_split([40, 50, 60]), replace(at(1.3), label_smoothing=0.1))
    plain, scaled, inverted = measured.calibrators
    metrics = measured.metrics()
    assert [row.calibrator for row in measured.calibrators] == ["none", "temperature", "inverse smoothing"]
    assert plain.nll == pytest.approx(metrics["nll"])
    assert scaled.nll == pytest.approx(metrics["nll_at_temperature"])
    assert inverted.accuracy == pytest.approx(plain.accuracy)  # the map keeps the order
    assert "floored" in inverted.note


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
    of_bigram = scorer(Bigram(table))
    calibration, val = split_of_bigram(table, 500, seed=1), split_of_bigram(table, 100, seed=2)
    sizes = of_bigram.temperature_by_size(calibration, val, [500, 24, 501])
    assert [size.num_tokens for size in sizes] == [24, 500]  # 501 are more than there are
    whole = of_bigram.fit_temperature(calibration)
    assert whole.value == pytest.approx(1.5, abs=0.3)
    assert whole.curve.nll[6] == pytest.approx(min(whole.curve.nll))  # the middle one is the fitted temperature
    assert [draw.temperature for draw in sizes[1].draws] == pytest.approx([whole.value] * 5, rel=1e-4)
    assert len({draw.temperature for draw in sizes[0].draws}) == 5
    metrics = of_bigram.measure(val, Extras(whole)).metrics()
    assert sizes[1].draws[0].nll == pytest.approx(metrics["nll_at_temperature"], rel=1e-4)
    assert sizes[0].nll_at_one == pytest.approx(metrics["nll"], rel=1e-5)
    assert of_bigram.temperature_by_size(calibration, val, [24]) == sizes[:1]


def test_a_fit_that_is_refused_gives_its_reason(model):
    assert "calibration_fraction" in scorer(model).fit_temperature(None).reason
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert "equal" in scorer(model).fit_temperature(make_split([40])).reason
