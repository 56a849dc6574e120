import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.config.schema import TokenizerConfig
from nanolm.data import load_tokenizer
from nanolm.data.tokenizer import ByteTokenizer, CharTokenizer, train_tokenizer
from nanolm.errors import DataError

TEXT = "the theory of the other thing: 中é\r\n"
TOKENIZERS = {
    "bpe": train_tokenizer(TokenizerConfig("bpe", 262, None), iter([TEXT] * 3)),
    "byte": ByteTokenizer(),
    "char": CharTokenizer(TEXT),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"


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
    with pytest.raises(DataError, match=r"nowhere\.json.*no such file"):
        load_tokenizer(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[]", b"null", b"[" * 100_000, b'{"model": 1}', b"{}"])
def test_what_is_no_tokenizer_at_all(content, file):
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(file)


def changed(content, path, value):
    content = copy.deepcopy(content)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("bpe", ("normalizer",), {"type": "Lowercase"}),
        ("bpe", ("truncation",), {"max_length": 1}),
        ("bpe", ("post_processor",), {"type": "ByteLevel"}),
        ("bpe", ("pre_tokenizer",), {"type": "Whitespace"}),
        ("bpe", ("pre_tokenizer", "add_prefix_space"), True),
        ("bpe", ("pre_tokenizer", "use_regex"), "yes"),
        ("bpe", ("pre_tokenizer", "use_regex"), False),
        ("bpe", ("decoder",), None),
        ("bpe", ("model", "type"), "WordPiece"),
        ("bpe", ("model", "dropout"), 0.5),
        ("bpe", ("model", "byte_fallback"), True),
        ("bpe", ("model", "ignore_merges"), True),
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
        ("char", ("model", "merges"), [["t", "h"]]),
    ],
)
def test_what_another_tokenizer_would_do_differently_is_refused(name, path, value, file):
    content = changed(json.loads(TOKENIZERS[name].json), path, value)
    with pytest.raises(DataError, match=r"tokenizer\.json: expected a tokenizer that nanolm wrote; .+\. Take the"):
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
    with pytest.raises(DataError, match="may only be the added token"):
        load_tokenizer(write(file, content))


def loads_or_is_refused(file):
    """A mutated file is refused in words, or it is a tokenizer that keeps its promises."""
    try:
        tokenizer = load_tokenizer(file)
    except DataError:
        return
    for text in (TEXT, "other"):
        try:
            ids = tokenizer.encode(text)
        except DataError:
            assert tokenizer.name == "char"
        else:
            assert tokenizer.decode(ids) == text


nodes = st.sampled_from([None, True, -1, 0, 3, 2**70, 0.5, "", "a", "the", "\x00", [], [[]], {}, {"type": "BPE"}])


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_node_replaced_or_removed(file, data):
    content = json.loads(TOKENIZERS[data.draw(st.sampled_from(sorted(TOKENIZERS)))].json)
    parent, key = {"root": content}, "root"
    for _ in range(data.draw(st.integers(1, 4))):
        child = parent[key]
        if not isinstance(child, dict | list) or not child:
            break
        parent = child
        key = data.draw(st.sampled_from(sorted(child) if isinstance(child, dict) else range(min(len(child), 4))))
    if data.draw(st.booleans()):
        parent[key] = data.draw(nodes)
    else:
        del parent[key]
    loads_or_is_refused(write(file, content))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_byte_changed_or_the_end_cut_off(file, data):
    content = bytearray(TOKENIZERS[data.draw(st.sampled_from(sorted(TOKENIZERS)))].json.encode())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    file.write_bytes(content)
    loads_or_is_refused(file)
