"""Writing the ids of a split: shards of bounded size, and the document index."""

from pathlib import Path
from typing import IO, Any

import numpy as np

from nanolm.data.prepared import DOCUMENT_TYPE

SHARD_IDS = 1 << 26


class SplitWriter:
    """Appends encoded documents to ``<split>-00000.bin`` and so on, and to ``<split>-documents.bin``.

    Args:
        folder: where the files go.
        name: the split.
        id_type: little-endian type of the stored ids.
        end_of_text_id: what stands before the first document and after each.
    """

    def __init__(self, folder: Path, name: str, id_type: np.dtype[Any], end_of_text_id: int):
        self._folder = folder
        self._name = name
        self._end_of_text = np.array([end_of_text_id], dtype=id_type)
        self._shards: list[str] = []
        self._shard: IO[bytes] | None = None
        self._room = 0
        self._documents = open(folder / f"{name}-documents.bin", "wb")  # noqa: SIM115 (closed by __exit__)
        self._document = np.zeros(2, dtype=DOCUMENT_TYPE)
        self._num_ids = self._num_documents = self._num_bytes = 0
        self._write(self._end_of_text)

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._documents.close()
        if self._shard is not None:
            self._shard.close()

    def append(self, ids: np.ndarray, num_bytes: int, ends_document: bool) -> None:
        """Add a piece of a document, which may end there."""
        self._write(ids)
        self._document += (len(ids), num_bytes)
        if ends_document:
            self._write(self._end_of_text)
            self._document[0] += 1
            self._documents.write(self._document.tobytes())
            self._num_bytes += int(self._document[1])
            self._num_documents += 1
            self._document[:] = 0

    def _write(self, ids: np.ndarray) -> None:
        self._num_ids += len(ids)
        while len(ids):
            if not self._room:
                self._next_shard()
            assert self._shard is not None
            self._shard.write(ids[: self._room].tobytes())
            written = min(self._room, len(ids))
            self._room -= written
            ids = ids[written:]

    def _next_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shards.append(f"{self._name}-{len(self._shards):05d}.bin")
        self._shard = open(self._folder / self._shards[-1], "wb")  # noqa: SIM115 (closed by __exit__)
        self._room = SHARD_IDS

    def entry(self) -> dict[str, Any]:
        """What the manifest says about the split."""
        return {
            "num_tokens": self._num_ids - 1,
            "num_documents": self._num_documents,
            "num_bytes": self._num_bytes,
            "shards": self._shards,
            "documents": f"{self._name}-documents.bin",
        }
