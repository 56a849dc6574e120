"""Tokenize a corpus into a folder of shards, once.

Text is read, cut into pieces, encoded on all cores, and written as a stream. Memory grows only by a hash for each
document. The folder appears under its name when it is whole, or not at all.
"""

import json
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nanolm.config.schema import DataConfig, TokenizerConfig
from nanolm.data.corpus import open_corpus
from nanolm.data.documents import Corpus, Document
from nanolm.data.pieces import Piece, pieces
from nanolm.data.prepared import (
    FORMAT,
    FORMAT_VERSION,
    ID_TYPES,
    MANIFEST,
    TOKENIZER,
    PreparedCorpus,
    fingerprint_of,
    open_prepared,
)
from nanolm.data.shards import SplitWriter
from nanolm.data.splits import ALL, SPLITS, Copies, split_documents
from nanolm.data.tokenizer import Tokenizer, UnknownCharacter, train_tokenizer
from nanolm.errors import DataError, sentence
from nanolm.files import NO_ROOM, atomic_directory, failure, file_table, lock

BATCH_CHARACTERS = 1 << 20
BATCHES_IN_FLIGHT = 3

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
    version; Hub dataset and revision), the split settings, and the tokenizer or its settings. An existing folder is
    made anew if its manifest or the names or sizes of its files are wrong. ``open_prepared`` checks the rest.

    Args:
        data: the corpus and its splits.
        tokenizer: the tokenizer to make, or the one of a model, to score other text with it.
        progress: called with the bytes of text encoded so far and an estimate of all of them, or None.
        whole: keep every document whole in one split, ``all``, to be scored by the model of ``tokenizer``.

    Returns:
        ``<data.root>/<corpus>-<tokenizer>-<hash>``.

    Raises:
        DataError: the corpus is missing, empty, damaged, or cannot be encoded, or the folder cannot be written.
    """
    corpus = open_corpus(data)
    assert not whole or isinstance(tokenizer, Tokenizer), "without a train split there is nothing to learn one from"
    settings = _settings(data, corpus, whole)
    root = Path(data.root)
    if isinstance(tokenizer, Tokenizer):
        same = fingerprint_of(settings)
        for folder in sorted(root.glob(f"{data.name}-{tokenizer.name}-*")):  # however its tokenizer was made
            found = _opened(folder)
            if found and found.manifest.settings == same and found.tokenizer.fingerprint == tokenizer.fingerprint:
                return folder
        wanted: dict[str, Any] = {"sha256": tokenizer.fingerprint}
    else:
        wanted = {key: getattr(tokenizer, key, None) for key in ("vocab_size", "training_bytes")}
    folder = root / f"{data.name}-{tokenizer.name}-{fingerprint_of({**settings, 'tokenizer': wanted})[:10]}"
    if _opened(folder) and not _leftovers(folder):
        return folder
    try:
        with lock(folder.with_name(f".{folder.name}.lock"), DataError, "tokenizing this corpus", wait=True):
            for leftover in _leftovers(folder):
                shutil.rmtree(leftover)
            if not _opened(folder):
                with atomic_directory(folder) as temporary:
                    _write_corpus(temporary, corpus, data, settings, tokenizer, progress)
    except OSError as error:
        advice = f"{'free space, or ' if error.errno in NO_ROOM else ''}choose another data.root"
        raise DataError(f"{failure(error, root)}: cannot tokenize the corpus into {folder}; {advice}") from error
    return folder


def _settings(data: DataConfig, corpus: Corpus, whole: bool) -> dict[str, Any]:
    """Collect what decides the documents and their splits."""
    keys = ["max_documents"]
    if data.name in ("jsonl", "parquet"):
        keys += ["text_column"]
    if not whole:
        keys += ["val_fraction", "test_fraction", "calibration_fraction", "split_seed"]
        keys += ["shifted_from_year"] if data.name == "sotu" else []
    return {
        "format_version": FORMAT_VERSION,
        "corpus": data.name,
        "identity": corpus.identity(),
        "splits": {key: getattr(data, key) for key in keys} | ({ALL: True} if whole else {}),
    }


def _opened(folder: Path) -> PreparedCorpus | None:
    """Open a corpus that was prepared before; return None, with a warning, if it is damaged."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        return open_prepared(folder, verify=False)
    except DataError as error:
        logger.warning("%s It will be rebuilt.", sentence(error))
        return None


