"""How the tests read a step, and checkpoints whose models have not learnt anything."""

import pytest
import torch

from nanolm.config import load
from nanolm.data.tokenizer import ByteTokenizer, CharTokenizer
from nanolm.model import GPT
from nanolm.optim import build_optimizer
from nanolm.training.checkpoint import save_checkpoint
from nanolm.training.state import TrainingState

TINY = [
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "model.intermediate_size=48",
    "trainer.device=cpu",
    "trainer.sequence_length=16",
]


@pytest.fixture
def column():
    """``column(step, name)``: the cells of a table's column, as text."""

    def read(step, name):
        header, *rows = step.table
        return [row[header.index(name)] for row in rows]

    return read


@pytest.fixture
def assert_all_hold():
    """``assert_all_hold(step)``"""

    def check(step):
        assert step.identities
        for identity in step.identities:
            assert identity.holds, identity

    return check


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """The directory of a run whose one checkpoint has drawn its weights, and a tokenizer of bytes."""
    return publish(tmp_path_factory.mktemp("untrained"), ByteTokenizer())


@pytest.fixture(scope="session")
def untrained_characters(tmp_path_factory):
    """The same with a vocabulary of a few characters."""
    return publish(tmp_path_factory.mktemp("untrained-characters"), CharTokenizer("the state"))


def publish(folder, tokenizer):
    config = load("train", TINY)
    torch.manual_seed(0)
    model = GPT(config.model, tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # fresh blocks are the identity
    save_checkpoint(folder, TrainingState(model, build_optimizer(model, config.optimizer)), config, tokenizer, "none")
    return folder
