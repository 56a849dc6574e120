"""R11: files of an attacker are refused with one clear message; nothing is executed, nothing is written outside.

Every manifest here fits the other files, as an attacker's would: a checksum protects from damage alone.
"""

import json
import os
import pickle
import struct

import pytest
import torch
import yaml

from nanolm.config import command_line, load
from nanolm.data import load_tokenizer, open_prepared, prepare
from nanolm.errors import CheckpointError, ConfigError, DataError
from nanolm.files import lock
from nanolm.training import find_checkpoint
from nanolm.training.checkpoint import OtherFormat
from tests.faults.mutations import as_json
from tests.faults.untrusted import CALIBRATION, call, copy, overrides, resign, taken_or_refused

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def given(corpus_file, data_root):
    return overrides(corpus_file, data_root)


@pytest.fixture
def prepared(given, tmp_path):
    config = load("train", given)
    return copy(prepare(config.data, config.tokenizer), tmp_path / "prepared")


@pytest.fixture
def open_folder(request):
    """``open_folder("checkpoint")``: a folder of this kind to damage, and the function that must refuse it."""

    def make(kind):
        folder = request.getfixturevalue(kind)
        return folder, {"checkpoint": find_checkpoint, "prepared": open_prepared}[kind]

    return make


@pytest.fixture
def trace(tmp_path):
    """A file that exists if an attacker's code has run."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


class Bomb:
    def __init__(self, trace):
        self.command = f"touch '{trace}'"

    def __reduce__(self):
        return os.system, (self.command,)


def test_these_bombs_explode_where_nothing_is_refused(tmp_path):
    """The tests below would notice."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "pickle")))
    torch.save(Bomb(tmp_path / "torch"), tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=False)
    yaml.unsafe_load(f"!!python/object/apply:os.system [touch '{tmp_path / 'yaml'}']")
    assert {"pickle", "torch", "yaml"} <= set(os.listdir(tmp_path))


# Pickles


@pytest.mark.parametrize("form", ["torch", "inside a state", "plain pickle", "old torch"])
def test_a_pickle_bomb_ends_training_with_2_and_is_not_run(checkpoint, given, trace, form):
    path = checkpoint / "training_state.pt"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    elif form == "inside a state":
        torch.save(torch.load(path, weights_only=True) | {"seconds": Bomb(trace)}, path)
    else:
        torch.save(Bomb(trace), path, _use_new_zipfile_serialization=form == "torch")
    resign(checkpoint)
    code, errors = call("train", [*given, f"hydra.run.dir={checkpoint.parents[1]}"])
    assert code == 2, errors
    assert str(path) in errors
    assert not (checkpoint.parents[1] / "metrics.jsonl").exists(), "refused before the first step"


def test_a_training_state_is_not_even_read_to_sample(checkpoint, trace):
    torch.save(Bomb(trace), checkpoint / "training_state.pt")
    resign(checkpoint)
    assert call("sample", [f"checkpoint={checkpoint}", "max_new_tokens=3"])[0] == 0


STATE_VALUES = [None, [], {}, "x", -1, float("inf"), float("nan"), 10**30, torch.zeros(3), [torch.zeros(2)]]


def test_states_of_any_type(checkpoint, original):
    path = checkpoint / "training_state.pt"
    good = torch.load(path, weights_only=True)
    states = [good | {key: value} for key in good for value in STATE_VALUES]
    for state in [*states, good["optimizers"], *STATE_VALUES, {}]:
        torch.save(state, path)
        resign(checkpoint)
        taken_or_refused(lambda: find_checkpoint(checkpoint).load_state(original[1]))
    for content in (b"", b"x", b"PK\x03\x04", b"\x80\x02.", b"\x80\x04N."):
        path.write_bytes(content)
        resign(checkpoint)
        with pytest.raises(CheckpointError, match=r"training_state\.pt"):
            find_checkpoint(checkpoint).load_state(original[1])


# Configurations


