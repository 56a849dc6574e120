"""What may be drawn, how often, and from which context."""

import copy

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from nanolm.errors import ConfigError
from nanolm.model import GPT, generate
from nanolm.model.generate import candidates, next_token
from tests.model.tiny import random_model

END_OF_TEXT = 0
LOGITS = torch.tensor([1.0, 3.0, 2.0, 3.0, -1.0, 2.0, 2.0])  # ties at the top and in the middle


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> GPT:
    model = random_model(23, std=0.3, tie_word_embeddings=False, dropout=0.2)
    with torch.no_grad():
        model.lm_head.weight[END_OF_TEXT] = 0  # drawn rarely enough that texts grow long
    return model


def draw(model: GPT, prompt=(3, 4), num=40, temperature=1.0, seed=0, context=16, **options) -> list[int]:
    return generate(
        model,
        prompt,
        max_new_tokens=num,
        temperature=temperature,
        generator=seeded(seed),
        context=context,
        end_of_text_id=END_OF_TEXT,
        **options,
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (4, None), (None, 0.7)])
def test_draws_follow_the_distribution(temperature, top_k, top_p):
    probabilities = (LOGITS.double() / temperature).softmax(0)
    order = sorted(range(7), key=lambda token: (-probabilities[token], token))
    kept = order[:top_k]
    if top_p is not None:
        kept = next(order[:n] for n in range(1, 8) if probabilities[order[:n]].sum() >= top_p)
    expected = torch.zeros(7, dtype=torch.double)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    generator, num_draws = seeded(7), 4000
    draws = [next_token(LOGITS, temperature, top_k, top_p, generator) for _ in range(num_draws)]
    counts = torch.bincount(torch.tensor(draws), minlength=7)
    assert set(draws) <= set(kept)
    result = stats.chisquare(counts[kept].numpy(), (expected[kept] * num_draws).numpy())
    assert result.pvalue > 1e-3


@pytest.mark.parametrize(("top_k", "kept"), [(1, [1]), (2, [1, 3]), (3, [1, 3, 2]), (4, [1, 3, 2, 5]), (99, None)])
def test_top_k_keeps_exactly_k_and_lower_ids_among_equals(top_k, kept):
    probabilities, tokens = candidates(LOGITS, 1.0, top_k=top_k)
    assert tokens.tolist() == (kept or [1, 3, 2, 5, 6, 0, 4])
    assert probabilities.sum().item() == pytest.approx(1)


def test_equals_keep_their_order_in_a_large_vocabulary():
    assert candidates(torch.zeros(5000), 1.0, top_k=4)[1].tolist() == [0, 1, 2, 3]


def test_top_p_keeps_the_shortest_sufficient_run_of_what_top_k_leaves():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    kept = {0.01: [1], 0.39: [1], 0.41: [1, 3], 0.69: [1, 3], 0.71: [1, 3, 2], 0.95: [1, 3, 2, 0]}
    assert {top_p: candidates(logits, 1.0, top_p=top_p)[1].tolist() for top_p in kept} == kept
    assert candidates(logits, 1.0, top_k=2, top_p=0.5)[1].tolist() == [1]  # 0.4 of 0.7 is more than half
    logits = torch.cat((torch.zeros(8), torch.full((5,), -60.0)))  # eight times 1/8 is 1 exactly, the rest rounds away
    assert [len(candidates(logits, 1.0, top_p=top_p)[1]) for top_p in (1.0, 0.999999)] == [13, 8]


def test_a_tiny_temperature_is_greedy_and_finite():
    probabilities, tokens = candidates(torch.tensor([1.0, 5.0, 2.0]), 1e-300)
    assert tokens[0] == 1
    assert probabilities.tolist() == [1, 0, 0]


def test_greedy_is_the_argmax_of_the_full_forward(model):
    tokens = [3, 4]
    for token in draw(model, temperature=0, num=14):
        logits = F.linear(model.eval()(torch.tensor([tokens])), model.head_weight)
        assert token == logits[0, -1].argmax()
        tokens.append(token)
    assert len(tokens) == 16


def test_seeds_reproduce_and_the_global_stream_is_left_alone(model):
    state = torch.get_rng_state()
    first = draw(model, seed=1)
    assert first == draw(model, seed=1)
    assert first != draw(model, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back_and_dropout_is_off(model, training):
    expected = draw(model.eval())
    assert draw(model.train(training)) == expected
    assert model.training is training


@pytest.mark.parametrize("prompt_length", [1, 9, 10, 11, 50])
def test_a_full_window_goes_on_from_its_last_half(model, prompt_length):
    """Greedy text equals that of a model run without a cache on the window that the rule describes."""
    context = 10
    prompt = [1 + i % 22 for i in range(prompt_length)]
    tokens, window = list(prompt), prompt[-context:]
    found = draw(model, prompt=prompt, temperature=0, context=context, num=30)
    for token in found:
        if len(window) > context:
            window = tokens[-context // 2 :]
        logits = F.linear(model.eval()(torch.tensor([window])), model.head_weight)
        assert token == logits[0, -1].argmax()
        tokens.append(token)
        window = [*window, token]
    assert len(found) == 30


def test_no_position_beyond_the_context_is_used(model):
    lengths = []
    hook = model.register_forward_pre_hook(lambda _, given: lengths.append(given[1].length + given[0].shape[1]))
    with hook:
        draw(model, num=60, context=8)
        assert max(lengths) == 8
        lengths.clear()
        assert len(draw(model, num=5, context=1, temperature=0)) == 5
        assert max(lengths) == 1


def test_end_of_text_ends_and_is_not_returned(model):
    texts = [draw(model, seed=seed, num=300, temperature=3.0) for seed in range(5)]
    assert all(END_OF_TEXT not in text for text in texts)
    assert any(len(text) < 300 for text in texts)


def test_an_empty_prompt_starts_from_end_of_text(model):
    assert draw(model, prompt=[]) == draw(model, prompt=[END_OF_TEXT])
    assert draw(model, num=0) == []


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 1}, {"top_p": 0.01}, {"softcap": 5.0}])
def test_an_empty_prompt_gives_a_token_even_where_end_of_text_is_most_likely(model, options):
    ending = copy.deepcopy(model)
    with torch.no_grad():
        ending.lm_head.weight[END_OF_TEXT] = 10 * ending(torch.tensor([[END_OF_TEXT]]))[0, -1]
    assert all(draw(ending, prompt=[], seed=seed, **options) for seed in range(5))


def test_softcap_is_the_one_of_training(model):
    hidden = model.eval()(torch.tensor([[3, 4]]))[0, -1]
    logits = 0.5 * torch.tanh(F.linear(hidden, model.head_weight) / 0.5)
    assert draw(model, num=1, softcap=0.5) == [next_token(logits, 1.0, None, None, seeded(0))]
    assert draw(model, softcap=0.5) != draw(model)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1.0), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.1), ("context", 0)]
)
def test_impossible_requests_are_refused(model, name, value):
    with pytest.raises(ConfigError, match=name):
        draw(model, **{name: value})
