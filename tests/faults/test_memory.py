"""R23: a batch that does not fit in memory; a real limit of the address space, in a child of its own."""

import re
import resource
from pathlib import Path

import pytest
import torch

from nanolm.data import Loader, open_prepared, prepare
from nanolm.device import resolve_compute
from nanolm.errors import OutOfMemoryError
from nanolm.training import find_checkpoint
from nanolm.training.memory import MemoryGuard
from nanolm.training.resume import new_state
from tests.faults.injection import in_child
from tests.faults.runs import COMMAND, run

BATCH = "trainer.batch_size=8192"


def limit_memory(megabytes):
    """From now on this process may take so much more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def advised(message):
    """Return the keys and values that a message says would fit."""
    return re.findall(r"trainer\.\w+=\d+", message)


@pytest.mark.parametrize("found", ["before", "during"])
def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(tiny, tmp_path, monkeypatch, found):
    config = tiny(BATCH, "trainer.max_steps=1", "model.dropout=0.1")
    if found == "during":
        monkeypatch.setattr(MemoryGuard, "require", lambda self: None)

    def train():
        limit_memory(300)
        with pytest.raises(OutOfMemoryError) as caught:
            run(config, tmp_path / "run")
        message = str(caught.value)
        assert caught.value.exit_code == 1
        assert ("allocate" in message) == (found == "during")
        assert "8,192" in message
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
        assert run(tiny(BATCH, "trainer.max_steps=1", *advised(message)), tmp_path / "smaller") == 0

    assert in_child(train) == 0
    assert find_checkpoint(tmp_path / "smaller").step == 1


@pytest.mark.parametrize(
    ("free", "fits"),
    [
        (1e12, ["trainer.micro_batch_size=16"]),  # whatever the estimate says, at most half of what failed
        (16e6, ["trainer.micro_batch_size=8"]),
        (1e6, ["trainer.micro_batch_size=1", "trainer.sequence_length=32"]),
        (1e3, []),
    ],
)
def test_the_advice_is_within_what_is_free(tiny, monkeypatch, free, fits):
    """For a forward pass that keeps 10,000 bytes per token; gradients and moments take 0.3 MB of what is free."""
    config = tiny("trainer.batch_size=64", "trainer.micro_batch_size=32", "trainer.sequence_length=128")
    corpus = open_prepared(prepare(config.data, config.tokenizer))
    state = new_state(config, corpus, resolve_compute("cpu", "fp32"))

    def forward(inputs, targets):
        return torch.zeros(inputs.numel(), 2500, requires_grad=True).exp()

    guard = MemoryGuard(state, Loader(corpus.splits["train"], 128, 64, 0), config.trainer, forward)
    monkeypatch.setattr("nanolm.training.memory.free_memory", lambda device: free)
    with pytest.raises(OutOfMemoryError, match="the reason") as caught, guard.explain():
        raise MemoryError("the reason")
    assert advised(str(caught.value)) == fits


def test_no_memory_for_an_evaluation_keeps_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("nanolm.evaluation.scorer.linear_nll", fail)
    with pytest.raises(OutOfMemoryError) as caught:
        run(tiny(), tmp_path / "run")
    for part in ("evaluate.batch_size", "step-00000004", COMMAND):
        assert part in str(caught.value)