TAGS = [
    "!!python/object/apply:os.system [\"touch 'TRACE'\"]",
    "!!python/object/new:os.system [\"touch 'TRACE'\"]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!<tag:yaml.org,2002:python/object/apply:os.system> [\"touch 'TRACE'\"]",
]
TARGETS = ["_target_: os.system\n", "model: {_target_: os.system}\n", "_target_: os.system\n_args_: [true]\n"]


@pytest.mark.parametrize("tag", TAGS)
def test_tags_in_a_checkpoints_configuration_are_refused(checkpoint, trace, tag):
    content = yaml.safe_load((checkpoint / "config.yaml").read_text())
    del content["name"]
    (checkpoint / "config.yaml").write_text(yaml.safe_dump(content) + f"name: {tag.replace('TRACE', str(trace))}\n")
    resign(checkpoint)
    with pytest.raises(CheckpointError, match=str(checkpoint)):
        find_checkpoint(checkpoint)


@pytest.mark.parametrize("where", ["", "model", "data"])
def test_a_target_in_a_checkpoints_configuration_is_refused(checkpoint, trace, where):
    content = yaml.safe_load((checkpoint / "config.yaml").read_text())
    (content[where] if where else content).update(_target_="os.system", command=f"touch '{trace}'")
    (checkpoint / "config.yaml").write_text(yaml.safe_dump(content))
    resign(checkpoint)
    code, errors = call("sample", [f"checkpoint={checkpoint}"])
    assert code == 2, errors
    assert "_target_" in errors


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_target_among_the_overrides_is_refused(prefix):
    for key in ("_target_", "model._target_", "trainer._target_", "optimizer._args_"):
        assert call("train", [f"{prefix}{key}=os.system"])[0] == 2


HYDRA = {
    "a callback": "callbacks: {bomb: {_target_: subprocess.Popen, args: [touch, 'TRACE']}}",
    "a launcher": "launcher: {_target_: subprocess.Popen, args: [touch, 'TRACE']}",
    "a part of a sweeper": "sweeper: {params: {a: {_target_: os.system, command: \"touch 'TRACE'\"}}}",
    "a log handler": "job_logging: {version: 1, handlers: {bomb: {class: os.system, command: \"touch 'TRACE'\"}}}",
    "a log factory": "hydra_logging: {version: 1, formatters: {bomb: {(): os.system, command: \"touch 'TRACE'\"}}}",
    "in a list": "searchpath: [{_target_: os.system}]",
}


@pytest.mark.parametrize("what", HYDRA)
def test_a_file_of_configuration_runs_no_code(tmp_path, trace, monkeypatch, what):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    section = HYDRA[what].replace("TRACE", str(trace))
    (tmp_path / "mine" / "experiment" / "bomb.yaml").write_text(f"# @package _global_\nhydra:\n  {section}\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["--config-dir", "mine", "experiment=bomb", "-m", "seed=1,2"]  # only a sweep would call anything
    assert command_line.run("train", lambda *_: pytest.fail("the task has begun"), arguments) == 2


@pytest.mark.parametrize("text", [*TARGETS, *(f"name: {tag}\n" for tag in TAGS[:2])])
def test_targets_and_tags_in_a_file_of_configuration_are_refused(tmp_path, trace, text):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    content = "# @package _global_\n" + text.replace("TRACE", str(trace))
    (tmp_path / "mine" / "experiment" / "bomb.yaml").write_text(content)
    with pytest.raises(ConfigError):
        load("train", [f"hydra.searchpath=['file://{tmp_path / 'mine'}']", "experiment=bomb"])


MODELS = {
    "hidden_size": [10**9, 2**62, 10**30, 64],
    "num_hidden_layers": [10**9, 10**30, 3],
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
            with pytest.raises(CheckpointError, match=str(checkpoint)):
                find_checkpoint(checkpoint).load_model(CPU)


# Tokenizers

COMPONENTS = [
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Strip"}]}),
    ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Removed", "invert": False}),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]}),
    ("post_processor", {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}),
    ("decoder", {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1000}),
    ("decoder", {"type": "Sequence", "decoders": [{"type": "Fuse"}]}),
    ("truncation", {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 2**63}),
    ("padding", {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0, "pad_token": "x"}),
    ("added_tokens", [{"id": 10**400, "content": "the"}]),
    ("added_tokens", 10**4000),
    ("model", {"type": "WordPiece", "vocab": {}}),
    ("model", {"type": "BPE", "vocab": {"a": 10**4000}, "merges": []}),
    ("model", {"type": "BPE", "vocab": [], "merges": {}}),
    ("model", {"_target_": "os.system"}),
    ("model", float("nan")),
]


def test_a_tokenizer_with_other_parts_is_refused(checkpoint):
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text())
    for part, value in COMPONENTS:
        path.write_text(json.dumps(content | {part: value}))
        resign(checkpoint)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            find_checkpoint(checkpoint)
    code, errors = call("sample", [f"checkpoint={checkpoint}"])
    assert code == 2, errors
    assert str(path) in errors


# JSON


@pytest.mark.parametrize("depth", [300, 500, 950, 980, 990, 1000, 100_000])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'], ids=["lists", "objects"])
def test_deep_nesting_is_refused_at_any_depth(prepared, checkpoint, depth, pair):
    nested = pair[:-1] * depth + "1" + pair[-1] * depth
    for path, key, use in (
        (prepared / "tokenizer.json", "normalizer", load_tokenizer),
        (prepared / "manifest.json", "source", lambda path: open_prepared(path.parent)),
        (checkpoint / "manifest.json", "files", lambda path: find_checkpoint(path.parent)),
        (checkpoint / "manifest.json", "step", lambda path: find_checkpoint(path.parent)),
    ):
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | {key: "HERE"}).replace('"HERE"', nested))
        with pytest.raises((CheckpointError, DataError), match="recursion"):
            use(path)
        path.write_text(before)


