"""Read a step of the lessons, and make a checkpoint of a model that has learnt nothing."""

import pytest
import torch

from nanolm.model import GPT
from nanolm.optim import build_optimizer
from nanolm.training.checkpoint import save_checkpoint
from nanolm.training.state import TrainingState


@pytest.fixture
def cells():
    """``cells(step, header)``: a column of the table as numbers; ``cells(step, header, str)`` as text."""
    return lambda step, header, kind=float: [kind(cell) for cell in step.columns[header]]


@pytest.fixture
def curve():
    """``curve(step, label)``: x and y of a series of the plot."""
    return lambda step, label: next((c.x, c.y) for c in step.curves if c.label == label)


@pytest.fixture(scope="session")
def untrained(tiny, tmp_path_factory):
    """``untrained(tokenizer)``: the directory of a run whose one checkpoint has drawn its weights."""

    def publish(tokenizer):
        folder, config = tmp_path_factory.mktemp("untrained"), tiny()
        torch.manual_seed(0)
        model = GPT(config.model, tokenizer.vocab_size)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))  # fresh blocks are the identity
        state = TrainingState(model, build_optimizer(model, config.optimizer))
        save_checkpoint(folder, state, config, tokenizer, "none")
        return folder

    return publish
