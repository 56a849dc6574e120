"""A damaged corpus is found before training (R14); tokenization that is killed or has no room leaves none (R15)."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from nanolm.config import load
from nanolm.data import open_prepared, prepare, shards
from nanolm.errors import DataError
from tests.faults.injection import FAILED, file_limit, in_child, kill_at
from tests.faults.strangers import call, make_checkpoint, overrides, resign


@pytest.fixture
def given(tmp_path):
    text = tmp_path / "documents.jsonl"
    lengths = (30, 41, 52, 29, 37, 45, 33, 26)
    text.write_text("".join(json.dumps({"text": "x" * length}) + "\n" for length in lengths))
    return overrides(text, tmp_path / "data")


@pytest.fixture
def tokenize(given, monkeypatch):
    """Tokenize into several shards of the train split; returns the folder."""
    monkeypatch.setattr(shards, "SHARD_IDS", 50)
    # What is killed here is a process, not the machine: the calls count, their wait for the disk does not.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    config = load("train", given)
    return lambda: prepare(config.data, config.tokenizer)


def ids_of(path):
    return np.fromfile(path, dtype="<u2")


# R14


def is_found_before_training(given, tmp_path, *told):
    """The whole of train.py: exit code 2, and not one step."""
    code, said = call("train", [*given, f"hydra.run.dir={tmp_path / 'run'}"])
    assert code == 2, said
    for words in told:
        assert words in said
    assert not (tmp_path / "run").exists()


def test_an_id_outside_the_vocabulary_is_told_with_shard_and_offset_though_its_hash_fits(tokenize, given, tmp_path):
    path = tokenize() / "train-00002.bin"
    ids = ids_of(path)
    ids[[12, 27]] = 257, 65535
    ids.tofile(path)
    resign(path.parent)
    is_found_before_training(
        given, tmp_path, f"{path}: id 257 at offset 12 (byte 24) is outside the vocabulary of 257", "tokenize again"
    )


def test_swapped_shards_of_one_size_are_told_by_whose_content_they_hold(tokenize, given, tmp_path):
    folder = tokenize()
    first, second = folder / "train-00001.bin", folder / "train-00002.bin"
    assert first.stat().st_size == second.stat().st_size
    first.rename(folder / "other")
    second.rename(first)
    (folder / "other").rename(second)
    is_found_before_training(given, tmp_path, f"{first}: its sha256", "it holds the content of 'train-00002.bin'")


def test_swapped_shards_are_found_by_their_documents_though_their_hashes_fit(tokenize, given, tmp_path):
    folder = tokenize()
    starts = [ids_of(folder / f"train-0000{number}.bin") for number in range(3)]
    starts[1].tofile(folder / "train-00002.bin")
    starts[2].tofile(folder / "train-00001.bin")
    resign(folder)
    was, is_now = (set(np.flatnonzero(ids == 256).tolist()) for ids in (starts[1], starts[2]))
    offset = min(was ^ is_now)
    shard = folder / "train-00001.bin"
    is_found_before_training(given, tmp_path, f"{shard}, whose id at offset {offset} (byte {2 * offset}) should")


@pytest.mark.parametrize("kind", ["one more", "one less", "at the end"])
def test_an_end_of_text_too_many_or_too_few_is_told_with_shard_and_offset(tokenize, kind):
    folder = tokenize()
    number = max(int(path.stem[-5:]) for path in folder.glob("train-0*.bin")) if kind == "at the end" else 2
    path = folder / f"train-{number:05d}.bin"
    ids = ids_of(path)
    ends = np.flatnonzero(ids == 256)
    offset = int(ends[-1]) if kind != "one more" else int(np.argmax(ids != 256))
    ids[offset] = 65 if kind != "one more" else 256
    ids.tofile(path)
    resign(folder)
    what = "should not be an end-of-text and is one" if kind == "one more" else "should be an end-of-text and is none"
    with pytest.raises(DataError) as refused:
        open_prepared(folder)
    assert f"{path}, whose id at offset {offset} (byte {2 * offset}) {what}" in str(refused.value)


def test_a_document_index_with_other_bytes_is_told(tokenize):
    path = tokenize() / "val-documents.bin"
    table = np.fromfile(path, dtype="<i8")
    table[1] += 1
    table.tofile(path)
    resign(path.parent)
    with pytest.raises(DataError, match=r"val-documents\.bin: does not agree with the \d+ bytes of text"):
        open_prepared(path.parent)


@pytest.mark.parametrize("damage", ["missing", "truncated", "odd length"])
def test_a_shard_of_another_size_is_told_and_the_corpus_made_anew_from_its_text(tokenize, caplog, damage):
    folder = tokenize()
    path = folder / "train-00002.bin"
    before = path.read_bytes()
    assert len(before) == 100
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(before[:73] if damage == "truncated" else before + b"\0")
    with pytest.raises(DataError) as refused:
        open_prepared(folder)
    assert str(path) in str(refused.value)
    if damage != "missing":
        assert f"expected 100 bytes, found {73 if damage == 'truncated' else 101}" in str(refused.value)
    assert tokenize() == folder
    assert f"{path}" in caplog.text
    assert path.read_bytes() == before
    open_prepared(folder)


def test_a_text_that_changed_under_a_run_is_told_before_its_next_step(tmp_path):
    text = tmp_path / "documents.jsonl"
    text.write_text("".join(json.dumps({"text": f"document {i:03} of a run"}) + "\n" for i in range(30)))
    given = overrides(text, tmp_path / "data")
    make_checkpoint(tmp_path / "run", given)
    text.write_text(text.read_text().replace("document 007", "document 700"))  # as many bytes
    code, said = call("train", [*given, f"hydra.run.dir={tmp_path / 'run'}"])
    assert code == 2, said
    assert "corpus" in said
    assert "fingerprint" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# R15


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tokenize):
    """The prepared folder's path and content; nothing lies there."""
    folder = tokenize()
    expected = content(folder)
    shutil.rmtree(folder.parent)
    return folder, expected


