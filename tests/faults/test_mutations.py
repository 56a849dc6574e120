"""Whatever a file or a command line says, it is taken or refused in words with exit code 2: never a traceback.

The suite draws a few hundred cases of each kind, the same ones every time. Thousands more, and new ones:
``HYPOTHESIS_PROFILE=explore MUTATIONS=5000 pytest tests/faults/test_mutations.py``.
"""

import contextlib
import itertools
import json
import math
import os

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.config import load
from nanolm.config.catalog import SCRIPTS, default_choices, find_configs
from nanolm.config.overrides import prepare as prepare_overrides
from nanolm.config.schema import DataConfig, TokenizerConfig, TrainConfig, leaves
from nanolm.data import load_tokenizer, open_prepared, prepare
from nanolm.data.corpus import open_corpus
from nanolm.data.prepared import fingerprint_of
from nanolm.data.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer, train_tokenizer
from nanolm.errors import NanolmError
from nanolm.evaluation.calibration_file import parse_calibration
from nanolm.training import find_checkpoint
from tests.faults.mutations import WILD, as_json, damaged, mutated
from tests.faults.strangers import CALIBRATION, copy, make_checkpoint, overrides, resign

CASES = int(os.environ.get("MUTATIONS", "300"))
few = settings(max_examples=max(10, CASES // 10), deadline=None)
many = settings(max_examples=CASES, deadline=None)

TEXT = "the theory of the other thing: 中é\r\n"
TOKENIZERS = {
    "bpe": train_tokenizer(TokenizerConfig("bpe", 262, None), iter([TEXT] * 3)),
    "byte": ByteTokenizer(),
    "char": CharTokenizer(TEXT),
}
LINES = [{"text": f"document {i}", "other": [1, {"a": None}]} for i in range(5)]


def taken_or_refused(action):
    """The action's result; None where it was refused as a user's mistake. Anything else that it raises comes out."""
    try:
        return action()
    except NanolmError as error:
        refused = error
    assert refused.exit_code == 2
    assert str(refused)
    return None


# Files


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, corpus_file, data_root):
    """One checkpoint that all cases change a file of, and change it back."""
    return make_checkpoint(tmp_path_factory.mktemp("run"), overrides(corpus_file, data_root))[0]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, corpus_file, data_root):
    config = load("train", overrides(corpus_file, data_root))
    return copy(prepare(config.data, config.tokenizer), tmp_path_factory.mktemp("prepared") / "corpus")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("file") / "file"


def changed_file(content):
    return mutated(content).map(as_json) | damaged(as_json(content))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(path, name):
    def use():
        tokenizer = load_tokenizer(path)
        for text in (TEXT, "other"):
            ids = taken_or_refused(lambda text=text: tokenizer.encode(text))
            assert tokenizer.name == "char" if ids is None else tokenizer.decode(ids) == text

    @many
    @given(changed_file(json.loads(TOKENIZERS[name].json)))
    def run(data):
        path.write_bytes(data)
        taken_or_refused(use)

    run()


@pytest.mark.parametrize("fits", [True, False], ids=["fingerprint fits", "as it is"])
def test_manifests_of_corpora(prepared, fits):
    manifest = prepared / "manifest.json"
    original = json.loads(manifest.read_text())

    def signed(content):
        if isinstance(content, dict) and "fingerprint" in content:
            content["fingerprint"] = fingerprint_of(content)
        return as_json(content)

    @many
    @given(mutated(original).map(signed) if fits else changed_file(original))
    def run(data):
        manifest.write_bytes(data)
        corpus = taken_or_refused(lambda: open_prepared(prepared))
        for split in corpus.splits.values() if corpus else ():
            assert len(split.read(0, split.num_tokens + 1)) == split.num_tokens + 1
            assert len(split.documents.num_bytes) == split.num_documents

    run()
    manifest.write_text(json.dumps(original))
    open_prepared(prepared)


def test_shards_and_document_indices(prepared):
    """Bytes that are changed in files whose hashes fit."""
    names = sorted(file.name for file in prepared.glob("*.bin"))
    originals = {name: (prepared / name).read_bytes() for name in [*names, "manifest.json"]}

    @few
    @given(st.data())
    def run(draw):
        name = draw.draw(st.sampled_from(names))
        (prepared / name).write_bytes(draw.draw(damaged(originals[name])))
        resign(prepared)
        corpus = taken_or_refused(lambda: open_prepared(prepared))
        for split in corpus.splits.values() if corpus else ():
            assert split.read(0, split.num_tokens + 1).max() < corpus.tokenizer.vocab_size
            assert split.documents.num_tokens.sum() == split.num_tokens
        for file, content in originals.items():
            (prepared / file).write_bytes(content)

    run()


def test_configurations_in_checkpoints(checkpoint):
    file, manifest = checkpoint / "config.yaml", checkpoint / "manifest.json"
    before, signed = file.read_bytes(), manifest.read_bytes()

    @few
    @given(damaged(before) | mutated(yaml.safe_load(before)).map(as_json))
    def run(data):
        file.write_bytes(data)
        resign(checkpoint)
        found = taken_or_refused(lambda: find_checkpoint(checkpoint))
        assert found is None or isinstance(found.config, TrainConfig)

    run()
    file.write_bytes(before)
    manifest.write_bytes(signed)
    find_checkpoint(checkpoint)


