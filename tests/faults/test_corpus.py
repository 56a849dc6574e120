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
from tests.faults.untrusted import call, make_checkpoint, overrides, resign


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


def is_found_before_training(given, tmp_path, *words):
    """The whole of train.py: exit code 2, and not one step."""
    code, said = call("train", [*given, f"hydra.run.dir={tmp_path / 'run'}"])
    assert code == 2, said
    assert all(word in said for word in words), said
    assert not (tmp_path / "run").exists()


def test_an_id_outside_the_vocabulary_is_named_with_shard_and_offset_though_its_hash_fits(tokenize, given, tmp_path):
    path = tokenize() / "train-00002.bin"
    ids = ids_of(path)
    ids[[12, 27]] = 257, 65535
    ids.tofile(path)
    resign(path.parent)
    is_found_before_training(given, tmp_path, f"{path}: ", "257 at offset 12 (byte 24)")


@pytest.mark.parametrize("hashes_fit", [False, True])
def test_swapped_shards_of_one_size_are_found(tokenize, given, tmp_path, hashes_fit):
    """By whose content they hold or, where the hashes fit, by their documents."""
    folder = tokenize()
    first, second = folder / "train-00001.bin", folder / "train-00002.bin"
    ids = ids_of(first), ids_of(second)
    assert len(ids[0]) == len(ids[1])
    ids[1].tofile(first)
    ids[0].tofile(second)
    if hashes_fit:
        resign(folder)
        was, is_now = (set(np.flatnonzero(each == 256).tolist()) for each in ids)
        offset = min(was ^ is_now)
        is_found_before_training(given, tmp_path, f"{first}, whose id at offset {offset} (byte {2 * offset})")
    else:
        is_found_before_training(given, tmp_path, f"{first}: its sha256", "'train-00002.bin'")


@pytest.mark.parametrize("kind", ["one more", "one less", "at the end"])
def test_an_end_of_text_too_many_or_too_few_is_named_with_shard_and_offset(tokenize, kind):
    folder = tokenize()
    number = max(int(path.stem[-5:]) for path in folder.glob("train-0*.bin")) if kind == "at the end" else 2
    path = folder / f"train-{number:05d}.bin"
    ids = ids_of(path)
    offset = int(np.argmax(ids != 256)) if kind == "one more" else int(np.flatnonzero(ids == 256)[-1])
    ids[offset] = 256 if kind == "one more" else 65
    ids.tofile(path)
    resign(folder)
    with pytest.raises(DataError) as refused:
        open_prepared(folder)
    negation = "" if kind == "one more" else "not "
    assert f"{path}, whose id at offset {offset} (byte {2 * offset}) is {negation}an end-of-text" in str(refused.value)


@pytest.mark.parametrize(("damage", "size"), [("missing", None), ("truncated", 73), ("odd length", 101)])
def test_a_shard_of_another_size_is_named_and_the_corpus_made_anew_from_its_text(tokenize, caplog, damage, size):
    folder = tokenize()
    path = folder / "train-00002.bin"
    before = path.read_bytes()
    assert len(before) == 100
    path.unlink() if size is None else path.write_bytes((before + b"\0")[:size])
    with pytest.raises(DataError) as refused:
        open_prepared(folder)
    assert str(path) in str(refused.value)
    assert size is None or f"expected 100 bytes, found {size}" in str(refused.value)
    assert tokenize() == folder
    assert str(path) in caplog.text
    assert path.read_bytes() == before


def test_a_text_that_changed_under_a_run_is_found_before_its_next_step(tmp_path):
    text = tmp_path / "documents.jsonl"
    text.write_text("".join(json.dumps({"text": f"document {i:03} of a run"}) + "\n" for i in range(30)))
    given = overrides(text, tmp_path / "data")
    make_checkpoint(tmp_path / "run", given)
    text.write_text(text.read_text().replace("document 007", "document 700"))  # as many bytes
    code, said = call("train", [*given, f"hydra.run.dir={tmp_path / 'run'}"])
    assert code == 2, said
    assert "corpus" in said
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
    """The next call leaves all of the folder and nothing else."""
    assert tokenize() == folder
    assert content(folder) == expected
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f".{folder.name}.lock"}


@pytest.mark.parametrize("damaged", [False, True], ids=["new", "in the place of a damaged one"])
def test_tokenization_killed_before_every_open_sync_rename_and_removal(whole, tokenize, damaged):
    """There is nothing under the folder's name (or the damaged one), and from the rename on all of it."""
    folder, expected = whole
    found = []
    for call_number in range(200):
        if damaged:
            tokenize()
            (folder / "train-00000.bin").unlink()
        else:
            shutil.rmtree(folder.parent, ignore_errors=True)
        status = in_child(tokenize, kill_at(call_number))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, (call_number, status)
        is_whole = folder.exists() and content(folder) == expected
        if folder.exists() and not is_whole:
            assert damaged
            with pytest.raises(DataError):
                open_prepared(folder)
        found.append(is_whole)
        check(folder, expected, tokenize)
    else:
        raise AssertionError("the tokenization never came to its end")
    assert len(found) > len(expected), "every file and sync, the rename"
    assert found == sorted(found), "nothing up to the rename, all of it from then on"
    assert set(found) == {False, True}


@pytest.mark.parametrize("fatal", [False, True], ids=["disk full", "killed half-way"])
def test_no_room_for_the_files(whole, tokenize, fatal):
    folder, expected = whole
    sizes = sorted({len(data) for data in expected.values()})

    def in_words():
        try:
            tokenize()
        except DataError as error:
            if all(part in str(error) for part in ("free space", str(folder))):
                raise OSError from error
            raise
        except OSError as error:
            raise AssertionError("reported by the system and not in words") from error

    for limit in (0, 1, *(size - 1 for size in sizes)):
        status = in_child(in_words, file_limit(limit, fatal=fatal))
        assert not folder.exists()
        if fatal:
            assert os.WTERMSIG(status) == signal.SIGXFSZ, (limit, status)
        else:
            assert os.WEXITSTATUS(status) == FAILED, (limit, status)
            assert {path.name for path in folder.parent.iterdir()} <= {f".{folder.name}.lock"}, "nothing half-made"
        check(folder, expected, tokenize)
        shutil.rmtree(folder.parent)
    assert in_child(in_words, file_limit(max(sizes), fatal=fatal)) == 0, "the limit was the reason"
