import logging
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanolm.config.schema import DataConfig
from nanolm.data.corpus import Document
from nanolm.data.splits import Copies, deal, deal_held_out, split_documents, split_sizes
from nanolm.errors import DataError


def config(val=0.1, test=0.1, calibration=0.1, seed=0, held_out=10):
    return DataConfig(
        "text", None, "data", "text", None, None, None, None, held_out, val, test, calibration, None, seed
    )


class Documents:
    """A corpus of given documents, each read in chunks of 7 characters."""

    def __init__(self, *documents):
        self._documents = documents

    def num_undecided(self):
        return sum(split is None for _, split in self._documents)

    def documents(self):
        for number, (text, split) in enumerate(self._documents):
            yield Document(f"document {number}", (text[i : i + 7] for i in range(0, len(text), 7)), split)


def read(corpus, config):
    return [(part.split, "".join(part.document.chunks), part.offset) for part in split_documents(corpus, config)]


fractions = st.floats(0, 0.33)


@given(st.integers(2, 3000), st.floats(0.001, 0.33), fractions, fractions)
def test_every_split_has_its_share(count, val, test, calibration):
    drawn = config(val, test, calibration)
    sizes = split_sizes(count, drawn)
    left = count - 1
    for split, fraction in (("val", val), ("calibration", calibration), ("test", test)):
        expected = min(left, max(1, round(count * fraction))) if fraction else 0
        assert sizes[split] == expected
        left -= expected
    assert sum(sizes.values()) < count, "train keeps a document"
    assert Counter(deal(count, drawn)) == Counter(train=count - sum(sizes.values())) + Counter(sizes)


@pytest.mark.parametrize(
    ("count", "kept"), [(2, ["val"]), (3, ["val", "calibration"]), (4, ["val", "calibration", "test"])]
)
def test_with_few_documents_splits_are_left_out_with_a_warning(count, kept, caplog):
    with caplog.at_level(logging.WARNING):
        sizes = split_sizes(count, config())
    assert [split for split, size in sizes.items() if size] == kept
    assert len(caplog.records) == 3 - len(kept)
    assert all("too few" in record.getMessage() for record in caplog.records)


def test_the_seed_decides_who_and_nothing_else():
    first, again, other = (list(deal(200, config(seed=seed))) for seed in (0, 0, 1))
    assert first == again != other
    assert Counter(first) == Counter(other)
    # Not the first or last documents: val is spread over the whole corpus.
    places = [i for i, split in enumerate(first) if split == "val"]
    assert min(places) < 100 < max(places)


def test_equal_documents_are_in_one_split_and_counted():
    """40 documents, 10 of them twice and one five times: the first ones are where they would be without copies."""
    texts = [f"text {i}" for i in range(40)]
    texts += texts[:10] + [texts[20]] * 4 + ["", "", ""]
    dealt, copies = list(deal(len(texts), config())), Copies()
    corpus = Documents(*((text, None) for text in texts))
    parts = [(part.split, "".join(part.document.chunks)) for part in split_documents(corpus, config(), copies)]
    assert [text for _, text in parts] == texts
    split_of = dict(zip(texts[:40], dealt, strict=False))
    assert [split for split, text in parts if text] == [split_of[text] for text in texts if text]
    assert copies.count == 14
    assert copies.moved == sum(split != split_of[text] for split, text in zip(dealt, texts, strict=True) if text) > 0


def test_copies_that_leave_nothing_to_train_on_are_refused():
    """Three documents, the first of which is for val: the one for train is a copy of it."""
    seed = next(seed for seed in range(99) if list(deal(2, config(0.3, 0, 0, seed))) == ["val", "train"])
    with pytest.raises(DataError, match="none is left to train on"):
        read(Documents(("same", None), ("same", None)), config(0.3, 0, 0, seed))


def test_without_equal_documents_every_split_is_as_dealt():
    corpus, copies = Documents(*((f"text {i}", None) for i in range(60))), Copies()
    assert [part.split for part in split_documents(corpus, config(), copies)] == list(deal(60, config()))
    assert (copies.count, copies.moved) == (0, 0)


def test_documents_that_come_with_a_split_keep_it():
    corpus = Documents(*[(f"text {i}", "shifted" if i % 5 == 0 else None) for i in range(50)])
    parts = read(corpus, config())
    assert [split == "shifted" for split, _, _ in parts] == [i % 5 == 0 for i in range(50)]
    assert [text for _, text, _ in parts] == [f"text {i}" for i in range(50)]
    assert Counter(split for split, _, _ in parts) == {
        "shifted": 10,
        "val": 4,
        "calibration": 4,
        "test": 4,
        "train": 28,
    }


def test_one_document_is_cut_at_its_characters():
    text = "".join(chr(0x100 + i) for i in range(100))
    assert read(Documents((text, None)), config(0.1, 0.1, 0.05)) == [
        ("train", text[:85], 0),
        ("calibration", text[85:90], 85),
        ("val", text[90:], 90),
    ]
    assert read(Documents((text, None)), config(0.1, 0.1, 0)) == [("train", text[:90], 0), ("val", text[90:], 90)]


@example(100, 0.07, 0)  # in binary, 0.07 of 100 is a little more than 7
@given(st.integers(3, 500), st.sampled_from([0.05, 0.1, 0.2, 0.3]), st.sampled_from([0, 0.01, 0.05]))
def test_the_parts_of_one_document_are_the_document(length, val, calibration):
    text = "abcdefghij" * 50
    parts = read(Documents((text[:length], None)), config(val, 0.1, calibration))
    assert "".join(part for _, part, _ in parts) == text[:length]
    sizes = {split: len(part) for split, part, _ in parts}
    # As many as a hundredth, twentieth, … rounded up, in whole numbers.
    assert sizes["val"] == -(-length * round(val * 100) // 100)
    assert sizes.get("calibration", 0) == -(-length * round(calibration * 100) // 100)


def test_tiny_shakespeare_is_cut_where_nanogpt_cuts_it():
    text = "x" * 1_115_394
    assert [(split, len(part)) for split, part, _ in read(Documents((text, None)), config(0.1, 0, 0))] == [
        ("train", 1_003_854),
        ("val", 111_540),
    ]


def test_one_document_beside_dated_ones_is_cut_too():
    parts = read(Documents(("new", "shifted"), ("0123456789" * 2, None)), config(0.1, 0, 0))
    assert parts == [("shifted", "new", 0), ("train", "012345678901234567", 0), ("val", "89", 18)]


def test_a_document_too_short_to_cut():
    with pytest.raises(DataError, match=r"document 0: 2 characters are too few"):
        read(Documents(("ab", None)), config())


@given(st.integers(1, 500), st.floats(0.001, 0.33), fractions, fractions)
def test_held_out_documents_are_divided_in_proportion(count, val, test, calibration):
    dealt = Counter(deal_held_out(config(val, test, calibration, held_out=count)))
    whole = val + test + calibration
    assert sum(dealt.values()) == count
    assert dealt["val"] >= 1
    for split, fraction in (("val", val), ("test", test), ("calibration", calibration)):
        assert abs(dealt[split] - count * fraction / whole) < 2 + 1e-6
