"""Corpora in local files: plain text, JSON lines, Parquet."""

import contextlib
import difflib
import functools
import glob
import gzip
import itertools
import json
import os
import zlib
from abc import ABC, abstractmethod
from codecs import BOM_UTF8, utf_8_decode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanolm.config.schema import DataConfig
from nanolm.data.corpus import Document
from nanolm.data.encoding import HEAD_BYTES, unmarked_wide_encoding, what_to_do
from nanolm.errors import DataError
from nanolm.files import glob_paths, sha256_of

if TYPE_CHECKING:
    from pyarrow import DataType, Scalar
    from pyarrow.parquet import ParquetFile

BLOCK_BYTES = 1 << 20
ROWS_PER_BATCH = 256


def open_local_corpus(config: DataConfig) -> "LocalCorpus":
    """The files that ``data.path`` names, as data=text, jsonl or parquet reads them.

    Raises:
        DataError: there are none, or they are empty or cannot be read.
    """
    kinds: dict[str, Callable[[DataConfig], LocalCorpus]]
    kinds = {"text": TextCorpus, "jsonl": JsonLinesCorpus, "parquet": ParquetCorpus}
    return kinds[config.name](config)


def find_files(config: DataConfig) -> list[Path]:
    """The file, or the files of the glob, ``data.path``, sorted by name; each once, however many links lead to it."""
    if not config.path:
        raise DataError(f"data.path: data={config.name} needs it; give data.path=FILE or a glob in quotes")
    path = Path(config.path).expanduser()
    if path.is_dir():
        raise DataError(f"data.path: {path} is a folder; name a file in it, or a glob such as '{path}/*.txt'")
    if path.is_file():
        return [path]
    if glob.has_magic(str(path)):
        if files := _distinct(file for file in glob_paths(path) if os.path.isfile(file)):
            return files
        raise DataError(f"data.path: no file matches {path} (from the folder {Path.cwd()})")
    if path.exists():
        raise DataError(f"data.path: {path} is not a regular file; copy it into one")
    nearest = difflib.get_close_matches(path.name, os.listdir(path.parent), 1) if path.parent.is_dir() else []
    hint = f"; did you mean {path.parent / nearest[0]}?" if nearest else f" (from the folder {Path.cwd()})"
    raise DataError(f"data.path: there is no file {path}{hint}")


def _distinct(files: Iterable[Path]) -> list[Path]:
    """Each file once, sorted by name; of several links to one, symbolic or hard, a name that is none, or the first."""
    real = {file: os.path.realpath(file) for file in files}
    found: dict[Any, Path] = {}
    for file in sorted(real, key=lambda file: (real[file] != os.path.abspath(file), str(file))):
        status = file.stat()
        found.setdefault((status.st_dev, status.st_ino) if status.st_nlink > 1 else real[file], file)
    return sorted(found.values(), key=str)


def cannot_read(path: Path, error: Exception) -> DataError:
    """The error for a file that the system will not give us."""
    return DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")


def not_utf8(path: Path, offset: int, byte: int, head: bytes) -> DataError:
    """The error for a byte that is not UTF-8, in a file that begins with ``head``."""
    return DataError(
        f"{path}: expected UTF-8 text, found the byte 0x{byte:02x} at offset {offset:,}. {what_to_do(head)}"
    )


def refuse_wide(path: Path, head: bytes) -> None:
    """Raise DataError for text in UTF-16 or UTF-32 that would pass for UTF-8 with many NUL characters."""
    if wide := unmarked_wide_encoding(head):
        raise DataError(f"{path}: expected UTF-8 text, found {wide} without a byte order mark. {what_to_do(head)}")


