"""R3, R4, R5: whatever is done to the files of a checkpoint is noticed, named, and passed over."""

import os
import random
import shutil

import pytest

from nanolm.errors import CheckpointError
from nanolm.training import find_checkpoint
from tests.faults.runs import metrics, outcome, run, stop_after
from tests.faults.untrusted import resign

FILES = ("model.safetensors", "training_state.pt", "config.yaml", "tokenizer.json", "calibration.json", "manifest.json")
NEWEST = "checkpoints/step-00000004"


def flipped(content, place, bit=0):
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def refuses(path, name):
    """Return whether the checkpoint is refused with an error that names the file."""
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(path)
    return str(path / name) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_or_a_lost_end_names_the_file(finished, name):
    path = finished / NEWEST
    content = (path / name).read_bytes()
    generator = random.Random(name)
    places = {0, len(content) - 1, *(generator.randrange(len(content)) for _ in range(20))}
    damaged = [flipped(content, place, generator.randrange(8)) for place in places]
    damaged += [content[:length] for length in (0, 1, len(content) // 2, len(content) - 2)]
    for data in damaged:
        (path / name).write_bytes(data)
        assert refuses(path, name), data[:100]


def test_every_byte_of_the_manifest_counts(finished):
    path = finished / NEWEST
    content = (path / "manifest.json").read_bytes()
    for place in range(0, len(content) - 1, 3):  # the last is the line end, which no JSON has to have
        (path / "manifest.json").write_bytes(flipped(content, place, place % 8))
        assert refuses(path, "manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_the_run_goes_on_from_the_checkpoint_before_with_a_warning(finished, tiny, caplog, capsys, name):
    whole = outcome(finished)
    (finished / "evaluation.json").unlink()
    path = finished / NEWEST / name
    content = path.read_bytes()
    path.write_bytes(flipped(content, len(content) // 2))
    assert run(tiny("trainer.max_steps=4"), finished) == 0
    assert str(path) in caplog.text
    assert "step 2" in capsys.readouterr().err
    assert outcome(finished) == whole


@pytest.mark.parametrize("content", [None, b"", b"{", b"\0" * 100], ids=["missing", "empty", "truncated", "zeros"])
def test_without_a_manifest_it_is_no_checkpoint_and_discovery_goes_on(finished, caplog, content):
    path = finished / NEWEST / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert find_checkpoint(finished).step == 2
    assert str(path.parent) in caplog.text
    with pytest.raises(CheckpointError, match="step-00000004"):
        find_checkpoint(path.parent)


@pytest.mark.parametrize("damage", ["weights", "no manifests", "one of each"])
def test_if_all_are_bad_no_run_starts_at_step_0(unfinished, tiny, damage):
    paths = sorted((unfinished / "checkpoints").iterdir())
    for number, path in enumerate(paths):
        if damage == "weights" or (damage == "one of each" and number == 0):
            (path / "model.safetensors").write_bytes(b"")
        else:
            (path / "manifest.json").unlink()
    before = metrics(unfinished)
    with pytest.raises(CheckpointError) as caught:
        run(tiny("trainer.max_steps=4"), unfinished)
    assert all(str(path) in str(caught.value) for path in paths)
    assert metrics(unfinished) == before
    assert sorted((unfinished / "checkpoints").iterdir()) == paths


def test_a_damaged_newer_checkpoint_never_costs_the_good_ones(finished, tiny):
    """One is kept. It must be the one just published, not the damaged one with the greater number."""
    whole = outcome(finished)
    (finished / "evaluation.json").unlink()
    (finished / NEWEST / "training_state.pt").write_bytes(b"")
    config = tiny("trainer.max_steps=4", "trainer.keep_checkpoints=1")
    stop_after(config, finished, 3)
    assert sorted(os.listdir(finished / "checkpoints")) == ["step-00000003", "step-00000004"]
    assert run(config, finished) == 0
    assert outcome(finished) == whole
    assert os.listdir(finished / "checkpoints") == ["step-00000004"]


def test_a_state_of_another_step_than_the_manifest_says_is_refused(unfinished, tiny):
    """A training state swapped for that of another checkpoint, by hand, with its sha256 put right."""
    older, path = sorted((unfinished / "checkpoints").iterdir())
    shutil.copy(older / "training_state.pt", path / "training_state.pt")
    resign(path)
    with pytest.raises(CheckpointError, match=r"training_state\.pt.*step 4.*step 2"):
        run(tiny("trainer.max_steps=4"), unfinished)
