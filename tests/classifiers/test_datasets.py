import numpy as np
import pytest

from nanolm.classifiers.datasets import load_dataset, read_csv
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
    assert (dataset.feature_names, dataset.class_names) == (("length", "width"), ("cat", "dog"))
    assert dataset.name == "table.csv"


def test_quoted_names_and_classes_in_the_order_of_their_numbers(tmp_path):
    dataset = read_csv(write(tmp_path, '"a, b",y\n1,10\n2,9\n3,10\n'), "y")
    assert (dataset.feature_names, dataset.class_names) == (("a, b",), ("9", "10"))
    assert dataset.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ["header"]),
        ("kind,x\n", ["0 rows"]),
        ("knd,x\na,1\nb,2\n", ["task.target", "knd"]),
        ("p,q\na,1\nb,2\n", ["task.target", "['p', 'q']"]),
        ("kind\na\nb\n", ["'kind'"]),
        ("kind,x,x\na,1,2\nb,2,3\n", ["'x'"]),
        ("kind,x\na,1\nb,red\n", ["row 3", "'x'", "'red'"]),
        ("kind,x\na,1\nb,nan\n", ["row 3", "'x'", "'nan'"]),
        ("kind,x\na,inf\nb,1\n", ["row 2", "'x'", "'inf'"]),
        ("kind,x\na,1\nb,\n", ["row 3", "'x'", "''"]),
        ("kind,x\na,1\n,2\n", ["row 3", "'kind'", "''"]),
        ("kind,x\na,1\nNaN,2\n", ["row 3", "'kind'", "'NaN'"]),
        ("kind,x\na,1\na,2\n", ["'kind'", "'a'"]),
        ("kind,x\na,1\nb,2,3\n", ["row 3", "3"]),
        ('kind,x\na,"1\n', ["CSV"]),
        (b"kind,x\n\xff\xfe,1\n", ["UTF-8"]),
        ("kind,x\na,1\nb,2\n".encode("utf-16-le"), ["UTF-16LE"]),
        ("kind,x\n1,1\n1.0,2\nother,3\n", ["'1'", "'1.0'"]),
        ("kind,x\n10,1\n1e1,2\n", ["'10'", "'1e1'"]),
    ],
)
def test_a_mistake_is_named_by_file_row_and_column(tmp_path, text, named):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as raised:
        read_csv(path, "kind")
    for word in (str(path), *named):
        assert word in str(raised.value)


def table(tmp_path, **columns):
    """A table with these columns and a target ``y``: 40 rows sorted by class, 30 of them no."""
    columns = {"a": [i * 37 % 40 for i in range(40)], **columns, "y": ["no"] * 30 + ["yes"] * 10}
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    return write(tmp_path, "\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1", "id"])
@pytest.mark.parametrize("first", [0, 1])
def test_an_index_is_no_feature(tmp_path, caplog, name, first):
    dataset = read_csv(table(tmp_path, **{name: range(first, first + 40)}), "y")
    assert dataset.feature_names == ("a",)
    assert dataset.features.shape == (40, 1)
    (message,) = caplog.messages
    assert (repr(name) if name else "without a name") in message


def test_a_column_without_a_name_is_left_out_whatever_it_holds(tmp_path, caplog):
    dataset = read_csv(write(tmp_path, ",kind,x,\nr1,a,1,\nr2,b,2,\n"), "kind")
    assert dataset.feature_names == ("x",)
    assert len(caplog.messages) == 1


def test_a_nameless_index_alone_is_no_table_and_a_named_one_is(tmp_path):
    rows = "".join(f"{i},{'ab'[i > 5]}\n" for i in range(10))
    with pytest.raises(DataError):
        read_csv(write(tmp_path, ",y\n" + rows), "y")
    assert read_csv(write(tmp_path, "x,y\n" + rows), "y").feature_names == ("x",)


@pytest.mark.parametrize(
    ("leak", "is_one"),
    [
        ([0] * 30 + [1] * 10, True),  # the class itself
        ([1] * 30 + [-3.5] * 10, True),
        ([*range(100, 130), *range(200, 210)], True),  # numbers of rows, with a gap
        ([*range(100, 130), *range(129, 139)], False),  # the classes touch
        ([0] * 29 + [1] * 11, False),
    ],
)
def test_a_feature_that_gives_the_class_away_is_named(tmp_path, caplog, leak, is_one):
    dataset = read_csv(table(tmp_path, leak=leak), "y")
    assert dataset.feature_names == ("a", "leak")
    assert [("'leak'" in message, "'a'" in message) for message in caplog.messages] == [(True, False)] * is_one


def test_a_feature_that_orders_several_classes_is_named(tmp_path, caplog):
    rows = [f"{kind}{i % 7},{'xyz'[kind]},{i % 5}" for i, kind in enumerate([2, 0, 1] * 10)]
    read_csv(write(tmp_path, "code,y,b\n" + "\n".join(rows) + "\n"), "y")
    (message,) = caplog.messages
    assert "'code'" in message
    assert "'b'" not in message


def test_a_binary_task_has_two_classes(tmp_path):
    path = write(tmp_path, "kind,x\na,1\nb,2\nc,3\n")
    keys = [f"task.path={path}", "task.target=kind"]
    with pytest.raises(DataError, match="task=softmax"):
        load_dataset(load("baseline", keys).task)
    assert load_dataset(load("baseline", ["task=softmax", *keys]).task).num_classes == 3


def test_the_bundled_data():
    cancer, digits = (load_dataset(load("baseline", [f"task={name}"]).task) for name in ("binary", "softmax"))
    assert (cancer.features.shape, cancer.class_names) == ((569, 30), ("malignant", "benign"))
    assert (digits.features.shape, digits.num_classes) == ((1797, 64), 10)
