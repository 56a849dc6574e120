from nanolm.tracking.tables import aligned


def test_first_column_and_named_ones_to_the_left_numbers_to_the_right():
    rows = [("name", "value", "note"), ("a", "1.5", "x"), ("longer", "10.25", "")]
    assert aligned("title", rows).splitlines() == [
        "title",
        "  name    value  note",
        "  a         1.5  x",
        "  longer  10.25",
    ]
    assert aligned("", rows, left=["value"]).splitlines()[2] == "  a       1.5       x"


def test_characters_of_two_columns_and_of_none():
    lines = aligned("", [("token", "n"), ("'本'", "1"), ("'e\u0301'", "2")]).splitlines()
    assert lines[2] == "  '本'   1"
    assert lines[3] == "  'e\u0301'    2"
