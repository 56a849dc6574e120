import math

import numpy as np
import pytest
import scipy.stats

from nanolm.lessons import language
from nanolm.lessons.sentence import ScoredSentence, bigram_sentence


def scored_as(log_probabilities):
    """Three tokens of two bytes each, in places where two tokens are as likely, of which one is observed."""
    likely, entropies = [[("'x'", 0.5)]] * 3, np.full(3, math.log(2))
    tokens = ["'a'", "'b'", "'c'"]
    return ScoredSentence(tokens, np.array(log_probabilities), entropies, likely, np.full(2, 0.5), 6, "made up")


def test_a_bigram_counted_by_hand():
    # a→b twice, b→a once; two kinds of characters: p(b|a) = 3/4, p(a|b) = 2/3
    scored = bigram_sentence("abab")
    assert scored.tokens == ["'b'", "'a'", "'b'"]
    assert np.exp(scored.log_probabilities) == pytest.approx([3 / 4, 2 / 3, 3 / 4])
    assert scored.num_bytes == 3
    text = "the cat sat on the mat"
    expected = (text.count("th") + 1) / (text[:-1].count("t") + len(set(text)))
    assert math.exp(bigram_sentence(text).log_probabilities[0]) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["aa", "ab", "日本語の文", "naïve $x$ 🙂 \n\t\\", "the cat sat " * 50])
def test_the_chain_rule_over_any_text(text, cells):
    scored = bigram_sentence(text)
    step = language.chain_rule(scored)
    for each in (step, language.perplexity(scored), language.continuations(scored)):
        assert all(identity.holds for identity in each.identities)
    assert cells(step, "token", str) == [repr(character) for character in text[1:]]
    assert cells(step, "so far")[-1] == pytest.approx(-sum(scored.log_probabilities), abs=1e-3)
    assert scored.num_bytes == len(text[1:].encode())
    assert "-0.000" not in str(step.table)


def test_tokens_whose_product_no_float_holds():
    scored = scored_as([-800.0, -600.0, -1.0])
    step = language.chain_rule(scored)
    assert all(identity.holds for identity in (*step.identities, *language.perplexity(scored).identities))
    assert step.levels["mean"] == pytest.approx(467)


def test_perplexity_is_an_inverse_geometric_mean(cells):
    probabilities = [0.5, 0.25, 0.1]
    step = language.perplexity(scored_as(np.log(probabilities)))
    *uniform, sentence = (float(cell.replace(",", "")) for cell in cells(step, "perplexity", str))
    assert uniform == [2, 10, 256, 50_257]
    assert sentence == pytest.approx(1 / scipy.stats.gmean(probabilities), abs=0.005)
    bits_per_byte = float(cells(step, "bits per byte", str)[-1])
    assert bits_per_byte == pytest.approx(-np.log2(probabilities).sum() / 6, abs=1e-3)


def test_the_alternatives_of_a_place_and_its_entropy(cells):
    # after 'a': b twice of 2 and one added each: [1/5, 3/5, 1/5]; after 'b': a and c once each: [2/5, 1/5, 2/5]
    scored = bigram_sentence("ababc")
    step = language.continuations(scored)
    assert cells(step, "entropy (nats)") == pytest.approx(
        np.tile(scipy.stats.entropy([[1, 3, 1], [2, 1, 2]], axis=1), 2), abs=5e-4
    )
    likely = cells(step, "most likely", str)[:2]
    assert likely == ["'b' 0.600, 'a' 0.200, 'c' 0.200", "'a' 0.400, 'c' 0.400, 'b' 0.200"]
    assert scored.most_open == pytest.approx([2 / 5, 1 / 5, 2 / 5])
    assert list(step.names) == ["'a'", "'c'", "'b'"]
