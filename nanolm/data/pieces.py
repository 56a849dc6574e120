"""Documents in pieces that are small enough to encode, whatever the size of a document.

A piece ends before a space or newline that follows a character that is neither. GPT-2's pre-tokenizer always starts
a new word there and looks at nothing before it, so the tokens of the pieces, one after the other, are exactly the
tokens of the document. Only a stretch of more than ``PIECE_CHARACTERS`` without such a place is cut anywhere.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nanolm.data.splits import SplitDocument

PIECE_CHARACTERS = 1 << 16

_WORD_END = re.compile(r"\S[ \n]")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a document.

    Args:
        split: the split of the document.
        text: the piece's text; empty only for a document without text.
        ends_document: whether the document ends here.
        place: where the document stands, for messages.
        offset: characters of the document before this piece.
    """

    split: str
    text: str
    ends_document: bool
    place: str
    offset: int


def pieces(documents: Iterable[SplitDocument], limit: int = PIECE_CHARACTERS) -> Iterator[Piece]:
    """The documents in pieces of fewer than ``2 * limit`` characters, which depend on the text alone."""
    for item in documents:
        offset = item.offset
        for text, is_last in _cut(item.document.chunks, limit):
            yield Piece(item.split, text, is_last, item.document.place, offset)
            offset += len(text)


def _cut(chunks: Iterable[str], limit: int) -> Iterator[tuple[str, bool]]:
    buffer, start = "", 0
    for chunk in chunks:
        buffer, start = buffer[start:] + chunk, 0
        while len(buffer) - start >= 2 * limit:
            match = _WORD_END.search(buffer, start + limit - 1, start + 2 * limit)
            end = match.end() - 1 if match else start + limit
            yield buffer[start:end], False
            start = end
    yield buffer[start:], True
