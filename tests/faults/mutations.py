"""Files as a failing disk or an attacker would change them: strategies for any JSON content and for any bytes."""

import copy
import json

from hypothesis import strategies as st

NUMBERS = (-1, 0, 1, 3, 2**31, 2**63, 10**400, -(10**4000), 0.5, -0.0, 1e308, float("nan"), float("inf"))
TEXTS = ("", "a", "the", "0", "null", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "\ud800", "x" * 300, "<script>")
OTHERS = (None, True, False, "_target_", [], {}, [[]], [None], {"": None}, {"type": "BPE"}, {"value": "1"})
SYNTAX = (b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"../")
PIECES = (b"\\u0000", b"\\ud800", b"\xff", b"\0", b"\r\n", b"\xef\xbb\xbf", b"9" * 400, b"[" * 70, b'{"a":' * 70)

wild = (  # copied before it is changed
    st.sampled_from(NUMBERS + TEXTS + OTHERS) | st.integers() | st.floats() | st.text(max_size=5)
)


@st.composite
def mutated(draw, content):
    """A JSON content with some of its nodes replaced, removed, wrapped or nested, or given more keys."""
    root = {"root": copy.deepcopy(content)}
    for _ in range(draw(st.integers(1, 3))):
        parent, key = root, "root"
        for _ in range(draw(st.integers(1, 5))):
            child = parent[key]
            if not isinstance(child, dict | list) or not child:
                break
            parent = child
            keys = sorted(child, key=str) if isinstance(child, dict) else range(min(len(child), 6))
            key = draw(st.sampled_from(keys))
        what = draw(st.sampled_from(["replace", "remove", "wrap", "add", "nest"]))
        if what == "replace" or parent is root:
            parent[key] = copy.deepcopy(draw(wild))
        elif what == "remove":
            del parent[key]
        elif what == "wrap":
            parent[key] = draw(st.sampled_from([[parent[key]], {"a": parent[key]}, str(parent[key])]))
        elif what == "nest":
            for _ in range(draw(st.sampled_from([10, 70, 200]))):
                parent[key] = [parent[key]]
        elif isinstance(parent, dict):
            name = draw(st.text(max_size=4) | st.sampled_from(["_target_", "../x", "\0"]))
            parent[name] = copy.deepcopy(draw(wild))
        else:
            parent.insert(draw(st.integers(0, len(parent))), copy.deepcopy(draw(wild)))
    return root["root"]


@st.composite
def damaged(draw, content):
    """Bytes with some flipped, cut out, put in, doubled, or with the end cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 20)))
        what = draw(st.sampled_from(["flip", "cut", "insert", "double", "truncate"]))
        if what == "flip" and start < len(data):
            data[start] ^= draw(st.integers(1, 255))
        elif what == "cut":
            del data[start:stop]
        elif what == "insert":
            data[start:stop] = draw(st.sampled_from(SYNTAX + PIECES) | st.binary(max_size=8))
        elif what == "double":
            data[start:start] = data[start:stop]
        elif what == "truncate":
            del data[start:]
    return bytes(data)


def as_json(content):
    """Return a content as bytes of JSON, even if it holds half of a surrogate pair or a NaN."""
    return json.dumps(content).encode()
