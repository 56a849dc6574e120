import math

import pytest

from nanolm.lessons.step import Identity, Step, significant


@pytest.mark.parametrize(
    ("left", "right", "tolerance", "holds"),
    [
        (1.0, 1.0, 0.0, True),
        (1.0, 1.0 + 1e-10, 1e-12, False),
        (1e6, 1e6 + 0.5, 1e-6, True),  # relative above 1
        (0.0, 1e-7, 1e-6, True),  # absolute below
        (math.nan, math.nan, 1.0, False),
        (math.inf, 1.0, 1.0, False),
        (math.inf, math.inf, 1.0, False),
    ],
)
def test_an_identity_holds_within_its_tolerance(left, right, tolerance, holds):
    assert Identity("", left, right, tolerance).holds is holds


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (math.inf, "inf"), (1000.0, "1000"), (0.25, "0.2500"), (99.98, "99.98"), (5e-324, "4.941e-324")],
)
def test_numbers_have_four_digits(value, text):
    assert significant(value) == text


def test_columns_become_rows():
    step = Step("", "", "")
    step.column("n", [1000, 2000], ",")
    step.column("x", [0.5, math.inf], "digits")
    step.column("list", [[1], [2]], "words")
    assert step.table == [("n", "x", "list"), ("1,000", "0.5000", "[1]"), ("2,000", "inf", "[2]")]
    assert step.words == ["list"]
