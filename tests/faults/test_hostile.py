"""Files from strangers: refused in one message, nothing executed, nothing written outside (R11).

Every manifest here fits the files beside it, as that of a stranger would: a checksum protects from damage alone.
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
from nanolm.files import MAX_NESTING, lock, parse_json
from nanolm.training import find_checkpoint
from tests.faults.strangers import call, copy, make_checkpoint, overrides, resign


@pytest.fixture(scope="module")
def given(corpus_file, data_root):
    return overrides(corpus_file, data_root)


@pytest.fixture(scope="module")
def original(tmp_path_factory, given):
    return make_checkpoint(tmp_path_factory.mktemp("original"), given)


@pytest.fixture
def checkpoint(original, tmp_path):
    """A copy of a checkpoint, in a run directory of its own."""
    return copy(original[0], tmp_path / "run" / "checkpoints" / original[0].name)


@pytest.fixture
def prepared(given, tmp_path):
    config = load("train", given)
    return copy(prepare(config.data, config.tokenizer), tmp_path / "prepared")


@pytest.fixture
def trace(tmp_path):
    """A file that exists if a stranger's code has run."""
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
    code, said = call("train", [*given, f"hydra.run.dir={checkpoint.parents[1]}"])
    assert code == 2, said
    assert f"{path}: not the training state of this run" in said
    assert not (checkpoint.parents[1] / "metrics.jsonl").exists(), "refused before the first step"


def test_a_training_state_is_not_even_read_to_sample(checkpoint, trace, capsys):
    torch.save(Bomb(trace), checkpoint / "training_state.pt")
    resign(checkpoint)
    assert call("sample", [f"checkpoint={checkpoint}", "max_new_tokens=3"])[0] == 0


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
    with pytest.raises(CheckpointError, match="could not determine a constructor"):
        find_checkpoint(checkpoint)


@pytest.mark.parametrize("where", ["", "model", "data"])
def test_a_target_in_a_checkpoints_configuration_is_refused(checkpoint, trace, where):
    content = yaml.safe_load((checkpoint / "config.yaml").read_text())
    (content[where] if where else content).update(_target_="os.system", command=f"touch '{trace}'")
    (checkpoint / "config.yaml").write_text(yaml.safe_dump(content))
    resign(checkpoint)
    code, said = call("sample", [f"checkpoint={checkpoint}"])
    assert code == 2, said
    assert "_target_: no such key" in said


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
def test_targets_and_tags_in_a_file_of_configuration_are_refused(tmp_path, trace, monkeypatch, text):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    path = tmp_path / "mine" / "experiment" / "bomb.yaml"
    path.write_text("# @package _global_\n" + text.replace("TRACE", str(trace)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        load("train", [f"hydra.searchpath=['file://{tmp_path / 'mine'}']", "experiment=bomb"])


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
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected a tokenizer that nanolm wrote"):
            find_checkpoint(checkpoint)
    code, said = call("sample", [f"checkpoint={checkpoint}"])
    assert code == 2, said
    assert f"{path}: expected a tokenizer that nanolm wrote" in said


@pytest.mark.parametrize("depth", [MAX_NESTING, 500, 950, 980, 990, 1000, 100_000])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'], ids=["lists", "objects"])
def test_deep_nesting_is_refused_at_any_depth(prepared, depth, pair):
    nested = pair[:-1] * depth + "1" + pair[-1] * depth
    for path, key in ((prepared / "tokenizer.json", "normalizer"), (prepared / "manifest.json", "source")):
        before = path.read_text()
        content = json.loads(before)
        content[key] = "HERE"
        path.write_text(json.dumps(content).replace('"HERE"', nested))
        with pytest.raises(DataError, match="nested deeper than 64 levels"):
            load_tokenizer(path) if key == "normalizer" else open_prepared(prepared)
        path.write_text(before)


def test_json_is_what_json_is():
    assert parse_json(b'{"a": [1, 2.5, null, true, "\\u00e9"]}') == {"a": [1, 2.5, None, True, "é"]}
    assert parse_json(b"[" * (MAX_NESTING - 1) + b"]" * (MAX_NESTING - 1))
    for text in (b"", b"\xff", b"Nan", b"1" + b"0" * 5000, b"{'a': 1}"):
        with pytest.raises(ValueError):  # noqa: PT011 (any of them is told as it is)
            parse_json(text)


# Manifests and what they name

OUTSIDE = ["../secret", "/etc/hostname", "sub/file", "..", ".", "", "a\0b", "x" * 300, "\ud800", "x/", "//x"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["checkpoint", "prepared"])
def test_a_name_that_leaves_the_folder_or_is_none_is_refused(request, kind, name):
    folder = request.getfixturevalue(kind)
    (folder.parent / "secret").write_text("secret")
    resign(folder, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "size": 6}}))
    with pytest.raises((CheckpointError, DataError)):
        find_checkpoint(folder) if kind == "checkpoint" else open_prepared(folder)


VALUES = [None, True, -1, 2**63, 10**4000, 1e308, float("nan"), float("inf"), "", "6", [], [[]], {}]


@pytest.mark.parametrize("part", ["size", "sha256", None])
@pytest.mark.parametrize("kind", ["checkpoint", "prepared"])
def test_a_size_or_a_hash_of_any_kind_is_refused(request, kind, part):
    folder = request.getfixturevalue(kind)
    for value in VALUES:

        def put(manifest, value=value):
            if part:
                manifest["files"]["tokenizer.json"][part] = value
            else:
                manifest["files"]["tokenizer.json"] = value

        resign(folder, put)
        with pytest.raises((CheckpointError, DataError)):
            find_checkpoint(folder) if kind == "checkpoint" else open_prepared(folder)


@pytest.mark.parametrize("inside", [False, True], ids=["out of the folder", "within the folder"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("checkpoint", "model.safetensors"),
        ("checkpoint", "training_state.pt"),
        ("checkpoint", "config.yaml"),
        ("checkpoint", "tokenizer.json"),
        ("prepared", "manifest.json"),
        ("prepared", "tokenizer.json"),
        ("prepared", "train-00000.bin"),
    ],
)
def test_a_link_in_the_place_of_a_file_is_refused_even_to_the_right_content(request, kind, name, inside):
    folder = request.getfixturevalue(kind)
    target = folder / "other" if inside else folder.parent / "outside"
    (folder / name).rename(target)
    (folder / name).symlink_to(target)
    with pytest.raises((CheckpointError, DataError), match="found a link"):
        find_checkpoint(folder) if kind == "checkpoint" else open_prepared(folder)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "train-00000.bin"])
def test_a_pipe_in_the_place_of_a_file_does_not_make_it_wait_for_ever(prepared, name):
    (prepared / name).unlink()
    os.mkfifo(prepared / name)
    with pytest.raises(DataError, match=name):
        open_prepared(prepared)


@pytest.mark.parametrize("name", [".lock", "train.log", "metrics.jsonl"])
@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing"])
def test_a_link_in_a_run_directory_is_not_written_through(tmp_path, given, name, exists):
    victim, run_dir = tmp_path / "victim", tmp_path / "run"
    run_dir.mkdir()
    if exists:
        victim.write_text("what was there before")
    (run_dir / name).symlink_to(victim)
    code, said = call("train", [*given, f"hydra.run.dir={run_dir}"])
    assert code == 2
    assert f"{name} in it is a link to a file" in said
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
            opened.load_model(torch.device("cpu"))
        assert "model.safetensors: the weights do not fit the model" in str(refused.value), what
