"""Prepared corpora: shards of token ids on the disk, read at any position.

A folder holds ``manifest.json``, ``tokenizer.json`` and, for each split, shards ``<split>-00000.bin`` of little-endian
uint16 or uint32 ids and ``<split>-documents.bin``, two little-endian int64 for each document: its tokens, end-of-text
included, and its UTF-8 bytes. The ids of a split are one stream: ``<eot> document <eot> document <eot> …``.
"""

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, model_validator

from nanolm.data.shards import DOCUMENT_TYPE
from nanolm.data.splits import ALL, SPLITS
from nanolm.data.tokenizer import Tokenizer
from nanolm.data.tokenizer_file import load_tokenizer
from nanolm.errors import DataError, sentence
from nanolm.files import Count, FileEntry, check_file_table, read_record

FORMAT = "nanolm prepared corpus"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
ID_TYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_IDS_PER_CHECK = 1 << 22


class TokenizerEntry(BaseModel, frozen=True, extra="forbid"):
    """The tokenizer in a manifest."""

    name: str
    vocab_size: Count


class SplitEntry(BaseModel, frozen=True, extra="forbid"):
    """A split in a manifest: its targets, documents and UTF-8 bytes, and its files."""

    num_tokens: Count
    num_documents: Count
    num_bytes: Count
    shards: tuple[str, ...]
    documents: str


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """The content of ``manifest.json``: consistent in itself, but not yet compared with the files."""

    format: Literal["nanolm prepared corpus"]
    format_version: Literal[1]
    corpus: str
    source: dict[str, Any]
    split_settings: dict[str, Any]
    settings: str
    tokenizer: TokenizerEntry
    id_type: Literal["uint16", "uint32"]
    num_empty_documents: Count
    splits: dict[str, SplitEntry]
    files: dict[str, FileEntry]
    fingerprint: str

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        if self.fingerprint != fingerprint_of(self.model_dump()):
            raise ValueError("expected content that matches its fingerprint")
        if not set(SPLITS) >= self.splits.keys() or not {"train", ALL} & self.splits.keys():
            raise ValueError(f"expected splits among {', '.join(SPLITS)}, and train or {ALL} among them")
        sizes = {name: entry["size"] for name, entry in self.files.items()}
        named = [file for split in self.splits.values() for file in (*split.shards, split.documents)]
        if not sizes.keys() >= {TOKENIZER, *named}:
            raise ValueError(f"expected {TOKENIZER} and the files of every split among the files")
        id_size = ID_TYPES[self.id_type].itemsize
        for name, split in self.splits.items():
            if not split.num_documents or sizes[split.documents] != 2 * DOCUMENT_TYPE.itemsize * split.num_documents:
                raise ValueError(f"expected {split.documents} of the size of {split.num_documents:,} documents")
            if odd := [shard for shard in split.shards if not sizes[shard] or sizes[shard] % id_size]:
                raise ValueError(f"expected a whole number of {self.id_type} ids in {odd[0]}")
            if sum(sizes[shard] for shard in split.shards) != (split.num_tokens + 1) * id_size:
                raise ValueError(f"expected {split.num_tokens:,} tokens in the shards of the split {name}")
        return self


