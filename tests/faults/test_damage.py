"""R3, R4, R5: whatever is done to the files of a checkpoint is noticed, named, and passed over."""

import json
import os
import random
import re
import shutil

import pytest

from nanolm.errors import CheckpointError
from nanolm.files import file_table
from nanolm.training import find_checkpoint
from nanolm.training.checkpoint import manifest_checksum
from tests.faults.runs import metrics, outcome, run, stop_after

FILES = ("model.safetensors", "training_state.pt", "config.yaml", "tokenizer.json", "calibration.json", "manifest.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with the checkpoints of steps 2 and 4; a copy of it for each test."""
    return tmp_path_factory.mktemp("damage") / "run"


@pytest.fixture
def run_dir(finished, tiny, tmp_path):
    if not finished.exists():
        run(tiny("trainer.max_steps=4"), finished)
    return shutil.copytree(finished, tmp_path / "run")


def flipped(content, place, bit=0):
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def refuses(path, name):
    """Whether the checkpoint is refused with an error that names the file."""
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(path)
    return str(path / name) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_names_the_file(run_dir, name):
    path = run_dir / "checkpoints" / "step-00000004"
    content = (path / name).read_bytes()
    generator = random.Random(name)
    places = {0, len(content) - 1, *(generator.randrange(len(content)) for _ in range(20))}
    for place in places:
        (path / name).write_bytes(flipped(content, place, generator.randrange(8)))
        assert refuses(path, name), place


def test_every_byte_of_the_manifest_counts(run_dir):
    path = run_dir / "checkpoints" / "step-00000004"
    content = (path / "manifest.json").read_bytes()
    for place in range(0, len(content) - 1, 3):  # the last is the line end, which no JSON has to have
        (path / "manifest.json").write_bytes(flipped(content, place, place % 8))
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            find_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_truncation_anywhere_names_the_file(run_dir, name):
    path = run_dir / "checkpoints" / "step-00000004"
    content = (path / name).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 2):
        (path / name).write_bytes(content[:length])
        assert refuses(path, name), length


@pytest.mark.parametrize("name", FILES)
def test_the_run_goes_on_from_the_checkpoint_before_with_a_warning(run_dir, tiny, caplog, capsys, name):
    whole = outcome(run_dir)
    (run_dir / "evaluation.json").unlink()
    path = run_dir / "checkpoints" / "step-00000004" / name
    content = path.read_bytes()
    path.write_bytes(flipped(content, len(content) // 2))
    assert run(tiny("trainer.max_steps=4"), run_dir) == 0
    assert re.search(rf"{re.escape(str(path))}: .*; trying the checkpoint before it", caplog.text)
    assert "continuing after step 2" in capsys.readouterr().err
    assert outcome(run_dir) == whole


@pytest.mark.parametrize("content", [None, b"", b"{", b"\0" * 100], ids=["missing", "empty", "truncated", "noughts"])
def test_without_a_manifest_it_is_no_checkpoint_and_discovery_goes_on(run_dir, caplog, content):
    path = run_dir / "checkpoints" / "step-00000004" / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert find_checkpoint(run_dir).step == 2
    assert "trying the checkpoint before it" in caplog.text
    with pytest.raises(CheckpointError, match=r"not a checkpoint|manifest\.json|expected a run directory"):
        find_checkpoint(path.parent)


@pytest.mark.parametrize("damage", ["weights", "no manifests", "one of each"])
def test_where_all_are_bad_no_run_starts_at_nought(run_dir, tiny, damage):
    (run_dir / "evaluation.json").unlink()
    paths = sorted((run_dir / "checkpoints").iterdir())
    for number, path in enumerate(paths):
        if damage == "weights" or (damage == "one of each" and number == 0):
            (path / "model.safetensors").write_bytes(b"")
        else:
            (path / "manifest.json").unlink()
    before = metrics(run_dir)
    with pytest.raises(CheckpointError, match="every checkpoint of this run is damaged") as caught:
        run(tiny("trainer.max_steps=4"), run_dir)
    assert all(str(path) in str(caught.value) for path in paths)
    assert metrics(run_dir) == before
    assert sorted((run_dir / "checkpoints").iterdir()) == paths


def test_a_damaged_newer_checkpoint_never_costs_the_good_ones(run_dir, tiny, monkeypatch):
    """One is kept. It must be the one just published, not the damaged one with the greater number."""
    whole = outcome(run_dir)
    (run_dir / "evaluation.json").unlink()
    (run_dir / "checkpoints" / "step-00000004" / "training_state.pt").write_bytes(b"")
    config = tiny("trainer.max_steps=4", "trainer.keep_checkpoints=1")
    stop_after(monkeypatch, config, run_dir, 3)
    assert sorted(os.listdir(run_dir / "checkpoints")) == ["step-00000003", "step-00000004"]
    assert run(config, run_dir) == 0
    assert outcome(run_dir) == whole
    assert os.listdir(run_dir / "checkpoints") == ["step-00000004"]


def test_a_state_of_another_step_than_the_manifest_says_is_refused(run_dir, tiny):
    """A training state swapped for that of another checkpoint, by hand, with its sha256 put right."""
    (run_dir / "evaluation.json").unlink()
    older, path = sorted((run_dir / "checkpoints").iterdir())
    shutil.copy(older / "training_state.pt", path / "training_state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["training_state.pt"] = file_table(path)["training_state.pt"]
    manifest["checksum"] = manifest_checksum(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"expected step 4, as in manifest\.json, found step 2"):
        run(tiny("trainer.max_steps=4"), run_dir)
