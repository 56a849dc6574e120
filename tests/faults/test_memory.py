"""A batch that does not fit in memory: a real limit of the address space, in a child of its own."""

import re
import resource
from pathlib import Path

import pytest

from nanolm.errors import OutOfMemoryError
from nanolm.training import find_checkpoint
from nanolm.training.loop import TrainingLoop
from nanolm.training.memory import too_large
from tests.faults.injection import in_child
from tests.faults.runs import run

BATCH = "trainer.batch_size=8192"


def limit_memory(megabytes):
    """From now on this process may take so much more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def values_of(advice):
    """The keys and values that a message says would fit."""
    return re.findall(r"trainer\.\w+=\d+", advice.split("would fit")[0])


@pytest.mark.parametrize("found", ["before", "during"])
def test_a_batch_that_does_not_fit_is_told_with_one_that_does(tiny, tmp_path, monkeypatch, found):
    config = tiny(BATCH, "trainer.max_steps=1", "model.dropout=0.1")
    if found == "during":
        monkeypatch.setattr(TrainingLoop, "_require_memory", lambda self: None)

    def too_large():
        limit_memory(300)
        with pytest.raises(OutOfMemoryError) as caught:
            run(config, tmp_path / "run")
        message = str(caught.value)
        assert caught.value.exit_code == 1
        assert ("allocate" in message) == (found == "during")
        for part in ("8,192 sequences of 16 tokens", "trainer.micro_batch_size", "trainer.sequence_length", "model"):
            assert part in message
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
        assert run(tiny(BATCH, "trainer.max_steps=1", *values_of(message)), tmp_path / "smaller") == 0

    assert in_child(too_large) == 0
    assert find_checkpoint(tmp_path / "smaller").step == 1


@pytest.mark.parametrize(
    ("free", "fits"),
    [
        (1e12, ["trainer.micro_batch_size=16"]),  # whatever the estimate says, at most half of what failed
        (16e6, ["trainer.micro_batch_size=8"]),
        (1e6, ["trainer.micro_batch_size=1", "trainer.sequence_length=64"]),
        (1e3, []),
    ],
)
def test_the_advice_is_within_what_is_free(tiny, free, fits):
    trainer = tiny("trainer.batch_size=64", "trainer.micro_batch_size=32", "trainer.sequence_length=128").trainer
    message = str(too_large(trainer, 10_000.0, free, "the reason"))
    assert values_of(message) == fits
    assert "the reason" in message
    assert ("smaller model" in message) == (not fits)


def test_no_memory_for_an_evaluation_keeps_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("nanolm.training.run.evaluate", fail)
    with pytest.raises(OutOfMemoryError) as caught:
        run(tiny(), tmp_path / "run")
    for part in ("evaluate.batch_size", "step-00000004", "The command was"):
        assert part in str(caught.value)