def fingerprint_of(content: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON content, without its own ``fingerprint``."""
    content = {key: value for key, value in content.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class DocumentIndex(NamedTuple):
    """The documents of a split, as int64 arrays with one entry for each.

    Args:
        first_target: number of its first target in the split.
        num_tokens: its targets, the end-of-text after it included.
        num_bytes: UTF-8 bytes of its text.
    """

    first_target: np.ndarray
    num_tokens: np.ndarray
    num_bytes: np.ndarray


class TokenSplit:
    """The tokens of one split.

    Target number ``i`` is the stored id ``i + 1``, predicted from the ids up to stored id ``i``; the first target's
    context is an end-of-text alone.

    Attributes:
        name: train, calibration, val, test, shifted or all.
        num_tokens: number of targets, end-of-texts included; one more id is stored.
        num_documents: number of documents.
        num_bytes: UTF-8 bytes of their texts.
        bytes_of_id: (V,) UTF-8 bytes of text that each id stands for.
    """

    def __init__(self, folder: Path, name: str, entry: SplitEntry, id_type: np.dtype[Any], bytes_of_id: np.ndarray):
        self.name = name
        self.bytes_of_id = bytes_of_id
        self.num_tokens = entry.num_tokens
        self.num_documents = entry.num_documents
        self.num_bytes = entry.num_bytes
        self.shards = [folder / shard for shard in entry.shards]
        self._documents_file = folder / entry.documents
        # Plain arrays over the mapped memory: a memmap object costs microseconds at every slice.
        self._ids = [np.asarray(np.memmap(shard, dtype=id_type, mode="r")) for shard in self.shards]
        self._starts = np.cumsum([0, *map(len, self._ids)])

    def read(self, start: int, length: int) -> np.ndarray:
        """Read the stored ids [start, start + length), int64, across shards."""
        assert start >= 0, start
        assert start + length <= self.num_tokens + 1, (start, length)
        ids = np.empty(length, dtype=np.int64)
        filled = 0
        while filled < length:
            shard, first = self._place(start + filled)
            part = self._ids[shard][first : first + length - filled]
            ids[filled : filled + len(part)] = part
            filled += len(part)
        return ids

    def _place(self, number: int) -> tuple[int, int]:
        """Find the shard of a stored id, and its offset there."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, number - int(self._starts[shard])

    @functools.cached_property
    def documents(self) -> DocumentIndex:
        """Read the index of the documents, in the order of the stream."""
        num_tokens, num_bytes = np.fromfile(self._documents_file, dtype=DOCUMENT_TYPE).astype(np.int64).reshape(-1, 2).T
        return DocumentIndex(np.cumsum(num_tokens) - num_tokens, num_tokens.copy(), num_bytes.copy())

    def check(self, tokenizer: Tokenizer) -> None:
        """Compare every id and the document index with tokenizer and counts; raise DataError if they disagree."""
        ends = []
        for path, ids, first in zip(self.shards, self._ids, self._starts.tolist(), strict=False):
            for start in range(0, len(ids), _IDS_PER_CHECK):
                block = ids[start : start + _IDS_PER_CHECK]
                if int(block.max()) >= tokenizer.vocab_size:
                    offset = start + int(np.argmax(block >= tokenizer.vocab_size))
                    raise DataError(
                        f"{path}: expected ids in the vocabulary of {tokenizer.vocab_size:,}, found {ids[offset]} at "
                        f"offset {offset:,} (byte {offset * ids.itemsize:,})"
                    )
                ends.append(np.flatnonzero(block == tokenizer.end_of_text_id) + first + start)
        documents = self.documents  # target i is id i + 1 of the stream, so a document ends at this id
        self._check_ends(np.concatenate(ends), np.concatenate([[0], documents.first_target + documents.num_tokens]))
        if documents.num_bytes.min() <= 0 or documents.num_bytes.sum() != self.num_bytes:
            found = documents.num_bytes.sum()
            raise DataError(f"{self._documents_file}: expected {self.num_bytes:,} bytes of text, found {found:,}")

    def _check_ends(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Compare the positions of the end-of-texts with those that follow from the document index."""
        if np.array_equal(found, expected):
            return
        wrong = np.setxor1d(found, expected)  # empty if the only fault is a document of no tokens
        number = min(max(0, int(wrong[0])), self.num_tokens) if len(wrong) else 0
        shard, offset = self._place(number)
        raise DataError(
            f"{self._documents_file}: does not agree with {self.shards[shard]}, whose id at offset {offset:,} (byte "
            f"{offset * self._ids[shard].itemsize:,}) is {'' if number in found else 'not '}an end-of-text"
        )


@dataclass(frozen=True)
class PreparedCorpus:
    """A tokenized corpus, made by ``open_prepared``; ``splits`` holds those that have documents, by name."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer
    splits: dict[str, TokenSplit]

    @property
    def fingerprint(self) -> str:
        """SHA-256 that is equal for two corpora with the same text, splits and tokenizer."""
        return self.manifest.fingerprint


def open_prepared(folder: Path, verify: bool = True) -> PreparedCorpus:
    """Open a prepared corpus.

    Args:
        folder: what ``prepare`` returned.
        verify: read all of it once to check the sha256 of every file, every id and the document index, beyond the
            manifest and the names and sizes of the files.

    Raises:
        DataError: it is missing or damaged; the message names the file, and the offset where one is known.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / MANIFEST):
        raise DataError(f"{folder}: expected a prepared corpus, found no {MANIFEST}; tokenize first")
    try:
        manifest = read_record(folder / MANIFEST, Manifest, DataError)
        check_file_table(folder, manifest.files, DataError, hashes=verify)
        tokenizer = load_tokenizer(folder / TOKENIZER)
        if tokenizer.vocab_size != manifest.tokenizer.vocab_size:
            raise DataError(f"{folder / TOKENIZER}: its vocabulary does not have the size that {MANIFEST} gives")
        splits = {
            name: TokenSplit(folder, name, entry, ID_TYPES[manifest.id_type], tokenizer.num_bytes)
            for name, entry in manifest.splits.items()
        }
        for split in splits.values() if verify else ():
            split.check(tokenizer)
    except DataError as error:
        raise DataError(f"{sentence(error)} Delete the folder and tokenize again.") from None
    return PreparedCorpus(folder, manifest, tokenizer, splits)