def _leftovers(folder: Path) -> list[Path]:
    """Find what killed processes left of this folder, as nanolm.files names it; the lock is not among it."""
    return list(folder.parent.glob(f".{folder.name}.*.*"))


def _write_corpus(
    folder: Path,
    corpus: Corpus,
    data: DataConfig,
    settings: dict[str, Any],
    tokenizer: TokenizerConfig | Tokenizer,
    progress: Progress,
) -> None:
    """Write all files of a prepared corpus into a folder."""
    is_whole = ALL in settings["splits"]

    def documents(copies: Copies) -> Iterator[Document]:
        if is_whole:
            return (replace(document, split=ALL) for document in corpus.documents())
        return split_documents(corpus, data, copies)

    if not isinstance(tokenizer, Tokenizer):
        texts = (piece.text for piece in pieces(documents(Copies())) if piece.document.split == "train")
        tokenizer = train_tokenizer(tokenizer, texts)
    tokenizer.save(folder / TOKENIZER)
    id_type = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    writers: dict[str, SplitWriter] = {}
    copies = Copies()
    num_empty, done, total = 0, 0, corpus.num_bytes()
    with ExitStack() as stack:
        for batch in _encoded(pieces(documents(copies)), tokenizer, ID_TYPES[id_type]):
            for piece, ids, num_bytes in batch:
                done += num_bytes
                if not piece.text:
                    num_empty += 1
                    continue
                split = str(piece.document.split)
                if split not in writers:
                    writers[split] = SplitWriter(folder, split, ID_TYPES[id_type], tokenizer.end_of_text_id)
                    stack.callback(writers[split].close)
                writers[split].append(ids, num_bytes, piece.is_last)
            progress(done, total)
    if num_empty:
        logger.warning("data=%s: %d documents without text are left out", data.name, num_empty)
    if copies.count:
        logger.warning("data=%s: %d documents equal an earlier one and join its split", data.name, copies.count)
    if not writers.keys() & {"train", ALL}:
        raise DataError(
            f"data={data.name}: no document with text is left to train on ({copies.count} equal an earlier one); give "
            "more text, or another data.split_seed"
        )
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "corpus": data.name,
        "source": corpus.source(),
        "split_settings": settings["splits"],
        "settings": fingerprint_of(settings),
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size},
        "id_type": id_type,
        "num_empty_documents": num_empty,
        "splits": {name: writers[name].finish() for name in SPLITS if name in writers},
        "files": file_table(folder),
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


_Encoded = list[tuple[Piece, np.ndarray, int]]


def _encoded(source: Iterator[Piece], tokenizer: Tokenizer, id_type: np.dtype[Any]) -> Iterator[_Encoded]:
    """Encode pieces in batches, with their UTF-8 bytes; other threads encode while this one reads and writes."""
    in_flight: deque[Future[_Encoded]] = deque()
    with ThreadPoolExecutor(max_workers=2) as pool:
        for batch in _batches(source):
            in_flight.append(pool.submit(_encode, tokenizer, batch, id_type))
            if len(in_flight) == BATCHES_IN_FLIGHT:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()


def _batches(source: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Collect pieces until they have enough characters to be encoded together."""
    batch: list[Piece] = []
    characters = 0
    for piece in source:
        batch.append(piece)
        # A short document has a cost too.
        characters += len(piece.text) + 64
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, batch: list[Piece], id_type: np.dtype[Any]) -> _Encoded:
    """Encode one batch; an unknown character is reported with its place in the document."""
    try:
        ids = tokenizer.encode_batch([piece.text for piece in batch])
    except UnknownCharacter as error:
        piece = next(piece for piece in batch if error.character in piece.text)
        position = piece.offset + piece.text.index(error.character)
        where = f"{piece.document.place} ({piece.document.split} split)"
        raise UnknownCharacter(error.character, position, where) from None
    return [(piece, one.astype(id_type), len(piece.text.encode())) for piece, one in zip(batch, ids, strict=True)]
