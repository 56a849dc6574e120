from nanolm.tracking.tables import aligned


def test_words_to_the_left_and_numbers_to_the_right():
    rows = [("name", "value", "note"), ("a", "1.5", "x"), ("longer", "10.25", "")]
    assert aligned("title", rows).splitlines() == [
        "title",
        "  name    value  note",
        "  a         1.5  x",
        "  longer  10.25",
    ]
    assert aligned("", rows, left=["value"]).splitlines()[2] == "  a       1.5       x"


def test_characters_of_two_columns_and_of_none():
    lines = aligned("", [("token", "n"), ("'本'", "1"), ("'e\u0301'", "2"), ("[a]", "3")]).splitlines()
    assert lines[2:] == ["  '本'   1", "  'e\u0301'    2", "  [a]    3"]


def test_words_are_folded_at_the_width_and_numbers_are_not():
    rows = [("name", "value", "note"), ("a", "1.2345 [1.2, 1.3]", " ".join(["word"] * 30))]
    lines = aligned("", rows, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert "1.2345 [1.2, 1.3]" in lines[2]
    assert sum(line.count("word") for line in lines) == 30
