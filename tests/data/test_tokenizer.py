import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from nanolm.data import train_tokenizer
from nanolm.data.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer, UnknownCharacter
from nanolm.errors import DataError
from tests.data.conftest import configure

HARD_TEXTS = [
    "",
    "a",
    " ",
    "  leading and trailing   ",
    "line\r\nline\rline\n\n\n",
    "\ufeffbyte order mark",
    "nul \x00 and controls \x01\x02\x1b[0m\x7f\x85\u2028\u2029",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 flags 🇩🇪",
    "e\u0301 is not \u00e9; \ufb01 ligature; ﷺ; 中文没有空格; ไทย; עברית",
    f"before{END_OF_TEXT}after {END_OF_TEXT}{END_OF_TEXT}\n",
    "<|endoftext|",
    "<s></s>[CLS][UNK]<unk><pad>",
    "Ġ is the symbol of a space, Ċ of a newline",
    "\U0010ffff\ufffe\uffff\U000e0001",
    "x" * 5000,
    " " * 5000,
]


WORDS = ["the", "state", "of", "our", "union", "free", "people", "don't", "they'll", "work", "for", "1947", "peace,"]
SENTENCES = [" ".join(random.Random(i).choices(WORDS, k=12)) + ".\n" for i in range(400)]


def train(name, texts, *overrides):
    config = configure("data", "data=sotu", f"tokenizer={name}", *(f"tokenizer.{each}" for each in overrides))
    return train_tokenizer(config.tokenizer, iter(texts))


def make(name):
    if name == "bpe":
        return train("bpe", SENTENCES, "vocab_size=300")
    return train(name, [*HARD_TEXTS, *SENTENCES])


@pytest.fixture(scope="module", params=["bpe", "byte", "char"])
def tokenizer(request):
    return make(request.param)


@pytest.fixture(scope="module")
def bpe():
    return make("bpe")


