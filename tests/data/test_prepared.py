import json
import shutil

import numpy as np
import pytest

from nanolm.data import open_prepared, prepare, shards
from nanolm.data.prepared import fingerprint_of
from nanolm.errors import DataError
from tests.data.conftest import configure, write_jsonl
from tests.faults.untrusted import resign

NUM_DOCUMENTS = 40


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A prepared corpus whose train split has several shards."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"document {i} " * (i % 5 + 1) for i in range(NUM_DOCUMENTS)]
    path = write_jsonl(folder / "corpus.jsonl", texts)
    config = configure(folder, "data=jsonl", f"data.path={path}", "tokenizer=bpe", "tokenizer.vocab_size=280")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_IDS", 60)
        return prepare(config.data, config.tokenizer)


@pytest.fixture
def folder(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "prepared")


@pytest.fixture(params=["train-00000.bin", "train-00001.bin", "train-documents.bin", "val-00000.bin",
                        "val-documents.bin", "tokenizer.json", "manifest.json"])  # fmt: skip
def name(request):
    return request.param


def refused(folder, word, verify=True):
    with pytest.raises(DataError) as error:
        open_prepared(folder, verify)
    assert word in str(error.value)


def test_a_whole_one_opens(folder):
    corpus = open_prepared(folder)
    assert corpus.folder == folder
    assert corpus.fingerprint == fingerprint_of(json.loads((folder / "manifest.json").read_text()))
    assert len(corpus.splits["train"].shards) > 2
    assert sum(split.num_documents for split in corpus.splits.values()) == NUM_DOCUMENTS
    assert open_prepared(str(folder), verify=False).fingerprint == corpus.fingerprint
    resign(folder)
    assert open_prepared(folder).fingerprint == corpus.fingerprint, "so the other tests fail for what they change"


def test_one_flipped_byte_is_found_and_its_file_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    number = b'"num_empty_documents": '  # nothing but the fingerprint knows it
    at = content.index(number) + len(number) if name == "manifest.json" else len(content) // 2
    content[at] ^= 1
    (folder / name).write_bytes(content)
    refused(folder, name)


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_or_missing_file_is_found_and_named(folder, name, verify):
    (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    refused(folder, name, verify)
    (folder / name).unlink()
    refused(folder, name, verify)


def test_an_odd_number_of_bytes_is_refused(folder):
    path = folder / "val-00000.bin"
    path.write_bytes(path.read_bytes() + b"\0")
    resign(folder)
    refused(folder, "uint16 ids in val-00000.bin")


@pytest.mark.parametrize("change", [[1, 0, -1, 0], [-(10**9), 0, 10**9, 0], [0, 1, 0, 0], [0, -(10**3), 0, 10**3]])
def test_a_document_index_that_does_not_fit_is_refused(folder, change):
    """In the tokens or the bytes of the first two documents."""
    path = folder / "train-documents.bin"
    table = np.fromfile(path, dtype="<i8")
    table[:4] += change
    table.tofile(path)
    resign(folder)
    refused(folder, f"{path}: ")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "\0"])
def test_no_name_leaves_the_folder(folder, name):
    (folder.parent / "secret").write_text("secret")

    def add(manifest):
        manifest["files"][name] = {"size": 6, "sha256": "0" * 64}
        manifest["splits"]["train"]["shards"].append(name)

    resign(folder, add)
    refused(folder, "manifest.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("format", "another"), ("format_version", 2), ("id_type", "uint8"), ("settings", None), ("more", 1)),
        *(("splits", {}), ("files", {}), ("tokenizer", {"name": "bpe", "vocab_size": "280"})),
        ("tokenizer", {"name": "bpe", "vocab_size": 281}),
    ],
)
def test_a_manifest_that_is_none_of_ours_is_refused(folder, key, value):
    resign(folder, lambda manifest: manifest.update({key: value}))
    refused(folder, key)


@pytest.mark.parametrize("key", ["num_tokens", "num_documents", "num_bytes", "shards", "documents"])
def test_a_split_that_its_files_do_not_fit_is_refused(folder, key):
    def change(manifest):
        split = manifest["splits"]["train"]
        split[key] = split[key] + 1 if key.startswith("num") else manifest["splits"]["val"][key]

    resign(folder, change)
    refused(folder, "documents" if key == "documents" else "train")


@pytest.mark.parametrize("path", ["nowhere", "file", "empty"])
def test_what_is_no_prepared_corpus(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    refused(tmp_path / path, "expected a prepared corpus")
