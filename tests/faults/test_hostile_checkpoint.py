"""Checkpoints from strangers, part by part: whatever they hold is a CheckpointError or is taken (R11)."""

import json
import os

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.errors import CheckpointError
from nanolm.training import find_checkpoint
from tests.faults.mutations import as_json, damaged, mutated
from tests.faults.strangers import CALIBRATION, call, copy, make_checkpoint, overrides, resign
from tests.faults.test_mutations import CASES, few, taken_or_refused

some = settings(max_examples=CASES // 2, deadline=None)
VALUES = [None, [], {}, "x", -1, float("inf"), float("nan"), 10**30, torch.zeros(3), [torch.zeros(2)]]


@pytest.fixture(scope="module")
def original(tmp_path_factory, corpus_file, data_root):
    return make_checkpoint(tmp_path_factory.mktemp("original"), overrides(corpus_file, data_root))


@pytest.fixture
def checkpoint(original, tmp_path):
    return copy(original[0], tmp_path / "run" / "checkpoints" / original[0].name)


@pytest.fixture(scope="module")
def use(original):
    """Whatever any script does with a checkpoint."""

    def use(folder):
        checkpoint = find_checkpoint(folder)
        assert checkpoint.step >= 0
        checkpoint.fitted_temperature()
        checkpoint.load_model(torch.device("cpu"))
        checkpoint.load_state(original[1])

    return use


@pytest.mark.parametrize("depth", [65, 500, 980, 990, 1000, 100_000])
def test_a_manifest_that_is_nested_deeply(checkpoint, depth):
    path = checkpoint / "manifest.json"
    for key in ("files", "step", "corpus"):
        content = json.loads(path.read_text()) | {key: "HERE"}
        (checkpoint / "manifest.json").write_text(json.dumps(content).replace('"HERE"', "[" * depth + "]" * depth))
        with pytest.raises(CheckpointError, match="nested deeper"):
            find_checkpoint(checkpoint)
        path.write_text(json.dumps(content | {key: 1}))


@pytest.mark.parametrize("step", [None, "1", True, -1, 1.0, 1e999, float("nan"), 2**63, 10**400, [1], {}])
def test_a_manifest_with_another_step(checkpoint, step):
    resign(checkpoint, lambda manifest: manifest.update(step=step))
    with pytest.raises(CheckpointError, match="expected a number of steps"):
        find_checkpoint(checkpoint)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_manifest_that_is_no_file(checkpoint, kind):
    path = checkpoint / "manifest.json"
    path.rename(checkpoint.parent / "outside")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(checkpoint.parent / "outside")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        find_checkpoint(checkpoint)


MODELS = {
    "hidden_size": [10**9, 2**62, 10**30, 64],
    "num_hidden_layers": [10**9, 10**30, 2],
    "intermediate_size": [10**14, 10**30, 96],
    "num_attention_heads": [3, 4],
    "num_key_value_heads": [2, 4],
    "head_dim": [7, 10**12],
    "tie_word_embeddings": [None],
}


def test_a_configuration_that_asks_for_another_model_takes_no_memory(checkpoint):
    before = yaml.safe_load((checkpoint / "config.yaml").read_text())
    for key, values in MODELS.items():
        for value in values:
            value = not before["model"][key] if value is None else value
            model = before["model"] | {key: value}
            (checkpoint / "config.yaml").write_text(yaml.safe_dump(before | {"model": model}))
            resign(checkpoint)
            with pytest.raises(CheckpointError, match=r"the weights do not fit the model|cannot be used"):
                find_checkpoint(checkpoint).load_model(torch.device("cpu"))


def test_states_of_any_type(checkpoint, use):
    path = checkpoint / "training_state.pt"
    good = torch.load(path, weights_only=True)
    states = [good | {key: value} for key in good for value in VALUES]
    states += [good["optimizers"], *VALUES, {}]
    for state in states:
        torch.save(state, path)
        resign(checkpoint)
        taken_or_refused(lambda: use(checkpoint))
    for content in (b"", b"x", b"PK\x03\x04", b"\x80\x02.", b"\x80\x04N."):
        path.write_bytes(content)
        resign(checkpoint)
        with pytest.raises(CheckpointError, match="not the training state of this run"):
            use(checkpoint)


CALIBRATIONS = [
    CALIBRATION | {"temperature": {"value": 10**400}},
    CALIBRATION | {"temperature": {"value": "1.5"}},
    CALIBRATION | {"temperature": {"value": True}},
    CALIBRATION | {"temperature": {"value": 1.5, "low": "x", "high": []}},
    CALIBRATION | {"curve": {}},
    CALIBRATION | {"curve": {"temperature": [1], "nll": ["x"]}},
    {"temperature": {"value": 1.5}},
    {"temperature": None, "reason": 3},
    {"temperature": None},
    {},
    [],
    None,
]


def test_calibrations_of_any_type(checkpoint):
    for content in CALIBRATIONS:
        (checkpoint / "calibration.json").write_bytes(as_json(content))
        resign(checkpoint)
        with pytest.raises(CheckpointError, match=r"calibration\.json: expected a fitted temperature"):
            find_checkpoint(checkpoint).fitted_temperature()
    code, said = call("sample", [f"checkpoint={checkpoint}", "temperature=fitted"])
    assert code == 2, said


@pytest.mark.parametrize("content", ["", "[]", "1", "{}", '{"step": 1e999}', '{"step": "4"}', "[" * 1000])
def test_an_evaluation_that_is_none(checkpoint, original, corpus_file, data_root, content):
    run_dir = checkpoint.parents[1]
    (run_dir / "evaluation.json").write_text(content)
    code, said = call("train", [*overrides(corpus_file, data_root), f"hydra.run.dir={run_dir}"])
    assert code == 2, said
    assert "evaluation.json: not the evaluation of a run" in said


@pytest.mark.parametrize("name", ["manifest.json", "calibration.json", "model.safetensors", "training_state.pt"])
def test_files_changed_at_random(checkpoint, use, name):
    originals = {file: (checkpoint / file).read_bytes() for file in (name, "manifest.json")}
    before = originals[name]
    head = before[:2000]
    changed = damaged(head).map(lambda data: data + before[2000:]) | damaged(before)
    if name.endswith(".json"):
        changed = damaged(before) | mutated(json.loads(before)).map(as_json)

    @(some if name.endswith(".json") else few)
    @given(changed, st.booleans())
    def run(data, fits):
        (checkpoint / name).write_bytes(data)
        if name != "manifest.json":
            resign(checkpoint)
        elif fits:
            sign(checkpoint / name)
        taken_or_refused(lambda: use(checkpoint))
        for file, content in originals.items():
            (checkpoint / file).write_bytes(content)

    run()
    use(checkpoint)


def sign(manifest):
    """Have the manifest's checksum fit its content, if it has one still."""
    try:
        content = json.loads(manifest.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(content, dict) and isinstance(content.get("files"), dict):
        files = content["files"]
        resign(manifest.parent, lambda changed: changed.update(files=files))
