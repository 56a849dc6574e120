"""The table of promises names tests that exist."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def test_every_test_of_the_table_exists():
    path, num_found = None, 0
    for file, name in re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?…?`", (FOLDER / "README.md").read_text()):
        if file:
            path = ROOT / file if "/" in file else FOLDER / file
            assert path.is_file(), file
        if name:
            assert path is not None
            assert re.search(rf"^def {name}", path.read_text(), re.MULTILINE), f"{path}: {name}"
            num_found += 1
    assert num_found > 20
