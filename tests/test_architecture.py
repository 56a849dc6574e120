"""The arrows of ARCHITECTURE.md, read from the syntax tree: a file imports only from below, and nothing in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nanolm"

# A room may import from those before it, and from itself. `loss` stands alone but for errors.
FLOORS = [
    {"errors", "seeds", "stop"},
    {"files", "device"},
    {"config"},
    {"loss", "model", "data", "tracking"},
    {"optim", "metrics", "objective"},
    {"calibration", "sampling"},
    {"report", "evaluation"},
    {"training"},
    {"train", "inference", "classifiers", "comparison"},
    {"lessons"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Libraries that these rooms alone may know.
OWNERS = {
    "hydra": {"config"},
    "omegaconf": {"config"},
    "wandb": {"tracking"},
    "rich": {"tracking"},
    "datasets": {"data"},
    "transformers": {"interop"},
    "sklearn": {"classifiers", "lessons"},
    "scipy": {"metrics"},
    "matplotlib": {"report", "classifiers", "comparison", "lessons"},
    "jinja2": {"report"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_files(path: Path) -> set[Path]:
    """The files of the package that a file imports."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "nanolm":
            continue
        for length in range(len(parts), 1, -1):  # the longest part of a dotted name that is a file
            place = ROOT.joinpath(*parts[:length])
            hits = [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
            if hits:
                found.add(hits[0])
                break
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@every_file
def test_a_file_imports_only_from_below(path):
    room = room_of(path)
    for other in map(room_of, imported_files(path)):
        assert other == room or FLOOR[other] < FLOOR[room], f"{room} imports {other}"
        assert room != "loss" or other in ("loss", "errors"), "nanolm.loss can be lifted out with errors alone"


def test_no_files_import_each_other_in_a_circle():
    graphlib.TopologicalSorter({path: imported_files(path) for path in FILES}).prepare()


def test_nothing_imports_the_lessons_and_hardly_anything_the_runs():
    for path in FILES:
        for other in map(room_of, imported_files(path)):
            assert room_of(path) == other or other not in ("lessons", "train", "inference"), path


@every_file
def test_a_library_is_known_to_its_rooms_alone(path):
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or room_of(path) in owners, f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("suffix", ["py", "md"])
def test_no_line_is_too_long(suffix):
    """Code up to 120 columns, documents up to 100; a line of a table or a bare link cannot be wrapped."""
    limit = {"py": 120, "md": 100}[suffix]
    for path in [
        *ROOT.glob(f"*.{suffix}"),
        *(p for f in ("docs", "tests", "data", "nanolm") for p in ROOT.glob(f"{f}/**/*.{suffix}")),
    ]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            unwrappable = suffix == "md" and (line.lstrip().startswith(("|", "[")) or "](" in line)
            assert len(line) <= limit or unwrappable, f"{path}:{number}: {len(line)} columns"
