"""Prepared corpora: shards of token ids on the disk, read at any place.

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
from typing import Any, NoReturn

import numpy as np

from nanolm.data.splits import ALL, SPLITS
from nanolm.data.tokenizer import Tokenizer
from nanolm.data.tokenizer_file import load_tokenizer
from nanolm.errors import DataError
from nanolm.files import check_file_table, parse_json, why_no_file

FORMAT = "nanolm prepared corpus"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
ID_TYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
DOCUMENT_TYPE = np.dtype("<i8")
_VERIFIED_IDS = 1 << 22


@dataclass(frozen=True)
class DocumentIndex:
    """Where the documents of a split lie; int64 arrays with one entry for each document.

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

    def __init__(self, folder: Path, name: str, entry: dict[str, Any], id_type: np.dtype[Any], bytes_of_id: np.ndarray):
        self.name = name
        self.bytes_of_id = bytes_of_id
        self.num_tokens: int = entry["num_tokens"]
        self.num_documents: int = entry["num_documents"]
        self.num_bytes: int = entry["num_bytes"]
        self.shards = [folder / shard for shard in entry["shards"]]
        self._documents_file = folder / entry["documents"]
        # Plain arrays over the mapped memory: a memmap object costs microseconds at every slice.
        self._ids = [np.asarray(np.memmap(shard, dtype=id_type, mode="r")) for shard in self.shards]
        self._starts = np.cumsum([0, *map(len, self._ids)])

    def read(self, start: int, length: int) -> np.ndarray:
        """The stored ids [start, start + length), int64, across shards."""
        assert start >= 0, start
        assert start + length <= self.num_tokens + 1, (start, length)
        ids = np.empty(length, dtype=np.int64)
        filled = 0
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while filled < length:
            first = start + filled - int(self._starts[shard])
            part = self._ids[shard][first : first + length - filled]
            ids[filled : filled + len(part)] = part
            filled += len(part)
            shard += 1
        return ids

    @functools.cached_property
    def documents(self) -> DocumentIndex:
        """The documents of the split, in the order of the stream."""
        table = np.fromfile(self._documents_file, dtype=DOCUMENT_TYPE).reshape(-1, 2).astype(np.int64)
        num_tokens, num_bytes = np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])
        return DocumentIndex(np.cumsum(num_tokens) - num_tokens, num_tokens, num_bytes)

    def check(self, tokenizer: Tokenizer) -> None:
        """Compare every id and the document index with the tokenizer and the counts.

        Raises:
            DataError: naming the shard and the offset.
        """
        ends = []
        for path, ids, first in zip(self.shards, self._ids, self._starts.tolist(), strict=False):
            for start in range(0, len(ids), _VERIFIED_IDS):
                block = ids[start : start + _VERIFIED_IDS]
                if int(block.max()) >= tokenizer.vocab_size:
                    offset = start + int(np.argmax(block >= tokenizer.vocab_size))
                    raise DataError(
                        f"{path}: id {ids[offset]} at offset {offset:,} (byte {offset * ids.itemsize:,}) is outside "
                        f"the vocabulary of {tokenizer.vocab_size:,}. {_AGAIN}"
                    )
                ends.append(np.flatnonzero(block == tokenizer.end_of_text_id) + first + start)
        documents = self.documents
        self._check_ends(np.concatenate(ends), np.concatenate([[0], documents.first_target + documents.num_tokens]))
        if documents.num_bytes.min() <= 0 or documents.num_bytes.sum() != self.num_bytes:
            raise DataError(
                f"{self._documents_file}: does not agree with the {self.num_bytes:,} bytes of text that {MANIFEST} "
                f"counts. {_AGAIN}"
            )

    def _check_ends(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Compare the places of the end-of-texts with those that follow from the document index."""
        if np.array_equal(found, expected):
            return
        both = min(len(found), len(expected))
        first = int(np.argmin(np.append(found[:both] == expected[:both], False)))
        missing = first == len(found) or (first < both and expected[first] < found[first])
        place = min(max(0, int((expected if missing else found)[first])), self.num_tokens)
        shard = int(np.searchsorted(self._starts, place, side="right")) - 1
        offset = place - int(self._starts[shard])
        what = "should be an end-of-text and is none" if missing else "should not be an end-of-text and is one"
        raise DataError(
            f"{self._documents_file}: does not agree with {self.shards[shard]}, whose id at offset {offset:,} (byte "
            f"{offset * self._ids[shard].itemsize:,}) {what}. {_AGAIN}"
        )


_AGAIN = "Delete the folder and tokenize again."


class PreparedCorpus:
    """A tokenized corpus. Made by ``open_prepared``.

    Attributes:
        folder: where it lies.
        manifest: the content of ``manifest.json``.
        fingerprint: sha256 of the manifest: equal for two corpora with the same text, splits and tokenizer.
        tokenizer: the tokenizer of its ids.
        splits: the splits by name; a split without documents is not there.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder = folder
        self.manifest = manifest
        self.fingerprint: str = manifest["fingerprint"]
        self.tokenizer = load_tokenizer(folder / TOKENIZER)
        id_type = ID_TYPES[manifest["id_type"]]
        self.splits = {
            name: TokenSplit(folder, name, entry, id_type, self.tokenizer.num_bytes)
            for name, entry in manifest["splits"].items()
        }


def open_prepared(folder: Path, verify: bool = True) -> PreparedCorpus:
    """Open a prepared corpus.

    Args:
        folder: what ``prepare`` returned.
        verify: compare the sha256 of every file, every id and the document index as well; reads all of it once.
            Without it, the manifest, the names and the sizes of the files are checked.

    Raises:
        DataError: it is missing or damaged; the message names the file, and the offset where one is known.
    """
    folder = Path(folder)
    manifest = _Manifest(folder).checked()
    if verify:
        check_file_table(folder, manifest["files"], DataError)
    corpus = PreparedCorpus(folder, manifest)
    if corpus.tokenizer.vocab_size != manifest["tokenizer"]["vocab_size"]:
        raise DataError(f"{folder / TOKENIZER}: its vocabulary is not of the size that the manifest says. {_AGAIN}")
    if verify:
        for split in corpus.splits.values():
            split.check(corpus.tokenizer)
    return corpus


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content without its own fingerprint."""
    content = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class _Manifest:
    """A manifest.json that may be damaged, or made by a stranger."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / MANIFEST

    def refuse(self, reason: str) -> NoReturn:
        raise DataError(f"{self.path}: {reason}. {_AGAIN}")

    def get(self, mapping: Any, name: str, kind: type) -> Any:
        value: Any = mapping.get(name) if isinstance(mapping, dict) else None
        if type(value) is not kind:
            self.refuse(f"expected a {kind.__name__} under {name!r}, found {value!r:.60}")
        return value

    def number(self, mapping: Any, name: str) -> int:
        value: int = self.get(mapping, name, int)
        if value < 0:
            self.refuse(f"expected a number of at least 0 under {name!r}, found {value}")
        return value

    def checked(self) -> dict[str, Any]:
        if not os.path.lexists(self.path):
            raise DataError(f"{self.folder}: not a prepared corpus: it has no {MANIFEST}; tokenize first")
        if why_no_file(self.path):
            self.refuse("expected a file, found a link or something else")
        try:
            manifest = parse_json(self.path.read_bytes())
        except OSError as error:
            self.refuse(f"cannot be read: {error.strerror}")
        except ValueError as error:
            self.refuse(f"is not JSON: {error}")
        if self.get(manifest, "format", str) != FORMAT:
            self.refuse(f"expected the format {FORMAT!r}, found {manifest['format']!r:.60}")
        if self.number(manifest, "format_version") != FORMAT_VERSION:
            self.refuse(f"expected format version {FORMAT_VERSION}, found {manifest['format_version']}")
        if self.get(manifest, "fingerprint", str) != fingerprint_of(manifest):
            self.refuse("its content is not the one that its fingerprint was made of: the file is damaged")
        if self.get(manifest, "id_type", str) not in ID_TYPES:
            self.refuse(f"expected id_type uint16 or uint32, found {manifest['id_type']!r:.60}")
        self.number(self.get(manifest, "tokenizer", dict), "vocab_size")
        self.check_files(self.get(manifest, "files", dict))
        for name, entry in self.get(manifest, "splits", dict).items():
            self.check_split(name, entry, manifest)
        if not {"train", ALL} & manifest["splits"].keys():
            self.refuse("there is no train split")
        return manifest  # type: ignore[no-any-return]

    def check_files(self, files: dict[str, Any]) -> None:
        for name, entry in files.items():
            if os.path.basename(name) != name or name in ("", ".", ".."):
                self.refuse(f"{name!r:.60} is not the plain name of a file in its folder")
            size = self.number(entry, "size")
            self.get(entry, "sha256", str)
            path = self.folder / name
            if reason := why_no_file(path):
                raise DataError(f"{path}: {reason}. {_AGAIN}")
            if path.stat().st_size != size:
                raise DataError(f"{path}: expected {size:,} bytes, found {path.stat().st_size:,}. {_AGAIN}")
        if TOKENIZER not in files:
            self.refuse(f"{TOKENIZER} is not among its files")

    def check_split(self, name: str, entry: Any, manifest: dict[str, Any]) -> None:
        if name not in SPLITS:
            self.refuse(f"expected splits among {', '.join(SPLITS)}, found {name!r:.60}")
        num_tokens, num_documents = self.number(entry, "num_tokens"), self.number(entry, "num_documents")
        self.number(entry, "num_bytes")
        shards, documents = self.get(entry, "shards", list), self.get(entry, "documents", str)
        for file in (*shards, documents):
            if type(file) is not str or file not in manifest["files"]:
                self.refuse(f"split {name}: {file!r:.60} is not among its files")
        if not num_documents or manifest["files"][documents]["size"] != 2 * DOCUMENT_TYPE.itemsize * num_documents:
            self.refuse(f"{documents} is not of the size of {num_documents:,} documents")
        id_size = ID_TYPES[manifest["id_type"]].itemsize
        for shard in shards:
            if not manifest["files"][shard]["size"] or manifest["files"][shard]["size"] % id_size:
                raise DataError(f"{self.folder / shard}: not a whole number of {manifest['id_type']} ids. {_AGAIN}")
        if sum(manifest["files"][shard]["size"] for shard in shards) != (num_tokens + 1) * id_size:
            self.refuse(f"the shards of split {name} do not hold {num_tokens:,} tokens")