@pytest.fixture(scope="module")
def library(tokenizer, tmp_path_factory):
    """The same tokenizer as the raw library reads it from the file."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(path)
    return path, tokenizers.Tokenizer.from_file(str(path))


@pytest.mark.parametrize("text", HARD_TEXTS, ids=repr)
def test_hard_texts_round_trip_and_hold_no_end_of_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_text_id not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_a_batch_is_its_texts(tokenizer):
    for ids, text in zip(tokenizer.encode_batch(HARD_TEXTS), HARD_TEXTS, strict=True):
        assert np.array_equal(ids, tokenizer.encode(text))


def test_the_file_gives_the_same_ids_in_the_raw_library(tokenizer, library):
    _, raw = library
    assert raw.get_vocab_size() == tokenizer.vocab_size
    assert raw.token_to_id(END_OF_TEXT) == tokenizer.end_of_text_id == tokenizer.vocab_size - 1
    for text in HARD_TEXTS + SENTENCES[:20]:
        if END_OF_TEXT not in text:
            assert raw.encode(text).ids == tokenizer.encode(text).tolist()
            assert raw.decode(raw.encode(text).ids) == text
    assert raw.encode(f"a{END_OF_TEXT}").ids[-1] == tokenizer.end_of_text_id, "as the library does by itself"
    raw.encode_special_tokens = True
    assert raw.encode(f"a{END_OF_TEXT}").ids == tokenizer.encode(f"a{END_OF_TEXT}").tolist()


def test_transformers_reads_the_file(tokenizer, library):
    path, _ = library
    fast = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=END_OF_TEXT)
    assert len(fast) == tokenizer.vocab_size
    assert fast.eos_token_id == tokenizer.end_of_text_id
    for text in [*SENTENCES[:20], "line\r\nline", "nul \x00", "中文没有空格"]:
        assert fast(text)["input_ids"] == tokenizer.encode(text).tolist()
        assert fast.decode(fast(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_byte_ids_are_the_bytes():
    assert ByteTokenizer().encode("aé\n").tolist() == [97, 0xC3, 0xA9, 10]
    assert ByteTokenizer().vocab_size == 257


def test_char_ids_are_in_the_order_of_code_points():
    tokenizer = CharTokenizer("bca\n")
    assert tokenizer.encode("abc\n").tolist() == [1, 2, 3, 0]
    assert tokenizer.vocab_size == 5


@pytest.mark.parametrize(("text", "position", "code"), [("abd", 2, "0064"), ("\x00a", 0, "0000"), ("ab😀", 2, "1F600")])
def test_char_refuses_a_character_that_it_has_not_seen(text, position, code):
    with pytest.raises(UnknownCharacter, match=rf"U\+{code}\) at position {position}") as caught:
        CharTokenizer("abc").encode(text)
    assert caught.value.character == text[position]
    assert caught.value.exit_code == 2


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(DataError, match="U\\+D800"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(DataError, match="U\\+D800"):
        tokenizer.encode_batch(["fine", "ab\ud800"])


def test_end_of_text_is_shown_when_it_is_decoded(tokenizer):
    ids = [*tokenizer.encode("a"), tokenizer.end_of_text_id]
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}"


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, wrong):
    with pytest.raises(DataError, match=f"id {wrong} at position 1"):
        tokenizer.decode([0, wrong])


def test_bpe_has_exactly_the_vocabulary_that_was_asked_for(bpe, caplog):
    assert bpe.vocab_size == 300
    assert not caplog.records


def test_bpe_says_when_the_text_has_too_few_pairs(caplog):
    tokenizer = train("bpe", ["the the the"], "vocab_size=5000")
    assert 257 <= tokenizer.vocab_size < 300
    assert "5,000" in caplog.text
    assert f"{tokenizer.vocab_size:,}" in caplog.text


def test_the_smallest_bpe_is_the_bytes():
    tokenizer = train("bpe", ["the the the"], "vocab_size=257")
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode("the")) == 3


def test_training_reads_so_many_bytes_and_no_more():
    read = []

    def texts():
        for text in ["abab" * 10, "cdcd" * 10, "éfef" * 10, "never read"]:
            read.append(text)
            yield text

    tokenizer = train("bpe", texts(), "vocab_size=300", "training_bytes=81")
    assert len(read) == 3, "81 bytes end in the first half of the third text's first character"
    assert len(tokenizer.encode("abab")) < 4
    assert len(tokenizer.encode("efef")) == 4


def test_char_needs_text():
    with pytest.raises(DataError, match="tokenizer=char"):
        train("char", [])


TRAIN = """
import sys
from pathlib import Path
from tests.data.test_tokenizer import train
texts = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines(keepends=True)
print(train("bpe", texts, "vocab_size=700").fingerprint)
"""


def test_training_is_the_same_for_any_number_of_threads(tmp_path):
    """Words with ties in their frequencies, from several scripts, in processes with other hash seeds."""
    generator = random.Random(1)
    alphabet = "abcdefghijklmnopqrstuvwxyzäöüßабвгдеж一二三四五"
    words = ["".join(generator.choice(alphabet) for _ in range(generator.randint(2, 9))) for _ in range(3000)]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(unicodedata.normalize("NFC", word) for word in words * 2), encoding="utf-8")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(path)],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
        )
        for threads in ("1", "4")
    ]
    fingerprints = {run.communicate()[0] for run in runs}
    assert len(fingerprints) == 1
    assert len(fingerprints.pop().strip()) == 64


def test_the_bytes_of_a_text_are_those_of_its_tokens(tokenizer):
    text = tokenizer.decode(range(tokenizer.end_of_text_id)).replace("\ufffd", "")
    assert tokenizer.num_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.num_bytes[tokenizer.encode(text)].sum() == len(text.encode()) > 0
    assert tokenizer.num_bytes[tokenizer.end_of_text_id] == 0
