import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.config.schema import DataConfig, TokenizerConfig
from nanolm.data import open_prepared, prepare, shards
from nanolm.data.prepared import fingerprint_of
from nanolm.errors import DataError
from nanolm.files import file_table

NUM_DOCUMENTS = 40


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A prepared corpus whose train split has several shards."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": f"document {i} " * (i % 5 + 1)}) for i in range(NUM_DOCUMENTS)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    data = DataConfig(
        "jsonl", str(folder / "corpus.jsonl"), str(folder), "text", None, None, None, None, 1, 0.1, 0.1, 0.1, None, 0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_IDS", 60)
        return prepare(data, TokenizerConfig("bpe", 280, None))


@pytest.fixture
def folder(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "prepared")


def rewrite(folder, change=lambda manifest: None, hashes=True):
    """What a stranger would do who wants a changed folder to look right."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.unlink()
    if hashes:
        manifest["files"] = file_table(folder)
    change(manifest)
    manifest["fingerprint"] = fingerprint_of(manifest)
    path.write_text(json.dumps(manifest))


FILES = [
    "manifest.json",
    "tokenizer.json",
    "train-00000.bin",
    "train-00001.bin",
    "train-documents.bin",
    "val-00000.bin",
    "val-documents.bin",
    "calibration-00000.bin",
    "test-00000.bin",
]


def test_a_whole_one_opens(folder):
    corpus = open_prepared(folder)
    assert corpus.folder == folder
    assert corpus.manifest["fingerprint"] == corpus.fingerprint
    assert len(corpus.splits["train"].shards) > 2
    assert sum(split.num_documents for split in corpus.splits.values()) == NUM_DOCUMENTS
    assert open_prepared(str(folder), verify=False).fingerprint == corpus.fingerprint
    rewrite(folder)
    assert open_prepared(folder).fingerprint == corpus.fingerprint, "so the other tests fail for what they change"


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_found_and_its_file_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    # A digit of a number, so that the manifest stays a manifest.
    at = content.index(b'"num_bytes": ') + len('"num_bytes": ') if name == "manifest.json" else len(content) // 2
    content[at] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        open_prepared(folder)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_found_and_named(folder, name, verify):
    (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        open_prepared(folder, verify)
    (folder / name).unlink()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        open_prepared(folder, verify)


def test_swapped_shards_are_found(folder):
    first, second = folder / "train-00000.bin", folder / "train-00001.bin"
    first.rename(folder / "other")
    second.rename(first)
    (folder / "other").rename(second)
    with pytest.raises(DataError, match=r"train-0000[01]\.bin"):
        open_prepared(folder)


def test_an_id_outside_the_vocabulary_is_named_with_shard_and_offset(folder):
    path = folder / "train-00001.bin"
    ids = np.fromfile(path, dtype="<u2")
    ids[[17, 30]] = 280, 9999
    ids.tofile(path)
    rewrite(folder)
    with pytest.raises(DataError, match=r"train-00001\.bin: id 280 at offset 17 \(byte 34\) .* vocabulary of 280"):
        open_prepared(folder)


def test_an_odd_number_of_bytes_is_refused(folder):
    path = folder / "val-00000.bin"
    path.write_bytes(path.read_bytes() + b"\0")
    rewrite(folder)
    with pytest.raises(DataError, match=r"val-00000\.bin: not a whole number of uint16 ids"):
        open_prepared(folder)


def test_a_document_index_that_does_not_fit_is_refused(folder):
    path = folder / "train-documents.bin"
    table = np.fromfile(path, dtype="<i8").reshape(-1, 2)
    for row, column, amount in ((0, 0, 1), (0, 0, -(10**9)), (3, 1, 1)):
        changed = table.copy()
        changed[row, column] += amount
        changed[row + 1, column] -= amount if column == 0 else 0
        changed.tofile(path)
        rewrite(folder)
        with pytest.raises(DataError, match=r"train-documents\.bin: does not agree"):
            open_prepared(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "\0"])
def test_no_name_leaves_the_folder(folder, name):
    (folder.parent / "secret").write_text("secret")

    def add(manifest):
        manifest["files"][name] = {"size": 6, "sha256": "0" * 64}
        manifest["splits"]["train"]["shards"].append(name)

    rewrite(folder, add)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_prepared(folder)


def test_another_tokenizer_is_refused(folder):
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content.replace('"dropout": null', '"dropout": 0.5'))
    rewrite(folder)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        open_prepared(folder)


@pytest.mark.parametrize("path", ["nowhere", "file", "empty"])
def test_what_is_no_prepared_corpus(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not a prepared corpus"):
        open_prepared(tmp_path / path)


nodes = st.sampled_from([None, True, -1, 0, 1, 3, 2**70, 0.5, "", "a", "\ud800", "train-00000.bin", [], [[]], {}, [{}]])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_hostile_manifest_is_refused_in_words(original, tmp_path_factory, data):
    """Any node replaced or removed, with a fingerprint that fits; the files are those of the original."""
    folder = tmp_path_factory.getbasetemp() / "hostile"
    if not folder.exists():
        shutil.copytree(original, folder)
    shutil.copy(original / "manifest.json", folder)

    def change(manifest):
        parent, key = manifest, data.draw(st.sampled_from(sorted(manifest)))
        for _ in range(data.draw(st.integers(0, 3))):
            child = parent[key]
            if not isinstance(child, dict | list) or not child:
                break
            parent = child
            key = data.draw(st.sampled_from(sorted(child) if isinstance(child, dict) else range(len(child))))
        if data.draw(st.booleans()):
            parent[key] = data.draw(nodes)
        else:
            del parent[key]

    rewrite(folder, change, hashes=False)
    try:
        corpus = open_prepared(folder)
    except DataError:
        return
    for split in corpus.splits.values():
        assert len(split.read(0, split.num_tokens + 1)) == split.num_tokens + 1
        assert len(split.documents.num_bytes) == split.num_documents


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_manifest_is_refused_or_unchanged(original, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        shutil.copytree(original, folder)
    content = bytearray((original / "manifest.json").read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    (folder / "manifest.json").write_bytes(content)
    try:
        corpus = open_prepared(folder, verify=False)
    except DataError:
        return
    assert corpus.manifest == json.loads((original / "manifest.json").read_text()), "only white space was changed"
