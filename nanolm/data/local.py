"""Corpora in local files: plain text, JSON lines, Parquet."""

import functools
import glob
import gzip
import itertools
import json
import os
import zlib
from abc import abstractmethod
from codecs import utf_8_decode
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from nanolm.config.schema import JsonlConfig, LocalConfig, ParquetConfig
from nanolm.data.documents import Corpus, Document, missing_column, readable, shown, text_of
from nanolm.data.encoding import HEAD_BYTES, not_utf8, unmarked_wide_encoding, what_to_do
from nanolm.errors import DataError
from nanolm.files import glob_paths, sha256_of

BLOCK_BYTES = 1 << 20
ROWS_PER_BATCH = 256


def find_files(pattern: str) -> list[Path]:
    """Find the file or the files of a glob, sorted by name; each once, however many links lead to it.

    Raises:
        DataError: there is none, or it is a folder, a pipe or a device.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if not path.exists() and glob.has_magic(str(path)):
        if files := _distinct(file for file in glob_paths(path) if os.path.isfile(file)):
            return files
        raise DataError(f"data.path: no file matches {path} (from the folder {Path.cwd()})")
    found = "a folder" if path.is_dir() else "a pipe or device" if path.exists() else "no such file"
    raise DataError(f"data.path: expected a file, or a glob such as '*.txt', found {found}: {path}")


def _distinct(files: Iterable[Path]) -> list[Path]:
    """Keep one name of each file, a name that is no symbolic link if there is one, and sort by name."""
    real = {file: os.path.realpath(file) for file in files}
    found: dict[Any, Path] = {}
    for file in sorted(real, key=lambda file: (real[file] != os.path.abspath(file), str(file))):
        status = file.stat()
        found.setdefault((status.st_dev, status.st_ino) if status.st_nlink > 1 else real[file], file)
    return sorted(found.values(), key=str)


class _File(NamedTuple):
    sha256: str
    size: int
    modified: int
    num_documents: int


class LocalCorpus(Corpus):
    """Files in the order of their names; the documents of each in the order in which they stand there."""

    def __init__(self, config: LocalConfig):
        self.config = config
        self.paths = find_files(config.path)

    @abstractmethod
    def count(self, path: Path) -> int:
        """Count the documents in a file, those without text included."""

    @abstractmethod
    def read(self, path: Path) -> Iterator[Document]:
        """Read the documents of a file."""

    @functools.cached_property
    def _files(self) -> dict[Path, _File]:
        """Read all files once for their hashes and counts."""
        files = {}
        for path in self.paths:
            with readable(path, OSError):
                status, sha256 = path.stat(), sha256_of(path)
            files[path] = _File(sha256, status.st_size, status.st_mtime_ns, self.count(path))
        if not any(file.size and file.num_documents for file in files.values()):
            names = ", ".join(map(str, self.paths[:3]))
            raise DataError(f"data={self.config.name}: {names}: empty; a corpus needs text")
        return files

    def identity(self) -> dict[str, Any]:
        return {"files": [[file.sha256, file.size] for file in self._files.values()]}

    def source(self) -> dict[str, Any]:
        files = self._files.items()
        return {"files": [{"name": path.name, "size": file.size, "sha256": file.sha256} for path, file in files]}

    def num_bytes(self) -> int | None:
        if self.config.max_documents is not None or any(path.suffix == ".gz" for path in self.paths):
            return None
        return sum(file.size for file in self._files.values())

    def num_undecided(self) -> int:
        count = sum(file.num_documents for file in self._files.values())
        return min(count, self.config.max_documents or count)

    def documents(self) -> Iterator[Document]:
        everything = itertools.chain.from_iterable(map(self.read, self._files))
        yield from itertools.islice(everything, self.config.max_documents)
        for path, file in self._files.items():
            with readable(path, OSError):
                status = path.stat()
            if (status.st_size, status.st_mtime_ns) != (file.size, file.modified):
                raise DataError(f"{path}: changed while it was read; run the command again when it is whole")


class TextCorpus(LocalCorpus):
    """Each file is one document, of any size."""

    def count(self, path: Path) -> int:
        return 1

    def read(self, path: Path) -> Iterator[Document]:
        yield Document(str(path), _blocks(path), sha256=self._files[path].sha256)


def _blocks(path: Path) -> Iterator[str]:
    """Read a file's text exactly, block by block."""
    offset, rest = 0, b""
    with readable(path, OSError), open(path, "rb") as file:
        advice = _checked_head(path, file)
        while True:
            block = file.read(BLOCK_BYTES)
            data = rest + block
            try:
                text, consumed = utf_8_decode(data, "strict", not block)
            except UnicodeDecodeError as error:
                raise not_utf8(path, error, offset, advice) from None
            yield text
            if not block:
                return
            offset += consumed
            rest = data[consumed:]


