import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanolm.data.corpus import open_corpus
from nanolm.data.local import BLOCK_BYTES
from nanolm.errors import DataError

HARD = ["\ufeffmark", "a\r\nb\rc\n", "nul \x00", "\u2028 and \x85", "👩‍👩‍👧", "", " "]


def texts(config):
    return ["".join(document.chunks) for document in open_corpus(config).documents()]


def check(config):
    """What happens before and while a corpus is read."""
    corpus = open_corpus(config)
    corpus.identity()
    for document in corpus.documents():
        for _ in document.chunks:
            pass


# Text


def test_text_files_are_documents_kept_exactly_in_the_order_of_their_names(data_config, tmp_path):
    for number, text in reversed(list(enumerate(HARD))):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    assert texts(data_config("text", path=tmp_path / "*.txt")) == HARD
    assert texts(data_config("text", path=tmp_path / "1.txt")) == ["a\r\nb\rc\n"]
    assert texts(data_config("text", path=tmp_path / "*.txt", max_documents=2)) == HARD[:2]


def test_globs_reach_into_folders_and_a_name_with_brackets_is_a_name(data_config, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a[1] (copy), x=1.txt").write_text("deep")
    (tmp_path / "folder.txt").mkdir()
    assert texts(data_config("text", path=tmp_path / "**" / "*.txt")) == ["deep"]
    assert texts(data_config("text", path=tmp_path / "deep" / "er" / "a[1] (copy), x=1.txt")) == ["deep"]


@pytest.fixture
def linked(tmp_path):
    """Two files below ``texts``, each of which many links lead to."""
    (tmp_path / "texts" / "sub").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "texts" / "sub" / f"{name}.txt").write_text(name)
    links = {"self": ".", "again": ".", "latest": "sub", "sub/up": "..", "loop": "loop", "gone": "nowhere"}
    links |= {"c.txt": "sub/a.txt", "sub/0.txt": "a.txt", "home": str(tmp_path)}
    for name, target in links.items():
        (tmp_path / "texts" / name).symlink_to(target)
    os.link(tmp_path / "texts" / "sub" / "b.txt", tmp_path / "texts" / "sub" / "hard.txt")
    return tmp_path / "texts"


@pytest.mark.parametrize("pattern", ["**/*.txt", "sub/*.txt", "*/*.txt", "**/sub/**/*.txt", "**", "latest/**/*"])
def test_a_file_is_read_once_whatever_links_lead_to_it(data_config, linked, pattern):
    corpus = open_corpus(data_config("text", path=linked / pattern))
    assert ["".join(document.chunks) for document in corpus.documents()] == ["a", "b"]
    if pattern != "latest/**/*":  # the names are those without a link, where there is one
        assert corpus.paths == [linked / "sub" / "a.txt", linked / "sub" / "b.txt"]


def test_a_glob_follows_links_to_other_folders(data_config, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "far.txt").write_text("far")
    (tmp_path / "texts" / ".hidden").mkdir(parents=True)
    (tmp_path / "texts" / ".hidden" / "no.txt").write_text("hidden")
    (tmp_path / "texts" / "near.txt").write_text("near")
    (tmp_path / "texts" / "part").symlink_to("../disk")
    (tmp_path / "texts" / "file.txt").symlink_to("../disk/far.txt")
    assert texts(data_config("text", path=tmp_path / "texts" / "**" / "*.txt")) == ["far", "near"]
    (tmp_path / "texts" / "file.txt").unlink()
    assert texts(data_config("text", path=tmp_path / "texts" / "**" / "*.txt")) == ["near", "far"]


