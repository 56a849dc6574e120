"""Reading a ``tokenizer.json`` that may be damaged, or made by a stranger.

Nothing in the file is run: the vocabulary and the merges are taken out of it, checked, and put into a tokenizer of
our own. A file that says anything else than the three tokenizers of nanolm would is refused, because its ids
would not be those of the model that it came with.
"""

from pathlib import Path
from typing import Any, NoReturn

from nanolm.data.tokenizer import (
    BYTE_OF_SYMBOL,
    END_OF_TEXT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
)
from nanolm.errors import DataError
from nanolm.files import parse_json

# Parts that would change ids or text if they were there; nanolm writes none of them.
_ABSENT = ("normalizer", "post_processor", "truncation", "padding")
_ABSENT_IN_MODEL = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
_END_OF_TEXT_ENTRY = {
    "content": END_OF_TEXT,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


def load_tokenizer(path: Path) -> Tokenizer:
    """Read the ``tokenizer.json`` of a prepared corpus or a checkpoint.

    Raises:
        DataError: the file is missing, damaged, or not one that nanolm writes.
    """
    return _TokenizerFile(Path(path)).tokenizer()


class _TokenizerFile:
    def __init__(self, path: Path):
        self.path = path
        try:
            content = parse_json(path.read_bytes())
        except FileNotFoundError:
            self.refuse("there is no such file")
        except OSError as error:
            self.refuse(f"it cannot be read: {error.strerror}")
        except ValueError as error:
            self.refuse(f"it is not JSON: {error}")
        self.content = self.typed(content, dict, "the file")

    def refuse(self, reason: str) -> NoReturn:
        raise DataError(
            f"{self.path}: expected a tokenizer that nanolm wrote; {reason}. Take the tokenizer.json of a prepared "
            "corpus or of a checkpoint, or tokenize again."
        )

    def typed(self, value: Any, kind: type, what: str) -> Any:
        if type(value) is not kind:
            self.refuse(f"{what}: expected a {kind.__name__}, found {value!r:.60}")
        return value

    def tokenizer(self) -> Tokenizer:
        model = self.typed(self.content.get("model"), dict, "model")
        if model.get("type") != "BPE":
            self.refuse(f"model.type: expected BPE, found {model.get('type')!r:.60}")
        for section, names in ((self.content, _ABSENT), (model, _ABSENT_IN_MODEL)):
            if present := [name for name in names if section.get(name) not in (None, False, "")]:
                self.refuse(f"{present[0]}: expected none, found {section[present[0]]!r:.60}")
        vocab = self.vocab(model)
        self.check_end_of_text(len(vocab))
        merges = self.merges(model)
        if self.content.get("pre_tokenizer") is None:
            return self.char(vocab, merges)
        return self.byte_level(vocab, merges)

    def vocab(self, model: dict[str, Any]) -> dict[str, int]:
        vocab: dict[str, int] = self.typed(model.get("vocab"), dict, "model.vocab")
        for token, number in vocab.items():
            self.typed(number, int, f"model.vocab[{token!r:.60}]")
        if sorted(vocab.values()) != list(range(len(vocab))):
            self.refuse(f"model.vocab: expected each of the ids 0 to {len(vocab) - 1} once")
        if END_OF_TEXT in vocab:
            self.refuse(f"model.vocab: {END_OF_TEXT} may only be the added token")
        return vocab

    def merges(self, model: dict[str, Any]) -> list[tuple[str, str]]:
        merges = self.typed(model.get("merges"), list, "model.merges")
        for i, merge in enumerate(merges):
            self.typed(merge, list, f"model.merges[{i}]")
            if len(merge) != 2 or any(type(part) is not str for part in merge):
                self.refuse(f"model.merges[{i}]: expected two tokens, found {merge!r:.60}")
        return [(left, right) for left, right in merges]

    def check_end_of_text(self, expected_id: int) -> None:
        added = self.typed(self.content.get("added_tokens"), list, "added_tokens")
        if added != [{"id": expected_id, **_END_OF_TEXT_ENTRY}]:
            self.refuse(f"added_tokens: expected {END_OF_TEXT} alone, with id {expected_id}, found {added!r:.90}")

    def char(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
        if merges or self.content.get("decoder") != {"type": "Fuse"}:
            self.refuse("without pre_tokenizer it would be a char tokenizer, which has no merges and the decoder Fuse")
        for token in vocab:
            if len(token) != 1 or "\ud800" <= token <= "\udfff":
                self.refuse(f"model.vocab: expected single characters, found {token!r:.60}")
        if list(vocab) and sorted(vocab) != sorted(vocab, key=vocab.__getitem__):
            self.refuse("model.vocab: expected characters in the order of their code points")
        return CharTokenizer(vocab)

    def byte_level(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
        pre_tokenizer = self.typed(self.content["pre_tokenizer"], dict, "pre_tokenizer")
        decoder = self.typed(self.content.get("decoder"), dict, "decoder")
        use_regex = pre_tokenizer.get("use_regex")
        if (
            pre_tokenizer.get("type") != "ByteLevel"
            or pre_tokenizer.get("add_prefix_space") is not False
            or type(use_regex) is not bool
            or decoder.get("type") != "ByteLevel"
        ):
            self.refuse("pre_tokenizer and decoder: expected ByteLevel without add_prefix_space")
        if not use_regex:
            if vocab != BYTE_OF_SYMBOL or merges:
                self.refuse("without use_regex it would be a byte tokenizer, which has the 256 bytes and no merges")
            return ByteTokenizer()
        for token in vocab:
            if not token or not BYTE_OF_SYMBOL.keys() >= set(token):
                self.refuse(f"model.vocab: {token!r:.60} is not written in the byte-level alphabet")
        if missing := BYTE_OF_SYMBOL.keys() - vocab.keys():
            self.refuse(f"model.vocab: the byte {BYTE_OF_SYMBOL[min(missing)]} has no token")
        for i, (left, right) in enumerate(merges):
            if not vocab.keys() >= {left, right, left + right}:
                self.refuse(f"model.merges[{i}]: {left!r:.40} + {right!r:.40} is not in model.vocab")
        return BPETokenizer(vocab, merges)
