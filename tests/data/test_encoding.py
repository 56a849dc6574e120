import bz2
import gzip
import io
import json
import lzma
import zipfile

import pytest

from nanolm.classifiers.datasets import read_csv
from nanolm.errors import DataError
from tests.data.test_local import texts

TEXTS = {
    "English": "The state of the union.\nIt is strong.\n" * 5,
    "Russian": "Все счастливые семьи похожи друг на друга,\r\nкаждая несчастливая семья\n" * 5,
    "Greek": "Ἄνδρα μοι ἔννεπε, Μοῦσα, πολύτροπον, ὃς μάλα πολλὰ\n" * 5,
    "Chinese": "道可道，非常道。名可名，非常名。\n" * 5,
}


def refusal(config, path, kind):
    with pytest.raises(DataError) as refused:
        texts(config(f"data={kind}", f"data.path={path}"))
    assert str(path) in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32", "UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_the_encoding_is_named(config, tmp_path, language, encoding, kind):
    """With or without a byte order mark, and even if the bytes happen to be valid UTF-8."""
    text = TEXTS[language]
    line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    (tmp_path / "file").write_bytes((line if kind == "jsonl" else text).encode(encoding))
    message = refusal(config, tmp_path / "file", kind)
    if language == "Chinese" and encoding in ("UTF-16LE", "UTF-16BE"):  # nothing distinguishes it from other bytes
        assert "file --mime-encoding" in message
    else:
        assert f"iconv -f {encoding} " in message


@pytest.mark.parametrize("text", [*TEXTS.values(), "nul \x00", "a\x00b", "\x00" * 100, "x\x00\n" * 50, "\ufeffmark"])
def test_utf8_is_read_as_it_is(config, tmp_path, text):
    (tmp_path / "file.txt").write_bytes(text.encode())
    assert texts(config("data=text", f"data.path={tmp_path / 'file.txt'}")) == [text]


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
        (lambda data: b"\x89PNG\r\n\x1a\n\0\0\0\r", "not text"),
        (lambda data: "Ça va très bien".encode("cp1252"), "file --mime-encoding"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_what_is_no_text_is_named_with_what_to_do(config, tmp_path, pack, word, kind):
    (tmp_path / "file").write_bytes(pack(b'{"text": "plain"}\n' * 9))
    assert word in refusal(config, tmp_path / "file", kind)


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-16LE"])
def test_a_table_in_utf16_is_named_too(tmp_path, encoding):
    (tmp_path / "table.csv").write_bytes("kind,x\na,1\nb,2\n".encode(encoding))
    with pytest.raises(DataError, match=f"iconv -f {encoding} "):
        read_csv(tmp_path / "table.csv", "kind")