class LocalCorpus(ABC):
    """Files in the order of their names; the documents of each in the order in which they stand there."""

    def __init__(self, config: DataConfig):
        self.config = config
        self.paths = find_files(config)

    @abstractmethod
    def count(self, path: Path) -> int:
        """Number of documents in a file, those without text included."""

    @abstractmethod
    def read(self, path: Path) -> Iterator[Document]:
        """The documents of a file."""

    @functools.cached_property
    def _survey(self) -> dict[Path, "_File"]:
        """What identifies the files, and when they were last written; reads all of them once."""
        files = {}
        for path in self.paths:
            try:
                status = path.stat()
                sha256 = sha256_of(path)
            except OSError as error:
                raise cannot_read(path, error) from error
            files[path] = _File(path.name, status.st_size, sha256, status.st_mtime_ns, self.count(path))
        if not any(file.size and file.num_documents for file in files.values()):
            names = ", ".join(map(str, self.paths[:3])) + (", …" if len(self.paths) > 3 else "")
            raise DataError(f"data={self.config.name}: {names}: empty; a corpus needs text to train on")
        return files

    def identity(self) -> dict[str, Any]:
        return {"files": [[file.sha256, file.size] for file in self._survey.values()]}

    def source(self) -> dict[str, Any]:
        return {
            "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in self._survey.values()]
        }

    def num_bytes(self) -> int | None:
        """The size of the files, where that is about the size of their text; unpacked, they are of any size."""
        if self.config.max_documents is not None or not all(map(self.is_plain, self.paths)):
            return None
        return sum(file.size for file in self._survey.values())

    def is_plain(self, path: Path) -> bool:
        """Whether a file holds its text as it is, neither compressed nor encoded in columns."""
        return True

    def num_undecided(self) -> int:
        count = sum(file.num_documents for file in self._survey.values())
        return min(count, self.config.max_documents or count)

    def documents(self) -> Iterator[Document]:
        everything = itertools.chain.from_iterable(map(self.read, self.paths))
        return itertools.islice(everything, self.config.max_documents)

    def check_unchanged(self) -> None:
        for path, file in self._survey.items():
            try:
                status = path.stat()
            except OSError as error:
                raise cannot_read(path, error) from error
            if (status.st_size, status.st_mtime_ns) != (file.size, file.written):
                raise DataError(f"{path}: changed while it was read; run the command again when it is whole")


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    sha256: str
    written: int
    num_documents: int


class TextCorpus(LocalCorpus):
    """Each file is one document, of any size."""

    def count(self, path: Path) -> int:
        return 1

    def read(self, path: Path) -> Iterator[Document]:
        yield Document(str(path), _decoded(path), sha256=self._survey[path].sha256)


def _decoded(path: Path) -> Iterator[str]:
    """A file's text, block by block; its bytes are those of the file."""
    offset, rest = 0, b""
    try:
        with open(path, "rb") as file:
            refuse_wide(path, head := file.read(HEAD_BYTES))
            file.seek(0)
            while True:
                block = file.read(BLOCK_BYTES)
                data = rest + block
                try:
                    text, consumed = utf_8_decode(data, "strict", not block)
                except UnicodeDecodeError as error:
                    raise not_utf8(path, offset + error.start, data[error.start], head) from None
                offset += consumed
                rest = data[consumed:]
                if text:
                    yield text
                if not block:
                    return
    except OSError as error:
        raise cannot_read(path, error) from error


def checked_text(value: Any, place: str, column: str) -> str:
    """A document's text from a field or column; bytes are its UTF-8, as some writers of Parquet store it.

    Raises:
        DataError: it is no text, is not UTF-8, or holds half of a surrogate pair, which UTF-8 cannot express.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8_value(place, error) from None
    if not isinstance(value, str):
        found = "nothing (null)" if value is None else f"{type(value).__name__} {_as_json(value)}"
        raise DataError(f"{place}: expected text under {column!r}, found {found}; repair or remove the document")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: the text under {column!r} holds half of a surrogate pair (U+{ord(value[error.start]):04X}) at "
            f"character {error.start:,}, which UTF-8 cannot express; repair or remove the document"
        ) from None
    return value


def _as_json(value: Any) -> str:
    """What the beginning of a value looks like in the user's file."""
    return f"{json.dumps(value, ensure_ascii=False, default=str):.40}"