def check(folder, expected, tokenize):
    """There is nothing under the folder's name, or all of it; the next call leaves all of it and nothing else."""
    was_there = folder.exists()
    if was_there:
        assert content(folder) == expected
    assert tokenize() == folder
    assert content(folder) == expected
    open_prepared(folder)
    left = {path.name for path in folder.parent.iterdir()} - {folder.name, f".{folder.name}.lock"}
    assert left == set(), "the killed one's leftovers are swept" if not was_there else "there were none"
    shutil.rmtree(folder.parent)
    return was_there


def test_tokenization_killed_before_every_open_sync_rename_and_removal(whole, tokenize):
    folder, expected = whole
    found = []
    for call_number in range(200):
        status = in_child(tokenize, kill_at(call_number))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, (call_number, status)
        found.append(check(folder, expected, tokenize))
    else:
        raise AssertionError("the tokenization never came to its end")
    assert len(found) > len(expected), "every file and sync, the rename"
    assert found == sorted(found), "nothing up to the rename, all of it from then on"
    assert set(found) == {False, True}


def test_tokenization_killed_while_it_replaces_a_damaged_folder(whole, tokenize):
    """The old folder is not whole, and stays so or goes; what is found in its place afterwards is the new one."""
    folder, expected = whole
    replaced = []
    for call_number in range(200):
        tokenize()
        (folder / "train-00000.bin").unlink()
        status = in_child(tokenize, kill_at(call_number))
        if status == 0:
            break
        if folder.exists() and content(folder).keys() == expected.keys():
            replaced.append(call_number)
        elif folder.exists():
            with pytest.raises(DataError):
                open_prepared(folder)
        assert tokenize() == folder
        assert content(folder) == expected
        assert {path.name for path in folder.parent.iterdir()} == {folder.name, f".{folder.name}.lock"}
    else:
        raise AssertionError("the tokenization never came to its end")
    assert replaced == list(range(min(replaced), call_number))


@pytest.mark.parametrize("fatal", [False, True], ids=["disk full", "killed half-way"])
def test_no_room_for_the_files(whole, tokenize, fatal):
    folder, expected = whole
    sizes = sorted({len(data) for data in expected.values()})

    def told():
        try:
            tokenize()
        except DataError as error:
            if all(part in str(error) for part in ("File too large", "free space", str(folder))):
                raise OSError from error
            raise
        except OSError as error:
            raise AssertionError("told by the system and not in words") from error

    for limit in (0, 1, *(size - 1 for size in sizes)):
        status = in_child(told, file_limit(limit, fatal=fatal))
        if fatal:
            assert os.WIFSIGNALED(status), (limit, status)
            assert os.WTERMSIG(status) == signal.SIGXFSZ
        else:
            assert os.WEXITSTATUS(status) == FAILED, (limit, status)
            left = {path.name for path in folder.parent.iterdir()} - {f".{folder.name}.lock"}
            assert left == set(), "nothing half-made is left"
        assert check(folder, expected, tokenize) is False
    assert in_child(told, file_limit(max(sizes), fatal=fatal)) == 0, "the limit was the reason"
