import numpy as np
import pytest

from nanolm.baselines.datasets import load_dataset, read_csv
from nanolm.config import load
from nanolm.errors import DataError

GOOD = "length,kind,width\n1.5,cat,2\n-1e3,dog, 4 \n0,cat,6\n"


def write(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("text", [GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD.replace("\n", "\n\n")])
def test_a_table_of_numbers_and_a_class(tmp_path, text):
    dataset = read_csv(write(tmp_path, text), "kind")
    np.testing.assert_array_equal(dataset.features, [[1.5, 2], [-1000, 4], [0, 6]])
    assert dataset.labels.tolist() == [0, 1, 0]
    assert dataset.feature_names == ("length", "width")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.name == "table.csv"


def test_quoted_names_and_classes_in_the_order_of_their_numbers(tmp_path):
    dataset = read_csv(write(tmp_path, '"a, b",y\n1,10\n2,9\n3,10\n'), "y")
    assert dataset.feature_names == ("a, b",)
    assert dataset.class_names == ("9", "10")
    assert dataset.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a header"),
        ("kind,x\n", "found 0 rows"),
        ("knd,x\na,1\nb,2\n", "did you mean knd?"),
        ("p,q\na,1\nb,2\n", "its columns, between commas, are ['p', 'q']"),
        ("kind\na\nb\n", "no other column"),
        ("kind,x,x\na,1,2\nb,2,3\n", "'x' more than once"),
        ("kind,x\na,1\nb,red\n", "row 3, column 'x': expected a finite number, found 'red'"),
        ("kind,x\na,1\nb,nan\n", "row 3, column 'x': expected a finite number, found 'nan'"),
        ("kind,x\na,inf\nb,1\n", "row 2, column 'x': expected a finite number, found 'inf'"),
        ("kind,x\na,1\nb,\n", "row 3, column 'x': expected a finite number, found an empty cell"),
        ("kind,x\na,1\n,2\n", "row 3, column 'kind': expected a class, found ''"),
        ("kind,x\na,1\nNaN,2\n", "row 3, column 'kind': expected a class, found 'NaN'"),
        ("kind,x\na,1\na,2\n", "at least 2 classes in column 'kind', found only 'a'"),
        ("kind,x\na,1\nb,2,3\n", "row 3: expected 2 cells, as in the header, found 3"),
        ('kind,x\na,"1\n', "cannot be read as CSV"),
        (b"kind,x\n\xff\xfe,1\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_what_is_wrong_is_named_by_row_and_column(tmp_path, text, told):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as raised:
        read_csv(path, "kind")
    assert told in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_binary_task_has_two_classes(tmp_path):
    path = write(tmp_path, "kind,x\na,1\nb,2\nc,3\n")
    task = load("baseline", [f"task.path={path}", "task.target=kind"]).task
    with pytest.raises(DataError, match="expects 2 classes in column 'kind', found 3; use task=softmax"):
        load_dataset(task)
    assert (
        load_dataset(load("baseline", ["task=softmax", f"task.path={path}", "task.target=kind"]).task).num_classes == 3
    )


def test_the_bundled_data():
    cancer, digits = (load_dataset(load("baseline", [f"task={name}"]).task) for name in ("binary", "softmax"))
    assert (cancer.features.shape, cancer.class_names) == ((569, 30), ("malignant", "benign"))
    assert (digits.features.shape, digits.num_classes) == ((1797, 64), 10)