def missing_column(place: str, column: str, columns: list[str]) -> DataError:
    """The error for a document or file that lacks ``data.text_column``."""
    nearest = difflib.get_close_matches(column, columns, 1)
    hint = (
        f"; did you mean data.text_column={nearest[0]}?" if nearest else "; set data.text_column to the one with text"
    )
    return DataError(
        f"{place}: there is no {column!r}, only {', '.join(map(repr, columns)) or 'no field at all'}{hint}"
    )


class JsonLinesCorpus(LocalCorpus):
    """Each line is one JSON object, whose field ``data.text_column`` is a document; ``.gz`` is unpacked."""

    def count(self, path: Path) -> int:
        return sum(1 for _ in self._lines(path))

    def is_plain(self, path: Path) -> bool:
        return not _is_packed(path)

    def _lines(self, path: Path) -> Iterator[tuple[int, int, bytes]]:
        """Number, offset in bytes, and content of each line that is not blank."""
        try:
            with _open_packed(path) as file:
                refuse_wide(path, file.read(HEAD_BYTES))
                file.seek(0)
                offset = 0
                for number, line in enumerate(file, 1):
                    mark = len(BOM_UTF8) if number == 1 and line.startswith(BOM_UTF8) else 0
                    if line[mark:].strip():
                        yield number, offset + mark, line[mark:]
                    offset += len(line)
        except (OSError, EOFError, zlib.error) as error:
            raise cannot_read(path, error) from error

    def read(self, path: Path) -> Iterator[Document]:
        column = self.config.text_column
        for number, offset, line in self._lines(path):
            place = f"{path}, line {number:,}"
            try:
                content = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                with _open_packed(path) as file:
                    head = file.read(HEAD_BYTES)
                raise not_utf8(path, offset + error.start, line[error.start], head) from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: expected one JSON object, found {line[:40]!r}: {error}") from None
            if not isinstance(content, dict):
                raise DataError(f"{place}: expected a JSON object, found {_as_json(content)}")
            if column not in content:
                raise missing_column(place, column, list(content))
            yield Document(place, (checked_text(content[column], place, column),))


def _is_packed(path: Path) -> bool:
    return path.suffix == ".gz"


def _open_packed(path: Path) -> BufferedIOBase:
    return gzip.open(path) if _is_packed(path) else open(path, "rb")


class ParquetCorpus(LocalCorpus):
    """Each row is one document, in the column ``data.text_column``."""

    def count(self, path: Path) -> int:
        with _parquet(path) as file:
            if self.config.text_column not in file.schema_arrow.names:
                raise missing_column(str(path), self.config.text_column, file.schema_arrow.names)
            if not _may_be_text(kind := file.schema_arrow.field(self.config.text_column).type):
                raise DataError(
                    f"{path}: expected text in the column {self.config.text_column!r}, found {kind}; set "
                    f"data.text_column to another one of {', '.join(map(repr, file.schema_arrow.names))}"
                )
            return int(file.metadata.num_rows)

    def is_plain(self, path: Path) -> bool:
        return False

    def read(self, path: Path) -> Iterator[Document]:
        column, number = self.config.text_column, 0
        with _parquet(path) as file:
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    place = f"{path}, row {number:,}"
                    yield Document(place, (checked_text(_python_value(value, place), place, column),))


@contextlib.contextmanager
def _parquet(path: Path) -> "Iterator[ParquetFile]":
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _python_value(value: "Scalar", place: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise _not_utf8_value(place, error) from None


def _may_be_text(kind: "DataType") -> bool:
    from pyarrow import types

    return not (types.is_primitive(kind) or types.is_decimal(kind) or types.is_nested(kind))


def _not_utf8_value(place: str, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{place}: expected UTF-8 text, found the byte 0x{error.object[error.start]:02x}; repair or remove the document"
    )
