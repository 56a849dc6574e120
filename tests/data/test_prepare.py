import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanolm.data import open_prepared, prepare, shards
from nanolm.data.tokenizer import CharTokenizer
from nanolm.errors import DataError

ROOT = Path(__file__).parents[2]
HARD = ["a\r\nb", "nul \x00", "<|endoftext|> is text", "\ufeffmark", "👩‍👩‍👧", "ends in spaces  \n\n", "é" * 100]
WHOLE = "".join(HARD)
TEXTS = {
    "bpe": HARD + [f"document number {i}, the state of our union\n" for i in range(30 - len(HARD))],
    "byte": HARD + [f"document number {i}, the state of our union\n" for i in range(30 - len(HARD))],
    "char": [WHOLE[i:] + WHOLE[:i] for i in range(30)],  # each has all characters
}


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def jsonl(tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", TEXTS["byte"])


def stored(folder, name):
    """The ids of a split as any program would read them, knowing the manifest alone."""
    manifest = json.loads((folder / "manifest.json").read_text())
    kind = {"uint16": "<u2", "uint32": "<u4"}[manifest["id_type"]]
    return np.concatenate([np.fromfile(folder / shard, dtype=kind) for shard in manifest["splits"][name]["shards"]])


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def repeated(tmp_path, kind, texts):
    """A corpus of these texts, as ``data_config`` takes it."""
    if kind == "text":
        for number, text in enumerate(texts):
            (tmp_path / f"{number:03}.txt").write_text(text)
        return {"path": tmp_path / "*.txt"}
    if kind == "jsonl":
        return {"path": write_jsonl(tmp_path / "corpus.jsonl", texts)}
    table = pa.table({"text": texts})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "corpus.parquet")
        return {"path": tmp_path / "corpus.parquet"}
    (tmp_path / "hub").mkdir()
    pq.write_table(table, tmp_path / "hub" / "train-0.parquet")
    pq.write_table(table.slice(0, 10), tmp_path / "hub" / "validation-0.parquet")
    return {"hub_path": tmp_path / "hub"}


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "tinystories"])
def test_no_split_holds_a_document_of_another(data_config, tokenizer_config, tmp_path, caplog, kind):
    texts = [f"text number {i % 30}" for i in range(60)]
    data = data_config(kind, **repeated(tmp_path, kind, texts), val_fraction=0.2)
    folder = prepare(data, tokenizer_config("byte"))
    tokenizer, end = (corpus := open_prepared(folder)).tokenizer, corpus.tokenizer.end_of_text_id
    held = {}
    for name in corpus.splits:
        runs = itertools.groupby(stored(folder, name).tolist(), lambda token: token == end)
        held[name] = {tokenizer.decode(list(run)) for is_end, run in runs if not is_end}
    assert sorted(text for found in held.values() for text in found) == sorted(set(texts))
    (told,) = [record.getMessage() for record in caplog.records if "equal an earlier one" in record.getMessage()]
    assert f"{40 if kind == 'tinystories' else 30} documents equal" in told


@pytest.mark.parametrize("tokenizer", ["bpe", "byte", "char"])
@pytest.mark.parametrize("shard_ids", [1 << 26, 50])
def test_every_document_is_stored_once_between_end_of_texts(
    data_config, tokenizer_config, tmp_path, monkeypatch, tokenizer, shard_ids
):
    monkeypatch.setattr(shards, "SHARD_IDS", shard_ids)
    path = write_jsonl(tmp_path / "corpus.jsonl", TEXTS[tokenizer])
    data = data_config("jsonl", path=path, val_fraction=0.2)
    corpus = open_prepared(folder := prepare(data, tokenizer_config(tokenizer, 280 if tokenizer == "bpe" else None)))
    seen = []
    for name, split in corpus.splits.items():
        ids = stored(folder, name)
        assert all(shard.stat().st_size <= 2 * shard_ids for shard in split.shards)
        assert len(ids) == split.num_tokens + 1
        ends = np.flatnonzero(ids == corpus.tokenizer.end_of_text_id)
        assert (ends[0], ends[-1]) == (0, len(ids) - 1)
        texts = [corpus.tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(ends)]
        seen += texts
        assert split.num_documents == len(texts)
        assert split.num_bytes == sum(len(text.encode()) for text in texts)
        assert split.documents.first_target.tolist() == ends[:-1].tolist()
        assert split.documents.num_tokens.tolist() == np.diff(ends).tolist()
        assert split.documents.num_bytes.tolist() == [len(text.encode()) for text in texts]
        for start in range(0, len(ids), 13):
            read = split.read(start, min(120, len(ids) - start))
            assert read.dtype == np.int64
            assert read.tolist() == ids[start : start + 120].tolist()
    assert sorted(seen) == sorted(TEXTS[tokenizer])
    assert {name: split.num_documents for name, split in corpus.splits.items()} == {
        "train": 18,
        "calibration": 3,
        "val": 6,
        "test": 3,
    }


