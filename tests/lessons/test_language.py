import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from nanolm.lessons import language
from nanolm.lessons.language import ScoredSentence


def scored_as(tokens, log_probabilities, num_bytes=3):
    """Tokens between two that are as likely, of which the first is the observed one."""
    places = len(tokens)
    return ScoredSentence(
        tokens, log_probabilities, [math.log(2)] * places, [[("'x'", 0.5)]] * places, [0.5, 0.5], num_bytes, "made up"
    )


def test_a_bigram_counted_by_hand():
    # a→b twice, b→a once; two kinds of characters: p(b|a) = 3/4, p(a|b) = 2/3
    scored = language.bigram_sentence("abab")
    assert scored.tokens == ["'b'", "'a'", "'b'"]
    assert np.exp(scored.log_probabilities) == pytest.approx([3 / 4, 2 / 3, 3 / 4])
    assert scored.num_bytes == 3


def test_a_bigrams_probabilities_sum_to_one():
    text = "the cat sat on the mat"
    kinds = sorted(set(text))
    after_t = [text.count("t" + c) + 1 for c in kinds]
    assert sum(after_t) == text[:-1].count("t") + len(kinds)
    scored = language.bigram_sentence(text)
    assert math.exp(scored.log_probabilities[0]) == pytest.approx((text.count("th") + 1) / sum(after_t))


@pytest.mark.parametrize("text", ["aa", "ab", "日本語の文", "naïve $x$ 🙂 \n\t\\", "the cat sat " * 50])
def test_the_chain_rule_over_any_text(text, column, assert_all_hold):
    scored = language.bigram_sentence(text)
    step = language.chain_rule(scored)
    assert_all_hold(step)
    assert_all_hold(language.perplexity(scored))
    assert_all_hold(language.continuations(scored))
    assert column(step, "token") == [repr(character) for character in text[1:]]
    assert float(column(step, "so far")[-1]) == pytest.approx(-sum(scored.log_probabilities), abs=1e-3)
    assert scored.num_bytes == len(text[1:].encode())
    assert "-0.000" not in str(step.table)


def test_tokens_whose_product_no_float_holds(assert_all_hold):
    scored = scored_as(["'a'", "'b'", "'c'"], [-800.0, -600.0, -1.0])
    step = language.chain_rule(scored)
    assert_all_hold(step)
    assert step.plot.levels[0][1] == pytest.approx(467)
    assert_all_hold(language.perplexity(scored))


def test_perplexity_is_an_inverse_geometric_mean(column, assert_all_hold):
    probabilities = [0.5, 0.25, 0.1]
    step = language.perplexity(scored_as(["a", "b", "c"], np.log(probabilities), 6))
    assert_all_hold(step)
    sentence = dict(zip(step.table[0], step.table[-1], strict=True))
    assert float(sentence["perplexity"]) == pytest.approx(1 / scipy.stats.gmean(probabilities), abs=0.005)
    assert float(sentence["bits per byte"]) == pytest.approx(-np.log2(probabilities).sum() / 6, abs=1e-3)
    assert column(step, "perplexity")[:4] == ["2.00", "10.00", "256.00", "50,257.00"]


def test_the_alternatives_of_a_place_and_its_entropy(column, assert_all_hold):
    # after 'a': b twice of 2 and one added each: [1/5, 3/5, 1/5]; after 'b': a and c once each: [2/5, 1/5, 2/5]
    scored = language.bigram_sentence("ababc")
    step = language.continuations(scored)
    assert_all_hold(step)
    entropies = scipy.stats.entropy([[1, 3, 1], [2, 1, 2]], axis=1)
    assert scored.entropies == pytest.approx([entropies[0], entropies[1]] * 2)
    assert [float(cell) for cell in column(step, "entropy (nats)")] == pytest.approx(scored.entropies, abs=5e-4)
    assert column(step, "most likely")[:2] == ["'b' 0.600, 'a' 0.200, 'c' 0.200", "'a' 0.400, 'c' 0.400, 'b' 0.200"]
    assert scored.most_open == pytest.approx([2 / 5, 1 / 5, 2 / 5])
    assert step.plot.names == ["'a'", "'c'", "'b'"]
    assert f"mean entropy {np.mean(scored.entropies):.3f}" in step.about
