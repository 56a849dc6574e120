"""Assign each document to a split.

Documents are assigned by a keyed permutation of their numbers, so that a split is a uniform sample, the same in every
run and on every machine, without a list in memory. A corpus of one document is cut instead: its last
``val_fraction`` is val, the ``calibration_fraction`` before it calibration, the rest train; there is no test split.

A document that equals an earlier one joins its split, so that nothing that is scored was trained on.
"""

import hashlib
import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction

from nanolm.config.schema import DataConfig, HubConfig
from nanolm.data.documents import Corpus, Document
from nanolm.data.permutation import ranks
from nanolm.errors import DataError

ALL = "all"
SPLITS = ("train", "calibration", "val", "test", "shifted", ALL)
"""A corpus holds some of the first five, or the last alone: every document, whole."""

_EMPTY = hashlib.sha256().hexdigest()

logger = logging.getLogger(__name__)


class Copies:
    """Keep equal documents in one split, and count those that equal an earlier one.

    Memory: about 100 bytes for each distinct document.
    """

    def __init__(self) -> None:
        self.count = 0
        self._split_of: dict[int, str] = {}

    def assign(self, document: Document, split: str) -> Document:
        """Put a document into the split of the first that equals it; one without text equals none."""
        sha256 = document.sha256
        if sha256 is None:
            text = "".join(document.chunks)
            document, sha256 = replace(document, chunks=(text,)), hashlib.sha256(text.encode()).hexdigest()
        if sha256 != _EMPTY:
            key = int(sha256[:16], 16)
            self.count += key in self._split_of
            split = self._split_of.setdefault(key, split)
        return replace(document, split=split)


def split_documents(corpus: Corpus, config: DataConfig, copies: Copies) -> Iterator[Document]:
    """Read all documents of a corpus with their splits, in the corpus's order within each split.

    Raises:
        DataError: a document cannot be read, or the only one is too short to be cut.
    """
    count = corpus.num_undecided()
    if count == 1:
        yield from _cut(corpus, config)
        return
    splits = assign(count, config)
    for document in corpus.documents():
        yield copies.assign(document, document.split or next(splits))


def assign(count: int, config: DataConfig) -> Iterator[str]:
    """Assign documents number 0, 1, … of ``count`` to splits of the sizes that their fractions give.

    A split whose fraction is above 0 gets at least one document as long as there are enough: train first, then val,
    calibration and test.
    """
    sizes, left = {}, count - 1
    for split in ("val", "calibration", "test"):
        fraction: float = getattr(config, f"{split}_fraction")
        wanted = max(1, round(fraction * count)) if fraction > 0 else 0
        sizes[split] = max(0, min(wanted, left))
        left -= sizes[split]
        if count and wanted and not sizes[split]:  # a corpus that cannot be read at all raises its own error
            logger.warning("the corpus has %d documents, too few for a %s split: it is left out", count, split)
    return _shuffled(sizes, count, "train", config.split_seed)


def assign_held_out(config: HubConfig) -> Iterator[str]:
    """Assign the first ``held_out_documents`` to val, calibration and test in proportion to their fractions."""
    count = config.held_out_documents
    whole = config.val_fraction + config.calibration_fraction + config.test_fraction
    sizes = {
        "calibration": math.floor(count * config.calibration_fraction / whole),
        "test": math.floor(count * config.test_fraction / whole),
    }
    return _shuffled(sizes, count, "val", config.split_seed)


def _shuffled(sizes: dict[str, int], count: int, rest: str, seed: int) -> Iterator[str]:
    """Draw splits of these sizes, and of the rest of ``count``, in random order."""
    bounds = list(itertools.accumulate(sizes.values()))
    for rank in ranks(count, f"split/{seed}"):
        yield next((split for split, bound in zip(sizes, bounds, strict=True) if rank < bound), rest)


def _cut(corpus: Corpus, config: DataConfig) -> Iterator[Document]:
    """Read the documents that come with a split, and cut the only one without into parts."""

    def only() -> Iterator[Document]:
        return (document for document in corpus.documents() if document.split is None)

    yield from (document for document in corpus.documents() if document.split is not None)
    (whole,) = only()
    length = sum(map(len, whole.chunks))
    num_val, num_calibration = (
        # Of the decimal fraction as it is written: 0.1 of 1,115,394 characters, rounded up, is 111,540.
        math.ceil(length * Fraction(str(fraction)))
        for fraction in (config.val_fraction, config.calibration_fraction)
    )
    val, calibration = length - num_val, length - num_val - num_calibration
    if calibration < 1:
        raise DataError(f"{whole.place}: {length} characters are too few to cut into splits; give more text")
    for split, start, end in (("train", 0, calibration), ("calibration", calibration, val), ("val", val, length)):
        for document in only() if start < end else ():
            yield replace(document, split=split, chunks=_characters(document.chunks, start, end), offset=start)


def _characters(chunks: Iterable[str], start: int, end: int) -> Iterator[str]:
    """Read the characters [start, end) of a text."""
    offset = 0
    for chunk in chunks:
        yield chunk[max(0, start - offset) : max(0, end - offset)]
        offset += len(chunk)