def test_home_and_relative_paths(data_config, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("text")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts(data_config("text", path="~/mine.txt")) == ["text"]
    monkeypatch.chdir(tmp_path)
    assert texts(data_config("text", path="mine.txt")) == ["text"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(before=st.integers(0, 5), character=st.sampled_from(["é", "中", "😀"]))
def test_a_character_across_two_blocks_is_kept(data_config, tmp_path, before, character):
    text = "x" * (BLOCK_BYTES - before) + character + "end"
    (tmp_path / "file.txt").write_bytes(text.encode())
    assert texts(data_config("text", path=tmp_path / "file.txt")) == [text]


@pytest.mark.parametrize(
    ("content", "offset", "byte"),
    [
        (b"abc\xff", 3, "ff"),
        (b"\x80", 0, "80"),
        (b"ab\xc3(", 2, "c3"),
        (b"a\xed\xa0\x80", 1, "ed"),  # half of a surrogate pair
        (b"cut off \xe2\x82", 8, "e2"),
        (b"x" * BLOCK_BYTES + b"y\xfe", BLOCK_BYTES + 1, "fe"),
        (b"x" * (BLOCK_BYTES - 1) + b"\xe2\x28\xa1", BLOCK_BYTES - 1, "e2"),
    ],
)
def test_bytes_that_are_not_utf8_are_refused_with_their_offset(data_config, tmp_path, content, offset, byte):
    (tmp_path / "file.txt").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"file\.txt: expected UTF-8 text, found the byte 0x{byte} at offset {offset:,}\."
    ):
        check(data_config("text", path=tmp_path / "file.txt"))


# What is wrong before anything is read


@pytest.mark.parametrize("name", ["text", "jsonl", "parquet"])
def test_no_path(data_config, name):
    with pytest.raises(DataError, match=rf"data\.path: data={name} needs it"):
        check(data_config(name))


@pytest.mark.parametrize("name", ["text", "jsonl", "parquet"])
def test_a_missing_file_names_its_neighbour(data_config, tmp_path, name):
    (tmp_path / "corpus.txt").write_text("text")
    with pytest.raises(DataError, match=r"there is no file .*corups\.txt; did you mean .*corpus\.txt\?"):
        check(data_config(name, path=tmp_path / "corups.txt"))
    with pytest.raises(DataError, match=r"there is no file .*nowhere/at/all"):
        check(data_config(name, path=tmp_path / "nowhere/at/all"))


@pytest.mark.parametrize("name", ["text", "jsonl", "parquet"])
def test_a_folder_a_glob_without_a_match_and_what_is_no_file(data_config, tmp_path, name):
    with pytest.raises(DataError, match=r"is a folder; name a file in it, or a glob"):
        check(data_config(name, path=tmp_path))
    with pytest.raises(DataError, match=r"no file matches .*\*\.nothing"):
        check(data_config(name, path=tmp_path / "*.nothing"))
    with pytest.raises(DataError, match="not a regular file"):
        check(data_config(name, path="/dev/null"))


@pytest.mark.parametrize("name", ["text", "jsonl", "parquet"])
def test_an_empty_file(data_config, tmp_path, name):
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="empty"):
        check(data_config(name, path=tmp_path / "empty"))


