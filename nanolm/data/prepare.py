"""Tokenize a corpus into a folder of shards, once.

Text streams through: read, cut into pieces, encoded on all cores while the next pieces are read and the last ones are
written. Memory grows with the number of documents alone, each of which is known by a hash. The folder appears under its
name when it is whole, or not at all.
"""

import hashlib
import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nanolm.config.schema import DataConfig, TokenizerConfig
from nanolm.data.corpus import Corpus, open_corpus
from nanolm.data.pieces import Piece, pieces
from nanolm.data.prepared import (
    FORMAT,
    FORMAT_VERSION,
    ID_TYPES,
    MANIFEST,
    TOKENIZER,
    fingerprint_of,
    open_prepared,
)
from nanolm.data.shards import SplitWriter
from nanolm.data.splits import ALL, SPLITS, Copies, split_documents, undivided
from nanolm.data.tokenizer import Tokenizer, UnknownCharacter, train_tokenizer
from nanolm.errors import DataError, sentence
from nanolm.files import NO_ROOM, atomic_directory, failure, file_table, lock

BATCH_CHARACTERS = 1 << 20
BATCHES_IN_FLIGHT = 3
LOCK_POLL_SECONDS = 0.5

Progress = Callable[[int, int | None], None]

logger = logging.getLogger(__name__)


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig | Tokenizer,
    progress: Progress = lambda done, total: None,
    whole: bool = False,
) -> Path:
    """Tokenize a corpus, unless that was done before.

    The folder's name holds a hash of all that decides its content: the documents (sha256 of the files; package
    version; Hub dataset and revision), the split settings, and the tokenizer or its settings. If it is there, its
    manifest and the names and sizes of its files are checked, the text is not read again but for its sha256; a folder
    that fails this is made anew. ``open_prepared`` checks the rest.

    Args:
        data: the corpus and its splits.
        tokenizer: the tokenizer to make, or the one of a model, to score other text with it.
        progress: called with the bytes of text encoded so far and about how many there are, if that is known.
        whole: keep every document whole in one split, ``all``, to be scored by the model of ``tokenizer``.

    Returns:
        ``<data.root>/<corpus>-<tokenizer>-<hash>``.

    Raises:
        DataError: the corpus is missing, empty, damaged, or cannot be encoded, or the folder cannot be written.
        ConfigError: the tokenizer's settings are impossible.
    """
    corpus = open_corpus(data)
    assert not whole or isinstance(tokenizer, Tokenizer), "without a train split there is nothing to learn one from"
    settings = _settings(data, corpus, whole)
    root = Path(data.root)
    if isinstance(tokenizer, Tokenizer):
        found = _find_with_tokenizer(root, data, settings, tokenizer)
        if found is not None:
            return found
        wanted: dict[str, Any] = {"sha256": tokenizer.fingerprint}
    else:
        wanted = {"vocab_size": tokenizer.vocab_size, "training_bytes": tokenizer.training_bytes}
    folder = root / f"{data.name}-{tokenizer.name}-{_digest({**settings, 'tokenizer': wanted})[:10]}"
    if _is_whole(folder) and not _leftovers(folder):
        return folder
    try:
        with _locked(folder):
            for leftover in _leftovers(folder):
                shutil.rmtree(leftover)
            if not _is_whole(folder):
                with atomic_directory(folder) as temporary:
                    _write_corpus(temporary, corpus, data, settings, tokenizer, progress)
    except OSError as error:
        advice = "free space there" if error.errno in NO_ROOM else "put that right"
        raise DataError(
            f"{failure(error, folder.parent)}: the corpus cannot be tokenized into {folder}; {advice}, or choose "
            "another data.root"
        ) from error
    return folder


def _settings(data: DataConfig, corpus: Corpus, whole: bool) -> dict[str, Any]:
    """What decides the documents and their splits."""
    split_keys = ["max_documents"]
    if data.name in ("jsonl", "parquet"):
        split_keys += ["text_column"]
    if not whole:
        split_keys += ["val_fraction", "test_fraction", "calibration_fraction", "split_seed"]
        split_keys += ["shifted_from_year"] if data.name == "sotu" else []
    return {
        "format_version": FORMAT_VERSION,
        "corpus": data.name,
        "identity": corpus.identity(),
        "splits": {key: getattr(data, key) for key in split_keys} | ({ALL: True} if whole else {}),
    }


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_whole(folder: Path) -> bool:
    if not (folder / MANIFEST).exists():
        return False
    try:
        open_prepared(folder, verify=False)
    except DataError as error:
        logger.warning("%s It is made anew.", sentence(error))
        return False
    return True


