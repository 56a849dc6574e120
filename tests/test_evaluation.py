import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanolm.config.schema import EvaluateConfig, ModelConfig
from nanolm.device import resolve_compute
from nanolm.evaluation import evaluate, windows
from nanolm.loss import LossOptions
from nanolm.model import GPT

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
    evaluation = run(model, split, sequence_length=8, stride=stride)

    exact = GPT(MODEL, VOCAB).double().eval()
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    nll, confidence, correct = [], [], []
    for window in windows(split.num_tokens, 8, stride or 8):
        for target in range(window.first_scored, window.end):
            context = torch.from_numpy(split.tokens[window.start : target + 1])
            logits = exact(context[None])[0, -1] @ exact.head_weight.T
            log_probabilities = logits.log_softmax(-1)
            answer = split.tokens[target + 1]
            nll.append(-log_probabilities[answer].item())
            confidence.append(log_probabilities.max().exp().item())
            correct.append(int(log_probabilities.argmax()) == answer)
    ends = np.cumsum([0, *lengths])
    for values, sums in (
        (nll, evaluation.nll_sum),
        (confidence, evaluation.confidence_sum),
        (correct, evaluation.num_correct),
    ):
        expected = [sum(values[first:last]) for first, last in itertools.pairwise(ends)]
        np.testing.assert_allclose(sums, expected, rtol=2e-5)

    metrics = evaluation.metrics()
    total_bytes = sum(3 * (length - 1) for length in lengths)
    if total_bytes:
        assert metrics["bits_per_byte"] == pytest.approx(sum(nll) / math.log(2) / total_bytes, rel=1e-5)
    assert metrics["nll"] == pytest.approx(np.mean(nll), rel=1e-5)  # the mean over tokens, not over documents
    assert metrics["perplexity"] == pytest.approx(math.exp(np.mean(nll)), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(correct))


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
    evaluation = run(model, make_split([20, 33, 5]), stride=4)
    evaluation.write_documents(tmp_path / "documents-val.npz")
    with np.load(tmp_path / "documents-val.npz") as documents:
        np.testing.assert_array_equal(documents["num_tokens"], [20, 33, 5])
        np.testing.assert_array_equal(documents["num_bytes"], [57, 96, 12])
        np.testing.assert_array_equal(documents["nll_sum"], evaluation.nll_sum)
    content = json.loads(json.dumps(evaluation.as_json(step=7)))
    assert content["nll"] == {"value": evaluation.metrics()["nll"], "low": None, "high": None}
    expected = {"split": "val", "step": 7, "num_tokens": 58, "num_documents": 3, "num_bytes": 165}
    assert expected.items() <= content.items()
    assert (content["sequence_length"], content["stride"]) == (8, 4)