def test_calibrations():
    @many
    @given(changed_file(CALIBRATION) | changed_file({"temperature": None, "reason": "too few tokens"}))
    def run(data):
        content = None
        with contextlib.suppress(ValueError):
            content = parse_calibration(data)
        if content and content["temperature"] is not None:
            assert 0 < content["temperature"]["value"] < math.inf
            assert len(content["curve"]["temperature"]) == len(content["curve"]["nll"])
        elif content:
            assert isinstance(content["reason"], str)

    run()
    assert parse_calibration(as_json(CALIBRATION)) == CALIBRATION


def test_lines_of_json(path):
    lines = path.with_suffix(".jsonl")
    data = DataConfig("jsonl", str(lines), "", "text", None, None, None, None, 1, 0.1, 0.1, 0.1, None, 0)

    def read():
        corpus = open_corpus(data)
        corpus.identity()
        return ["".join(document.chunks) for document in corpus.documents()]

    @many
    @given(damaged(b"".join(as_json(line) + b"\n" for line in LINES)) | mutated(LINES[0]).map(as_json))
    def run(content):
        lines.write_bytes(content)
        for text in taken_or_refused(read) or []:
            text.encode()

    run()


# Command lines

KEYS = [name for name, _ in leaves(TrainConfig)] + ["data", "model", "optimizer", "experiment", "hydra.mode"]
VALUES = [
    *(value if isinstance(value, str) else json.dumps(value)[:50] for value in WILD),
    *("", "'", '"', "\\", "[[[[", "((", "a,b", "choice(1,2)", "range(1,3)", "glob(*)", "{a: b}", "on", "1_000", "0x10"),
    *("${seed}", "${oc.env:HOME}", "${x:", "???", "1e-400", "1:30", "!!python/name:os.system", "9" * 400),
]
override = st.tuples(
    st.sampled_from(["", "", "+", "++", "~"]), st.sampled_from(KEYS), st.sampled_from(VALUES) | st.text(max_size=4)
).map(lambda parts: f"{parts[0]}{parts[1]}={parts[2]}")


def test_overrides_up_to_hydra():
    groups = default_choices(find_configs("train"), "train")

    @many
    @given(st.lists(override, min_size=1, max_size=3), st.booleans())
    def run(given_overrides, sweep):
        taken_or_refused(lambda: prepare_overrides(SCRIPTS["train"], groups, given_overrides, sweep=sweep))

    run()


def test_overrides_to_the_end():
    @few
    @given(st.lists(override, min_size=1, max_size=2))
    def run(given_overrides):
        config = taken_or_refused(lambda: load("train", given_overrides))
        assert config is None or isinstance(config, TrainConfig)

    run()


# Tokenizers and text

ALIKE = [END_OF_TEXT, END_OF_TEXT[:-1], END_OF_TEXT[1:], "<|", "|>", "endoftext", "<|endoftext|><|endoftext|>"]
HARD = [
    "\0",
    "\r\n",
    "\r",
    "\n\n",
    "e\u0301",
    "\ufeff",
    "\U0001f469\u200d\U0001f680",
    "\U0010ffff",
    "\u202e",
    "  ",
    "\x85",
]
text = st.lists(
    st.sampled_from(ALIKE + HARD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=8
).map("".join)


@many
@given(text)
def test_any_text_comes_back_and_holds_no_end_of_text(text):
    for tokenizer in (TOKENIZERS["bpe"], TOKENIZERS["byte"], CharTokenizer(text)):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.end_of_text_id not in ids


@many
@given(text, st.lists(st.binary(max_size=5), max_size=3), st.randoms(use_true_random=False))
def test_any_bytes_come_back(text, binary, order):
    pieces = [text.encode(), *binary, b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
    order.shuffle(pieces)
    data = b"".join(pieces)
    for name in ("bpe", "byte"):
        assert TOKENIZERS[name].decode_bytes(TOKENIZERS[name].encode_bytes(data)) == data


@few
@given(st.lists(text, min_size=1, max_size=6), st.sampled_from(["byte", "char", "bpe"]))
def test_any_documents_come_back_from_their_shards(tmp_path_factory, texts, name):
    """From lines of JSON through splits, pieces and shards: each document once, between end-of-texts."""
    folder = tmp_path_factory.mktemp("documents")
    # A document without text is left out; a character that the train split lacks would be refused by char.
    characters = "".join(sorted(set("".join(texts)) | set("01234567"))) if name == "char" else ""
    # Documents that are equal share a split, which may leave another one empty.
    texts = [f"{one}{characters}{number}" for number, one in enumerate([*texts, "", ""])]
    (folder / "corpus.jsonl").write_bytes(b"".join(as_json({"text": one}) + b"\n" for one in texts))
    data = DataConfig(
        *("jsonl", str(folder / "corpus.jsonl"), str(folder), "text", None, None, None, None, 1, 0.2, 0.2, 0.2, None, 0)
    )
    corpus = open_prepared(prepare(data, TokenizerConfig(name, 260 if name == "bpe" else None, None)))
    found = []
    for split in corpus.splits.values():
        ids = split.read(0, split.num_tokens + 1)
        ends = np.flatnonzero(ids == corpus.tokenizer.end_of_text_id)
        found += [corpus.tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(ends)]
    assert sorted(found) == sorted(texts)
