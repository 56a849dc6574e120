import itertools
import json
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
from tests.data.conftest import write_jsonl

ROOT = Path(__file__).parents[2]
HARD = ["a\r\nb", "nul \x00", "<|endoftext|> is text", "\ufeffmark", "👩‍👩‍👧", "ends in spaces  \n\n", "é" * 100]
WHOLE = "".join(HARD)
TEXTS = HARD + [f"document number {i}, the state of our union\n" for i in range(30 - len(HARD))]
ROTATED = [WHOLE[i:] + WHOLE[:i] for i in range(30)]  # each has all characters
BPE = ("tokenizer=bpe", "tokenizer.vocab_size=280")


@pytest.fixture
def jsonl(tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", TEXTS)


@pytest.fixture
def given(jsonl):
    return ["data=jsonl", f"data.path={jsonl}"]


def stored(folder, name):
    """The ids of a split as any program would read them, knowing the manifest alone."""
    manifest = json.loads((folder / "manifest.json").read_text())
    kind = {"uint16": "<u2", "uint32": "<u4"}[manifest["id_type"]]
    return np.concatenate([np.fromfile(folder / shard, dtype=kind) for shard in manifest["splits"][name]["shards"]])


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_empty(root):
    return not any(path.is_dir() for path in root.glob("*"))


def repeated(tmp_path, kind, texts):
    """A corpus of these texts, as overrides."""
    if kind == "text":
        for number, text in enumerate(texts):
            (tmp_path / f"{number:03}.txt").write_text(text)
        return [f"data.path={tmp_path}/*.txt"]
    if kind == "jsonl":
        return [f"data.path={write_jsonl(tmp_path / 'corpus.jsonl', texts)}"]
    (tmp_path / "hub").mkdir()
    for split, some in (("train", texts), ("validation", texts[:10])):
        pq.write_table(pa.table({"text": some}), tmp_path / "hub" / f"{split}-0.parquet")
    return [f"data.hub_path={tmp_path / 'hub'}"]


@pytest.mark.parametrize("kind", ["text", "jsonl", "tinystories"])
def test_no_split_holds_a_document_of_another(tokenize, tmp_path, caplog, kind):
    texts = [f"text number {i % 30}" for i in range(60)]
    corpus = tokenize(f"data={kind}", *repeated(tmp_path, kind, texts), "data.val_fraction=0.2")
    held, end = {}, corpus.tokenizer.end_of_text_id
    for name in corpus.splits:
        runs = itertools.groupby(stored(corpus.folder, name).tolist(), lambda token: token == end)
        held[name] = {corpus.tokenizer.decode(list(run)) for is_end, run in runs if not is_end}
    assert sorted(text for found in held.values() for text in found) == sorted(set(texts))
    assert f"{40 if kind == 'tinystories' else 30} documents equal" in caplog.text


@pytest.mark.parametrize(
    ("tokenizer", "texts"), [(BPE, TEXTS), (["tokenizer=byte"], TEXTS), (["tokenizer=char"], ROTATED)]
)
@pytest.mark.parametrize("shard_ids", [1 << 26, 50])
def test_every_document_is_stored_once_between_end_of_texts(
    tokenize, tmp_path, monkeypatch, tokenizer, texts, shard_ids
):
    monkeypatch.setattr(shards, "SHARD_IDS", shard_ids)
    path = write_jsonl(tmp_path / "corpus.jsonl", texts)
    corpus = tokenize("data=jsonl", f"data.path={path}", "data.val_fraction=0.2", *tokenizer)
    seen = []
    for name, split in corpus.splits.items():
        ids = stored(corpus.folder, name)
        assert all(shard.stat().st_size <= 2 * shard_ids for shard in split.shards)
        assert len(ids) == split.num_tokens + 1
        ends = np.flatnonzero(ids == corpus.tokenizer.end_of_text_id)
        assert (ends[0], ends[-1]) == (0, len(ids) - 1)
        found = [corpus.tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(ends)]
        seen += found
        sizes = [len(text.encode()) for text in found]
        assert (split.num_documents, split.num_bytes) == (len(found), sum(sizes))
        assert split.documents.first_target.tolist() == ends[:-1].tolist()
        assert split.documents.num_tokens.tolist() == np.diff(ends).tolist()
        assert split.documents.num_bytes.tolist() == sizes
        for start in range(0, len(ids), 13):
            read = split.read(start, min(120, len(ids) - start))
            assert read.dtype == np.int64
            assert read.tolist() == ids[start : start + 120].tolist()
    assert sorted(seen) == sorted(texts)
    counts = {name: split.num_documents for name, split in corpus.splits.items()}
    assert counts == {"train": 18, "calibration": 3, "val": 6, "test": 3}


def test_one_large_document_is_the_concatenation_of_its_splits(tokenize, tmp_path):
    """Several pieces and batches; the same tokens as the library's for each part as a whole."""
    text = "".join(f"line {i} of the state of our union\r\n" for i in range(40_000))
    (tmp_path / "file.txt").write_bytes(text.encode())
    corpus = tokenize("data=text", f"data.path={tmp_path / 'file.txt'}", *BPE)
    assert list(corpus.splits) == ["train", "calibration", "val"]
    parts = []
    for split in corpus.splits.values():
        assert split.num_documents == 1
        ids = split.read(1, split.num_tokens - 1)
        parts.append(corpus.tokenizer.decode(ids))
        assert np.array_equal(ids, corpus.tokenizer.encode(parts[-1]))
    assert "".join(parts) == text
    assert len(parts[-1]) == -(-len(text) // 10)


def test_more_than_65536_tokens_take_four_bytes(tokenize, tmp_path):
    text = "".join(chr(0x10000 + i) for i in range(66_000))
    (tmp_path / "file.txt").write_text(text + text[:7000])
    keys = ("data.calibration_fraction=0", "data.val_fraction=0.05", "tokenizer=char")
    corpus = tokenize("data=text", f"data.path={tmp_path / 'file.txt'}", *keys)
    assert corpus.manifest.id_type == "uint32"
    assert corpus.splits["train"].read(0, 66_001).tolist() == [corpus.tokenizer.end_of_text_id, *range(66_000)]


@pytest.mark.parametrize("count", [1, 30])
def test_the_whole_of_a_text_is_every_document_undivided_in_its_order(config, tokenize, tmp_path, count):
    texts = ["a single document, to be cut in three", *TEXTS][:count]
    given = ["data=jsonl", f"data.path={write_jsonl(tmp_path / 'corpus.jsonl', texts)}"]
    tokenizer = tokenize(*given).tokenizer
    whole = open_prepared(prepare(config(*given).data, tokenizer, whole=True))
    assert list(whole.splits) == ["all"]
    assert whole.splits["all"].num_documents == count
    end = [tokenizer.end_of_text_id]
    expected = end + [token for text in texts for token in [*tokenizer.encode(text).tolist(), *end]]
    assert stored(whole.folder, "all").tolist() == expected


# Once and for all


def test_a_second_call_finds_what_is_there(config, given):
    chosen, calls = config(*given), []
    folder = prepare(chosen.data, chosen.tokenizer, lambda *_: calls.append(1))
    inode, num_calls = folder.stat().st_ino, len(calls)
    assert num_calls
    assert prepare(chosen.data, chosen.tokenizer, lambda *_: calls.append(1)) == folder
    assert (folder.stat().st_ino, len(calls)) == (inode, num_calls)


def test_the_same_text_elsewhere_is_the_same_corpus_byte_for_byte(tokenize, given, jsonl, tmp_path):
    corpus = tokenize(*given, *BPE)
    (tmp_path / "elsewhere").mkdir()
    moved = jsonl.rename(tmp_path / "elsewhere" / jsonl.name)
    other = tokenize("data=jsonl", f"data.path={moved}", f"data.root={tmp_path / 'other'}", *BPE)
    assert other.folder.name == corpus.folder.name
    assert content(other.folder) == content(corpus.folder)
    assert other.fingerprint == corpus.fingerprint


def test_whatever_changes_the_content_changes_the_name(tokenize, given, jsonl):
    changes = [f"data.{key}" for key in ("split_seed=1", "val_fraction=0.2", "test_fraction=0")]
    changes += ["data.calibration_fraction=0", "data.max_documents=20"]
    changes += [f"tokenizer.{key}" for key in ("vocab_size=281", "training_bytes=100")]
    corpora = [tokenize(*given, *BPE), *(tokenize(*given, *BPE, change) for change in changes), tokenize(*given)]
    jsonl.write_text(jsonl.read_text().replace("state", "State"))  # as many bytes
    corpora.append(tokenize(*given, *BPE))
    assert len({corpus.folder for corpus in corpora}) == len(corpora)
    assert len({corpus.fingerprint for corpus in corpora}) == len(corpora)
    assert all(corpus.folder.name.startswith(("jsonl-bpe-", "jsonl-byte-")) for corpus in corpora)


@pytest.mark.parametrize("damage", ["no manifest", "cut manifest", "no shard", "cut shard"])
def test_a_folder_that_is_not_whole_is_made_anew(tokenize, given, damage):
    folder = tokenize(*given).folder
    before = content(folder)
    path = folder / ("manifest.json" if "manifest" in damage else "train-00000.bin")
    path.unlink() if "no" in damage else path.write_bytes(path.read_bytes()[:-10])
    assert tokenize(*given).folder == folder
    assert content(folder) == before


def test_a_given_tokenizer_finds_the_corpus_it_was_made_from(config, tokenize, given):
    corpus = tokenize(*given, *BPE)
    assert prepare(config(*given).data, corpus.tokenizer) == corpus.folder
    data = config(*given, "data.split_seed=1").data
    other = prepare(data, corpus.tokenizer)
    assert other != corpus.folder
    assert open_prepared(other).tokenizer.fingerprint == corpus.tokenizer.fingerprint
    assert prepare(data, corpus.tokenizer) == other


# What is left out, and what is refused


def test_char_refuses_what_it_has_not_seen_and_leaves_nothing(config, tmp_path):
    texts = [*TEXTS[:20], "a long document" * 20_000 + " with ☃", *TEXTS[20:]]
    path = write_jsonl(tmp_path / "corpus.jsonl", texts)
    known = CharTokenizer("".join(texts).replace("☃", ""))
    position = 15 * 20_000 + len(" with ")
    with pytest.raises(DataError, match=rf"corpus\.jsonl, line 21 \(\w+ split\).*U\+2603\) at position {position:,}"):
        prepare(config("data=jsonl", f"data.path={path}").data, known)
    assert is_empty(tmp_path / "prepared")


def test_documents_without_text_are_left_out_and_counted(tokenize, tmp_path, caplog):
    path = write_jsonl(tmp_path / "corpus.jsonl", ["", "text"] * 20)
    corpus = tokenize("data=jsonl", f"data.path={path}")
    assert sum(split.num_documents for split in corpus.splits.values()) == 20
    assert corpus.manifest.num_empty_documents == 20
    assert "20 documents without text" in caplog.text


@pytest.mark.parametrize("texts", [["", "", ""], ["same", "same"]], ids=["empty", "copies"])
def test_a_corpus_with_nothing_to_train_on_is_refused(tokenize, tmp_path, texts):
    """Of two equal documents the first may be for val, and then the one for train joins it."""
    path = write_jsonl(tmp_path / "corpus.jsonl", texts)
    refused = []
    for seed in range(5):
        try:
            tokenize("data=jsonl", f"data.path={path}", f"data.split_seed={seed}")
        except DataError as error:
            refused.append(str(error))
    assert refused
    assert all("no document with text" in message for message in refused)


@pytest.mark.parametrize("content", [b"", os.urandom(5000), b"a"], ids=["empty", "random", "one byte"])
@pytest.mark.parametrize("tokenizer", ["bpe", "byte", "char"])
def test_a_refused_file_leaves_nothing(tokenize, tmp_path, tokenizer, content):
    (tmp_path / "file.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"file\.txt"):
        tokenize("data=text", f"data.path={tmp_path / 'file.txt'}", f"tokenizer={tokenizer}")
    assert is_empty(tmp_path / "prepared")


def test_progress_counts_the_bytes_of_the_text(config, tmp_path):
    (tmp_path / "file.txt").write_text("some words " * 500_000)
    chosen, seen = config("data=text", f"data.path={tmp_path / 'file.txt'}"), []
    prepare(chosen.data, chosen.tokenizer, lambda *amounts: seen.append(amounts))
    assert seen == sorted(seen)
    assert len(seen) > 3
    assert seen[-1] == (5_500_000, 5_500_000)


# Killed, crowded, full

PREPARE = """
import sys, time
from nanolm.data import prepare
from tests.data.conftest import configure
path, root, pause = sys.argv[1:]
def progress(done, total):
    print("encoding", flush=True)
    time.sleep(float(pause))
config = configure(root, "data=text", f"data.path={path}")
print(prepare(config.data, config.tokenizer, progress))
"""


def start(path, root, pause=60.0, code=PREPARE, **options):
    command = [sys.executable, "-c", code, str(path), str(root), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)


@pytest.fixture
def three_megabytes(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("the state of our union is strong\n" * 100_000)
    return path


def test_killed_half_way_it_leaves_nothing_that_looks_finished(tokenize, three_megabytes, tmp_path):
    root = tmp_path / "prepared"
    child = start(three_megabytes, root)
    assert child.stdout.readline() == "encoding\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [path.name for path in root.glob("[!.]*")] == [], "nothing under a name that anyone looks for"
    assert [path.suffix for path in root.glob(".*") if path.is_dir()] == [".tmp"], "it was killed half way"
    folder = tokenize("data=text", f"data.path={three_megabytes}").folder
    assert [path for path in root.iterdir() if path.is_dir()] == [folder], "the leftover was swept"


def test_a_second_one_waits_and_says_for_whom(config, three_megabytes, tmp_path, caplog):
    child = start(three_megabytes, tmp_path / "prepared")
    assert child.stdout.readline() == "encoding\n"
    threading.Timer(1.5, child.kill).start()
    chosen, ended = config("data=text", f"data.path={three_megabytes}"), []
    prepare(chosen.data, chosen.tokenizer, lambda *_: ended.append(child.poll()))
    assert set(ended) == {-signal.SIGKILL}, "the lock was held until the owner was killed"
    assert f"process {child.pid}" in caplog.text


def test_two_at_once_make_one_whole_folder(three_megabytes, tmp_path):
    children = [start(three_megabytes, tmp_path / "prepared", 0.2, stderr=subprocess.DEVNULL) for _ in range(2)]
    outputs = [child.communicate()[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    assert sorted("encoding" in output for output in outputs) == [False, True], "one of them found it done"
    open_prepared(outputs[0][-1])


def test_a_root_under_a_file(tokenize, given, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.root"):
        tokenize(*given, f"data.root={tmp_path / 'file' / 'root'}")


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
        output, _ = start(path, tmp_path / "prepared", 0, PREPARE + PEAK).communicate()
        peaks.append(int(output.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 40_000, peaks
