import json
import os
import shutil

import pytest
import torch

from nanolm.data import open_prepared, prepare
from nanolm.errors import CheckpointError
from nanolm.model import GPT
from nanolm.optim import build_optimizer
from nanolm.training.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    manifest_checksum,
    prune_checkpoints,
    save_checkpoint,
)
from nanolm.training.state import TrainingState


@pytest.fixture
def config(tiny):
    return tiny("model.dropout=0.1")


@pytest.fixture
def corpus(config):
    return open_prepared(prepare(config.data, config.tokenizer))


def new_state(config, corpus, seed=0):
    """A state after one real step, so that every optimizer has moments."""
    torch.manual_seed(seed)
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    state = TrainingState(model, build_optimizer(model, config.optimizer))
    model(torch.arange(8)[None]).square().sum().backward()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizers.step(1.0)
    state.step, state.tokens, state.seconds, state.unlogged = 7, 448, 1.5, {"step": 7, "train/nll": 0.1}
    return state


@pytest.fixture
def saved(config, corpus, tmp_path):
    state = new_state(config, corpus)
    for step in (3, 5, 7):
        state.step = step
        save_checkpoint(tmp_path / "run", state, config, corpus.tokenizer, corpus.fingerprint)
    return tmp_path / "run", state


def test_what_is_saved_comes_back_to_the_bit(saved, config, corpus):
    run_dir, state = saved
    other = new_state(config, corpus, seed=1)
    checkpoint = find_checkpoint(run_dir)
    checkpoint.load_state(other)
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    assert str(state.state_dict()) == str(other.state_dict())
    assert other.unlogged == {"step": 7, "train/nll": 0.1}
    assert checkpoint.config == config
    assert checkpoint.step == 7
    text = "the free people of our union"
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode(text)) == text
    assert not checkpoint.load_model(torch.device("cpu")).training


def test_it_stands_alone(saved, tmp_path):
    run_dir, _ = saved
    moved = tmp_path / "elsewhere" / "my checkpoint"
    shutil.copytree(run_dir / "checkpoints" / "step-00000005", moved)
    shutil.rmtree(run_dir)
    checkpoint = find_checkpoint(moved)
    assert checkpoint.step == 5
    assert checkpoint.run_dir == moved.parent
    checkpoint.load_model(torch.device("cpu"))


def test_the_newest_that_verifies_is_taken(saved, caplog):
    run_dir, _ = saved
    assert find_checkpoint(run_dir).step == 7
    (run_dir / "checkpoints" / "step-00000007" / "manifest.json").unlink()
    assert find_checkpoint(run_dir).step == 5
    assert "step-00000007: not a checkpoint, it has no manifest.json; trying the checkpoint before it" in caplog.text
    with open(run_dir / "checkpoints" / "step-00000005" / "model.safetensors", "ab") as file:
        file.write(b"?")
    assert find_checkpoint(run_dir).step == 3
    assert "model.safetensors: expected" in caplog.text


def test_pruning_keeps_the_newest(saved):
    run_dir, _ = saved
    prune_checkpoints(run_dir, keep=2, step=7)
    assert sorted(os.listdir(run_dir / "checkpoints")) == ["step-00000005", "step-00000007"]
    prune_checkpoints(run_dir, keep=5, step=7)
    assert len(list_checkpoints(run_dir)) == 2


@pytest.mark.parametrize(
    "name", ["model.safetensors", "training_state.pt", "config.yaml", "tokenizer.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damage_to_any_file_is_an_error_when_the_checkpoint_is_named(saved, name, damage):
    run_dir, _ = saved
    path = run_dir / "checkpoints" / "step-00000007"
    content = (path / name).read_bytes()
    middle = len(content) // 2
    damaged = {
        "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "truncate": content[:middle],
        "empty": b"",
    }
    if damage == "remove":
        (path / name).unlink()
    else:
        (path / name).write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match=r"step-00000007|expected a run directory"):
        find_checkpoint(path)
    assert find_checkpoint(run_dir).step == 5


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "files": {}}', '{"format": 99}'])
def test_a_manifest_that_is_none(saved, content):
    run_dir, _ = saved
    path = run_dir / "checkpoints" / "step-00000007"
    (path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        find_checkpoint(path)


def test_a_pickle_bomb_is_refused_and_not_run(saved, tmp_path):
    run_dir, state = saved
    path = run_dir / "checkpoints" / "step-00000007"

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    torch.save({"optimizers": Bomb()}, path / "training_state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    from nanolm.files import file_table

    table = file_table(path)
    manifest["files"] = {name: table[name] for name in manifest["files"]}
    manifest["checksum"] = manifest_checksum(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not the training state of this run"):
        find_checkpoint(path).load_state(state)
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_shape_are_refused(saved, tiny, corpus):
    run_dir, _ = saved
    other = new_state(tiny("model.hidden_size=64"), corpus)
    with pytest.raises(CheckpointError, match="the weights do not fit the model"):
        find_checkpoint(run_dir).load_state(other)


def test_the_state_of_another_optimizer_is_refused(saved, tiny, corpus):
    run_dir, _ = saved
    other = new_state(tiny("model.dropout=0.1", "optimizer=adamw"), corpus)
    with pytest.raises(CheckpointError, match="optimizer"):
        find_checkpoint(run_dir).load_state(other)


@pytest.mark.parametrize("path", [None, "missing", "file", "empty"])
def test_a_path_that_is_no_checkpoint(path, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="checkpoint"):
        find_checkpoint(path and tmp_path / path)