CALIBRATIONS = [
    CALIBRATION | {"temperature": {"value": 10**400}},
    CALIBRATION | {"temperature": {"value": "1.5"}},
    CALIBRATION | {"temperature": {"value": True}},
    CALIBRATION | {"temperature": {"value": float("nan")}},
    CALIBRATION | {"temperature": {"value": 1.5, "low": "x", "high": []}},
    CALIBRATION | {"curve": {}},
    CALIBRATION | {"curve": {"temperature": [1], "nll": ["x"]}},
    CALIBRATION | {"curve": {"temperature": [1.0], "nll": []}},
    CALIBRATION | {"reason": "and a temperature"},
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
        with pytest.raises(CheckpointError, match=r"calibration\.json"):
            find_checkpoint(checkpoint).calibration()
    code, errors = call("sample", [f"checkpoint={checkpoint}", "temperature=fitted"])
    assert code == 2, errors


@pytest.mark.parametrize("content", ["", "[]", "1", "{}", '{"step": 1e999}', '{"step": "4"}', "[" * 1000])
def test_an_evaluation_that_is_none(checkpoint, given, content):
    run_dir = checkpoint.parents[1]
    (run_dir / "evaluation.json").write_text(content)
    code, errors = call("train", [*given, f"hydra.run.dir={run_dir}"])
    assert code == 2, errors
    assert str(run_dir / "evaluation.json") in errors


# Manifests and what they name


@pytest.mark.parametrize("step", [None, "1", True, -1, 1.0, 1e999, float("nan"), 2**63, 10**400, [1], {}])
def test_a_manifest_with_another_step(checkpoint, step):
    resign(checkpoint, lambda manifest: manifest.update(step=step))
    with pytest.raises(CheckpointError, match=r"manifest\.json: .*step|manifest\.json: expected JSON"):
        find_checkpoint(checkpoint)


@pytest.mark.parametrize("change", [{"format": "3"}, {"files": {}}, {"more": 1}], ids=str)
def test_a_manifest_with_other_keys(checkpoint, change):
    resign(checkpoint, lambda manifest: manifest.update(change))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        find_checkpoint(checkpoint)


@pytest.mark.parametrize("number", [2, 99])
def test_a_whole_checkpoint_of_another_version_is_not_called_damaged(checkpoint, number):
    resign(checkpoint, lambda manifest: manifest.update(format=number))
    for place in (checkpoint, checkpoint.parents[1]):
        with pytest.raises(OtherFormat, match=f"version.*{number}"):
            find_checkpoint(place)


OUTSIDE = ["../secret", "/etc/hostname", "sub/file", "..", ".", "", "a\0b", "x" * 300, "\ud800", "x/", "//x"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["checkpoint", "prepared"])
def test_a_name_that_leaves_the_folder_or_is_none_is_refused(open_folder, kind, name):
    folder, use = open_folder(kind)
    (folder.parent / "secret").write_text("secret")
    resign(folder, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "size": 6}}))
    with pytest.raises((CheckpointError, DataError), match=r"manifest\.json"):
        use(folder)