def test_a_file_that_may_not_be_read(data_config, tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("text")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read any file")
    with pytest.raises(DataError, match=r"secret\.txt: cannot be read: Permission denied"):
        check(data_config("text", path=path))


def test_a_file_that_vanishes_or_changes_while_it_is_read(data_config, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("text")
    corpus = open_corpus(data_config("text", path=path))
    corpus.identity()
    corpus.check_unchanged()
    path.write_text("another")
    with pytest.raises(DataError, match="changed while it was read"):
        corpus.check_unchanged()
    path.unlink()
    with pytest.raises(DataError, match=r"file\.txt: cannot be read: No such file"):
        corpus.check_unchanged()


def test_identity_is_the_content_not_the_place(data_config, tmp_path):
    for name, content in (("a", "same"), ("b", "same"), ("c", "emas")):
        (tmp_path / name).write_text(content)
    a, b, c = (open_corpus(data_config("text", path=tmp_path / name)).identity() for name in "abc")
    assert a == b != c


# JSON lines


def write_jsonl(path: Path, values) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_jsonl_documents_are_kept_exactly(data_config, tmp_path, documents, ascii_only):
    lines = [json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only) for text in documents]
    (tmp_path / "file.jsonl").write_bytes("\n".join(lines).encode())
    config = data_config("jsonl", path=tmp_path / "file.jsonl")
    assert texts(config) == documents
    assert open_corpus(config).num_undecided() == len(documents)


def test_jsonl_blank_lines_crlf_byte_order_mark_and_gzip(data_config, tmp_path):
    content = b'\xef\xbb\xbf{"text": "a\\r\\n"}\r\n\n  \n{"text": "b"}'
    (tmp_path / "file.jsonl").write_bytes(content)
    with gzip.open(tmp_path / "file.jsonl.gz", "wb") as file:
        file.write(content)
    for name in ("file.jsonl", "file.jsonl.gz"):
        assert texts(data_config("jsonl", path=tmp_path / name)) == ["a\r\n", "b"]
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "file.jsonl.gz").read_bytes()[:-9])
    (tmp_path / "no.jsonl.gz").write_bytes(b"no gzip at all")
    for name in ("cut.jsonl.gz", "no.jsonl.gz"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read"):
            check(data_config("jsonl", path=tmp_path / name))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"line 3: expected one JSON object"),
        (b'{"text": "a"} {"text": "b"}', r"line 3: expected one JSON object"),
        (b"just words", r"line 3: expected one JSON object"),
        (b"[" * 100_000, r"line 3: expected one JSON object"),
        (b"9" * 10_000, r"line 3: expected "),
        (b'["text"]', r'line 3: expected a JSON object, found \["text"\]'),
        (b"null", r"line 3: expected a JSON object, found null"),
        (b'{"text": true}', r"line 3: expected text under 'text', found bool true"),
        (
            b'{"Text": "a", "id": 1}',
            r"line 3: there is no 'text', only 'Text', 'id'; did you mean data.text_column=Text\?",
        ),
        (b"{}", r"line 3: there is no 'text', only no field at all"),
        (b'{"text": null}', r"line 3: expected text under 'text', found nothing \(null\)"),
        (b'{"text": ["a"]}', r"line 3: expected text under 'text', found list"),
        (b'{"text": 1}', r"line 3: expected text under 'text', found int 1"),
        (b'{"text": "ab\\ud83d"}', r"line 3: .* half of a surrogate pair \(U\+D83D\) at character 2"),
        (b'{"text": "\xff"}', r"file\.jsonl: expected UTF-8 text, found the byte 0xff at offset 28"),
    ],
)
def test_jsonl_lines_that_are_refused(data_config, tmp_path, line, message):
    (tmp_path / "file.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        check(data_config("jsonl", path=tmp_path / "file.jsonl"))


def test_jsonl_several_files_and_another_column(data_config, tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [{"body": "three"}])
    write_jsonl(tmp_path / "a.jsonl", [{"body": "one"}, {"body": "two"}])
    config = data_config("jsonl", path=tmp_path / "*.jsonl", text_column="body")
    assert texts(config) == ["one", "two", "three"]
    assert texts(data_config("jsonl", path=tmp_path / "*.jsonl", text_column="body", max_documents=1)) == ["one"]


@pytest.mark.parametrize(
    ("name", "known"), [("a.txt", True), ("a.jsonl", True), ("a.jsonl.gz", False), ("a.parquet", False)]
)
def test_the_size_of_the_text_is_known_where_the_file_is_the_text(data_config, tmp_path, name, known):
    """What is compressed well is several times as much text, and a progress of 399 %."""
    path, texts = tmp_path / name, [f"{i} " * 1000 for i in range(9)]
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": texts}), path, compression="zstd")
    else:
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    kind = {"txt": "text", "parquet": "parquet"}.get(name.split(".")[-1], "jsonl")
    assert open_corpus(data_config(kind, path=path)).num_bytes() == (path.stat().st_size if known else None)
    assert open_corpus(data_config(kind, path=path, max_documents=1)).num_bytes() is None


# Parquet


def write_parquet(path: Path, column, name="text", **options) -> Path:
    pq.write_table(pa.table({"id": pa.array(range(len(column))), name: column}), path, **options)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())),
        *(pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())),  # text without Parquet's mark for it
    ],
    ids=str,
)
def test_parquet_documents_are_kept_exactly(data_config, tmp_path, kind):
    column = pa.array(HARD * 100).cast(getattr(kind, "value_type", kind)).cast(kind)
    path = write_parquet(tmp_path / "file.parquet", column, row_group_size=7)
    config = data_config("parquet", path=path)
    assert texts(config) == HARD * 100
    assert open_corpus(config).num_undecided() == len(HARD) * 100


@pytest.mark.parametrize(
    ("column", "name", "message"),
    [
        (pa.array(["a", None]), "text", r"row 2: expected text under 'text', found nothing \(null\)"),
        (pa.array([1, 2]), "text", r"expected text in the column 'text', found int64; set data\.text_column"),
        (pa.array([["a"]]), "text", r"expected text in the column 'text', found list"),
        (pa.array([b"a", b"b\xff"]), "text", r"row 2: expected UTF-8 text, found the byte 0xff"),
        (pa.array(["a"]), "texts", r"there is no 'text', only 'id', 'texts'; did you mean data\.text_column=texts\?"),
    ],
)
def test_parquet_columns_that_are_refused(data_config, tmp_path, column, name, message):
    path = write_parquet(tmp_path / "file.parquet", column, name)
    with pytest.raises(DataError, match=message):
        check(data_config("parquet", path=path))


def test_parquet_that_is_damaged(data_config, tmp_path):
    path = write_parquet(tmp_path / "file.parquet", pa.array(["some text " * 50] * 50), compression="none")
    content = path.read_bytes()
    for number in range(0, len(content), 37):
        path.write_bytes(content[:number])
        with pytest.raises(DataError, match=r"file\.parquet: (cannot be read as Parquet|empty)|file.parquet: empty"):
            check(data_config("parquet", path=path))
    invalid = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    with pytest.raises(DataError, match="row 1: expected UTF-8 text, found the byte 0xff"):
        check(data_config("parquet", path=write_parquet(path, invalid)))
