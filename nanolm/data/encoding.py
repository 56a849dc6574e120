"""Recognise a file that is not UTF-8 text by its first bytes, and say how to make UTF-8 text of it."""

from pathlib import Path

from nanolm.errors import DataError

HEAD_BYTES = 4096

_MARKS = ((b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
_FORMATS = (
    (b"\x1f\x8b", "compressed by gzip: unpack it (`gunzip`)"),
    (b"\xfd7zXZ\0", "compressed by xz: unpack it (`unxz`)"),
    (b"BZh", "compressed by bzip2: unpack it (`bunzip2`)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it (`unzstd`)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it (`7z x`)"),
    (b"PK\x03\x04", "a ZIP archive, as office documents and e-books are too: unpack it, or save it as plain text"),
    (b"%PDF", "a PDF: extract its text (`pdftotext`)"),
    (b"PAR1", "a Parquet file: use data=parquet"),
)
# High bytes of UTF-16 in alphabets whose text is also valid UTF-8; line breaks and tabs are text in both.
_HIGH_BYTES = bytes([*range(9), *range(14, 32)])


def unmarked_wide_encoding(head: bytes) -> str | None:
    """Recognise UTF-16 or UTF-32 without a byte order mark, which can be valid UTF-8 with many zeros; else None."""
    if len(head) < 8:
        return None
    for suffix, order in (("LE", 1), ("BE", -1)):
        lowest, second, third, highest = [head[place::4] for place in range(4)][::order]
        if any(lowest) and not any(highest) and third.count(0) > 0.8 * len(third):
            return f"UTF-32{suffix}"
        low, high = lowest + third, second + highest
        in_alphabet = sum(byte in _HIGH_BYTES for byte in high)
        if 0 in high and in_alphabet > 0.8 * len(high) and low.count(0) < 0.5 * len(low):
            return f"UTF-16{suffix}"
    return None


def what_to_do(head: bytes) -> str:
    """Say in one sentence what a file is that is not UTF-8, and how to make UTF-8 text of it."""
    wide = next((name for mark, name in _MARKS if head.startswith(mark)), None) or unmarked_wide_encoding(head)
    if wide:
        return f"The file is in {wide}: convert it (`iconv -f {wide} -t UTF-8 FILE > NEW`)."
    for magic, name in _FORMATS:
        if head.startswith(magic):
            return f"The file is {name}."
    return (
        "The file is not text, is damaged, or is in another encoding: guess it (`file --mime-encoding FILE`) and "
        "convert it (`iconv -f ENCODING -t UTF-8 FILE > NEW`)."
    )


def not_utf8(
    place: str | Path, error: UnicodeDecodeError, offset: int = 0, advice: str = "Repair or remove the document."
) -> DataError:
    """Make the error for bytes that are not UTF-8 and begin at ``offset`` of a file or document."""
    byte = error.object[error.start]
    return DataError(
        f"{place}: expected UTF-8 text, found the byte 0x{byte:02x} at offset {offset + error.start:,}. {advice}"
    )


def utf8(text: str, place: str = "the text") -> bytes:
    """Encode a text, or raise a DataError if it holds half of a surrogate pair, which UTF-8 cannot express."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start:,}"
        raise DataError(f"{place}: expected text, found {half}; repair or remove it") from None