def _leftovers(folder: Path) -> list[Path]:
    """What killed processes left of this folder; of a living one there may be some too, which its lock protects."""
    return list(folder.parent.glob(f".{folder.name}.*.*"))  # as nanolm.files names them; not the lock


def _find_with_tokenizer(root: Path, data: DataConfig, settings: dict[str, Any], tokenizer: Tokenizer) -> Path | None:
    """A folder with these documents and splits in this tokenizer's ids, however its tokenizer was made."""
    for folder in sorted(root.glob(f"{data.name}-{tokenizer.name}-*")):
        if _is_whole(folder):
            manifest = open_prepared(folder, verify=False).manifest
            same_tokenizer = manifest["files"][TOKENIZER]["sha256"] == tokenizer.fingerprint
            if same_tokenizer and manifest.get("settings") == _digest(settings):
                return folder
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; wait for another process that tokenizes the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    told = False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock(folder.with_name(f".{folder.name}.lock"), DataError, "tokenizing this corpus"))
                break
            except DataError as error:
                if not told:
                    logger.warning("%s Waiting.", sentence(error))
                told = True
                time.sleep(LOCK_POLL_SECONDS)
        yield


def _write_corpus(
    folder: Path,
    corpus: Corpus,
    data: DataConfig,
    settings: dict[str, Any],
    tokenizer: TokenizerConfig | Tokenizer,
    progress: Progress,
) -> None:
    whole = ALL in settings["splits"]

    def read(copies: Copies | None = None) -> Iterator[Piece]:
        return pieces(undivided(corpus) if whole else split_documents(corpus, data, copies))

    if isinstance(tokenizer, TokenizerConfig):
        texts = (piece.text for piece in read() if piece.split == "train")
        tokenizer = train_tokenizer(tokenizer, texts)
    tokenizer.save(folder / TOKENIZER)
    id_type = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    writers: dict[str, SplitWriter] = {}
    copies = Copies()
    num_empty, done, total = 0, 0, corpus.num_bytes()
    with ExitStack() as files:
        for batch in _encoded(read(copies), tokenizer, ID_TYPES[id_type]):
            for piece, ids, num_bytes in batch:
                done += num_bytes
                if not piece.text:
                    num_empty += 1
                    continue
                if piece.split not in writers:
                    writer = SplitWriter(folder, piece.split, ID_TYPES[id_type], tokenizer.end_of_text_id)
                    writers[piece.split] = files.enter_context(writer)
                writers[piece.split].append(ids, num_bytes, piece.ends_document)
            progress(done, total)
    corpus.check_unchanged()
    if num_empty:
        logger.warning("data=%s: %d documents without text are left out", data.name, num_empty)
    if copies.count:
        logger.warning(
            "data=%s: %d documents equal an earlier one; %d of them had been dealt to another split than that one and "
            "join it, so that no split holds a document of another",
            *(data.name, copies.count, copies.moved),
        )
    needed = ALL if whole else "train"
    if needed not in writers:
        raise DataError(f"data={data.name}: no document with text is left for the {needed} split; give more text")
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "corpus": data.name,
        "source": corpus.source(),
        "split_settings": settings["splits"],
        "settings": _digest(settings),
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size},
        "id_type": id_type,
        "num_empty_documents": num_empty,
        "splits": {name: writers[name].entry() for name in SPLITS if name in writers},
        "files": file_table(folder),
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


_Encoded = list[tuple[Piece, np.ndarray, int]]


def _encoded(source: Iterator[Piece], tokenizer: Tokenizer, id_type: np.dtype[Any]) -> Iterator[_Encoded]:
    """The pieces in batches, with their ids and UTF-8 bytes; other threads encode while this one reads and writes."""
    in_flight: deque[Future[_Encoded]] = deque()
    with ThreadPoolExecutor(max_workers=2) as pool:
        for batch in _batches(source):
            in_flight.append(pool.submit(_encode, tokenizer, batch, id_type))
            if len(in_flight) == BATCHES_IN_FLIGHT:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()


def _batches(source: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in source:
        batch.append(piece)
        # A document weighs something even when it is short: a batch of many tiny ones stays small.
        characters += len(piece.text) + 64
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, batch: list[Piece], id_type: np.dtype[Any]) -> _Encoded:
    try:
        ids = tokenizer.encode_batch([piece.text for piece in batch])
    except UnknownCharacter:
        for piece in batch:
            try:
                tokenizer.encode(piece.text)
            except UnknownCharacter as error:
                where = f"{piece.place} ({piece.split} split)"
                raise UnknownCharacter(error.character, piece.offset + error.position, where) from None
        raise
    return [(piece, one.astype(id_type), len(piece.text.encode())) for piece, one in zip(batch, ids, strict=True)]