CHECKPOINT_FILES = ("model.safetensors", "training_state.pt", "config.yaml", "tokenizer.json", "manifest.json")
PREPARED_FILES = ("manifest.json", "tokenizer.json", "train-00000.bin")
FILES = [("checkpoint", name) for name in CHECKPOINT_FILES] + [("prepared", name) for name in PREPARED_FILES]


@pytest.mark.parametrize("other", ["a link out of the folder", "a link within the folder", "a pipe", "a folder"])
@pytest.mark.parametrize(("kind", "name"), FILES)
def test_what_is_no_file_is_refused_and_not_waited_for(open_folder, kind, name, other):
    """Even a link to the right content; a pipe would never end."""
    folder, use = open_folder(kind)
    target = folder / "other" if other == "a link within the folder" else folder.parent / "outside"
    (folder / name).rename(target)
    if other == "a pipe":
        os.mkfifo(folder / name)
    elif other == "a folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to(target)
    with pytest.raises((CheckpointError, DataError), match=name):
        use(folder)


@pytest.mark.parametrize("name", [".lock", "train.log", "metrics.jsonl"])
@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing"])
def test_a_link_in_a_run_directory_is_not_written_through(tmp_path, given, name, exists):
    victim, run_dir = tmp_path / "victim", tmp_path / "run"
    run_dir.mkdir()
    if exists:
        victim.write_text("what was there before")
    (run_dir / name).symlink_to(victim)
    code, errors = call("train", [*given, f"hydra.run.dir={run_dir}"])
    assert code == 2
    assert name in errors
    assert "link" in errors
    assert victim.read_text() == "what was there before" if exists else not victim.exists()


def test_a_lock_is_not_written_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("what was there before")
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"), lock(tmp_path / ".lock", ConfigError, "training"):
        pass
    assert (tmp_path / "victim").read_text() == "what was there before"


# Weights


def lies(content):
    """Safetensors files with a header that does not fit what follows it."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = min(key for key in header if key != "__metadata__")
    start, end = header[name]["data_offsets"]

    def with_entry(**changes):
        text = json.dumps(header | {name: header[name] | changes}).encode()
        return struct.pack("<Q", len(text)) + text + data

    yield "header longer than the file", struct.pack("<Q", 2**62) + content[8:]
    yield "header shorter than it is", struct.pack("<Q", length - 3) + content[8:]
    yield "offsets beyond the file", with_entry(data_offsets=[start, len(data) + end - start])
    yield "offsets that overlap", with_entry(data_offsets=[start + 4, end + 4])
    yield "offsets backwards", with_entry(data_offsets=[end, start])
    yield "negative offsets", with_entry(data_offsets=[-4, end])
    yield "enormous shape", with_entry(shape=[2**62, 2**62])
    yield "another shape", with_entry(shape=[*header[name]["shape"], 1, 1])
    yield "another type", with_entry(dtype="F64")
    yield "no such type", with_entry(dtype="os.system")
    yield "no header", content[8 + length :]
    yield "nothing", b""
    yield "deep nesting", struct.pack("<Q", 10**5) + b"[" * 10**5


def test_weights_whose_header_lies_are_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    for what, content in list(lies(path.read_bytes())):
        path.write_bytes(content)
        resign(checkpoint)
        opened = find_checkpoint(checkpoint)
        with pytest.raises(CheckpointError) as refused:
            opened.load_model(CPU)
        assert str(path) in str(refused.value), what
