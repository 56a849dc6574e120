"""A sentence under a checkpoint, against the model run token by token."""

import math

import pytest
import torch

from nanolm.config import load
from nanolm.errors import CheckpointError, ConfigError, DataError
from nanolm.lessons.sentence import score_sentence, shown
from nanolm.training import find_checkpoint


def config_of(*overrides):
    return load("first_principles", ["device=cpu", *overrides])


def test_each_token_costs_what_the_model_says_after_those_before(untrained):
    text = "the state é"
    scored = score_sentence(config_of(f"checkpoint={untrained}", f"sentence={text}"))
    checkpoint = find_checkpoint(untrained)
    model = checkpoint.load_model(torch.device("cpu"))
    ids = [checkpoint.tokenizer.end_of_text_id, *text.encode()]
    found = []
    for place in range(1, len(ids)):
        with torch.no_grad():
            hidden = model(torch.tensor([ids[:place]]))[0, -1]
            logits = (hidden @ model.head_weight.T).double()
        found.append(logits.softmax(0))
        assert scored.entropies[place - 1] == pytest.approx(float(torch.special.entr(found[-1]).sum()), abs=1e-5)
        best = found[-1].topk(8)
        assert [p for _, p in scored.likely[place - 1]] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert scored.likely[place - 1][0][0] == shown(checkpoint.tokenizer.decode_bytes([int(best.indices[0])]))
        assert scored.log_probabilities[place - 1] == pytest.approx(float(logits.log_softmax(0)[ids[place]]), abs=1e-5)
    widest = max(range(len(found)), key=lambda place: scored.entropies[place])
    assert scored.most_open == pytest.approx(found[widest].tolist(), abs=1e-5)
    assert scored.tokens[:3] == ["'t'", "'h'", "'e'"]
    assert scored.tokens[-2:] == [r"b'\xc3'", r"b'\xa9'"]
    assert scored.num_bytes == len(text.encode())
    assert str(checkpoint.path) in scored.model


def test_with_a_checkpoint_one_character_is_enough(untrained):
    scored = score_sentence(config_of(f"checkpoint={untrained}", "sentence=x"))
    assert len(scored.log_probabilities) == 1
    assert math.isfinite(scored.log_probabilities[0])


def test_the_longest_sentence_and_one_that_is_longer(untrained):
    assert len(score_sentence(config_of(f"checkpoint={untrained}", "sentence=" + "x" * 16)).tokens) == 16
    with pytest.raises(DataError, match=r"sentence: expected at most the 16 tokens .* found 17") as error:
        score_sentence(config_of(f"checkpoint={untrained}", "sentence=" + "x" * 17))
    assert error.value.exit_code == 2


def test_a_character_that_the_vocabulary_lacks(untrained_characters):
    with pytest.raises(DataError, match=r"sentence: .*'Z'"):
        score_sentence(config_of(f"checkpoint={untrained_characters}", "sentence=thZ"))


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(CheckpointError, match="expected a run directory"):
        score_sentence(config_of(f"checkpoint={tmp_path}"))


@pytest.mark.parametrize("sentence", ["", "x", "ab\udcff"])
def test_a_sentence_that_is_none(sentence):
    with pytest.raises(ConfigError, match="sentence: expected"):
        config_of(f"sentence={sentence}")


def test_a_token_that_is_part_of_a_character_is_shown_as_bytes():
    assert shown("é".encode()) == "'é'"
    assert shown(b"\xc3") == r"b'\xc3'"
