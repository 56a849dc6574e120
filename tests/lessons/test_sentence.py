"""A sentence under a checkpoint, against the model run token by token."""

import numpy as np
import pytest
import torch

from nanolm.config import load
from nanolm.data.tokenizer import ByteTokenizer, CharTokenizer
from nanolm.errors import CheckpointError, ConfigError, DataError
from nanolm.lessons.sentence import displayed, score_sentence
from nanolm.training import find_checkpoint


@pytest.fixture(scope="module")
def of_bytes(untrained):
    return untrained(ByteTokenizer())


def score(checkpoint, sentence):
    return score_sentence(load("first_principles", ["device=cpu", f"checkpoint={checkpoint}", f"sentence={sentence}"]))


def test_each_token_costs_what_the_model_says_after_those_before(of_bytes):
    text = "the state é"
    scored = score(of_bytes, text)
    checkpoint = find_checkpoint(of_bytes)
    model = checkpoint.load_model(torch.device("cpu"))
    ids = [checkpoint.tokenizer.end_of_text_id, *text.encode()]
    with torch.no_grad():
        prefixes = (model(torch.tensor([ids[:place]]))[0, -1] for place in range(1, len(ids)))
        p = torch.stack([(hidden @ model.head_weight.T).double().softmax(0) for hidden in prefixes])
    entropies = torch.special.entr(p).sum(dim=1)
    assert scored.entropies == pytest.approx(entropies.numpy(), abs=1e-5)
    assert scored.log_probabilities == pytest.approx(p[np.arange(len(p)), ids[1:]].log().numpy(), abs=1e-5)
    for likely, best in zip(scored.likely, (row.topk(8) for row in p), strict=True):
        assert [q for _, q in likely] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert likely[0][0] == displayed(checkpoint.tokenizer.decode_bytes([int(best.indices[0])]))
    assert scored.most_open == pytest.approx(p[entropies.argmax()].numpy(), abs=1e-5)
    assert scored.tokens == [*map(repr, "the state "), r"b'\xc3'", r"b'\xa9'"]  # the last two make one character
    assert scored.num_bytes == len(text.encode())
    assert str(checkpoint.path) in scored.model


def test_the_shortest_and_the_longest_sentence(of_bytes):
    assert len(score(of_bytes, "x").tokens) == 1
    assert len(score(of_bytes, "x" * 16).tokens) == 16
    with pytest.raises(DataError, match=r"sentence: .* 16 .* 17") as error:
        score(of_bytes, "x" * 17)
    assert error.value.exit_code == 2


def test_a_sentence_or_a_checkpoint_that_cannot_be_used(untrained, tmp_path):
    with pytest.raises(DataError, match=r"sentence: .*'Z'"):
        score(untrained(CharTokenizer("the state")), "thZ")
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        score(tmp_path, "x")
    for sentence in ("", "x", "ab\udcff"):  # a bigram needs two characters
        with pytest.raises(ConfigError, match="sentence"):
            load("first_principles", [f"sentence={sentence}"])
