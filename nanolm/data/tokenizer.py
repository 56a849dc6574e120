"""Text to token ids and back: byte-level BPE, bytes, and characters.

All three are stored as a ``tokenizer.json`` in the format of Hugging Face's ``tokenizers``, with one added token,
``<|endoftext|>``, whose id is the last one. It separates documents and never comes out of ``encode``: the same
characters inside a text are text. ``decode`` returns every text exactly.
"""

import functools
import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from nanolm.config.schema import BpeConfig, CharConfig, TokenizerConfig
from nanolm.data.encoding import utf8
from nanolm.errors import DataError
from nanolm.files import write_atomically

END_OF_TEXT = "<|endoftext|>"
NUM_BYTES = 256

logger = logging.getLogger(__name__)

# The byte-level alphabet of GPT-2 writes these bytes as their characters, and the others as U+0100, U+0101, …
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(NUM_BYTES) if byte not in _VISIBLE]
BYTE_OF_SYMBOL = {chr(byte): byte for byte in _VISIBLE} | {chr(0x100 + i): byte for i, byte in enumerate(_HIDDEN)}


class UnknownCharacter(DataError):
    """A character that the tokenizer has no token for, at a position of the text, in characters."""

    def __init__(self, character: str, position: int, where: str = "the text"):
        self.character = character
        shown = f"{character!r} " if character.isprintable() else ""
        super().__init__(
            f"{where}: character {shown}(U+{ord(character):04X}) at position {position:,} is not in the char "
            "tokenizer's vocabulary; remove it, or choose tokenizer=byte or tokenizer=bpe, which take any text"
        )


class Tokenizer(ABC):
    """Text to ids in [0, vocab_size) and back, made by ``train_tokenizer`` or ``load_tokenizer``.

    Args:
        token_bytes: the bytes that each id stands for, without end-of-text, whose id follows them.
        library: the same tokenizer as one of ``tokenizers``; without an added token, none can be found in a text.
    """

    name: ClassVar[str]

    def __init__(self, token_bytes: Sequence[bytes], library: tokenizers.Tokenizer):
        self._token_bytes = [*token_bytes, END_OF_TEXT.encode()]
        self._library = library

    @property
    def vocab_size(self) -> int:
        """Return the number of ids, end-of-text included."""
        return len(self._token_bytes)

    @property
    def end_of_text_id(self) -> int:
        """Return the id that stands between documents, which is the last one."""
        return len(self._token_bytes) - 1

    @functools.cached_property
    def num_bytes(self) -> np.ndarray:
        """(V,) int64: UTF-8 bytes of text that each id stands for, 0 for end-of-text."""
        return np.array([*map(len, self._token_bytes[:-1]), 0], dtype=np.int64)

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Encode a text as ids, (N,) int64, never end-of-text.

        Raises:
            DataError: a character without a token (char), or half of a surrogate pair, which is no text.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode each text; the BPE uses all cores."""
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that the ids stand for, ``<|endoftext|>`` for end-of-text.

        Raises:
            DataError: an id outside [0, vocab_size).
        """
        ids = [int(i) for i in ids]
        for position, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise DataError(f"token id {i} at position {position} is outside the vocabulary of {self.vocab_size}")
        return b"".join([self._token_bytes[i] for i in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text that the ids stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    @functools.cached_property
    def json(self) -> str:
        """Return the content of ``tokenizer.json``."""
        content = tokenizers.Tokenizer.from_str(self._library.to_str())
        content.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        assert content.token_to_id(END_OF_TEXT) == self.end_of_text_id
        return content.to_str(pretty=True) + "\n"

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of ``tokenizer.json``."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json`` atomically."""
        write_atomically(path, self.json)


class BPETokenizer(Tokenizer):
    """Byte-level BPE with GPT-2's pre-tokenizer (Radford et al. 2019; Sennrich et al. 2016)."""

    name = "bpe"

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]]):
        tokens = sorted(vocab, key=vocab.__getitem__)
        super().__init__(
            [bytes(BYTE_OF_SYMBOL[symbol] for symbol in token) for token in tokens],
            _byte_level(models.BPE(vocab, merges), use_regex=True),
        )

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            for text in texts:
                utf8(text)
            raise
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


class ByteTokenizer(Tokenizer):
    """The 256 bytes; an id is the byte it stands for."""

    name = "byte"

    def __init__(self) -> None:
        library = _byte_level(models.BPE(dict(BYTE_OF_SYMBOL), []), use_regex=False)
        super().__init__([bytes([byte]) for byte in range(NUM_BYTES)], library)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.int64)


class CharTokenizer(Tokenizer):
    """A fixed set of characters, in the order of their code points."""

    name = "char"

    def __init__(self, characters: Iterable[str]):
        vocab = {character: i for i, character in enumerate(sorted(set(characters)))}
        # BPE without merges leaves the characters of the text, all of it one word.
        library = tokenizers.Tokenizer(models.BPE(vocab, []))
        library.decoder = decoders.Fuse()
        super().__init__([character.encode() for character in vocab], library)
        self._id_of_code_point = np.full(0x110000, -1, dtype=np.int32)
        self._id_of_code_point[[ord(character) for character in vocab]] = np.arange(len(vocab))

    def encode(self, text: str) -> np.ndarray:
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = self._id_of_code_point[code_points]
        if ids.size and ids.min() < 0:
            position = int(np.argmax(ids < 0))
            raise UnknownCharacter(text[position], position)
        return np.asarray(ids, dtype=np.int64)


def _byte_level(model: models.BPE, use_regex: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Make the tokenizer that a configuration asks for from the texts of the train split.

    ``bpe`` learns its merges from the first ``training_bytes`` of the texts, the same ones whatever the number of
    threads; ``char`` reads all of them, and raises a DataError if there is no text; ``byte`` reads none.
    """
    if isinstance(config, CharConfig):
        characters: set[str] = set().union(*map(set, texts))
        if not characters:
            raise DataError("tokenizer=char: the train split has no text to take characters from")
        return CharTokenizer(characters)
    if not isinstance(config, BpeConfig):
        return ByteTokenizer()
    trained = _byte_level(models.BPE(), use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - 1,
        min_frequency=2,
        initial_alphabet=sorted(BYTE_OF_SYMBOL),
        show_progress=False,
    )
    trained.train_from_iterator(_first_bytes(texts, config.training_bytes), trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = BPETokenizer(model["vocab"], [(left, right) for left, right in model["merges"]])
    if tokenizer.vocab_size < config.vocab_size:
        logger.warning(
            "tokenizer.vocab_size=%s: the text has frequent pairs for only %s tokens, which are the vocabulary",
            *(f"{config.vocab_size:,}", f"{tokenizer.vocab_size:,}"),
        )
    return tokenizer


def _first_bytes(texts: Iterable[str], limit: int | None) -> Iterator[str]:
    """Read texts up to a number of UTF-8 bytes; the last one is cut between two characters."""
    if limit is None:
        yield from texts
        return
    for text in texts:
        data = text.encode()
        if len(data) >= limit:
            yield data[:limit].decode("utf-8", "ignore")
            return
        limit -= len(data)
        yield text
