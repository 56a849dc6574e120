"""What a file is that is not UTF-8 text, judged by its first bytes, and what to do with it."""

HEAD_BYTES = 4096
"""As many of a file's first bytes as a judgement needs."""

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
_HIGH_BYTES = bytes([*range(9), *range(14, 32)])
"""High bytes of UTF-16 in alphabets whose text is also valid UTF-8; line breaks and tabs are text in both."""
_SHORTEST = 8


def unmarked_wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 where text without a byte order mark is in one of them, else None.

    Such text can be valid UTF-8: every second byte of English in UTF-16 is 0.
    """
    if len(head) < _SHORTEST:
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
    """A sentence about a file that is not UTF-8: what it is, and how to make UTF-8 text of it."""
    wide = next((name for mark, name in _MARKS if head.startswith(mark)), None) or unmarked_wide_encoding(head)
    if wide:
        return f"The file is in {wide}: convert it (`iconv -f {wide} -t UTF-8 FILE > NEW`)."
    for magic, name in _FORMATS:
        if head.startswith(magic):
            return f"The file is {name}."
    return (
        "The file is not text, is damaged, or is in another encoding: find out which (`file --mime-encoding FILE` "
        "guesses), and convert it (`iconv -f ENCODING -t UTF-8 FILE > NEW`)."
    )
