from dataclasses import replace

import pytest
import torch

from nanolm.config.schema import SamplingConfig
from nanolm.data import open_prepared, prepare
from nanolm.device import resolve_compute
from nanolm.errors import ConfigError
from nanolm.loss import LossOptions
from nanolm.model import GPT
from nanolm.sampling import sample, with_temperature

SAMPLING = SamplingConfig(prompt="", num_samples=3, max_new_tokens=12, temperature=1.0, top_k=None, top_p=None)


@pytest.fixture
def draw(tiny):
    config = tiny()
    tokenizer = open_prepared(prepare(config.data, config.tokenizer)).tokenizer
    torch.manual_seed(0)
    model = GPT(config.model, tokenizer.vocab_size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def draw(loss=LossOptions(), seed=0, **changes):  # noqa: B008
        return sample(model, tokenizer, replace(SAMPLING, **changes), seed, 8, loss, resolve_compute("cpu", "fp32"))

    return draw


def test_texts_begin_with_the_prompt_and_differ(draw):
    texts = draw(prompt="é, <|endoftext|>\r\n")
    assert all(text.startswith("é, <|endoftext|>\r\n") for text in texts)
    assert len(set(texts)) == 3


def test_a_text_depends_on_seed_and_number_alone(draw):
    before = torch.random.get_rng_state()
    assert draw(num_samples=1) == draw(num_samples=3)[:1]
    assert draw(seed=0) != draw(seed=1)
    assert not set(draw(seed=0)) & set(draw(seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_models_own_temperature_and_softcap_shape_the_draws(draw):
    assert draw(LossOptions(temperature=2.0), temperature=0.5) == draw(temperature=1.0)
    assert draw(LossOptions(softcap=0.01)) != draw()


def test_fitted_needs_a_fit():
    wanted = replace(SAMPLING, temperature="fitted")
    assert with_temperature(wanted, 1.25, "") == replace(SAMPLING, temperature=1.25)
    assert with_temperature(SAMPLING, None, "no fit") == SAMPLING
    with pytest.raises(ConfigError, match="temperature=fitted: no fit; or give a number"):
        with_temperature(wanted, None, "no fit")
