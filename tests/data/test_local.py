import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanolm.data import open_corpus
from nanolm.data.local import BLOCK_BYTES, find_files
from nanolm.errors import DataError

HARD = ["\ufeffmark", "a\r\nb\rc\n", "nul \x00", "\u2028 and \x85", "👩‍👩‍👧", "", " "]
many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def texts(config):
    return ["".join(document.chunks) for document in open_corpus(config.data).documents()]


@pytest.fixture
def read(config, tmp_path):
    """``read("jsonl", content, …)``: the texts of a file of these bytes."""

    def run(kind, content, *overrides, name="file"):
        (tmp_path / name).write_bytes(content)
        return texts(config(f"data={kind}", f"data.path={tmp_path / name}", *overrides))

    return run


# Which files


def test_text_files_are_documents_kept_exactly_in_the_order_of_their_names(config, tmp_path):
    for number, text in reversed(list(enumerate(HARD))):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    glob = f"data.path={tmp_path}/*.txt"
    assert texts(config("data=text", glob)) == HARD
    assert texts(config("data=text", f"data.path={tmp_path}/1.txt")) == ["a\r\nb\rc\n"]
    assert texts(config("data=text", glob, "data.max_documents=2")) == HARD[:2]


def test_globs_reach_into_folders_and_a_name_with_brackets_is_a_name(tmp_path):
    path = tmp_path / "deep" / "er" / "a[1] (copy), x=1.txt"
    path.parent.mkdir(parents=True)
    path.touch()
    (tmp_path / "folder.txt").mkdir()
    assert find_files(f"{tmp_path}/**/*.txt") == find_files(str(path)) == [path]


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
def test_a_file_is_read_once_whatever_links_lead_to_it(linked, pattern):
    found = find_files(str(linked / pattern))
    assert [path.read_text() for path in found] == ["a", "b"]
    if pattern != "latest/**/*":  # the names are those without a link, where there is one
        assert found == [linked / "sub" / "a.txt", linked / "sub" / "b.txt"]


def test_a_glob_follows_links_to_other_folders(tmp_path):
    for name in ("disk/far.txt", "texts/.hidden/no.txt", "texts/near.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "texts" / "part").symlink_to("../disk")
    (tmp_path / "texts" / "file.txt").symlink_to("../disk/far.txt")

    def found():
        return [str(path.relative_to(tmp_path / "texts")) for path in find_files(f"{tmp_path}/texts/**/*.txt")]

    assert found() == ["file.txt", "near.txt"]
    (tmp_path / "texts" / "file.txt").unlink()
    assert found() == ["near.txt", "part/far.txt"]


def test_home_and_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find_files("~/mine.txt")[0].samefile(find_files("mine.txt")[0])


@pytest.mark.parametrize("path", ["nowhere/at/all", ".", "*.nothing", "/dev/null"])
def test_what_is_no_file_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.path"):
        find_files(path)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_an_empty_file(read, kind):
    with pytest.raises(DataError, match="empty"):
        read(kind, b"", name="empty")


def test_a_file_that_may_not_be_read(config, tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("text")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read any file")
    with pytest.raises(DataError, match=r"secret\.txt.*Permission"):
        texts(config("data=text", f"data.path={path}"))


@pytest.mark.parametrize("change", [lambda path: path.write_text("another"), lambda path: path.unlink()])
def test_a_file_that_vanishes_or_changes_while_it_is_read(config, tmp_path, change):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    documents = open_corpus(config("data=text", f"data.path={tmp_path}/*.txt").data).documents()
    assert "".join(next(documents).chunks) == "text"
    change(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a\.txt"):
        list(documents)


def test_identity_is_the_content_not_the_place(config, tmp_path):
    for name, content in (("a", "same"), ("b", "same"), ("c", "emas")):
        (tmp_path / name).write_text(content)
    a, b, c = (open_corpus(config("data=text", f"data.path={tmp_path / name}").data).identity() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("name", "known"), [("a.txt", True), ("a.jsonl", True), ("a.jsonl.gz", False), ("a.parquet", False)]
)
def test_the_size_of_the_text_is_known_where_the_file_is_the_text(config, tmp_path, name, known):
    path, numbers = tmp_path / name, [f"{i} " * 1000 for i in range(9)]
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": numbers}), path, compression="zstd")
    else:
        content = "".join(json.dumps({"text": text}) + "\n" for text in numbers).encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    given = [f"data={ {'txt': 'text', 'parquet': 'parquet'}.get(name.split('.')[-1], 'jsonl') }", f"data.path={path}"]
    assert open_corpus(config(*given).data).num_bytes() == (path.stat().st_size if known else None)
    assert open_corpus(config(*given, "data.max_documents=1").data).num_bytes() is None


# Text


@pytest.mark.parametrize("before", range(5))
@pytest.mark.parametrize("character", ["é", "中", "😀"])
def test_a_character_across_two_blocks_is_kept(read, before, character):
    text = "x" * (BLOCK_BYTES - before) + character + "end"
    assert read("text", text.encode()) == [text]


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
def test_bytes_that_are_not_utf8_are_refused_with_their_offset(read, content, offset, byte):
    with pytest.raises(DataError, match=rf"file: .*0x{byte} at offset {offset:,}\."):
        read("text", content)


# JSON lines


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8), st.booleans())
@many
def test_jsonl_documents_are_kept_exactly(jsonl, documents, ascii_only):
    path, config = jsonl
    lines = [json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only) for text in documents]
    path.write_bytes("\n".join(lines).encode())
    assert texts(config) == documents
    assert open_corpus(config.data).num_undecided() == len(documents)