def _checked_head(path: Path, file: BufferedReader | gzip.GzipFile) -> str:
    """Say what to do if the file turns out not to be UTF-8; raise a DataError if it is UTF-16 or UTF-32 for sure."""
    head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
    if wide := unmarked_wide_encoding(head):
        raise DataError(f"{path}: expected UTF-8 text, found {wide} without a byte order mark. {what_to_do(head)}")
    return what_to_do(head)


class JsonLinesCorpus(LocalCorpus):
    """Each line is one JSON object, whose field ``data.text_column`` is a document; ``.gz`` is unpacked."""

    config: JsonlConfig

    def count(self, path: Path) -> int:
        return sum(1 for _ in self._lines(path))

    def _lines(self, path: Path) -> Iterator[tuple[str, str]]:
        """Read the place and content of each line that is not blank."""
        with (
            readable(path, OSError, EOFError, zlib.error),
            gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file,
        ):
            advice, offset = _checked_head(path, file), 0
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode().removeprefix("\ufeff" if number == 1 else "")
                except UnicodeDecodeError as error:
                    raise not_utf8(path, error, offset, advice) from None
                offset += len(line)
                if text.strip(" \t\r\n"):
                    yield f"{path}, line {number:,}", text

    def read(self, path: Path) -> Iterator[Document]:
        for place, line in self._lines(path):
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: expected one JSON object, found {line[:40]!r}: {error}") from None
            if not isinstance(content, dict):
                raise DataError(f"{place}: expected a JSON object, found {shown(content)}")
            yield Document(place, (text_of(content, self.config.text_column, place),))


class ParquetCorpus(LocalCorpus):
    """Each row is one document, in the column ``data.text_column``."""

    config: ParquetConfig

    def count(self, path: Path) -> int:
        from pyarrow import ArrowException, ArrowNotImplementedError, large_binary, nulls
        from pyarrow.parquet import ParquetFile

        column = self.config.text_column
        with readable(path, ArrowException, OSError), ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise missing_column(str(path), column, file.schema_arrow.names)
            kind = file.schema_arrow.field(column).type
            try:
                nulls(0, kind).cast(large_binary())
            except ArrowNotImplementedError:
                raise DataError(f"{path}: expected text under {column!r}, found {kind}; set data.text_column") from None
            return int(file.metadata.num_rows)

    def num_bytes(self) -> None:
        return None  # compressed text may be several times as large as its file

    def read(self, path: Path) -> Iterator[Document]:
        from pyarrow import ArrowException, large_binary
        from pyarrow.parquet import ParquetFile

        column, number = self.config.text_column, 0
        with readable(path, ArrowException, OSError), ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=[column]):
                # As bytes, which Arrow has not checked: bytes that are not UTF-8 are refused with their row.
                for value in batch.column(0).cast(large_binary()).to_pylist():
                    number += 1
                    place = f"{path}, row {number:,}"
                    yield Document(place, (text_of({column: value}, column, place),))
