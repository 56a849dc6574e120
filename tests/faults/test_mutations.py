"""Whatever a file holds, it is taken, or refused with a clear message and exit code 2: never a traceback.

The suite draws a few hundred cases of each kind, the same ones every time. Thousands more, and new ones:
``HYPOTHESIS_PROFILE=explore MUTATIONS=5000 pytest tests/faults/test_mutations.py``. Command lines and configurations
are changed in ``tests/config``.
"""

import itertools
import json
import math
import os

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.config import load
from nanolm.data import load_tokenizer, open_corpus, open_prepared, prepare
from nanolm.training import find_checkpoint
from nanolm.training.resume import why_finished
from tests.faults.mutations import as_json, damaged, mutated
from tests.faults.untrusted import copy, make_checkpoint, overrides, resign, taken_or_refused

CASES = int(os.environ.get("MUTATIONS", "300"))
few, some, many = (settings(max_examples=max(10, CASES // part), deadline=None) for part in (10, 2, 1))
LINES = [{"text": f"document {i}", "other": [1, {"a": None}]} for i in range(5)]


def data_config(path, root, *more):
    return load("tokenize", ["data=jsonl", f"data.path={path}", f"data.root={root}", *more])


@pytest.fixture(scope="module")
def checkpoint_and_state(tmp_path_factory, corpus_file, data_root):
    """One checkpoint that all cases change a file of, and change it back."""
    return make_checkpoint(tmp_path_factory.mktemp("run"), overrides(corpus_file, data_root))


def sign(folder, name, fits):
    """Make the manifest fit the file of this name; a changed manifest only if asked to, and if it is one still."""
    path = folder / "manifest.json"
    data = path.read_bytes()
    try:
        if name != "manifest.json":
            resign(folder)
        elif fits:
            files = json.loads(data)["files"]
            resign(folder, lambda manifest: manifest.update(files=files))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        path.write_bytes(data)


CHANGED = {
    "manifest.json": some,
    "calibration.json": some,
    "config.yaml": few,
    "model.safetensors": few,
    "training_state.pt": few,
}


@pytest.mark.parametrize("name", CHANGED)
def test_files_of_checkpoints(checkpoint_and_state, name):
    """With a manifest that fits the changed file, as far as that has sense."""
    folder, state = checkpoint_and_state
    originals = {file: (folder / file).read_bytes() for file in (name, "manifest.json")}
    before = originals[name]
    changed = damaged(before) | damaged(before[:2000]).map(lambda data: data + before[2000:])
    if name.endswith((".json", ".yaml")):
        changed |= mutated(yaml.safe_load(before)).map(as_json)

    def use():
        checkpoint = find_checkpoint(folder)
        assert checkpoint.step >= 0
        calibration = checkpoint.calibration()
        assert (calibration.value is None) == (calibration.reason is not None)
        assert calibration.value is None or 0 < calibration.value < math.inf
        checkpoint.load_model(torch.device("cpu"))
        checkpoint.load_state(state)

    @CHANGED[name]
    @given(changed, st.booleans())
    def run(data, fits):
        (folder / name).write_bytes(data)
        sign(folder, name, fits)
        try:
            taken_or_refused(use)
        finally:
            for file, content in originals.items():
                (folder / file).write_bytes(content)

    run()
    use()


@pytest.mark.parametrize("name", ["evaluation.json", "metrics.jsonl"])
def test_files_of_finished_runs(finished, tiny, name):
    """Both are read to find out whether anything is left to do."""
    config, path = tiny("trainer.max_steps=4", "trainer.max_seconds=1000"), finished / name
    before = path.read_bytes()
    content = json.loads(before if name == "evaluation.json" else before.splitlines()[-1])

    @many
    @given(damaged(before) | mutated(content).map(lambda content: as_json(content) + b"\n"))
    def run(data):
        path.write_bytes(data)
        taken_or_refused(lambda: why_finished(config, finished))

    run()


@pytest.fixture(scope="module")
def prepare_corpus(tmp_path_factory, corpus_file, data_root):
    """``prepare_corpus("char")``: a prepared corpus with this tokenizer, to damage."""

    def make(tokenizer):
        size = ["tokenizer.vocab_size=270"] if tokenizer == "bpe" else []
        config = data_config(corpus_file, data_root, f"tokenizer={tokenizer}", *size)
        return copy(prepare(config.data, config.tokenizer), tmp_path_factory.mktemp("prepared") / "corpus")

    return make


@pytest.fixture(scope="module")
def tokenizers(prepare_corpus):
    return [open_prepared(prepare_corpus(kind)).tokenizer for kind in ("bpe", "byte", "char")]


@pytest.mark.parametrize("name", ["manifest.json", "any of the arrays"])
def test_files_of_corpora(prepare_corpus, name):
    """With a manifest that fits the changed file, as far as that has sense."""
    folder = prepare_corpus("byte")
    arrays = sorted(file.name for file in folder.glob("*.bin"))
    originals = {file: (folder / file).read_bytes() for file in [*arrays, "manifest.json"]}
    manifest = originals["manifest.json"]

    @some
    @given(st.data(), st.booleans())
    def run(draw, fits):
        chosen = name if name in originals else draw.draw(st.sampled_from(arrays))
        changed = damaged(originals[chosen])
        if chosen == "manifest.json":
            changed |= mutated(json.loads(manifest)).map(as_json)
        (folder / chosen).write_bytes(draw.draw(changed))
        sign(folder, chosen, fits)
        corpus = taken_or_refused(lambda: open_prepared(folder))
        for split in corpus.splits.values() if corpus else ():
            assert split.read(0, split.num_tokens + 1).max() < corpus.tokenizer.vocab_size
            assert split.documents.num_tokens.sum() == split.num_tokens
            assert len(split.documents.num_bytes) == split.num_documents
        for file, content in originals.items():
            (folder / file).write_bytes(content)

    run()
    open_prepared(folder)


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_files_of_tokenizers(prepare_corpus, kind):
    path = prepare_corpus(kind) / "tokenizer.json"
    before = path.read_bytes()

    def use():
        tokenizer = load_tokenizer(path)
        for text in ("the theory of the other thing: 中é\r\n", "other"):
            ids = taken_or_refused(lambda text=text: tokenizer.encode(text))
            assert tokenizer.name == "char" if ids is None else tokenizer.decode(ids) == text

    @many
    @given(damaged(before) | mutated(json.loads(before)).map(as_json))
    def run(data):
        path.write_bytes(data)
        taken_or_refused(use)

    run()


def test_lines_of_json(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.touch()
    data = data_config(path, tmp_path).data

    def read():
        corpus = open_corpus(data)
        corpus.identity()
        return ["".join(document.chunks) for document in corpus.documents()]

    @many
    @given(damaged(b"".join(as_json(line) + b"\n" for line in LINES)) | mutated(LINES[0]).map(as_json))
    def run(content):
        path.write_bytes(content)
        for text in taken_or_refused(read) or []:
            text.encode()

    run()


END_OF_TEXT = "<|endoftext|>"
ALIKE = [END_OF_TEXT, END_OF_TEXT[:-1], END_OF_TEXT[1:], "<|", "|>", "endoftext", 2 * END_OF_TEXT]
HARD = ["\0", "\r\n", "\r", "\n\n", "e\u0301", "\ufeff", "\U0001f469\u200d\U0001f680", "\U0010ffff", "\u202e", "\x85"]
text = st.lists(
    st.sampled_from(ALIKE + HARD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=8
).map("".join)


@many
@given(text)
def test_any_text_comes_back_and_holds_no_end_of_text(tokenizers, text):
    for tokenizer in tokenizers:
        ids = taken_or_refused(lambda tokenizer=tokenizer: tokenizer.encode(text))
        assert tokenizer.name == "char" if ids is None else tokenizer.decode(ids) == text
        assert ids is None or tokenizer.end_of_text_id not in ids


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
    size = ["tokenizer.vocab_size=260"] if name == "bpe" else []
    fractions = [f"data.{split}_fraction=0.2" for split in ("val", "test", "calibration")]
    config = data_config(folder / "corpus.jsonl", folder, f"tokenizer={name}", *size, *fractions)
    corpus = open_prepared(prepare(config.data, config.tokenizer))
    found = []
    for split in corpus.splits.values():
        ids = split.read(0, split.num_tokens + 1)
        ends = np.flatnonzero(ids == corpus.tokenizer.end_of_text_id)
        found += [corpus.tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(ends)]
    assert sorted(found) == sorted(texts)
