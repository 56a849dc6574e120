"""Write the ids of a split: shards of bounded size, and the document index."""

from array import array
from pathlib import Path
from typing import IO, Any

import numpy as np

SHARD_IDS = 1 << 26
DOCUMENT_TYPE = np.dtype("<i8")


class SplitWriter:
    """Write encoded documents to ``<split>-00000.bin`` and so on, and their index to ``<split>-documents.bin``."""

    def __init__(self, folder: Path, name: str, id_type: np.dtype[Any], end_of_text_id: int):
        self._folder = folder
        self._name = name
        self._end_of_text = np.array([end_of_text_id], dtype=id_type)
        self._shards: list[str] = []
        self._shard: IO[bytes] | None = None
        self._room = 0
        # Tokens and bytes of each document; the last pair is the unfinished one's.
        self._documents = array("q", (0, 0))
        self._write(self._end_of_text)

    def append(self, ids: np.ndarray, num_bytes: int, is_last: bool) -> None:
        """Add a piece of a document, which may be its last one."""
        self._write(ids)
        self._documents[-2] += len(ids) + is_last
        self._documents[-1] += num_bytes
        if is_last:
            self._write(self._end_of_text)
            self._documents.extend((0, 0))

    def _write(self, ids: np.ndarray) -> None:
        while len(ids):
            if self._shard is None or not self._room:
                self.close()
                self._shards.append(f"{self._name}-{len(self._shards):05d}.bin")
                self._shard = open(self._folder / self._shards[-1], "wb")  # noqa: SIM115 (``close`` does)
                self._room = SHARD_IDS
            now, ids = ids[: self._room], ids[self._room :]
            self._shard.write(now.tobytes())
            self._room -= len(now)

    def close(self) -> None:
        """Close the open shard."""
        if self._shard is not None:
            self._shard.close()

    def finish(self) -> dict[str, Any]:
        """Close the shards and write the document index; return the split's entry in the manifest."""
        self.close()
        index = f"{self._name}-documents.bin"
        documents = np.array(self._documents[:-2]).astype(DOCUMENT_TYPE).reshape(-1, 2)
        (self._folder / index).write_bytes(documents.tobytes())  # not tofile, whose errors lack the cause
        num_tokens, num_bytes = documents.sum(axis=0).tolist()
        return {
            "num_tokens": num_tokens,
            "num_documents": len(documents),
            "num_bytes": num_bytes,
            "shards": self._shards,
            "documents": index,
        }
