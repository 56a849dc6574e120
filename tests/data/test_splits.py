from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanolm.data.documents import Corpus, Document
from nanolm.data.splits import Copies, assign, assign_held_out, split_documents
from nanolm.errors import DataError
from tests.data.conftest import configure

SOTU, HUB = (configure("data", f"data={name}").data for name in ("sotu", "fineweb_edu"))


def config(val=0.1, test=0.1, calibration=0.1, seed=0):
    return replace(SOTU, val_fraction=val, test_fraction=test, calibration_fraction=calibration, split_seed=seed)


class Documents(Corpus):
    """A corpus of given documents, each read in chunks of 7 characters."""

    def __init__(self, *documents):
        self._documents = documents

    def identity(self):
        return {}

    def num_undecided(self):
        return sum(split is None for _, split in self._documents)

    def documents(self):
        for number, (text, split) in enumerate(self._documents):
            yield Document(f"document {number}", (text[i : i + 7] for i in range(0, len(text), 7)), split)


def undecided(*texts):
    return Documents(*((text, None) for text in texts))


def read(corpus, config, copies=None):
    documents = split_documents(corpus, config, copies or Copies())
    return [(part.split, "".join(part.chunks), part.offset) for part in documents]


shares = st.floats(0, 0.33)
some = st.floats(0.001, 0.33)


@given(st.integers(2, 3000), some, shares, shares)
def test_every_split_has_its_share(count, val, test, calibration):
    expected = Counter(train=count)
    for split, fraction in (("val", val), ("calibration", calibration), ("test", test)):
        expected[split] = min(expected["train"] - 1, max(1, round(count * fraction))) if fraction else 0
        expected["train"] -= expected[split]
    assert Counter(assign(count, config(val, test, calibration))) == expected


@pytest.mark.parametrize(
    ("count", "kept"), [(2, ["val"]), (3, ["val", "calibration"]), (4, ["val", "calibration", "test"])]
)
def test_with_few_documents_splits_are_left_out_with_a_warning(count, kept, caplog):
    assert set(assign(count, config())) == {"train", *kept}
    assert len(caplog.records) == 3 - len(kept)


def test_the_seed_decides_who_and_nothing_else():
    first, again, other = (list(assign(200, config(seed=seed))) for seed in (0, 0, 1))
    assert first == again != other
    assert Counter(first) == Counter(other)
    # Not the first or last documents: val is spread over the whole corpus.
    places = [i for i, split in enumerate(first) if split == "val"]
    assert min(places) < 100 < max(places)


def test_equal_documents_are_in_one_split_and_counted():
    """40 documents, 10 of them twice and one five times: the first ones are where they would be without copies."""
    texts = [f"text {i}" for i in range(40)]
    texts += texts[:10] + [texts[20]] * 4 + ["", "", ""]
    assigned, copies = list(assign(len(texts), config())), Copies()
    parts = read(undecided(*texts), config(), copies)
    assert [text for _, text, _ in parts] == texts
    split_of = dict(zip(texts[:40], assigned, strict=False))
    assert [split for split, text, _ in parts if text] == [split_of[text] for text in texts if text]
    assert copies.count == 14
    assert any(split != split_of[text] for split, text in zip(assigned, texts, strict=True) if text), "some moved"


def test_documents_that_come_with_a_split_keep_it():
    parts = read(Documents(*[(f"text {i}", "shifted" if i % 5 == 0 else None) for i in range(50)]), config())
    assert [split == "shifted" for split, _, _ in parts] == [i % 5 == 0 for i in range(50)]
    assert [text for _, text, _ in parts] == [f"text {i}" for i in range(50)]
    sizes = {"shifted": 10, "val": 4, "calibration": 4, "test": 4, "train": 28}
    assert Counter(split for split, _, _ in parts) == sizes


def test_one_document_is_cut_at_its_characters():
    text = "".join(chr(0x100 + i) for i in range(100))
    assert read(undecided(text), config(0.1, 0.1, 0.05)) == [
        ("train", text[:85], 0),
        ("calibration", text[85:90], 85),
        ("val", text[90:], 90),
    ]
    assert read(undecided(text), config(0.1, 0.1, 0)) == [("train", text[:90], 0), ("val", text[90:], 90)]


@example(100, 0.07, 0)  # in binary, 0.07 of 100 is a little more than 7
@given(st.integers(3, 500), st.sampled_from([0.05, 0.1, 0.2, 0.3]), st.sampled_from([0, 0.01, 0.05]))
def test_the_parts_of_one_document_are_the_document(length, val, calibration):
    text = "abcdefghij" * 50
    parts = read(undecided(text[:length]), config(val, 0.1, calibration))
    assert "".join(part for _, part, _ in parts) == text[:length]
    sizes = {split: len(part) for split, part, _ in parts}
    # As many as a hundredth, twentieth, … rounded up, in whole numbers.
    assert sizes["val"] == -(-length * round(val * 100) // 100)
    assert sizes.get("calibration", 0) == -(-length * round(calibration * 100) // 100)


def test_tiny_shakespeare_is_cut_where_nanogpt_cuts_it():
    parts = read(undecided("x" * 1_115_394), config(0.1, 0, 0))
    assert [(split, len(part)) for split, part, _ in parts] == [("train", 1_003_854), ("val", 111_540)]


def test_one_document_alongside_dated_ones_is_cut_too():
    parts = read(Documents(("new", "shifted"), ("0123456789" * 2, None)), config(0.1, 0, 0))
    assert parts == [("shifted", "new", 0), ("train", "012345678901234567", 0), ("val", "89", 18)]


def test_a_document_too_short_to_cut():
    with pytest.raises(DataError, match="document 0: 2 "):
        read(undecided("ab"), config())


@given(st.integers(1, 500), some, shares, shares)
def test_held_out_documents_are_divided_in_proportion(count, val, test, calibration):
    keys = {"val_fraction": val, "test_fraction": test, "calibration_fraction": calibration}
    assigned = Counter(assign_held_out(replace(HUB, held_out_documents=count, **keys)))
    whole = val + test + calibration
    assert sum(assigned.values()) == count
    assert assigned["val"] >= 1
    for split, fraction in (("val", val), ("test", test), ("calibration", calibration)):
        assert abs(assigned[split] - count * fraction / whole) < 2 + 1e-6
