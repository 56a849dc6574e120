"""Every row of the README has a test, and every test that it names exists."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def named_tests(text):
    """Return (file, name) of the tests in a text; a name without a file is in the file before it."""
    path, found = None, []
    for file, name in re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?`", text):
        if file:
            path = ROOT / file if "/" in file else FOLDER / file
        if name:
            found.append((path, name))
    return found


def test_every_named_test_exists():
    for path, name in named_tests(README):
        assert re.search(rf"^def {name}", path.read_text(), re.MULTILINE), f"{path}: {name}"


def test_every_row_names_its_tests():
    rows = re.findall(r"^\| (R\d+) \|", README, re.MULTILINE)
    lists = dict(re.findall(r"^- (R\d+): (.*?)(?=^- |^## )", README, re.MULTILINE | re.DOTALL))
    assert sorted(rows) == sorted(lists)
    assert sorted(rows) == sorted(f"R{number}" for number in range(1, 25))
    assert all(named_tests(tests) for tests in lists.values())
    assert max(map(len, README.splitlines())) <= 100
