import bz2
import gzip
import io
import json
import lzma
import zipfile

import pytest

from nanolm.classifiers.datasets import read_csv
from nanolm.data.corpus import open_corpus
from nanolm.errors import DataError
from tests.data.test_local import check

TEXTS = {
    "English": "The state of the union.\nIt is strong.\n" * 5,
    "Russian": "Все счастливые семьи похожи друг на друга,\r\nкаждая несчастливая семья\n" * 5,
    "Greek": "Ἄνδρα μοι ἔννεπε, Μοῦσα, πολύτροπον, ὃς μάλα πολλὰ\n" * 5,
    "Chinese": "道可道，非常道。名可名，非常名。\n" * 5,
}


def refusal(data_config, path, kind="text"):
    """What is said of a file of the user's own."""
    with pytest.raises(DataError) as caught:
        check(data_config(kind, path=path))
    message = str(caught.value)
    assert str(path) in message
    assert "LATIN1" not in message
    return message


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32", "UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_the_encoding_is_named(data_config, tmp_path, language, encoding, kind):
    """With a mark or without one, and whether or not the bytes are valid UTF-8 by chance."""
    text = TEXTS[language]
    line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    (tmp_path / "file").write_bytes((line if kind == "jsonl" else text).encode(encoding))
    message = refusal(data_config, tmp_path / "file", kind)
    if language == "Chinese" and encoding in ("UTF-16LE", "UTF-16BE"):  # nothing tells it from other bytes
        assert "file --mime-encoding" in message
    else:
        assert f"iconv -f {encoding} " in message


@pytest.mark.parametrize("text", [*TEXTS.values(), "nul \x00", "a\x00b", "\x00" * 100, "x\x00\n" * 50, "\ufeffmark"])
def test_utf8_is_read_as_it_is(data_config, tmp_path, text):
    (tmp_path / "file.txt").write_bytes(text.encode())
    (document,) = open_corpus(data_config("text", path=tmp_path / "file.txt")).documents()
    assert "".join(document.chunks) == text


def zipped(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("text.txt", data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("pack", "word"),
    [
        (gzip.compress, "gunzip"),
        (lzma.compress, "unxz"),
        (bz2.compress, "bunzip2"),
        (zipped, "ZIP"),
        (lambda data: b"\x28\xb5\x2f\xfd" + bytes(range(128, 256)), "unzstd"),
        (lambda data: b"%PDF-1.7 \xe2\xe3\xcf\xd3", "pdftotext"),
        (lambda data: b"\x89PNG\r\n\x1a\n\0\0\0\r", "not text"),  # PNG
        (lambda data: "Ça va très bien".encode("cp1252"), "file --mime-encoding"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_what_is_no_text_is_named_with_what_to_do(data_config, tmp_path, pack, word, kind):
    (tmp_path / "file").write_bytes(pack(b'{"text": "plain"}\n' * 9))
    assert word in refusal(data_config, tmp_path / "file", kind)


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-16LE"])
def test_a_table_in_utf16_is_named_too(tmp_path, encoding):
    (tmp_path / "table.csv").write_bytes("kind,x\na,1\nb,2\n".encode(encoding))
    with pytest.raises(DataError, match=f"CSV in UTF-8.*iconv -f {encoding} "):
        read_csv(tmp_path / "table.csv", "kind")
