import json

import pytest
import torch

from nanolm.config import load
from nanolm.config.schema import SamplingConfig
from nanolm.data import open_prepared, prepare
from nanolm.device import resolve_compute
from nanolm.errors import ConfigError
from nanolm.inference import sample_checkpoint
from nanolm.loss import LossOptions
from nanolm.model import GPT
from nanolm.sampling import sample, with_temperature
from nanolm.train import train


def sampling(**changes):
    keys = {"prompt": "", "num_samples": 3, "max_new_tokens": 12, "temperature": 1.0, "top_k": None, "top_p": None}
    return SamplingConfig(**keys | changes)


@pytest.fixture
def draw(tiny):
    config = tiny()
    tokenizer = open_prepared(prepare(config.data, config.tokenizer)).tokenizer
    torch.manual_seed(0)
    model = GPT(config.model, tokenizer.vocab_size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def draw(loss=LossOptions(), seed=0, **changes):  # noqa: B008
        return sample(model, tokenizer, sampling(**changes), seed, 8, loss, resolve_compute("cpu", "fp32"))

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
    fitted = sampling(temperature="fitted")
    assert with_temperature(fitted, 1.25, "") == sampling(temperature=1.25)
    assert with_temperature(sampling(), None, "no fit") == sampling()
    with pytest.raises(ConfigError, match="temperature=fitted: no fit"):
        with_temperature(fitted, None, "no fit")


@pytest.fixture(scope="module")
def ending_run(tiny, tmp_path_factory):
    """A run on documents that end with an a, or are white space."""
    folder = tmp_path_factory.mktemp("ending")
    texts = [text for i in range(60) for text in ("b" * i + "a", " " * (i + 1), "\n" * (i + 1))]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    config = tiny(f"data.path={folder}/documents.jsonl", "tokenizer=char", "trainer.max_steps=40", *ENDING)
    (folder / "run").mkdir()
    assert train(config, folder / "run", "python scripts/train.py") == 0
    return folder / "run"


ENDING = ["sample.prompt=a", "sample.temperature=0", "sample.num_samples=2"]


def test_the_samples_of_a_run_say_why_there_is_nothing_to_read(ending_run):
    texts = (ending_run / "samples.txt").read_text().split("\n\n")
    assert len(texts) == 2
    for text in texts:
        assert text.startswith("a\n[")
        assert "ended" in text
    assert texts[0] in (ending_run / "report.html").read_text()


def test_a_sample_with_nothing_to_read_is_named_on_standard_error(ending_run, capsys):
    def draw(*overrides):
        return sample_checkpoint(load("sample", [f"checkpoint={ending_run}", "top_p=null", *overrides]))

    assert draw("prompt=a", "temperature=0", "num_samples=2") == ["a", "a"]
    out, err = capsys.readouterr()
    assert out == "a\n\n----\n\na\n"
    assert [line.partition(":")[0] for line in err.splitlines()] == ["sample 1 of 2", "sample 2 of 2"]
    assert "ended" in err

    texts = draw("temperature=1", "num_samples=20")
    assert all(texts)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == sum(not text.strip() for text in texts) > 0
    assert "white space" in err
