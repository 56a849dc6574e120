import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from nanolm.first_principles import language
from nanolm.first_principles.language import ScoredSentence


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
    assert column(step, "token") == [repr(character) for character in text[1:]]
    assert float(column(step, "so far")[-1]) == pytest.approx(-sum(scored.log_probabilities), abs=1e-3)
    assert scored.num_bytes == len(text[1:].encode())
    assert "-0.000" not in str(step.table)


def test_tokens_whose_product_no_float_holds(assert_all_hold):
    scored = ScoredSentence(["'a'", "'b'", "'c'"], [-800.0, -600.0, -1.0], 3, "a bad model")
    step = language.chain_rule(scored)
    assert_all_hold(step)
    assert step.plot.levels[0][1] == pytest.approx(467)
    assert_all_hold(language.perplexity(scored))


def test_perplexity_is_an_inverse_geometric_mean(column, assert_all_hold):
    probabilities = [0.5, 0.25, 0.1]
    step = language.perplexity(ScoredSentence(["a", "b", "c"], np.log(probabilities), 6, "made up"))
    assert_all_hold(step)
    sentence = dict(zip(step.table[0], step.table[-1], strict=True))
    assert float(sentence["perplexity"]) == pytest.approx(1 / scipy.stats.gmean(probabilities), abs=0.005)
    assert float(sentence["bits per byte"]) == pytest.approx(-np.log2(probabilities).sum() / 6, abs=1e-3)
    assert column(step, "perplexity")[:4] == ["2.00", "10.00", "256.00", "50,257.00"]
