"""A corpus: an ordered sequence of documents, read several times and never held in memory.

The text of a document is kept exactly: no newline is translated, no byte order mark or control character removed.
Bytes that are not UTF-8 are an error.
"""

import contextlib
import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanolm.data.encoding import not_utf8, utf8
from nanolm.errors import DataError


@dataclass(frozen=True)
class Document:
    """A document, or the part of one that belongs to one split.

    Args:
        place: where it stands, for messages: a file, and a line or row of it.
        chunks: its text in order, in parts of any length; read once.
        split: the split it belongs to; None until it is assigned to one.
        sha256: of its UTF-8 bytes, where the corpus knows it without reading the text.
        offset: characters of the whole document before this part.
    """

    place: str
    chunks: Iterable[str]
    split: str | None = None
    sha256: str | None = None
    offset: int = 0


class Corpus(ABC):
    """A source of documents."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Describe what decides the documents, wherever they are stored: equal identities mean equal documents."""

    def source(self) -> dict[str, Any]:
        """Describe where the documents come from, for the manifest."""
        return self.identity()

    def num_bytes(self) -> int | None:
        """Estimate the bytes of text, for a progress bar; None if unknown."""
        return None

    def num_undecided(self) -> int:
        """Count the documents that come without a split."""
        return 0

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Read all documents in order.

        Raises:
            DataError: a file or document cannot be read, or the files changed meanwhile; the message names the place.
        """


@contextlib.contextmanager
def readable(place: str | Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn the errors of a library or of the system into a DataError that names the place."""
    try:
        yield
    except DataError:
        raise
    except errors as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(f"{place}: cannot be read: {reason}") from error


def text_of(record: Mapping[str, Any], column: str, place: str) -> str:
    """Return a document's text from its record, decoding bytes as UTF-8; raise a DataError if there is none."""
    if column not in record:
        raise missing_column(place, column, list(record))
    value = record[column]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(place, error) from None
    if not isinstance(value, str):
        raise DataError(f"{place}: expected text under {column!r}, found {shown(value)}; repair or remove it")
    utf8(value, f"{place}, {column!r}")
    return value


def shown(value: Any) -> str:
    """Return the beginning of a value as it looks in JSON."""
    return f"{json.dumps(value, ensure_ascii=False, default=str):.40}"


def missing_column(place: str, column: str, columns: list[str]) -> DataError:
    """Make the error for a document or file that lacks ``data.text_column``."""
    nearest = difflib.get_close_matches(column, columns, 1)
    hint = f"did you mean data.text_column={nearest[0]}?" if nearest else "set data.text_column"
    found = ", ".join(map(repr, columns)) or "none"
    return DataError(f"{place}: expected the column {column!r}, found {found}; {hint}")
