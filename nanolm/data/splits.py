"""Which split each document belongs to.

Documents are dealt by a keyed permutation of their numbers, so that a split is a uniform sample, the same in every
run and on every machine, without a list in memory. A corpus of one document is cut instead: its last
``val_fraction`` is val, the ``calibration_fraction`` before it calibration, the rest train; there is no test split.

A document that equals an earlier one joins the split of that one, so that no split holds the text of another: what is
scored was not trained on.
"""

import hashlib
import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from nanolm.config.schema import DataConfig
from nanolm.data.corpus import Corpus, Document
from nanolm.data.permutation import ranks
from nanolm.errors import DataError

ALL = "all"
SPLITS = ("train", "calibration", "val", "test", "shifted", ALL)
"""A corpus holds some of the first five, or the last alone: every document, whole."""

_EMPTY = hashlib.sha256().hexdigest()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitDocument:
    """A document, or the part of one, that belongs to one split.

    Args:
        split: one of ``SPLITS``.
        document: its text.
        offset: characters of the whole document before it.
    """

    split: str
    document: Document
    offset: int = 0


class Copies:
    """Documents that equal an earlier one. Memory: about 100 bytes for each distinct document.

    Attributes:
        count: how many there were.
        moved: how many of them had been dealt to another split than the first.
    """

    def __init__(self) -> None:
        self.count = self.moved = 0
        self._split_of: dict[int, str] = {}

    def place(self, document: Document, split: str) -> SplitDocument:
        """The document in the split of the first that equals it; one without text equals none."""
        sha256 = document.sha256
        if sha256 is None:
            text = "".join(document.chunks)
            document, sha256 = replace(document, chunks=(text,)), hashlib.sha256(text.encode()).hexdigest()
        if sha256 == _EMPTY:
            return SplitDocument(split, document)
        key = int(sha256[:16], 16)
        first = self._split_of.get(key)
        if first is None:
            first = self._split_of[key] = split
        else:
            self.count += 1
            self.moved += first != split
        return SplitDocument(first, document)

    @property
    def leave_no_train(self) -> bool:
        """Whether each document that was dealt to train equals an earlier one of another split."""
        return self.moved > 0 and "train" not in self._split_of.values()


def split_documents(corpus: Corpus, config: DataConfig, copies: Copies | None = None) -> Iterator[SplitDocument]:
    """All documents of a corpus with their splits, in the corpus's order.

    Args:
        corpus: read once, or twice where its only document is cut.
        config: the splits' settings.
        copies: counts the documents that equal an earlier one.

    Raises:
        DataError: a document cannot be read, or there is too little text for a train split.
    """
    count = corpus.num_undecided()
    if count == 1:
        for document in corpus.documents():
            if document.split is None:
                length = _num_characters(corpus)
                yield from _cut(document, length, config)
            else:
                yield SplitDocument(document.split, document)
        return
    dealt, copies = deal(count, config), copies or Copies()
    for document in corpus.documents():
        yield copies.place(document, document.split or next(dealt))
    if copies.leave_no_train:
        raise DataError(
            f"data={config.name}: {copies.count:,} documents equal an earlier one, and none is left to train on; "
            "give more texts that differ, or another data.split_seed"
        )


def undivided(corpus: Corpus) -> Iterator[SplitDocument]:
    """All documents of a corpus in its order, each whole, as one split; errors as ``split_documents``."""
    return (SplitDocument(ALL, document) for document in corpus.documents())


def split_sizes(count: int, config: DataConfig) -> dict[str, int]:
    """How many of ``count`` documents go to val, calibration and test; train keeps at least one.

    A split whose fraction is above 0 gets at least one document as long as there are enough: val first, then
    calibration, then test.
    """
    sizes, left = {}, count - 1
    for split, fraction in (
        ("val", config.val_fraction),
        ("calibration", config.calibration_fraction),
        ("test", config.test_fraction),
    ):
        wanted = max(1, round(fraction * count)) if fraction > 0 else 0
        sizes[split] = max(0, min(wanted, left))
        left -= sizes[split]
        if wanted and not sizes[split]:
            logger.warning("the corpus has %d documents, too few for a %s split: it is left out", count, split)
    return sizes


def deal(count: int, config: DataConfig) -> Iterator[str]:
    """The splits of documents number 0, 1, … of ``count``."""
    sizes = split_sizes(count, config)
    bounds = list(itertools.accumulate(sizes.values()))
    for rank in ranks(count, f"split/{config.split_seed}"):
        yield next((split for split, bound in zip(sizes, bounds, strict=True) if rank < bound), "train")


def deal_held_out(config: DataConfig) -> Iterator[str]:
    """The splits of the first ``held_out_documents``: val, calibration and test in proportion to their fractions."""
    count = config.held_out_documents
    whole = config.val_fraction + config.calibration_fraction + config.test_fraction
    num_calibration = math.floor(count * config.calibration_fraction / whole)
    num_test = math.floor(count * config.test_fraction / whole)
    for rank in ranks(count, f"split/{config.split_seed}"):
        if rank < num_calibration:
            yield "calibration"
        else:
            yield "test" if rank < num_calibration + num_test else "val"


def _num_characters(corpus: Corpus) -> int:
    """The length of the one document without a split."""
    return sum(len(chunk) for document in corpus.documents() if document.split is None for chunk in document.chunks)


def _cut(document: Document, length: int, config: DataConfig) -> Iterator[SplitDocument]:
    """The parts of a single document; their characters follow one another and are read once."""
    num_val, num_calibration = (
        # Exactly the decimal fraction that the user wrote: 0.1 of 1,115,394 characters is 111,540, rounded up.
        math.ceil(length * Fraction(str(fraction)))
        for fraction in (config.val_fraction, config.calibration_fraction)
    )
    sizes = {"train": length - num_val - num_calibration, "calibration": num_calibration, "val": num_val}
    if sizes["train"] < 1:
        raise DataError(
            f"{document.place}: {length} characters are too few for train, calibration and val; give more text"
        )
    characters, offset = _Characters(document.chunks), 0
    for split, size in sizes.items():
        if size:
            yield SplitDocument(split, replace(document, chunks=characters.take(size)), offset)
        offset += size


class _Characters:
    """A stream of text from which runs of characters are taken one after the other."""

    def __init__(self, chunks: Iterable[str]):
        self._chunks = iter(chunks)
        self._rest = ""

    def take(self, count: int) -> Iterator[str]:
        while count > 0:
            chunk = self._rest or next(self._chunks, "")
            if not chunk:
                return
            self._rest = chunk[count:]
            yield chunk[:count]
            count -= len(chunk[:count])