@pytest.fixture
def jsonl(config, tmp_path):
    (tmp_path / "file.jsonl").touch()
    return tmp_path / "file.jsonl", config("data=jsonl", f"data.path={tmp_path / 'file.jsonl'}")


def test_jsonl_blank_lines_crlf_byte_order_mark_and_gzip(read):
    content = b'\xef\xbb\xbf{"text": "a\\r\\n"}\r\n\n  \n{"text": "b"}'
    packed = gzip.compress(content)
    assert read("jsonl", content) == read("jsonl", packed, name="file.gz") == ["a\r\n", "b"]
    for damaged in (packed[:-9], b"no gzip at all"):
        with pytest.raises(DataError, match=r"damaged\.gz"):
            read("jsonl", damaged, name="damaged.gz")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "cut', "line 3.*JSON"),
        (b'{"text": "a"} {"text": "b"}', "line 3.*JSON"),
        (b"just words", "line 3.*JSON"),
        (b"[" * 100_000, "line 3.*JSON"),
        (b"9" * 10_000, "line 3.*JSON"),
        (b'["text"]', r'line 3.*found \["text"\]'),
        (b"null", "line 3.*found null"),
        (b'{"text": true}', "line 3.*'text', found true"),
        (b'{"Text": "a", "id": 1}', r"line 3.*'text', found 'Text', 'id'.*data\.text_column=Text"),
        (b"{}", "line 3.*'text', found none"),
        (b'{"text": null}', "line 3.*'text', found null"),
        (b'{"text": ["a"]}', r"line 3.*'text', found \[\"a\"\]"),
        (b'{"text": "ab\\ud83d"}', r"line 3.*U\+D83D\) at character 2"),
        (b'{"text": "\xff"}', "0xff at offset 28"),
    ],
)
def test_jsonl_lines_that_are_refused(read, line, words):
    with pytest.raises(DataError, match=words):
        read("jsonl", b'{"text": "fine"}\n\n' + line + b"\n")


def test_jsonl_several_files_and_another_column(config, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"body": "three"}')
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n{"body": "two"}')
    given = ["data=jsonl", f"data.path={tmp_path}/*.jsonl", "data.text_column=body"]
    assert texts(config(*given)) == ["one", "two", "three"]
    assert texts(config(*given, "data.max_documents=1")) == ["one"]


# Parquet


@pytest.fixture
def parquet(config, tmp_path):
    """``parquet(column)``: the configuration of a table with numbers and this column."""

    def write(column, name="text", **options):
        path = tmp_path / "file.parquet"
        pq.write_table(pa.table({"id": pa.array(range(len(column))), name: column}), path, **options)
        return config("data=parquet", f"data.path={path}")

    return write


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())),
        *(pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())),  # text without Parquet's mark for it
    ],
    ids=str,
)
def test_parquet_documents_are_kept_exactly(parquet, kind):
    config = parquet(pa.array(HARD * 100).cast(getattr(kind, "value_type", kind)).cast(kind), row_group_size=7)
    assert texts(config) == HARD * 100
    assert open_corpus(config.data).num_undecided() == len(HARD) * 100


@pytest.mark.parametrize(
    ("column", "name", "words"),
    [
        (pa.array(["a", None]), "text", "row 2.*'text', found null"),
        (pa.array([1, 2]), "text", r"'text', found int64.*data\.text_column"),
        (pa.array([["a"]]), "text", "'text', found list"),
        (pa.array([b"a", b"b\xff"]), "text", "row 2.*0xff"),
        (pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")), "text", "0xff"),
        (pa.array(["a"]), "texts", r"'text', found 'id', 'texts'.*data\.text_column=texts"),
    ],
)
def test_parquet_columns_that_are_refused(parquet, column, name, words):
    with pytest.raises(DataError, match=rf"file\.parquet.*{words}"):
        texts(parquet(column, name))


def test_parquet_that_is_damaged(parquet, tmp_path):
    config = parquet(pa.array(["some text " * 50] * 50), compression="none")
    content = (tmp_path / "file.parquet").read_bytes()
    for number in range(0, len(content), 37):
        (tmp_path / "file.parquet").write_bytes(content[:number])
        with pytest.raises(DataError, match=r"file\.parquet"):
            texts(config)