def test_documents_keep_their_order_within_a_split(data_config, tokenizer_config, tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [f"{i:04}" for i in range(300)])
    corpus = open_prepared(prepare(data_config("jsonl", path=path), tokenizer_config()))
    for split in corpus.splits.values():
        numbers = corpus.tokenizer.decode(split.read(1, split.num_tokens)).split("<|endoftext|>")[:-1]
        assert numbers == sorted(numbers)


def test_one_large_document_is_the_concatenation_of_its_splits(data_config, tokenizer_config, tmp_path):
    """Several pieces and batches; the same tokens as the library's for each part as a whole."""
    text = "".join(f"line {i} of the state of our union\r\n" for i in range(40_000))
    (tmp_path / "file.txt").write_bytes(text.encode())
    data = data_config("text", path=tmp_path / "file.txt", calibration_fraction=0.05)
    corpus = open_prepared(prepare(data, tokenizer_config("bpe", 300)))
    assert list(corpus.splits) == ["train", "calibration", "val"]
    parts = []
    for split in corpus.splits.values():
        assert split.num_documents == 1
        ids = split.read(1, split.num_tokens - 1)
        parts.append(corpus.tokenizer.decode(ids))
        assert np.array_equal(ids, corpus.tokenizer.encode(parts[-1]))
    assert "".join(parts) == text
    assert len(parts[-1]) == -(-len(text) // 10)


def test_more_than_65536_tokens_take_four_bytes(data_config, tokenizer_config, tmp_path):
    text = "".join(chr(0x10000 + i) for i in range(66_000))
    (tmp_path / "file.txt").write_text(text + text[:7000])
    data = data_config("text", path=tmp_path / "file.txt", calibration_fraction=0, val_fraction=0.05)
    corpus = open_prepared(prepare(data, tokenizer_config("char")))
    assert corpus.manifest["id_type"] == "uint32"
    train = corpus.splits["train"]
    assert train.read(0, 66_001).tolist() == [corpus.tokenizer.end_of_text_id, *range(66_000)]


# Once and for all


def test_a_second_call_finds_what_is_there(data_config, tokenizer_config, jsonl):
    calls = []
    folder = prepare(data_config("jsonl", path=jsonl), tokenizer_config(), lambda *_: calls.append(1))
    inode, num_calls = folder.stat().st_ino, len(calls)
    assert num_calls
    assert prepare(data_config("jsonl", path=jsonl), tokenizer_config(), lambda *_: calls.append(1)) == folder
    assert (folder.stat().st_ino, len(calls)) == (inode, num_calls)


def test_the_same_text_elsewhere_is_the_same_corpus_byte_for_byte(data_config, tokenizer_config, jsonl, tmp_path):
    folder = prepare(data_config("jsonl", path=jsonl), tokenizer_config("bpe", 280))
    (tmp_path / "elsewhere").mkdir()
    moved = jsonl.rename(tmp_path / "elsewhere" / jsonl.name)
    other = prepare(data_config("jsonl", path=moved, root=tmp_path / "other"), tokenizer_config("bpe", 280))
    assert other.name == folder.name
    assert content(other) == content(folder)
    assert open_prepared(other).fingerprint == open_prepared(folder).fingerprint


def test_whatever_changes_the_content_changes_the_name(data_config, tokenizer_config, jsonl):
    def folder(tokenizer=("bpe", 280), **keys):
        return prepare(data_config("jsonl", path=jsonl, **keys), tokenizer_config(*tokenizer))

    folders = [
        folder(),
        folder(split_seed=1),
        folder(val_fraction=0.2),
        folder(test_fraction=0),
        folder(calibration_fraction=0),
        folder(max_documents=20),
        folder(("bpe", 281)),
        folder(("bpe", 280, 100)),
        folder(("byte",)),
    ]
    jsonl.write_text(jsonl.read_text().replace("state", "State"))  # as many bytes
    folders.append(folder())
    assert len(set(folders)) == len(folders)
    assert len({open_prepared(each).fingerprint for each in folders}) == len(folders)
    assert all(each.name.startswith(("jsonl-bpe-", "jsonl-byte-")) for each in folders)


@pytest.mark.parametrize("damage", ["no manifest", "cut manifest", "no shard", "cut shard"])
def test_a_folder_that_is_not_whole_is_made_anew(data_config, tokenizer_config, jsonl, damage):
    folder = prepare(data_config("jsonl", path=jsonl), tokenizer_config())
    before = content(folder)
    path = folder / ("manifest.json" if "manifest" in damage else "train-00000.bin")
    path.unlink() if "no" in damage else path.write_bytes(path.read_bytes()[:-10])
    assert prepare(data_config("jsonl", path=jsonl), tokenizer_config()) == folder
    assert content(folder) == before


# The tokenizer of a model, for other text


def test_a_given_tokenizer_finds_the_corpus_it_was_made_from(data_config, tokenizer_config, jsonl):
    folder = prepare(data_config("jsonl", path=jsonl), tokenizer_config("bpe", 280))
    tokenizer = open_prepared(folder).tokenizer
    assert prepare(data_config("jsonl", path=jsonl), tokenizer) == folder
    other = prepare(data_config("jsonl", path=jsonl, split_seed=1), tokenizer)
    assert other != folder
    assert open_prepared(other).tokenizer.fingerprint == tokenizer.fingerprint
    assert prepare(data_config("jsonl", path=jsonl, split_seed=1), tokenizer) == other


def test_char_refuses_what_it_has_not_seen_and_leaves_nothing(data_config, tmp_path, jsonl):
    texts = TEXTS["byte"]
    texts = [*texts[:20], "a long document" * 20_000 + " with ☃", *texts[20:]]
    path = write_jsonl(tmp_path / "corpus.jsonl", texts)
    known = CharTokenizer("".join(texts).replace("☃", ""))
    position = 15 * 20_000 + len(" with ")
    with pytest.raises(
        DataError, match=rf"corpus\.jsonl, line 21 \(\w+ split\): character '☃' \(U\+2603\) at position {position:,}"
    ):
        prepare(data_config("jsonl", path=path), known)
    assert [path for path in (tmp_path / "prepared").iterdir() if path.suffix != ".lock"] == []


# What is left out, and what is refused


def test_documents_without_text_are_left_out_and_counted(data_config, tokenizer_config, tmp_path, caplog):
    path = write_jsonl(tmp_path / "corpus.jsonl", ["", "text"] * 20)
    with caplog.at_level(logging.WARNING):
        corpus = open_prepared(prepare(data_config("jsonl", path=path), tokenizer_config()))
    assert sum(split.num_documents for split in corpus.splits.values()) == 20
    assert corpus.manifest["num_empty_documents"] == 20
    assert "20 documents without text" in caplog.text


def test_a_corpus_without_text_is_refused(data_config, tokenizer_config, tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [""] * 3)
    with pytest.raises(DataError, match="no document with text"):
        prepare(data_config("jsonl", path=path), tokenizer_config())


@pytest.mark.parametrize("content", [b"", os.urandom(5000), b"a"], ids=["empty", "random", "one byte"])
@pytest.mark.parametrize("tokenizer", ["bpe", "byte", "char"])
def test_a_refused_file_leaves_nothing(data_config, tokenizer_config, tmp_path, tokenizer, content):
    (tmp_path / "file.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"file\.txt"):
        prepare(
            data_config("text", path=tmp_path / "file.txt"),
            tokenizer_config(tokenizer, 300 if tokenizer == "bpe" else None),
        )
    assert not any(path.is_dir() for path in tmp_path.glob("prepared/*"))


def test_a_file_that_changes_meanwhile_is_refused(data_config, tokenizer_config, jsonl):
    def change(*_):
        with jsonl.open("a") as file:
            file.write('{"text": "more"}\n')

    with pytest.raises(DataError, match="changed while it was read"):
        prepare(data_config("jsonl", path=jsonl), tokenizer_config(), change)


def test_progress_counts_the_bytes_of_the_text(data_config, tokenizer_config, tmp_path):
    (tmp_path / "file.txt").write_text("some words " * 500_000)
    told = []
    prepare(data_config("text", path=tmp_path / "file.txt"), tokenizer_config(), lambda *amounts: told.append(amounts))
    assert told == sorted(told)
    assert len(told) > 3
    assert told[-1] == (5_500_000, 5_500_000)


# Killed, crowded, full


PREPARE = """
import sys, time
from nanolm.config.schema import DataConfig, TokenizerConfig
from nanolm.data import prepare
path, root, tokenizer, pause = sys.argv[1:]
def progress(done, total):
    print("encoding", flush=True)
    time.sleep(float(pause))
data = DataConfig("text", path, root, "text", None, None, None, None, 10, 0.1, 0.1, 0.1, None, 0)
print(prepare(data, TokenizerConfig(tokenizer, None, None), progress))
"""


def start(path, root, tokenizer="byte", pause=60.0, **options):
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(path), str(root), tokenizer, str(pause)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def three_megabytes(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("the state of our union is strong\n" * 100_000)
    return path


def test_killed_half_way_it_leaves_nothing_that_looks_finished(
    data_config, tokenizer_config, three_megabytes, tmp_path
):
    root = tmp_path / "prepared"
    child = start(three_megabytes, root)
    assert child.stdout.readline() == "encoding\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [path.name for path in root.glob("[!.]*")] == [], "nothing under a name that anyone looks for"
    assert [path.suffix for path in root.glob(".*") if path.is_dir()] == [".tmp"], "it was killed half way"
    folder = prepare(data_config("text", path=three_megabytes), tokenizer_config())
    assert [path for path in root.iterdir() if path.is_dir()] == [folder], "the leftover was swept"
    open_prepared(folder)


def test_a_second_one_waits_and_says_for_whom(data_config, tokenizer_config, three_megabytes, tmp_path, caplog):
    child = start(three_megabytes, tmp_path / "prepared")
    assert child.stdout.readline() == "encoding\n"
    killer = threading.Timer(1.5, child.kill)
    killer.start()
    with caplog.at_level(logging.WARNING):
        folder = prepare(data_config("text", path=three_megabytes), tokenizer_config())
    assert child.wait() == -signal.SIGKILL, "the lock was held until the owner was killed"
    assert f"process {child.pid}" in caplog.text
    open_prepared(folder)


def test_two_at_once_make_one_whole_folder(three_megabytes, tmp_path):
    children = [start(three_megabytes, tmp_path / "prepared", pause=0.2, stderr=subprocess.DEVNULL) for _ in range(2)]
    outputs = [child.communicate()[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    assert sorted("encoding" in output for output in outputs) == [False, True], "one of them found it done"
    open_prepared(outputs[0][-1])


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
"""


def test_a_failing_write_is_an_error_and_leaves_nothing(three_megabytes, tmp_path):
    """No file may grow beyond 1 MB: the write fails as it does on a full disk."""
    child = subprocess.run(
        [sys.executable, "-c", FULL + PREPARE, str(three_megabytes), str(tmp_path / "prepared"), "byte", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 1
    assert "DataError: " in child.stderr
    assert "File too large, with" in child.stderr
    assert "free space" in child.stderr
    assert not any(path.is_dir() for path in (tmp_path / "prepared").iterdir())


def test_a_root_under_a_file(data_config, tokenizer_config, jsonl, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"Not a directory.*data\.root"):
        prepare(data_config("jsonl", path=jsonl, root=tmp_path / "file" / "root"), tokenizer_config())


# Not getrusage: that peak is inherited from the process that started this one.
PEAK = """
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """One text of 6 MB and one of 96 MB, in processes of their own; peak resident size in KiB."""
    peaks = []
    for size in (6, 96):
        path = tmp_path / f"{size}.txt"
        with path.open("w") as file:
            for _ in range(size):
                file.write("the state of our union is strong\n" * 31_775)
        done = subprocess.run(
            [sys.executable, "-c", PREPARE + PEAK, str(path), str(tmp_path / "prepared"), "byte", "0"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 40_000, peaks


@pytest.mark.parametrize("count", [1, 30])
def test_the_whole_of_a_text_is_every_document_undivided_in_its_order(data_config, tokenizer_config, tmp_path, count):
    texts = ["a single document, to be cut in three", *TEXTS["byte"]][:count]
    data = data_config("jsonl", path=write_jsonl(tmp_path / "corpus.jsonl", texts))
    tokenizer = open_prepared(prepare(data, tokenizer_config("byte"))).tokenizer
    whole = open_prepared(prepare(data, tokenizer, whole=True))
    assert list(whole.splits) == ["all"]
    assert whole.splits["all"].num_documents == count
    end = [tokenizer.end_of_text_id]
    expected = end + [token for text in texts for token in [*tokenizer.encode(text).tolist(), *end]]
    assert stored(whole.folder, "all").tolist() == expected
