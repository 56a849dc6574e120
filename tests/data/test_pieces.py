import itertools
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanolm.data import train_tokenizer
from nanolm.data.documents import Document
from nanolm.data.pieces import PIECE_CHARACTERS, pieces
from tests.data.conftest import configure

# Letters, digits, contractions, every kind of white space that some library knows, and what is no ASCII.
texts = st.lists(
    st.sampled_from(
        ["a", "the", "'s", "'", "1", "42", "!", "...", " ", "  ", "\n", "\r\n", "\t", "\x1c", "\x85", "\xa0", "\u2028",
         "\u3000", "\ufeff", "é", "e\u0301", "中", "😀", "\x00", "<|endoftext|>"]
    ),
    max_size=200,
).map("".join)  # fmt: skip


def cut(text, limit, chunk):
    """The pieces of a text that is read in chunks of so many characters."""
    chunks = [text[i : i + chunk] for i in range(0, len(text), chunk)]
    return list(pieces([Document("a file", chunks, "train", offset=7)], limit))


@given(texts, st.integers(1, 40), st.integers(1, 50))
def test_the_pieces_are_the_text(text, limit, chunk):
    parts = cut(text, limit, chunk)
    assert "".join(part.text for part in parts) == text
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(part.text for part in parts) or parts[0].text == text == ""
    assert all(len(part.text) < 2 * limit for part in parts) or limit == 1
    assert [part.offset for part in parts] == [7 + sum(len(p.text) for p in parts[:i]) for i in range(len(parts))]


@given(texts, st.integers(1, 40), st.integers(1, 50), st.integers(1, 50))
def test_the_pieces_do_not_depend_on_how_the_text_is_read(text, limit, one_chunk, other_chunk):
    one, other = ([part[1:] for part in cut(text, limit, chunk)] for chunk in (one_chunk, other_chunk))
    assert one == other


@pytest.fixture(scope="module")
def bpe():
    sample = " the theme's 42 others!\r\n  they\t...\n" * 3
    config = configure("data", "data=sotu", "tokenizer=bpe", "tokenizer.vocab_size=300")
    return train_tokenizer(config.tokenizer, iter([sample]))


@settings(deadline=None, max_examples=300)
@given(texts, st.integers(2, 30))
@example("aaaa\n  aaa", 5)  # cut after the newline: no place to cut before it
def test_the_tokens_of_the_pieces_are_the_tokens_of_the_document(bpe, text, limit):
    parts = cut(text, limit, 1000)
    if any(
        not re.search(r"\S\Z", part.text) or not re.match("[ \n]", after.text)
        for part, after in itertools.pairwise(parts)
    ):
        return  # a stretch without a space was cut anywhere, which the next test is about
    whole = bpe.encode(text)
    assert np.array_equal(np.concatenate([bpe.encode(part.text) for part in parts]), whole)


def test_a_real_text_is_cut_between_words(bpe):
    text = "the others, they said,\r\n  are the theme's 42 others!\n\n" * 5000
    parts = cut(text, PIECE_CHARACTERS, 1 << 20)
    assert len(parts) >= 2
    assert all(part.text[0] in " \n" for part in parts[1:])
    assert np.array_equal(np.concatenate(bpe.encode_batch([part.text for part in parts])), bpe.encode(text))


def test_a_text_without_spaces_is_cut_all_the_same(bpe):
    text = "中文" * 200_000
    parts = cut(text, PIECE_CHARACTERS, 1 << 20)
    assert max(len(part.text) for part in parts) < 2 * PIECE_CHARACTERS
    assert bpe.decode(np.concatenate(bpe.encode_batch([part.text for part in parts]))) == text
