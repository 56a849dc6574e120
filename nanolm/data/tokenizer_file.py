"""Read a ``tokenizer.json`` that may be damaged or untrusted.

Nothing in the file is run: its vocabulary and merges are checked and put into a tokenizer of our own. If the file
differs from that tokenizer's own file, it is refused, because its ids would not be those of its model.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic_core import from_json

from nanolm.data.tokenizer import BYTE_OF_SYMBOL, END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from nanolm.errors import DataError, sentence
from nanolm.files import read_record


class _PreTokenizer(BaseModel):
    type: Literal["ByteLevel"]
    add_prefix_space: Literal[False]
    use_regex: bool


class _Model(BaseModel):
    type: Literal["BPE"]
    vocab: dict[str, Annotated[int, Field(ge=0)]]
    merges: list[tuple[str, str]]

    @model_validator(mode="after")
    def _check(self) -> "_Model":
        if sorted(self.vocab.values()) != list(range(len(self.vocab))):
            raise ValueError(f"expected each of the ids 0 to {len(self.vocab) - 1} once in vocab")
        if END_OF_TEXT in self.vocab:
            raise ValueError(f"expected {END_OF_TEXT} among the added tokens alone")
        for left, right in self.merges:
            if not self.vocab.keys() >= {left, right, left + right}:
                raise ValueError(f"expected merges of tokens in vocab, not {left!r:.40} + {right!r:.40}")
        return self


class _TokenizerFile(BaseModel):
    model: _Model
    pre_tokenizer: _PreTokenizer | None

    @model_validator(mode="after")
    def _check(self) -> "_TokenizerFile":
        vocab = self.model.vocab
        if self.pre_tokenizer is None:
            if any(len(token) != 1 for token in vocab):
                raise ValueError("expected single characters in vocab without a pre_tokenizer")
        elif not set(vocab) >= BYTE_OF_SYMBOL.keys() >= set("".join(vocab)) or "" in vocab:
            raise ValueError("expected a vocab of each byte and others in the byte-level alphabet")
        return self

    def tokenizer(self) -> Tokenizer:
        if self.pre_tokenizer is None:
            return CharTokenizer(self.model.vocab)
        return BPETokenizer(self.model.vocab, self.model.merges) if self.pre_tokenizer.use_regex else ByteTokenizer()


def load_tokenizer(path: Path) -> Tokenizer:
    """Read the ``tokenizer.json`` of a prepared corpus or a checkpoint; raise a DataError if it is not one of ours."""
    path = Path(path)
    try:
        tokenizer = read_record(path, _TokenizerFile, DataError).tokenizer()
        for difference in _differences(from_json(path.read_bytes()), json.loads(tokenizer.json)):
            raise DataError(f"{path}: expected a tokenizer that nanolm wrote; {difference}")
    except DataError as error:
        raise DataError(f"{sentence(error)} Take that of a prepared corpus or a checkpoint.") from None
    return tokenizer


def _differences(found: Any, expected: Any, key: str = "") -> Iterator[str]:
    """Find where a file's content is not as expected; a missing key is like null, false or nothing."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in expected | found:
            yield from _differences(found.get(name), expected.get(name), f"{key}.{name}".removeprefix("."))
    elif (found or None) != (expected or None):
        yield f"{key:.60}: expected {expected!r:.60}, found {found!r:.60}"
