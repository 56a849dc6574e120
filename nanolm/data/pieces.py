"""Documents in pieces that are small enough to encode, whatever the size of a document.

A piece ends before a space or newline that follows a character that is neither. GPT-2's pre-tokenizer always starts
a new word there and looks at nothing before it, so the tokens of the pieces, one after the other, are exactly the
tokens of the document. Only a stretch of more than ``PIECE_CHARACTERS`` without such a place is cut anywhere.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nanolm.data.documents import Document

PIECE_CHARACTERS = 1 << 16

_WORD_END = re.compile(r"\S[ \n]")


class Piece(NamedTuple):
    """A stretch of a document.

    Args:
        document: the document, or the part of one, that it belongs to; its chunks are read.
        text: the piece's text; empty only for a document without text.
        offset: characters of the whole document before this piece.
        is_last: whether the document ends here.
    """

    document: Document
    text: str
    offset: int
    is_last: bool


def pieces(documents: Iterable[Document], limit: int = PIECE_CHARACTERS) -> Iterator[Piece]:
    """Cut documents into pieces of fewer than ``2 * limit`` characters, which depend on the text alone."""
    for document in documents:
        buffer, start, offset = "", 0, document.offset
        for chunk in document.chunks:
            buffer, offset, start = buffer[start:] + chunk, offset + start, 0
            while len(buffer) - start >= 2 * limit:
                match = _WORD_END.search(buffer, start + limit - 1, start + 2 * limit)
                end = match.end() - 1 if match else start + limit
                yield Piece(document, buffer[start:end], offset + start, False)
                start = end
        yield Piece(document, buffer[start:], offset + start, True)
