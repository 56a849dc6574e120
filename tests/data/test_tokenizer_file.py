import json

import pytest

from nanolm.data import load_tokenizer
from nanolm.errors import DataError
from tests.data.test_tokenizer import train

TEXT = "the theory of the other thing: 中é\r\n"
TOKENIZERS = {
    "bpe": train("bpe", [TEXT] * 3, "vocab_size=262"),
    "byte": train("byte", []),
    "char": train("char", [TEXT]),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tokenizer.json"


def write(file, content):
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_comes_back_as_it_was_saved(tokenizer, file):
    tokenizer.save(file)
    loaded = load_tokenizer(file)
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.end_of_text_id) == (tokenizer.vocab_size, tokenizer.end_of_text_id)
    assert loaded.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_a_missing_file(tmp_path):
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(DataError, match=path.name):
            load_tokenizer(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[]", b"null", b"[" * 100_000, b'{"model": 1}', b"{}"])
def test_what_is_no_tokenizer_at_all(content, file):
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(file)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("bpe", ("normalizer",), {"type": "Lowercase"}),
        ("bpe", ("pre_tokenizer",), {"type": "Whitespace"}),
        ("bpe", ("pre_tokenizer", "add_prefix_space"), True),
        ("bpe", ("pre_tokenizer", "use_regex"), "yes"),
        ("bpe", ("pre_tokenizer", "use_regex"), False),
        ("bpe", ("decoder",), None),
        ("bpe", ("model", "type"), "WordPiece"),
        ("bpe", ("model", "dropout"), 0.5),
        ("bpe", ("model", "unk_token"), "a"),
        ("bpe", ("model", "vocab", "a"), 10**9),
        ("bpe", ("model", "vocab", "a"), -1),
        ("bpe", ("model", "vocab", "a"), 1.0),
        ("bpe", ("model", "vocab", "a"), True),
        ("bpe", ("model", "vocab", "two words"), 261),
        ("bpe", ("model", "vocab"), {}),
        ("bpe", ("model", "merges", 0), ["zz", "top"]),
        ("bpe", ("model", "merges", 0), ["t"]),
        ("bpe", ("model", "merges", 0), "t h"),
        ("bpe", ("model", "merges"), None),
        ("bpe", ("added_tokens",), []),
        ("bpe", ("added_tokens", 0, "content"), "the"),
        ("bpe", ("added_tokens", 0, "id"), 0),
        ("bpe", ("added_tokens", 0, "special"), False),
        ("byte", ("model", "vocab", "a"), 98),
        ("char", ("model", "vocab"), {"ab": 0}),
        ("char", ("model", "vocab"), {"\ud800": 0}),
        ("char", ("model", "vocab"), {"b": 0, "a": 1}),
        ("char", ("decoder",), None),
        ("char", ("decoder",), {"type": "ByteLevel"}),
        ("bpe", ("decoder", "use_regex"), False),
        ("bpe", ("anything",), "else"),
        ("char", ("model", "merges"), [["t", "h"]]),
    ],
)
def test_what_another_tokenizer_would_do_differently_is_refused(name, path, value, file):
    content = json.loads(TOKENIZERS[name].json)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(DataError, match=r"tokenizer\.json: .*expected"):
        load_tokenizer(write(file, content))


def test_one_more_added_token_is_refused(tokenizer, file):
    content = json.loads(tokenizer.json)
    content["added_tokens"].append({**content["added_tokens"][0], "id": tokenizer.vocab_size, "content": "the"})
    with pytest.raises(DataError, match="added_tokens"):
        load_tokenizer(write(file, content))


def test_end_of_text_cannot_be_a_token_of_text(file):
    content = json.loads(TOKENIZERS["bpe"].json)
    content["model"]["vocab"]["<|endoftext|>"] = 261
    content["added_tokens"][0]["id"] = 262
    with pytest.raises(DataError, match="endoftext"):
        load_tokenizer(write(file, content))
